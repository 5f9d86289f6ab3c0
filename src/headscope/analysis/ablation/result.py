"""`AblationResult`: what `ablate_heads` returns."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.result import Result, check_option, masked_mean
from headscope.analysis.core.top_places import top_positions
from headscope.errors import InvalidInputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AblationResult", "AblationScore", "AblationScores", "AffectedPosition", "AffectedPositions"]


@dataclass(frozen=True)
class AblationScore:
    """What one ablation does to the mean loss.

    Attributes:
        label: `10.7`, `MLP 3`, or `10.7+11.10` for a set.
        loss_diff: Ablated minus original, in nats.
        error: One standard error of it, over rows.
    """

    label: str
    loss_diff: float
    error: float


class AblationScores(tuple[AblationScore, ...]):
    """Scores in order, printed as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        width = max([5, *(len(score.label) for score in self)])
        rows = [f"{score.label:<{width}}  {score.loss_diff:+.5f} ± {score.error:.5f}" for score in self]
        return "\n".join([f"{'':<{width}}  loss difference (nats)", *rows])

    __repr__ = __str__


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


class AffectedPositions(tuple[AffectedPosition, ...]):
    """Positions in order, printed with their text."""

    __slots__ = ()

    def __str__(self) -> str:
        lines = []
        for place in self:
            lines.append(
                f"row {place.row}, position {place.pos}: {place.loss_diff:+.3f} nats, "
                f"{place.next_token!r} from {place.before:.1%} to {place.after:.1%} when ablated"
            )
            lines.append(f"  ...{place.context!r} -> {place.next_token!r}")
        return "\n".join(lines)

    __repr__ = __str__


@dataclass(frozen=True)
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
        component_labels: `10.7`, `MLP 3`, or `10.7+11.10` for components ablated together.
        token_ids: The different tokens of the data, rising; `None` with means.
        token_strings: What they are as text.
    """

    kind: ClassVar[str] = "ablation"
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
        if self.loss.ndim == 0:
            return self
        return type(self)(
            info=self.info,
            loss=masked_mean(self.loss, (-2, -1)),
            loss_diff=masked_mean(self.loss_diff, (-2, -1)),
            kl=None if self.kl is None else masked_mean(self.kl, (-2, -1)),
            loss_diff_error=self.loss_diff_error,
            tokens=None,
            values=self.values,
            effects=self.effects,
            component_labels=self.component_labels,
            token_ids=None,
            token_strings=(),
        )

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
        return self.loss_diff[self._value(value), self._effect(effect), self._component(component)]

    def top(
        self, k: int = 10, *, value: str | None = None, effect: str | None = None, largest: bool = True
    ) -> AblationScores:
        """The components that help most (`largest=False`: whose ablation lowers the loss most).

        Raises:
            InvalidInputError: if `k` is below 1, or for a value or effect that was not measured.
        """
        if k < 1:
            raise InvalidInputError(f"k must be at least 1; got {k}.")
        cell = self._value(value), self._effect(effect)
        means, errors = self.mean().loss_diff[cell], self.loss_diff_error[cell]
        order = means.argsort(descending=largest)[:k].tolist()
        return AblationScores(
            AblationScore(self.component_labels[at], float(means[at]), float(errors[at])) for at in order
        )

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
        """Where a component helps most (`largest=False`: hurts most), in context.

        Args:
            k: How many positions.
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
                "this result holds means only, so single positions are not known. Run ablate_heads with reduce='none'."
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
                    context="".join(strings[row[pos]] for pos in place.context(before)),
                    next_token=strings[row[place.pos + 1]],
                    before=math.exp(-loss),
                    after=math.exp(-(loss + place.value)),
                )
            )
        return AffectedPositions(found)

    def to_frame(self) -> "pd.DataFrame":
        """One row for each value, effect and component: these, loss_diff, error, and kl if it was measured."""
        import pandas as pd

        means = self.mean()
        rows = [
            {
                "component": label,
                "value": value,
                "effect": effect,
                "loss_diff": float(means.loss_diff[v, e, c]),
                "error": float(self.loss_diff_error[v, e, c]),
                **({} if means.kl is None else {"kl": float(means.kl[v, e, c])}),
            }
            for c, label in enumerate(self.component_labels)
            for v, value in enumerate(self.values)
            for e, effect in enumerate(self.effects)
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        means = self.mean()
        lines = [f"AblationResult: {self.info}", f"  loss: {float(means.loss):.4f} nats"]
        for value in self.values:
            for effect in self.effects:
                best, worst = (
                    self.top(3, value=value, effect=effect),
                    self.top(3, value=value, effect=effect, largest=False),
                )
                lines.append(f"  {value}, {effect}: help most {_short(best)}; least {_short(worst)}")
        return "\n".join(lines)

    __repr__ = __str__

    def _value(self, value: str | None) -> int:
        check_option("value", value, (None, *self.values))
        return 0 if value is None else self.values.index(value)

    def _effect(self, effect: str | None) -> int:
        check_option("effect", effect, (None, *self.effects))
        return 0 if effect is None else self.effects.index(effect)

    def _component(self, component: str | tuple[int, int] | None) -> int:
        if component is None and len(self.component_labels) == 1:
            return 0
        label = component if isinstance(component, str) or component is None else f"{component[0]}.{component[1]}"
        if label not in self.component_labels:
            shown = ", ".join(self.component_labels[:8]) + (", ..." if len(self.component_labels) > 8 else "")
            raise InvalidInputError(f"component must be one of those measured ({shown}); got {component!r}.")
        return self.component_labels.index(label)


def _short(scores: AblationScores) -> str:
    return ", ".join(f"{score.label} {score.loss_diff:+.4f}" for score in scores)
