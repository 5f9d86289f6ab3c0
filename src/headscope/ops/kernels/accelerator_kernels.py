"""PyTorch's operations for an accelerator: few of them, on all of a tile, and no look at a value in between.

`torch_kernels` asks whether a tile's changes are small before it takes the shorter way, and a GPU would have to be
waited for to say so. Here every changed prediction is shifted by a maximum of its own, which is right for all of them.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.ops.kernels.interface import MASKED_BITS, Factors, Kernels, Top, add_powers, formed_logits
from headscope.ops.kernels.torch_kernels import finite_maximum

__all__ = ["AcceleratorKernels"]


class AcceleratorKernels(Kernels):
    """One operation after another, each on a whole tile of all components."""

    name: ClassVar[str] = "torch"

    def factors(
        self, linear: Float[Tensor, "*each row tile"], name: str, offset: Float[Tensor, " tile"] | None = None
    ) -> Factors:
        logits = linear if offset is None else linear + offset
        shift = finite_maximum(logits)
        logits = logits.sub_(shift[..., None]).clamp_(min=MASKED_BITS)
        weights = torch.exp2(logits, out=self.buffer(f"{name} weights", tuple(logits.shape), logits))
        weighted = torch.mul(logits, weights, out=self.buffer("changed", tuple(logits.shape), logits))
        return Factors(shift, logits, weights, weights.sum(-1), weighted.sum(-1))

    def changes(
        self,
        added: Float[Tensor, "component row tile"],
        base: Factors,
        final: Factors,
        out: Float[Tensor, "3 2 component row"],
    ) -> None:
        changed = self.buffer("changed", tuple(added.shape), added)
        for sign, state in enumerate((base, final)):
            torch.add(state.logits, added, alpha=-1 if sign else 1, out=changed)
            weights = self._weights(changed, state, out[:2, sign])
            torch.sum(changed.mul_(weights), -1, out=out[2, sign])

    def formed(
        self,
        added: Float[Tensor, "component row tile"],
        sign: int,
        linear: Float[Tensor, "*component row tile"],
        offset: Float[Tensor, " tile"],
        soft_cap: float,
        gain: Float[Tensor, "component row"] | None,
        out: Float[Tensor, "3 component row"],
    ) -> None:
        logits = formed_logits(torch.add(linear, added, alpha=sign), gain, offset, soft_cap)
        factors = self.factors(logits, "formed")
        torch.stack((factors.shift, factors.z, factors.s), out=out)

    def removals(
        self, removed: Float[Tensor, "change row tile"], clean: Factors, out: Float[Tensor, "3 change row"]
    ) -> None:
        weighted = torch.mul(clean.weights, removed, out=self.buffer("changed", tuple(removed.shape), removed))
        torch.sum(weighted, -1, out=out[2])
        self._weights(torch.sub(clean.logits, removed, out=removed), clean, out[:2])

    def top(self, logits: Float[Tensor, "prediction row tile"], targets: Int[Tensor, " row"], so_far: Top) -> None:
        best, width = so_far.best, logits.shape[-1]
        inside = (targets >= 0) & (targets < width)
        column = targets.clamp(0, width - 1)[:, None]
        own = logits.gather(-1, column.expand(len(logits), -1, -1))
        earlier = torch.arange(width, device=targets.device) < column
        ties = ((logits == own) & earlier).sum(-1) + (best == own).sum(-1)
        so_far.ties.copy_(torch.where(inside, ties, so_far.ties))
        so_far.target.copy_(torch.where(inside, own[..., 0], so_far.target))
        old, k = so_far.shift_of(best), best.shape[-1]
        candidates = logits.topk(min(k, width), dim=-1).values
        best.copy_(torch.cat([best, candidates], dim=-1).topk(k, dim=-1).values)
        add_powers(logits, old, so_far)

    def _weights(
        self, changed: Float[Tensor, "component row tile"], state: Factors, out: Float[Tensor, "2 component row"]
    ) -> Float[Tensor, "component row tile"]:
        """Return the powers of changed logits less their maximum, which is taken from them, and note shift and Z."""
        highest = changed.amax(-1)
        torch.add(state.shift, highest, out=out[0])
        buffer = self.buffer("changed weights", tuple(changed.shape), changed)
        weights = torch.exp2(changed.sub_(highest[..., None]), out=buffer)
        torch.sum(weights, -1, out=out[1])
        return weights
