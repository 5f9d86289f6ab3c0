"""Kernels of PyTorch's own operations: the reference, on any device and in any floating-point dtype."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.ops.kernels.interface import MASKED_BITS, SAFE_BITS, Factors, Kernels

__all__ = ["TorchKernels", "finite_maximum", "within"]


@dataclass(frozen=True)
class _Paired(Factors):
    """Factors whose weights, and logits times weights, lie side by side, as the two rows of one product."""

    pair: Float[Tensor, "row 2 tile"]


class TorchKernels(Kernels):
    """One operation after another on tiles, in buffers that are reused; sums over the vocabulary are products."""

    name: ClassVar[str] = "torch"

    def factors(
        self, linear: Float[Tensor, "row tile"], name: str, offset: Float[Tensor, " tile"] | None = None
    ) -> Factors:
        logits = linear if offset is None else linear + offset
        shift = finite_maximum(logits)
        logits = logits.sub_(shift[:, None]).clamp_(min=MASKED_BITS)
        pair = self.buffer(f"{name} pair", (len(logits), 2, logits.shape[1]), logits)
        torch.exp2(logits, out=pair[:, 0])
        torch.mul(logits, pair[:, 0], out=pair[:, 1])
        z, s = pair.sum(-1).unbind(1)
        return _Paired(shift, logits, pair[:, 0], z, s, pair)

    def changes(
        self,
        added: Float[Tensor, "component row tile"],
        base: Factors,
        final: Factors,
        out: Float[Tensor, "3 2 component row"],
    ) -> None:
        if not within(added, SAFE_BITS):
            for number, component in enumerate(added):
                for sign, (state, logits) in enumerate(
                    ((base, base.logits + component), (final, final.logits - component))
                ):
                    shift = finite_maximum(logits)
                    logits = logits.sub_(shift[:, None])
                    weights = logits.exp2()
                    out[:, sign, number] = torch.stack(
                        (state.shift + shift, weights.sum(-1), logits.clamp_(min=MASKED_BITS).mul_(weights).sum(-1))
                    )
            return
        assert isinstance(base, _Paired) and isinstance(final, _Paired)
        factor = torch.exp2(added, out=self.buffer("factor", tuple(added.shape), added))
        product = self.buffer("product", tuple(added.shape), added)
        for sign, state in enumerate((base, final)):
            if sign:
                factor = factor.reciprocal_()
            # Z and half of S in one product with two rows: it runs at the speed of matrix products, where single dot
            # products do not.
            moments = torch.bmm(state.pair, factor.permute(1, 2, 0))
            rest = torch.bmm(state.pair[:, :1], torch.mul(factor, added, out=product).permute(1, 2, 0))[:, 0]
            out[0, sign] = state.shift
            out[1, sign] = moments[:, 0].T
            out[2, sign] = (moments[:, 1] - rest if sign else moments[:, 1] + rest).T

    def removals(
        self, removed: Float[Tensor, "change row tile"], clean: Factors, out: Float[Tensor, "3 change row"]
    ) -> None:
        # The clean weights are made once for all changes: one product, where `(e * d).sum()` would pass over memory
        # twice. A masked token has weight 0 and a finite d, so 0 * inf cannot arise.
        out[2] = torch.bmm(clean.weights[:, None], removed.permute(1, 2, 0))[:, 0].T
        changed = torch.sub(clean.logits, removed, out=removed)
        shift = changed.amax(-1)
        out[0] = clean.shift + shift
        out[1] = changed.sub_(shift[..., None]).exp2_().sum(-1)


def finite_maximum(logits: Float[Tensor, "*rows tile"]) -> Float[Tensor, "*rows"]:
    """Return each row's maximum, or a very low number where all its tokens are masked."""
    return logits.amax(-1).clamp_(min=torch.finfo(logits.dtype).min / 2)


def within(values: Tensor, bound: float) -> bool:
    """Return True if all values lie between plus and minus `bound`; False if one is NaN."""
    return float(values.amax()) <= bound and float(values.amin()) >= -bound
