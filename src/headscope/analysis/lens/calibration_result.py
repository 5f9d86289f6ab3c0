"""`CalibrationResult`: bins of probabilities, how often they came true, and the effect of heads on that."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.named_arrays import Label
from headscope.analysis.core.result import Array, Result
from headscope.ops.devices import wide

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CalibrationResult"]

_NO_HEADS = "heads were not measured. Run measure_calibration with heads=True."
_Z95 = 1.959963984540054


@dataclass(frozen=True, repr=False)
class CalibrationResult(Result):
    """Calibration: predicted probabilities against how often the predicted tokens came next.

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
    arrays: ClassVar[Mapping[str, Array]] = {
        **{name: Array("bin") for name in ("count", "predicted", "correct")},
        "correct_low": Array("bin", of=lambda found: found.band()[0]),
        "correct_high": Array("bin", of=lambda found: found.band()[1]),
        "head_overconfidence": Array("layer head", column="overconfidence", absent=_NO_HEADS),
        "head_change": Array(
            "layer head",
            title="change of overconfidence without the head",
            column="change",
            error="head_change_error",
            absent=_NO_HEADS,
        ),
        "head_change_error": Array("layer head", column="change_error", absent=_NO_HEADS),
        **{
            name: Array("layer head bin", absent=_NO_HEADS) for name in ("head_count", "head_predicted", "head_correct")
        },
    }
    columns: ClassVar[tuple[str, ...]] = ("count", "predicted", "correct", "correct_low", "correct_high")
    ranked: ClassVar[tuple[str, ...]] = ("head_change",)
    ends: ClassVar[tuple[str, str]] = ("bolder without", "more in doubt without")
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
        """Edges of the bins."""
        return torch.linspace(0, 1, len(self.count) + 1)

    def band(self) -> tuple[Float[Tensor, " bin"], Float[Tensor, " bin"]]:
        """Wilson's 95 % interval for each bin's share that came next; NaN for an empty bin."""
        return _wilson(self.correct, self.count)

    def heads_frame(self) -> "pd.DataFrame":
        """One row per head: layer, head, label, overconfidence, change, change_error.

        Raises:
            InvalidInputError: if heads were not measured.
        """
        return self.to_frame("head_overconfidence", "head_change", "head_change_error")

    def axis_columns(self, axis: str, labels: Sequence[Label]) -> dict[str, Sequence[Any]]:
        edges = self.edges.tolist()
        return {"low": edges[:-1], "high": edges[1:]} if axis == "bin" else super().axis_columns(axis, labels)

    def changes(self) -> Float[Tensor, "layer head"]:
        """`head_change`.

        Raises:
            InvalidInputError: if heads were not measured.
        """
        return self.array("head_change").values

    def _notes(self) -> Iterator[str]:
        low, high = self.band()
        yield (
            f"overconfidence: {self.overconfidence:+.4f} ± {self.overconfidence_error:.4f} "
            "(0: calibrated, 1: nothing predicted comes next, -1: all of it does)"
        )
        yield f"{'predicted':>9}  {'came next':>9}  {'95 %':<14}  {'predictions':>11}"
        for row in self.count.nonzero()[:, 0].tolist():
            yield (
                f"{self.predicted[row]:>9.3f}  {self.correct[row]:>9.3f}  {low[row]:.3f} to {high[row]:.3f}  "
                f"{int(self.count[row]):>11,}"
            )
        yield from super()._notes()


def _wilson(share: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    count = wide(count)
    share, z2 = wide(share), _Z95**2
    center = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 / (1 + z2 / count) * (share * (1 - share) / count + z2 / (4 * count**2)).sqrt()
    return (center - half).clamp(min=0).float(), (center + half).clamp(max=1).float()
