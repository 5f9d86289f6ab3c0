"""Parts of a page: sections made of blocks, which the template draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from markupsafe import Markup

from headscope.views.html import HtmlView


@runtime_checkable
class Plot(Protocol):
    """A plotly figure."""

    def to_json(self) -> str: ...


class Block:
    """A part of a section; the template draws it by its class."""

    @property
    def kind(self) -> str:
        """The name of its class."""
        return type(self).__name__


@dataclass(frozen=True)
class Prose(Block):
    """A paragraph; `soft` ones are asides."""

    text: Markup
    soft: bool = False


@dataclass(frozen=True)
class Heading(Block):
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class Figure(Block):
    """A plotly figure or a view of tokens, with its caption.

    Attributes:
        drawing: The figure or view.
        shows: The caption: what it shows.
        how: How it was computed.
        color: What color means in it.
    """

    drawing: Plot | HtmlView
    shows: Markup
    how: Markup
    color: Markup


@dataclass(frozen=True)
class View(Block):
    """A view of tokens within running text, without a caption."""

    view: HtmlView


@dataclass(frozen=True)
class Cell:
    """A cell's text, and the value it is sorted by; `None` comes last."""

    text: Markup | str
    value: float | int | str | None


@dataclass(frozen=True)
class Table(Block):
    """A table, sortable by each of its columns.

    Attributes:
        columns: Headings.
        rows: Cells, one for each column.
        caption: What the rows are, and how to read them.
        words: Columns of words, by number: they stand at the left, numbers at the right.
        sorted_by: The column that the rows are sorted by already.
        descending: Largest first.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: Markup
    words: tuple[int, ...] = ()
    sorted_by: int | None = None
    descending: bool = True


@dataclass(frozen=True)
class FactList(Block):
    """Names and their values, under a heading."""

    title: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Fold(Block):
    """Blocks that are closed until opened; on paper they are open."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Card(Block):
    """A framed part about one thing, which links can lead to."""

    id: str
    title: str
    tags: Sequence[Markup]
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Row(Block):
    """Blocks side by side, where there is room."""

    blocks: Sequence[Block]


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
        id: Its anchor.
        title: Its heading.
        summary: Findings, in sentences for the top of the page; none where nothing exceeds the noise.
        blocks: Its contents.
    """

    id: str
    title: str
    summary: Sequence[Markup]
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: Its heading.
        subtitle: Its subject, under the heading.
        sections: Its sections.
        notices: What a reader must know before all else, such as what is missing.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    notices: Sequence[Markup] = ()
