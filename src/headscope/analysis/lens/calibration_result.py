"""What measuring calibration gives: bins of probabilities, how often they came true, and what heads do to that."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.result import Ranking, Result, component_label, rank_components
from headscope.errors import InvalidInputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CalibrationResult"]

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class CalibrationResult(Result):
    """How probabilities compare with what came next.

    Bin `i` of `n` holds the predictions with `i/n <= p < (i+1)/n`, and the last one `p = 1` as well. Each position
    gives k predictions. With `D = sum(p - correct)` over all predictions, overconfidence is `D / sum(p)` where D is
    above 0, and `D / sum(1 - p)` where it is below: 0 for a calibrated model, 1 if nothing predicted ever comes next,
    -1 if (with k = 1) all of it does. It is net: doubt in one bin makes up for boldness in another.

    Errors are one standard error, as if positions were drawn independently.

    Attributes:
        count: Predictions in each bin.
        predicted: Their mean probability; NaN for an empty bin.
        correct: The share of them that came next; NaN for an empty bin.
        overconfidence: Of the model.
        overconfidence_error: Its standard error.
        head_overconfidence: Of the model without the head's direct effect; like the rest of the heads' numbers `None`
            if they were not measured.
        head_change: That minus the model's. Positive: the model is bolder without the head.
        head_change_error: Its standard error. Both predict the same tokens, so that this is smaller than either's own.
        head_count: `count` without each head.
        head_predicted: `predicted` without each head.
        head_correct: `correct` without each head.
    """

    kind: ClassVar[str] = "calibration"
    count: Int[Tensor, " bin"]
    predicted: Float[Tensor, " bin"]
    correct: Float[Tensor, " bin"]
    overconfidence: float
    overconfidence_error: float
    head_overconfidence: Float[Tensor, "layer head"] | None
    head_change: Float[Tensor, "layer head"] | None
    head_change_error: Float[Tensor, "layer head"] | None
    head_count: Int[Tensor, "layer head bin"] | None
    head_predicted: Float[Tensor, "layer head bin"] | None
    head_correct: Float[Tensor, "layer head bin"] | None

    @property
    def edges(self) -> Float[Tensor, " edge"]:
        """Where bins begin and end."""
        return torch.linspace(0, 1, len(self.count) + 1)

    def band(self) -> tuple[Float[Tensor, " bin"], Float[Tensor, " bin"]]:
        """Wilson's 95 % interval for each bin's share that came next; NaN for an empty bin."""
        return _wilson(self.correct, self.count)

    def to_frame(self) -> "pd.DataFrame":
        """One row per bin: low, high (its edges), count, predicted, correct, correct_low, correct_high (Wilson)."""
        import pandas as pd

        edges, band = self.edges.tolist(), self.band()
        columns = {
            "low": edges[:-1],
            "high": edges[1:],
            "count": self.count.tolist(),
            "predicted": self.predicted.tolist(),
            "correct": self.correct.tolist(),
            "correct_low": band[0].tolist(),
            "correct_high": band[1].tolist(),
        }
        return pd.DataFrame(columns)

    def heads_frame(self) -> "pd.DataFrame":
        """One row per head: layer, head, label, overconfidence, change, change_error.

        Raises:
            InvalidInputError: if heads were not measured.
        """
        import pandas as pd

        change = self.changes()
        assert self.head_overconfidence is not None and self.head_change_error is not None
        heads = [(layer, head) for layer in range(change.shape[0]) for head in range(change.shape[1])]
        columns: dict[str, Any] = {
            "layer": [layer for layer, _ in heads],
            "head": [head for _, head in heads],
            "label": [component_label(layer, head) for layer, head in heads],
            "overconfidence": self.head_overconfidence.flatten().tolist(),
            "change": change.flatten().tolist(),
            "change_error": self.head_change_error.flatten().tolist(),
        }
        return pd.DataFrame(columns)

    def top(self, k: int = 10, *, largest: bool = True) -> Ranking:
        """The heads without which the model is boldest (`largest=False`: most in doubt), by `head_change`.

        Raises:
            InvalidInputError: if `k` is below 1, or heads were not measured.
        """
        change = self.changes()
        return rank_components(
            change, k, n_heads=change.shape[1], name="change of overconfidence without the head", largest=largest
        )

    def changes(self) -> Float[Tensor, "layer head"]:
        """`head_change`.

        Raises:
            InvalidInputError: if heads were not measured.
        """
        if self.head_change is None:
            raise InvalidInputError("heads were not measured. Run measure_calibration with heads=True.")
        return self.head_change

    def __str__(self) -> str:
        low, high = self.band()
        lines = [
            f"CalibrationResult: {self.info}",
            f"  overconfidence: {self.overconfidence:+.4f} ± {self.overconfidence_error:.4f} "
            "(0: calibrated, 1: nothing predicted comes next, -1: all of it does)",
            f"  {'predicted':>9}  {'came next':>9}  {'95 %':<14}  {'predictions':>11}",
        ]
        for row in self.count.nonzero()[:, 0].tolist():
            lines.append(
                f"  {self.predicted[row]:>9.3f}  {self.correct[row]:>9.3f}  {low[row]:.3f} to {high[row]:.3f}  "
                f"{int(self.count[row]):>11,}"
            )
        if self.head_change is not None and self.head_change.numel():
            lines.append(f"  bolder without: {_short(self.top(3))}")
            lines.append(f"  more in doubt without: {_short(self.top(3, largest=False))}")
        return "\n".join(lines)

    __repr__ = __str__


def _wilson(share: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    count = count.double()
    share, z2 = share.double(), _Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 / (1 + z2 / count) * (share * (1 - share) / count + z2 / (4 * count**2)).sqrt()
    return (centre - half).clamp(min=0).float(), (centre + half).clamp(max=1).float()


def _short(ranking: Ranking) -> str:
    return ", ".join(f"{score.label} {score.value:+.4f}" for score in ranking if math.isfinite(score.value))
