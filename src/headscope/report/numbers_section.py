"""The section on the tables beside the page, and how the numbers were made."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from headscope.analysis.core.result import RunInfo
from headscope.report.blocks import FactList, Prose, Section
from headscope.report.words import listed, say

__all__ = ["how_it_was_made", "numbers_section", "table_links"]


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
    words = how_it_was_made({} if entropy is None else entropy.options, processing)
    return Section("numbers", "The numbers, and how they were made", (), (table_links(tables), Prose(words)))


def how_it_was_made(entropy: Mapping[str, object], processing: Sequence[str]) -> Markup:
    """The options that entropy was measured with, none where it was not, and the processing of the weights."""
    made = "weights processed by {names}" if processing else "weights as they are"
    names = listed(say("<code>{name}</code>", name=name) for name in processing)
    if entropy:
        options = listed(say("<code>{name}={value}</code>", name=name, value=value) for name, value in entropy.items())
        words = say("Entropy was measured with {options}, on " + made + ".", options=options, names=names)
    else:
        words = say("All was measured on " + made + ".", names=names)
    words += say(
        " A head's output is what its own value vectors write. Biases belong to no head: where a model has value "
        "biases, its numbers depend on whether these are folded into the output bias (<code>fold_value_biases</code>)."
    )
    if entropy and not entropy.get("include_bos"):
        words += say(" Positions of a beginning-of-sequence token are left out of all means of entropy.")
    return words
