"""Kernels for the CPU: loops that read a tile of logits once and write nothing of its size."""

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.ops.devices import Budget
from headscope.ops.kernels import loops
from headscope.ops.kernels.interface import SAFE_BITS, Factors, Kernels
from headscope.ops.kernels.torch_kernels import finite_maximum

__all__ = ["KERNELS", "CpuKernels"]

_SAFE = np.float32(SAFE_BITS)


class CpuKernels(Kernels):
    """Compiled loops over float32 tiles. Threads may run them at once: they hold no interpreter lock."""

    name: ClassVar[str] = "cpu"

    @classmethod
    def runs_on(cls, device: torch.device) -> bool:
        return not Budget.of(device).is_accelerators

    def factors(self, logits: Float[Tensor, "row tile"], name: str) -> Factors:
        shift = finite_maximum(logits)
        weights = self.buffer(f"{name} weights", tuple(logits.shape), logits)
        sums = logits.new_empty(2, len(logits))
        loops.factors(logits.numpy(), shift.numpy(), weights.numpy(), sums.numpy())
        return Factors(shift, logits, weights, sums[0], sums[1])

    def changes(
        self,
        added: Float[Tensor, "component row tile"],
        base: Factors,
        final: Factors,
        out: Float[Tensor, "3 2 component row"],
    ) -> None:
        states = (each.numpy() for state in (base, final) for each in (state.shift, state.logits, state.weights))
        loops.changes(added.numpy(), *states, _SAFE, out.numpy())

    def removals(
        self, removed: Float[Tensor, "change row tile"], clean: Factors, out: Float[Tensor, "3 change row"]
    ) -> None:
        factors = (clean.shift.numpy(), clean.logits.numpy(), clean.weights.numpy())
        loops.removals(removed.numpy(), *factors, _SAFE, out.numpy())

    def count_excess(
        self, entries: Float[Tensor, "row tile"], than: Float[Tensor, "row 1"], excess: Int[Tensor, " row"]
    ) -> None:
        loops.count_excess(entries.numpy(), than.numpy(), excess.numpy())


KERNELS = CpuKernels
