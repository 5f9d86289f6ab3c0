"""What ablating heads does with their copy suppression kept, and without it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.head_lists import head_columns, head_labels, rank_heads
from headscope.analysis.core.result import Ranking, Result

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CopySuppression"]

_NOTHING = 1e-8


@dataclass(frozen=True)
class CopySuppression(Result):
    """What ablating heads does to the predictions, with copy suppression kept and without; NaN where nothing counts.

    Positions count that are neither padding nor (unless asked for) BOS, and have a next token.

    Attributes:
        heads: Layer and head of each row below.
        loss: Of the model as it is, in nats.
        loss_cspa: With all but the head's copy suppression ablated.
        loss_mean: With the head ablated to its mean.
        kl_cspa: `KL(clean || CSPA)` in nats.
        kl_mean: `KL(clean || mean-ablated)` in nats.
    """

    kind: ClassVar[str] = "copy_suppression"
    heads: Int[Tensor, "head 2"]
    loss: Float[Tensor, "batch pos"]
    loss_cspa: Float[Tensor, "head batch pos"]
    loss_mean: Float[Tensor, "head batch pos"]
    kl_cspa: Float[Tensor, "head batch pos"]
    kl_mean: Float[Tensor, "head batch pos"]

    @property
    def labels(self) -> tuple[str, ...]:
        """`10.7`, ... for each head."""
        return head_labels(self.heads)

    def share(self) -> Float[Tensor, " head"]:
        """The share of the mean ablation's KL that copy suppression explains, at most 1.

        0: keeping the head's copy suppression is worth nothing; below 0: it does harm. NaN for a head whose ablation
        changes nothing (a KL below 1e-8 nats).
        """
        kept, all_of_it = (_mean(values) for values in (self.kl_cspa, self.kl_mean))
        return torch.where(all_of_it > _NOTHING, 1 - kept / all_of_it, torch.nan).float()

    def top(self, k: int = 10, *, largest: bool = True) -> Ranking:
        """The `k` heads of which copy suppression explains most (or least).

        Raises:
            InvalidInputError: if `k` is below 1.
        """
        return rank_heads(self.heads, self.share(), k, name="share explained by copy suppression", largest=largest)

    def to_frame(self) -> "pd.DataFrame":
        """One row per head: layer, head, label, share, and the means of kl_cspa, kl_mean and the three losses."""
        import pandas as pd

        columns: dict[str, Any] = head_columns(self.heads)
        columns["share"] = self.share().tolist()
        columns |= {name: _mean(getattr(self, name)).tolist() for name in ("kl_cspa", "kl_mean")}
        columns["loss"] = float(_mean(self.loss))
        columns |= {name: _mean(getattr(self, name)).tolist() for name in ("loss_cspa", "loss_mean")}
        return pd.DataFrame(columns)

    def __str__(self) -> str:
        lines = [
            f"CopySuppression: {self.info}",
            f"  loss: {float(_mean(self.loss)):.4f} nats",
            f"  {'head':<8}  {'explained':>9}  {'KL CSPA':>9}  {'KL mean':>9}  {'loss CSPA':>9}  {'loss mean':>9}",
        ]
        share, kl_cspa, kl_mean = self.share(), _mean(self.kl_cspa), _mean(self.kl_mean)
        loss_cspa, loss_mean = _mean(self.loss_cspa), _mean(self.loss_mean)
        for row in share.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)[:5].tolist():
            lines.append(
                f"  {self.labels[row]:<8}  {float(share[row]):>9.1%}  {float(kl_cspa[row]):>9.5f}  "
                f"{float(kl_mean[row]):>9.5f}  {float(loss_cspa[row]):>9.4f}  {float(loss_mean[row]):>9.4f}"
            )
        return "\n".join(lines)

    __repr__ = __str__


def _mean(values: Tensor) -> Tensor:
    """Over the positions that count."""
    return values.double().nanmean((-2, -1))
