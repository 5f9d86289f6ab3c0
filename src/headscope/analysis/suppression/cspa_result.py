"""`CopySuppression`: the effect of ablating heads with their copy suppression kept, and without it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.head_lists import HeadListResult
from headscope.analysis.core.result import Array
from headscope.analysis.core.stats import Estimate, estimate
from headscope.errors import InvalidInputError
from headscope.ops.devices import wide

__all__ = ["CopySuppression"]

_NOTHING = 1e-8
_OLD = "an older version measured this, which did not look what it could have found; measure it again."


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
        planted: What a planted suppressor does, see `power`: `p (1 - p)`, with p the probability that the model gives
            to the token in sight which it raises most above its average. `None` in results of older versions.
        planted_kept: Of that, what stands on kept sources.
    """

    kind: ClassVar[str] = "copy_suppression"
    arrays: ClassVar[Mapping[str, Array]] = {
        "share": Array(
            "head",
            title="share explained by copy suppression",
            error="share_error",
            style="+.1%",
            of=lambda found: found.share(),
        ),
        "share_error": Array("head", style=".1%", of=lambda found: found._share_errors()),
        "power": Array(
            "head", title="power of the measure", style=".1%", of=lambda found: found._planted_share(), absent=_OLD
        ),
        **{name: Array("head batch pos", unit="nats") for name in ("kl_cspa", "kl_mean", "loss_cspa", "loss_mean")},
        **{name: Array("head batch pos", unit="1", absent=_OLD) for name in ("planted", "planted_kept")},
        "loss": Array("batch pos", unit="nats"),
    }
    columns: ClassVar[tuple[str, ...]] = (
        "share",
        "share_error",
        "power",
        "kl_cspa",
        "kl_mean",
        "loss",
        "loss_cspa",
        "loss_mean",
    )
    ranked: ClassVar[tuple[str, ...]] = ("share", "kl_mean")
    loss: Float[Tensor, "batch pos"]
    loss_cspa: Float[Tensor, "head batch pos"]
    loss_mean: Float[Tensor, "head batch pos"]
    kl_cspa: Float[Tensor, "head batch pos"]
    kl_mean: Float[Tensor, "head batch pos"]
    planted: Float[Tensor, "head batch pos"] | None = None
    planted_kept: Float[Tensor, "head batch pos"] | None = None

    def share(self) -> Float[Tensor, " head"]:
        """The share of the mean ablation's KL that copy suppression explains, at most 1.

        0: keeping the head's copy suppression is worth nothing; below 0: it does harm. NaN for a head whose ablation
        changes nothing (a KL below 1e-8 nats).
        """
        kept, all_of_it = (_mean(values) for values in (self.kl_cspa, self.kl_mean))
        return torch.where(all_of_it > _NOTHING, 1 - kept / all_of_it, torch.nan).float()

    def power(self) -> Float[Tensor, " head"]:
        """The share that the measure gives an ideal suppressor planted in each head's place, to first order.

        It attends to the one token in sight that the model's own final prediction raises most above its average, and
        lowers its logit by a small step. What the lens of the head's layer does not foresee is missed: near 0, no share
        means anything; NaN where the model gives such tokens no probability.

        Raises:
            InvalidInputError: If an older version made this result.
        """
        if (share := self._planted_share()) is None:
            raise InvalidInputError(_OLD)
        return share

    def share_estimates(self) -> tuple[Estimate, ...]:
        """The share of each head with its standard error: to first order, that of a ratio of means."""
        return tuple(
            _ratio(1 - share, kept, whole, one_less=True)
            for share, kept, whole in zip(self.share().tolist(), self.kl_cspa, self.kl_mean, strict=True)
        )

    def power_estimates(self) -> tuple[Estimate, ...]:
        """The power at each head with its standard error.

        Raises:
            InvalidInputError: If an older version made this result.
        """
        if self.planted is None or self.planted_kept is None:
            raise InvalidInputError(_OLD)
        powers = zip(self.power().tolist(), self.planted_kept, self.planted, strict=True)
        return tuple(_ratio(*each) for each in powers)

    def _planted_share(self) -> Float[Tensor, " head"] | None:
        if self.planted is None or self.planted_kept is None:
            return None
        kept, all_of_it = _mean(self.planted_kept), _mean(self.planted)
        return torch.where(all_of_it > _NOTHING, kept / all_of_it, torch.nan).float()

    def _share_errors(self) -> Float[Tensor, " head"]:
        return torch.tensor([share.error for share in self.share_estimates()])

    def _notes(self) -> Iterator[str]:
        yield f"loss: {float(_mean(self.loss)):.4f} nats"
        yield from super()._notes()


def _mean(values: Tensor) -> Tensor:
    """Over the positions that count."""
    return wide(values).nanmean((-2, -1))


def _ratio(ratio: float, part: Tensor, whole: Tensor, *, one_less: bool = False) -> Estimate:
    """A ratio of means, or one less it, with the error of the mean of `part - ratio * whole` over that of `whole`."""
    mean, rest = estimate(whole), estimate(part - ratio * whole)
    error = rest.error / mean.value if mean.value else math.nan
    return Estimate(1 - ratio if one_less else ratio, error, mean.n, rest.freedom)
