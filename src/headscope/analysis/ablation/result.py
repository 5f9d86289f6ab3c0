"""`AblationResult`, which `ablate_heads` returns."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Self

from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.result import Array, Result
from headscope.analysis.core.top_places import top_positions
from headscope.errors import InvalidInputError

__all__ = ["AblationResult", "AffectedPosition", "AffectedPositions"]


@dataclass(frozen=True)
class AffectedPosition:
    """A place where an ablation matters.

    Attributes:
        row: Which row of the data.
        pos: The position that predicts.
        loss_diff: Ablated minus original loss of the token that comes next, in nats.
        context: The text up to and with this position.
        next_token: The token that comes next.
        before: Its probability in the model as it is.
        after: Its probability with the component ablated.
    """

    row: int
    pos: int
    loss_diff: float
    context: str
    next_token: str
    before: float
    after: float


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else f"{100 * share:.1g}%"


class AffectedPositions(tuple[AffectedPosition, ...]):
    """Positions in order, printed with their text."""

    __slots__ = ()

    def __str__(self) -> str:
        lines = []
        for place in self:
            lines.append(
                f"row {place.row}, position {place.pos}: {place.loss_diff:+.3f} nats, "
                f"{place.next_token!r} from {_percent(place.before)} to {_percent(place.after)} when ablated"
            )
            lines.append(f"  ...{place.context!r} -> {place.next_token!r}")
        return "\n".join(lines)

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class AblationResult(Result):
    """Losses with components ablated, per position (NaN where one does not count), or as means over positions.

    A position is that of the token a prediction is made from, so that rows are one shorter than the data's.

    Attributes:
        loss: Of the model as it is, in nats, `[batch, pos]`, or a mean.
        loss_diff: Ablated minus original loss in nats, `[value, effect, component, batch, pos]`, or means
            `[value, effect, component]`. Positive: the component helps there.
        kl: From the clean prediction to the ablated one, in nats, the same shape; `None` unless asked for.
        loss_diff_error: One standard error of the mean of `loss_diff`, over rows (see `core.stats`).
        tokens: The data, `[batch, pos + 1]`, -1 where a row has ended; `None` with means.
        values: What was put in place: `zero`, `mean`, `resample`.
        effects: `patched`, `direct`, `indirect`.
        component_labels: `10.7`, `mlp3`, or `10.7+11.10` for components ablated together.
        token_ids: The different tokens of the data, rising; `None` with means.
        token_strings: What they are as text.
    """

    kind: ClassVar[str] = "ablation"
    arrays: ClassVar[Mapping[str, Array]] = {
        "loss_diff": Array(
            "value effect component batch pos",
            unit="nats",
            title="loss difference",
            error="loss_diff_error",
            style="+.5f",
        ),
        "loss": Array("batch pos", unit="nats"),
        "kl": Array(
            "value effect component batch pos",
            unit="nats",
            absent="KL was not measured. Run ablate_heads with kl=True.",
        ),
        "loss_diff_error": Array("value effect component", unit="nats", column="error"),
    }
    coords: ClassVar[Mapping[str, str]] = {"value": "values", "effect": "effects", "component": "component_labels"}
    rows: ClassVar[tuple[str, ...]] = ("component", "value", "effect")
    columns: ClassVar[tuple[str, ...]] = ("loss_diff", "loss_diff_error", "kl")
    ranked: ClassVar[tuple[str, ...]] = ("loss_diff",)
    fixed: ClassVar[Mapping[str, int | str]] = {"value": 0, "effect": 0}
    ends: ClassVar[tuple[str, str]] = ("help most", "help least")
    loss: Float[Tensor, "*batch_pos"]
    loss_diff: Float[Tensor, "value effect component *batch_pos"]
    kl: Float[Tensor, "value effect component *batch_pos"] | None
    loss_diff_error: Float[Tensor, "value effect component"]
    tokens: Int[Tensor, "batch length"] | None
    values: tuple[str, ...]
    effects: tuple[str, ...]
    component_labels: tuple[str, ...]
    token_ids: Int[Tensor, " token"] | None
    token_strings: tuple[str, ...]

    def mean(self) -> Self:
        """The means over the positions that count; itself if it holds means already."""
        return self._position_means(tokens=None, token_ids=None, token_strings=())

    def of(
        self, component: str | tuple[int, int] | None = None, *, value: str | None = None, effect: str | None = None
    ) -> Float[Tensor, "*batch_pos"]:
        """`loss_diff` of one component, by label (`"10.7"`) or `(layer, head)`.

        Args:
            component: Which; may be left out if there is only one.
            value: Which of `values`; the first by default.
            effect: Which of `effects`; the first by default.

        Raises:
            InvalidInputError: for one that was not measured.
        """
        if component is None and len(self.component_labels) == 1:
            component = self.component_labels[0]
        if component is None:
            labels = self.component_labels
            raise InvalidInputError(
                f"this result holds {len(labels)} components, {', '.join(labels[:8])}, ...; say which one: "
                f"component={labels[0]!r}."
            )
        return self.sel(component=component, value=value or self.values[0], effect=effect or self.effects[0])

    def top_positions(
        self,
        k: int = 5,
        *,
        component: str | tuple[int, int] | None = None,
        value: str | None = None,
        effect: str | None = None,
        largest: bool = True,
        before: int = 20,
    ) -> AffectedPositions:
        """Return the positions where a component helps most (`largest=False`: hurts most), in context.

        Args:
            k: Number of positions.
            component: Which component; may be left out if there is only one.
            value: Which of `values`; the first by default.
            effect: Which of `effects`; the first by default.
            largest: Where ablating it costs most, or else gains most.
            before: How many tokens of context to show before the position, clipped at the row's start.

        Raises:
            InvalidInputError: for what was not measured, or if only means are held.
        """
        if self.tokens is None or self.token_ids is None:
            raise InvalidInputError(
                "this result holds means only, so single positions are not known. Run ablate_heads with reduce='none'.",
                code="HS-RESULT-01",
            )
        strings = dict(zip(self.token_ids.tolist(), self.token_strings, strict=True))
        found = []
        for place in top_positions(self.of(component, value=value, effect=effect), k, largest=largest):
            row = self.tokens[place.row].tolist()
            loss = float(self.loss[place.row, place.pos])
            found.append(
                AffectedPosition(
                    row=place.row,
                    pos=place.pos,
                    loss_diff=place.value,
                    # Padding on the left is no context.
                    context="".join(strings[row[pos]] for pos in place.context(before) if row[pos] >= 0),
                    next_token=strings[row[place.pos + 1]],
                    before=math.exp(-loss),
                    after=math.exp(-(loss + place.value)),
                )
            )
        return AffectedPositions(found)

    def _notes(self) -> Iterator[str]:
        yield f"loss: {float(self.mean().loss):.4f} nats"
        for value, effect in product(self.values, self.effects):
            yield self._ends("loss_diff", f"{value}, {effect}", value=value, effect=effect)
