"""Places in the text where a number is large: a view of the tokens up to one, and where it stands."""

from collections.abc import Sequence

from markupsafe import Markup
from torch import Tensor

from headscope.analysis.core.top_places import Position
from headscope.report.blocks import View
from headscope.report.words import say
from headscope.views.tokens import colored_tokens

__all__ = ["CONTEXT", "place_view", "share_above", "where", "widest"]

CONTEXT = 20


def place_view(strings: Sequence[Sequence[str]], values: Tensor, place: Position, *, name: str, limit: float) -> View:
    """View of the tokens up to a place, which is framed, colored by `values [batch, pos]` in nats."""
    window = place.context(CONTEXT)
    return View(
        colored_tokens(
            [strings[place.row][at] for at in window],
            values[place.row, window.start : window.stop],
            name=name,
            unit="nats",
            min_value=-limit,
            max_value=limit,
            marked=[len(window) - 1],
            first_position=window.start,
            legend=False,
        )
    )


def where(place: Position) -> Markup:
    """The sequence and position of a place."""
    return say('<span class="soft">sequence {row}, position {pos}</span>', row=place.row, pos=place.pos)


def widest(places: Sequence[Position]) -> float:
    """The largest absolute value at these places, for a common color scale."""
    return max((abs(place.value) for place in places), default=1.0) or 1.0


def share_above(values: Tensor) -> float:
    """Share of the known values that are above zero."""
    known = values[~values.isnan()]
    return float((known > 0).double().mean())
