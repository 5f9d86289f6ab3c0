"""What a page is made of: sections of blocks. A section's file makes one, a page has some, the template draws them."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from markupsafe import Markup

from headscope.views.html import HtmlView

__all__ = [
    "Block",
    "Caption",
    "Card",
    "Cell",
    "Column",
    "FactList",
    "Figure",
    "Fold",
    "Heading",
    "Page",
    "Plot",
    "Prose",
    "Row",
    "Section",
    "Table",
    "View",
]


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
    """What stands under a figure.

    Attributes:
        shows: What is to be seen.
        how: How it was computed.
        colour: What colour means in it.
    """

    shows: Markup
    how: Markup
    colour: Markup


@dataclass(frozen=True)
class Figure:
    """A plotly figure or a view of tokens, with its caption."""

    kind: ClassVar[str] = "figure"
    drawing: Plot | HtmlView
    caption: Caption


@dataclass(frozen=True)
class View:
    """A view of tokens within a running text that says what it is."""

    kind: ClassVar[str] = "view"
    view: HtmlView


@dataclass(frozen=True)
class Column:
    """A column's heading; `words` stand at the left, numbers at the right."""

    name: str
    words: bool = False


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what it is sorted by; `None` comes last."""

    text: Markup | str
    value: float | int | str | None


@dataclass(frozen=True)
class Table:
    """A table that can be sorted by each of its columns.

    Attributes:
        columns: Its headings.
        rows: Cells, as many in each as there are columns.
        caption: What the rows are, and how to read them.
        sorted_by: The column that the rows are already sorted by.
        descending: In which direction.
    """

    kind: ClassVar[str] = "table"
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: Markup
    sorted_by: int | None = None
    descending: bool = True


@dataclass(frozen=True)
class FactList:
    """Names and what they are, under a heading."""

    kind: ClassVar[str] = "facts"
    title: str
    facts: tuple[tuple[Markup | str, Markup | str], ...]


@dataclass(frozen=True)
class Fold:
    """What is out of sight until asked for; printed all the same."""

    kind: ClassVar[str] = "fold"
    title: str
    blocks: "tuple[Block, ...]"


@dataclass(frozen=True)
class Card:
    """A framed part about one thing, with an address of its own."""

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
        id: Its address on the page.
        title: Its heading.
        summary: What was found, in sentences for the top of the page; none where nothing is beyond noise.
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
        subtitle: What it is about, under it.
        sections: Its parts.
    """

    title: str
    subtitle: str
    sections: tuple[Section, ...]
