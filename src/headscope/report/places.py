"""Places where a number is large: among the heads, and in the text."""

from collections.abc import Callable, Iterable, Sequence

from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from headscope.analysis.core.ranking import HeadScore
from headscope.analysis.core.stats import known_in_order
from headscope.analysis.core.top_places import Position
from headscope.ops.devices import wide
from headscope.report.blocks import Block, View
from headscope.report.words import prose, signed
from headscope.views.tokens import colored_tokens

__all__ = ["CONTEXT", "Head", "head_of", "heads_in_order", "place_blocks", "share_above"]

CONTEXT = 20

Head = tuple[int, int]


def head_of(score: HeadScore) -> Head:
    """The layer and number of a ranked head."""
    return score.layer, int(score.head or 0)


def heads_in_order(values: Float[Tensor, "layer head"]) -> list[Head]:
    """The heads, that with the largest value first."""
    order = known_in_order(values.flatten())
    return [divmod(index, values.shape[1]) for index in order]


def place_blocks(
    strings: Sequence[Sequence[str]],
    values: Tensor,
    places: Sequence[Position],
    *,
    name: str,
    says: Callable[[Position], Markup],
    then: Callable[[Position], Iterable[Block]] = lambda _: (),
) -> list[Block]:
    """For each place its value in nats, what `says` tells of it, and the text up to it; and `then` further blocks.

    The texts are colored by `values [batch, pos]`, on one scale.
    """
    limit = max((abs(place.value) for place in places), default=1.0) or 1.0
    blocks: list[Block] = []
    for place in places:
        sentence = '<b>{value} nats</b> {says} <span class="soft">sequence {row}, position {pos}</span>'
        words = prose(sentence, value=signed(place.value), says=says(place), row=place.row, pos=place.pos)
        blocks += [words, _text_up_to(strings, values, place, name=name, limit=limit), *then(place)]
    return blocks


def _text_up_to(strings: Sequence[Sequence[str]], values: Tensor, place: Position, *, name: str, limit: float) -> View:
    """View of the tokens up to a place, which is framed."""
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


def share_above(values: Tensor) -> float:
    """Share of the known values that are above zero."""
    known = values[~values.isnan()]
    return float(wide(known > 0).mean())
