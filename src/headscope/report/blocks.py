"""Parts of a page: sections made of blocks, which the template draws."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from markupsafe import Markup

from headscope.views.html import HtmlView


@runtime_checkable
class Plot(Protocol):
    """A plotly figure."""

    def to_json(self) -> str: ...


@dataclass(frozen=True)
class Prose:
    """A paragraph; `soft` ones are asides."""

    kind: ClassVar[str] = "prose"
    text: Markup
    soft: bool = False


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Caption:
    """The text under a figure.

    Attributes:
        shows: What it shows.
        how: How it was computed.
        color: What color means in it.
    """

    shows: Markup
    how: Markup
    color: Markup


@dataclass(frozen=True)
class Figure:
    """A plotly figure or a view of tokens, with its caption."""

    kind: ClassVar[str] = "figure"
    drawing: Plot | HtmlView
    caption: Caption


@dataclass(frozen=True)
class View:
    """A view of tokens within running text, without a caption."""

    kind: ClassVar[str] = "view"
    view: HtmlView


@dataclass(frozen=True)
class Column:
    """A column's heading; `words` stand at the left, numbers at the right."""

    name: str
    words: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell's text, and the value it is sorted by; `None` comes last."""

    text: Markup | str
    value: float | int | str | None


@dataclass(frozen=True)
class Table:
    """A table, sortable by each of its columns.

    Attributes:
        columns: Headings.
        rows: Cells, one for each column.
        caption: What the rows are, and how to read them.
        sorted_by: The column that the rows are sorted by already.
        descending: Largest first.
    """

    kind: ClassVar[str] = "table"
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: Markup
    sorted_by: int | None = None
    descending: bool = True


@dataclass(frozen=True)
class FactList:
    """Names and their values, under a heading."""

    kind: ClassVar[str] = "facts"
    title: str
    facts: tuple[tuple[Markup | str, Markup | str], ...]


@dataclass(frozen=True)
class Fold:
    """Blocks that are closed until opened; on paper they are open."""

    kind: ClassVar[str] = "fold"
    title: str
    blocks: "tuple[Block, ...]"


@dataclass(frozen=True)
class Card:
    """A framed part about one thing, which links can lead to."""

    kind: ClassVar[str] = "card"
    id: str
    title: str
    tags: tuple[Markup, ...]
    blocks: "tuple[Block, ...]"


@dataclass(frozen=True)
class Row:
    """Blocks side by side, where there is room."""

    kind: ClassVar[str] = "row"
    blocks: "tuple[Block, ...]"


Block = Prose | Heading | Figure | View | Table | FactList | Fold | Card | Row


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
    summary: tuple[Markup, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: Its heading.
        subtitle: Its subject, under the heading.
        sections: Its parts.
    """

    title: str
    subtitle: str
    sections: tuple[Section, ...]
