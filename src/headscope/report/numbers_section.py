"""The section on the tables beside the page, and how the numbers were made."""

from collections.abc import Mapping

from headscope.analysis.core.result import RunInfo
from headscope.report.blocks import FactList, Prose, Section
from headscope.report.words import listed, say

__all__ = ["numbers_section", "table_links"]


def table_links(tables: Mapping[str, str]) -> FactList:
    """Links to the tables, by file name with what each holds."""
    links: dict[str, str] = {say('<a href="{n}"><code>{n}</code></a>', n=name): what for name, what in tables.items()}
    return FactList("Tables beside this page", links)


def numbers_section(tables: Mapping[str, str], info: RunInfo) -> Section:
    """Links to the tables, and the options of the run."""
    options = listed(say("<code>{name}={value}</code>", name=name, value=value) for name, value in info.options.items())
    words = say("Entropy was measured with {options}", options=options)
    if info.processing:
        names = listed(say("<code>{name}</code>", name=name) for name in info.processing)
        words += say(", on weights processed by {names}", names=names)
    words += say(
        ". A head's output is what its own value vectors write; biases belong to no head, so the numbers depend on the "
        "processing."
    )
    if not info.options.get("include_bos"):
        words += say(" Positions of a beginning-of-sequence token are left out of all means of entropy.")
    return Section("numbers", "The numbers, and how they were made", (), (table_links(tables), Prose(words)))
