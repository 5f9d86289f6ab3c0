"""`CopySuppression`: the effect of ablating heads with their copy suppression kept, and without it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.head_lists import HeadListResult
from headscope.analysis.core.result import Array

__all__ = ["CopySuppression"]

_NOTHING = 1e-8


@dataclass(frozen=True, repr=False)
class CopySuppression(HeadListResult):
    """Effects of ablating heads on the predictions, with and without copy suppression; NaN where nothing counts.

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
    arrays: ClassVar[Mapping[str, Array]] = {
        "share": Array(
            "head", title="share explained by copy suppression", style="+.1%", of=lambda found: found.share()
        ),
        **{name: Array("head batch pos", unit="nats") for name in ("kl_cspa", "kl_mean", "loss_cspa", "loss_mean")},
        "loss": Array("batch pos", unit="nats"),
    }
    columns: ClassVar[tuple[str, ...]] = ("share", "kl_cspa", "kl_mean", "loss", "loss_cspa", "loss_mean")
    ranked: ClassVar[tuple[str, ...]] = ("share", "kl_mean")
    loss: Float[Tensor, "batch pos"]
    loss_cspa: Float[Tensor, "head batch pos"]
    loss_mean: Float[Tensor, "head batch pos"]
    kl_cspa: Float[Tensor, "head batch pos"]
    kl_mean: Float[Tensor, "head batch pos"]

    def share(self) -> Float[Tensor, " head"]:
        """The share of the mean ablation's KL that copy suppression explains, at most 1.

        0: keeping the head's copy suppression is worth nothing; below 0: it does harm. NaN for a head whose ablation
        changes nothing (a KL below 1e-8 nats).
        """
        kept, all_of_it = (_mean(values) for values in (self.kl_cspa, self.kl_mean))
        return torch.where(all_of_it > _NOTHING, 1 - kept / all_of_it, torch.nan).float()

    def _notes(self) -> Iterator[str]:
        yield f"loss: {float(_mean(self.loss)):.4f} nats"
        yield from super()._notes()


def _mean(values: Tensor) -> Tensor:
    """Over the positions that count."""
    return values.double().nanmean((-2, -1))
