"""The section on the tables beside the page, and how the numbers were made."""

from collections.abc import Mapping, Sequence

from headscope.analysis.core.result import RunInfo
from headscope.report.blocks import FactList, Prose, Section
from headscope.report.words import listed, say

__all__ = ["numbers_section", "table_links"]


def table_links(tables: Mapping[str, str]) -> FactList:
    """Links to the tables, by file name with what each holds."""
    links: dict[str, str] = {say('<a href="{n}"><code>{n}</code></a>', n=name): what for name, what in tables.items()}
    return FactList("Tables beside this page", links)


def numbers_section(tables: Mapping[str, str], entropy: RunInfo | None, processing: Sequence[str]) -> Section:
    """Links to the tables, and how the numbers were made.

    Args:
        tables: What each holds, by file name.
        entropy: The run that measured entropy, if there was one.
        processing: The weight processing of the model.
    """
    words = say("Measured")
    if entropy is not None:
        pairs = entropy.options.items()
        options = listed(say("<code>{name}={value}</code>", name=name, value=value) for name, value in pairs)
        words = say("Entropy was measured with {options}", options=options)
    if processing:
        names = listed(say("<code>{name}</code>", name=name) for name in processing)
        words += say("{comma} on weights processed by {names}", comma="," if entropy else "", names=names)
    elif entropy is None:
        words += say(" on weights as they are")
    words += say(
        ". A head's output is what its own value vectors write; biases belong to no head, so the numbers depend on the "
        "processing."
    )
    if entropy is not None and not entropy.options.get("include_bos"):
        words += say(" Positions of a beginning-of-sequence token are left out of all means of entropy.")
    return Section("numbers", "The numbers, and how they were made", (), (table_links(tables), Prose(words)))
