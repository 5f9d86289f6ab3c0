"""Kernels for the CPU: loops that read a tile of logits once and write nothing of its size."""

import math
import platform
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numba.core import event
from torch import Tensor

from headscope.ops.devices import Budget
from headscope.ops.kernels import loops
from headscope.ops.kernels.compiling import compiling
from headscope.ops.kernels.interface import SAFE_BITS, Factors, Kernels, RightFactors, Top

__all__ = ["KERNELS", "CpuKernels"]

_SAFE = np.float32(SAFE_BITS)
# Rows of a head's logits that are made before their sums: 64 KiB of a tile of 512.
_STRIP_ROWS = 32
# The largest logits are kept in order by insertion, which moves half of them for each that enters: a few for each row.
_MOST_INSERTED = 64
# Elsewhere (AMX of Apple's processors, SVE) libraries know instructions that these loops do not.
_PACKS = platform.machine() in ("x86_64", "AMD64")


class CpuKernels(Kernels):
    """Compiled loops over float32 tiles. Threads may run them at once: they hold no interpreter lock."""

    name: ClassVar[str] = "cpu"

    @classmethod
    def runs_on(cls, device: torch.device) -> bool:
        return not Budget.of(device).is_accelerators

    @classmethod
    def prepared(cls, right: Float[Tensor, "*each inner tile"]) -> RightFactors:
        if right.dtype != torch.float32 or not _PACKS:
            return super().prepared(right)
        inner, tile = right.shape[-2:]
        each = right.shape[:-2]
        is_shared = math.prod(each) > 1 and not any(right.stride()[:-2])
        heads = right.view(-1, inner, tile) if not is_shared else right[(0,) * len(each)][None]
        packed = right.new_empty(len(heads), -(-tile // loops.N_COLUMNS), inner, loops.N_COLUMNS)
        loops.pack(heads.numpy(), packed.numpy())
        return RightFactors(
            packed.view(*each, *packed.shape[1:]) if not is_shared else packed.expand(*each, -1, -1, -1), tile
        )

    def product(
        self, left: Float[Tensor, "row inner"], right: RightFactors, out: Float[Tensor, "row tile"]
    ) -> Float[Tensor, "row tile"]:
        if not _is_packed(right):
            return super().product(left, right, out)
        loops.product(left.numpy(), right.entries.numpy(), out.numpy())
        return out

    def head_logits(
        self, left: Float[Tensor, "head row inner"], right: RightFactors, dtype: torch.dtype
    ) -> Float[Tensor, "head row tile"]:
        if not _is_packed(right):
            return super().head_logits(left, right, dtype)
        out = self.buffer("heads", (*left.shape[:2], right.tile), left)
        for each in zip(left.numpy(), right.entries.numpy(), out.numpy(), strict=True):
            loops.product(*each)
        return out

    def factors(
        self, linear: Float[Tensor, "row tile"], name: str, offset: Float[Tensor, " tile"] | None = None
    ) -> Factors:
        shape = tuple(linear.shape)
        logits = linear if offset is None else self.buffer(f"{name} logits", shape, linear)
        weights = self.buffer(f"{name} weights", shape, linear)
        offset = linear.new_zeros(shape[1]) if offset is None else offset
        shift, z, s = sums = linear.new_empty(3, shape[0])
        loops.factors(*(each.numpy() for each in (linear, offset, logits, weights, shift, sums[1:])))
        return Factors(shift, logits, weights, z, s)

    def changes(
        self,
        added: Float[Tensor, "component row tile"],
        base: Factors,
        final: Factors,
        out: Float[Tensor, "3 2 component row"],
    ) -> None:
        loops.changes(added.numpy(), *_arrays(base), *_arrays(final), _SAFE, out.numpy())

    def head_changes(
        self,
        left: Float[Tensor, "head row inner"],
        right: RightFactors,
        base: Factors,
        final: Factors,
        out: Float[Tensor, "3 2 head row"],
        total: Float[Tensor, "row tile"] | None = None,
    ) -> None:
        if not _is_packed(right):
            super().head_changes(left, right, base, final, out, total)
            return
        strip = self.buffer("heads", (min(_STRIP_ROWS, left.shape[1]), right.tile), left)
        total = left.new_empty(0, 0) if total is None else total
        loops.head_changes(
            *_head_arrays(left, right), *_arrays(base), *_arrays(final), _SAFE,
            strip.numpy(), total.numpy(), out.numpy(),
        )  # fmt: skip

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
        gain = added.new_ones(added.shape[:2]) if gain is None else gain
        cap, by = np.float32(soft_cap), np.float32(sign)
        loops.formed(added.numpy(), by, linear.numpy(), offset.numpy(), cap, gain.numpy(), out.numpy())

    def follow(
        self,
        total: Float[Tensor, "row tile"],
        before: Float[Tensor, "row tile"],
        after: Float[Tensor, "row tile"],
        by: Float[Tensor, " row"],
        rests: tuple[Float[Tensor, " tile"], ...],
        mlp: Float[Tensor, "row tile"],
    ) -> None:
        loops.follow(*(each.numpy() for each in (total, before, after, by, *rests, mlp)))

    def removals(
        self, removed: Float[Tensor, "change row tile"], clean: Factors, out: Float[Tensor, "3 change row"]
    ) -> None:
        loops.removals(removed.numpy(), *_arrays(clean), _SAFE, out.numpy())

    def count_excess(
        self, entries: Float[Tensor, "row tile"], than: Float[Tensor, "row 1"], excess: Int[Tensor, " row"]
    ) -> None:
        loops.count_excess(entries.numpy(), than.numpy(), excess.numpy())

    def top(self, logits: Float[Tensor, "prediction row tile"], targets: Int[Tensor, " row"], so_far: Top) -> None:
        if so_far.best.shape[2] > _MOST_INSERTED:
            super().top(logits, targets, so_far)
            return
        no_heads = logits.new_empty(2, 2, 2).transpose(0, 1).numpy(), logits.new_empty(0, 0, 0, 0).numpy()
        for number, each in enumerate(logits):
            self._top(no_heads, each, 0.0, targets, so_far[number : number + 1, :])

    def head_top(
        self,
        left: Float[Tensor, "head row inner"],
        right: RightFactors,
        final: Float[Tensor, "row tile"],
        soft_cap: float,
        targets: Int[Tensor, " row"],
        so_far: Top,
    ) -> None:
        if not _is_packed(right) or so_far.best.shape[2] > _MOST_INSERTED:
            super().head_top(left, right, final, soft_cap, targets, so_far)
            return
        self._top(_head_arrays(left, right), final, soft_cap, targets, so_far)

    def _top(self, heads: tuple[Any, Any], final: Tensor, soft_cap: float, targets: Tensor, so_far: Top) -> None:
        strip = self.buffer("heads", (min(_STRIP_ROWS, len(final)), final.shape[1]), final)
        known = so_far.best, so_far.z, so_far.target, so_far.ties
        loops.top(
            *heads, final.numpy(), np.float32(soft_cap), targets.numpy(), strip.numpy(),
            *(each.numpy() for each in known),
        )  # fmt: skip


def _is_packed(right: RightFactors) -> bool:
    return _PACKS and right.entries.dtype == torch.float32


def _arrays(state: Factors) -> tuple[Any, Any, Any]:
    return state.shift.numpy(), state.logits.numpy(), state.weights.numpy()


def _head_arrays(left: Tensor, right: RightFactors) -> tuple[Any, Any]:
    """Return heads' factors, in memory of one kind whatever their number: the loops are compiled for each kind.

    By rows the left ones have gaps, and a right one that all share is one.
    """
    entries = right.entries
    return left.transpose(0, 1).numpy(), (entries[:1] if entries.stride(0) == 0 else entries).numpy()


class _Compilations(event.Listener):
    """Passes on that numba compiles one of the loops, and not what others have it compile."""

    def on_start(self, event: Any) -> None:
        if event.data["dispatcher"].py_func.__module__ == loops.__name__:
            compiling()

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:compile", _Compilations())
KERNELS = CpuKernels
