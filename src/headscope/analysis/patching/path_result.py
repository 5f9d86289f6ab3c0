"""`PathPatchingResult`: what `path_patch` and `path_patch_sweep` return."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.result import Result
from headscope.analysis.prompts.metrics import gap_between
from headscope.errors import InvalidInputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PathPatchingResult", "SenderScore", "SenderScores"]


@dataclass(frozen=True)
class SenderScore:
    """One sender (or several together) and its effect.

    Attributes:
        label: `9.9`, `MLP 3`, `embed`, or `9.9+9.6` for senders that go together.
        value: The metric of the patched run less that of the run before.
        normalized: The same as a share of the clean metric less the corrupted one.
    """

    label: str
    value: float
    normalized: float


class SenderScores(tuple[SenderScore, ...]):
    """Scores in order, printed as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        width = max([6, *(len(score.label) for score in self)])
        rows = [f"{score.label:<{width}}  {score.value:+8.4f}  {score.normalized:+7.1%}" for score in self]
        return "\n".join([f"{'sender':<{width}}  {'change':>8}  {'share':>7}", *rows])

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class PathPatchingResult(Result):
    """What the metric loses or gains when senders change as receivers see them.

    Attributes:
        values: The metric of the patched run less that of the run before it was patched, the mean over prompts, in the
            scale. `[layer, head]` for all heads; `[layer, component]`, the MLP last, for all
            components; `[sender]` for a list; no axis for `path_patch`. Zero where no path leads to the receivers.
        per_prompt: The same for each prompt, along a last axis; `None` for a metric of your own.
        clean: The metric of the clean run.
        corrupted: That of the corrupted run.
        sender_labels: The senders, in the order of `values.flatten()`.
        receiver_labels: What they were patched into, such as `9.9.q`.
        direction: `"denoising"` or `"noising"`.
        scale: `"share"` (of `clean - corrupted`) or `"metric"`.
        freeze_mlps: Whether MLPs between senders and receivers kept what they gave.
        positions: At which positions, in the caller's words; `all` for every one.
    """

    kind: ClassVar[str] = "path patching"
    values: Float[Tensor, "*sender"]
    per_prompt: Float[Tensor, "*sender prompt"] | None
    clean: Float[Tensor, ""]
    corrupted: Float[Tensor, ""]
    sender_labels: tuple[str, ...]
    receiver_labels: tuple[str, ...]
    direction: str
    scale: str
    freeze_mlps: bool
    positions: str

    @property
    def normalized(self) -> Float[Tensor, "*sender"]:
        """`values` as shares of the clean metric less the corrupted one, whatever their scale.

        -1 is all that noising can break, 1 all that denoising can bring back, as in `ioi_metric_noising`.

        Raises:
            InvalidInputError: If the two runs' metrics are equal.
        """
        return self.values if self.scale == "share" else self.values / gap_between(self.clean, self.corrupted)

    @property
    def change(self) -> Float[Tensor, "*sender"]:
        """`values` in the metric's unit, whatever their scale."""
        return self.values * (self.clean - self.corrupted) if self.scale == "share" else self.values

    def __float__(self) -> float:
        """The one value of a `path_patch`."""
        if self.values.numel() != 1:
            raise InvalidInputError(f"these are {self.values.numel()} values, not one; see .values and .top().")
        return float(self.values)

    def top(self, k: int = 10, *, largest: bool | None = None) -> SenderScores:
        """The `k` senders with the greatest effect either way, the largest values (`True`) or the smallest (`False`).

        Raises:
            InvalidInputError: If `k` is below 1.
        """
        if k < 1:
            raise InvalidInputError(f"k must be at least 1; got {k}.")
        values = self.change.flatten()
        order = (values.abs() if largest is None else values).argsort(descending=largest is not False, stable=True)
        shares = self._shares().flatten()
        return SenderScores(
            SenderScore(self.sender_labels[at], float(values[at]), float(shares[at])) for at in order[:k].tolist()
        )

    def to_frame(self) -> "pd.DataFrame":
        """One row per sender: its label, and what patching it changes, in the metric's unit and as a share."""
        import pandas as pd

        return pd.DataFrame(
            {
                "sender": self.sender_labels,
                "receivers": ", ".join(self.receiver_labels),
                "change": self.change.flatten().tolist(),
                "normalized": self._shares().flatten().tolist(),
            }
        )

    def _shares(self) -> Tensor:
        return torch.full_like(self.values, torch.nan) if self.clean == self.corrupted else self.normalized

    def __repr__(self) -> str:
        mlps = "MLPs frozen" if self.freeze_mlps else "MLPs recomputed"
        lines = [
            f"PathPatchingResult: senders -> {', '.join(self.receiver_labels)}; {self.direction}, {mlps}, positions: "
            f"{self.positions}",
            f"  on {self.info.data}",
            f"  metric: {float(self.clean):+.4f} clean, {float(self.corrupted):+.4f} corrupted",
        ]
        return "\n".join([*lines, *(f"  {line}" for line in str(self.top(8)).splitlines())])
