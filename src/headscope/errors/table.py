"""All codes of errors, in the order of the documentation, from which its pages are made.

A new code takes the next number of its subject and a line in `tests/errors/codes.txt`, so that none is used twice.
"""

from headscope.errors import unknown_name
from headscope.errors.entries import classes, data_and_results, models, names, runs, tasks, tokens
from headscope.errors.entry import Entry

ENTRIES: tuple[Entry, ...] = (
    *classes.ENTRIES,
    *names.ENTRIES,
    *tokens.ENTRIES,
    *models.ENTRIES,
    *runs.ENTRIES,
    *tasks.ENTRIES,
    *data_and_results.ENTRIES,
)

_BY_CODE = {entry.code: entry for entry in ENTRIES}


def explain(code: str) -> Entry:
    """Return what is known of an error, by the code that its message ends in.

    Args:
        code: With or without brackets, in any case.

    Raises:
        UnknownNameError: If there is no such code.

    Example:
        >>> print(explain("[HS-CONFIG-05]").repair)
        For trained weights: `HookedTransformer.from_pretrained("gpt2")`.
    """
    wanted = code.strip("[] ").upper()
    if wanted not in _BY_CODE:
        raise unknown_name("code of an error", code, _BY_CODE)
    return _BY_CODE[wanted]
