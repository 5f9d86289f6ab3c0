"""The sections of a page, put together from what was measured; and what a stop or a failure left out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from headscope.report.blocks import Page, Section
from headscope.report.files import write_page
from headscope.report.kept import Kept
from headscope.report.parts import Outcome, Stopped, attempt
from headscope.report.words import listed, say

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Assembly", "Builder", "assembled", "write_assembled"]

# The words for sections whose names are short for them.
_CALLED = {"task": "indirect objects", "suppression": "copy suppression", "types": "head types",
           "attention": "attention patterns"}  # fmt: skip

# Makes the parts of a section; `None` stands for what there is nothing to say of.
Builder = Callable[[], Sequence[Section | None]]


@dataclass(frozen=True)
class Assembly:
    """The sections of a page, by name.

    Attributes:
        sections: What is on the page, in its order.
        missing: What a stop left undone.
        failed: The error of each section that could not be made.
    """

    sections: Mapping[str, Sequence[Section]]
    missing: tuple[str, ...]
    failed: Mapping[str, Exception]

    @property
    def flat(self) -> list[Section]:
        """All sections that are on the page."""
        return [section for each in self.sections.values() for section in each]

    def notices(self, command: str) -> list[Markup]:
        """Return sentences for the top of the page: what is not on it, and why.

        Args:
            command: What continues a report that was stopped.
        """
        notices = []
        if self.missing:
            notices.append(
                say(
                    "<b>This report is not whole: it was stopped.</b> Missing: {names}; nothing is said of that below. "
                    "What was measured is kept; to continue: <code>{command}</code>",
                    names=_names(self.missing),
                    command=command,
                )
            )
        for error in dict.fromkeys(self.failed.values()):
            notices.append(
                say(
                    "<b>This report is not whole:</b> {names} failed; nothing is said of that below. {kind}: {error}",
                    names=_names([name for name, each in self.failed.items() if each is error]),
                    kind=type(error).__name__,
                    error=error,
                )
            )
        return notices


def assembled(
    builders: Mapping[str, Builder], needs: Mapping[str, Sequence[str]], outcomes: Sequence[Outcome]
) -> Assembly:
    """Make each section for which all was measured.

    Args:
        builders: How each is made, in the order of the page.
        needs: The parts of a measurement that each is made from.
        outcomes: What came of those parts, for each model.
    """
    sections: dict[str, list[Section]] = {}
    failed: dict[str, Exception] = {}
    missing: list[str] = []
    for name, build in builders.items():
        parts = [(outcome, part) for outcome in outcomes for part in needs[name]]
        errors = [outcome.failed[part] for outcome, part in parts if part in outcome.failed]
        if errors:
            failed[name] = errors[0]
        elif any(part in outcome.left for outcome, part in parts):
            missing.append(name)
        else:
            built = attempt(build)
            if isinstance(built, Exception):
                failed[name] = built
            else:
                sections[name] = [section for section in built if section is not None]
    return Assembly(sections, tuple(missing), failed)


def write_assembled(
    assembly: Assembly,
    out: Path,
    name: str,
    make: Callable[[], tuple[Page, "Mapping[str, pd.DataFrame]"]],
    *,
    kept: Kept,
    command: str,
    of_old: Iterable[str],
) -> tuple[Path, tuple[Path, ...]]:
    """Write a page and its tables, and keep the measurements unless the page is whole.

    Args:
        assembly: The sections.
        out: The folder to write to.
        name: The page's file name.
        make: Makes the page, and the tables by name.
        kept: Where the measurements are.
        command: What continues a report that was stopped.
        of_old: Tables that an earlier page may have left.

    Returns:
        The paths of the page and of the tables.

    Raises:
        Stopped: If a stop left something out, or comes now.
        HeadscopeError: The first failure, or whatever other error it is, if there is no section at all.
    """
    how = f"What was measured is kept in {kept.folder}; to continue: {command}"
    if not assembly.sections:
        if assembly.missing:
            raise Stopped(f"No section was done yet. {how}")
        raise next(iter(assembly.failed.values()))
    try:
        path, paths = write_page(out, name, *make(), of_old=of_old)
    except KeyboardInterrupt:
        raise Stopped(f"The page was not written. {how}") from None
    if assembly.missing:
        on_it, missing = (", ".join(names) for names in (assembly.sections, assembly.missing))
        raise Stopped(f"{path} has the sections that were done ({on_it}), and lacks {missing}. {how}")
    if not assembly.failed:
        kept.remove()
    return path, paths


def _names(sections: Sequence[str]) -> Markup:
    return listed(say("<b>{name}</b>", name=_CALLED.get(name, name)) for name in sections)
