"""Rankings: heads, MLPs and whatever else a result ranks, in order of a number."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.components import component_label

__all__ = ["HeadScore", "Ranking"]


@dataclass(frozen=True)
class HeadScore:
    """An entry of a ranking: a head, an MLP, or whatever else the result ranks, and its number.

    Labels on further axes read as attributes: the `site` and `position` of a patch, the `neuron` of an MLP.

    Attributes:
        layer: Its layer, an integer; `None` for what has no single one, such as a set of heads.
        head: Its head; `None` for an MLP.
        value: Its number.
        error: The standard error, where the result has one.
        share: The number as a share of a whole, where the result has one.
        name: The label of what is neither a head nor an MLP.
        row: Labels on all axes, and the number under its column's name.
    """

    layer: Any
    head: int | None
    value: float
    error: float | None = None
    share: float | None = None
    name: str = ""
    row: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def label(self) -> str:
        """`10.7` for a head, `mlp10` for an MLP."""
        return self.name or component_label(self.layer, self.head)

    def __getattr__(self, name: str) -> Any:
        # Only called for what is no field; `__dict__` because a copy has no fields yet.
        row = self.__dict__.get("row", {})
        if name not in row:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return row[name]


class Ranking(tuple[HeadScore, ...]):
    """Entries in order, printed as a table.

    Example:
        >>> Ranking([HeadScore(10, 7, 0.25, 0.01), HeadScore(3, None, -0.5, 0.02)], name="loss", unit="nats")
                 loss (nats)
        10.7     +0.2500 ± 0.0100
        mlp3     -0.5000 ± 0.0200
    """

    unit: str
    name: str
    style: str

    def __new__(cls, scores: Iterable[HeadScore], *, name: str = "score", unit: str = "", style: str = "+.4f") -> Self:
        ranking = super().__new__(cls, tuple(scores))
        ranking.name, ranking.unit, ranking.style = name, unit, style
        return ranking

    @classmethod
    def of_heads(
        cls, values: Float[Tensor, "layer head"], k: int, *, name: str, unit: str = "", largest: bool = True
    ) -> Self:
        """Rank the `k` heads with the largest (or smallest) values."""
        order = values.flatten().argsort(descending=largest, stable=True)[:k].tolist()
        places = [divmod(at, values.shape[1]) for at in order]
        scores = (HeadScore(layer, head, float(values[layer, head])) for layer, head in places)
        return cls(scores, name=name, unit=unit)

    def only(self, keep: Callable[[HeadScore], bool]) -> Self:
        """Those entries that pass a test, in the same order."""
        return type(self)(filter(keep, self), name=self.name, unit=self.unit, style=self.style)

    def line(self, *, errors: bool = False) -> str:
        """All in one line: `10.7 +0.2500, mlp3 -0.5000`.

        Args:
            errors: Put each entry's standard error behind it, where there is one: `10.7 +0.2500 ± 0.0100`.
        """
        return ", ".join(
            f"{score.label} {score.value:{self.style}}{self._error(score) if errors else ''}" for score in self
        )

    def _error(self, score: HeadScore) -> str:
        return "" if score.error is None else f" ± {score.error:{self.style.removeprefix('+')}}"

    def __str__(self) -> str:
        width = max(8, *(len(score.label) for score in self)) if self else 8
        heading = f"{self.name} ({self.unit})" if self.unit else self.name
        shares = any(score.share is not None for score in self)
        lines = [f"{'':<{width}} {heading}{', share' if shares else ''}"]
        for score in self:
            share = "" if score.share is None else f"  {score.share:+.1%}"
            lines.append(f"{score.label:<{width}} {score.value:{self.style}}{self._error(score)}{share}")
        return "\n".join(lines)

    __repr__ = __str__
