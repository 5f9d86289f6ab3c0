"""Kernels for NVIDIA and AMD GPUs: the programs of `programs`, compiled by Triton.

They have been run under Triton's interpreter only, not on a GPU yet: see docs/gpu.md.
"""

from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from headscope.ops.kernels import programs
from headscope.ops.kernels.accelerator_kernels import AcceleratorKernels
from headscope.ops.kernels.interface import MASKED_BITS, PRECISIONS, Factors, Precision, RightFactors
from headscope.ops.kernels.torch_kernels import finite_maximum

__all__ = ["INTERPRETED", "KERNELS", "TritonKernels"]

# Set before Triton is imported, `TRITON_INTERPRET=1` has its programs run by Python, on the CPU.
INTERPRETED: bool = not isinstance(programs.changes, triton.runtime.JITFunction)

# A block of rows by vocabulary, and how much of the inner axis of a product is read at a time. 64 x 128 float32 logits
# of two states and a change are 96 registers for each of 256 threads.
_ROWS, _COLUMNS, _INNER, _WARPS = 64, 128, 32, 8
_ROW_COLUMNS = 1024  # of a row that one program reduces alone


class TritonKernels(AcceleratorKernels):
    """Programs that fuse a component's product, exponentials and sums, on float32; products may take bfloat16."""

    name: ClassVar[str] = "triton"
    precisions: ClassVar[tuple[Precision, ...]] = PRECISIONS

    @classmethod
    def runs_on(cls, device: torch.device) -> bool:
        return INTERPRETED or device.type == "cuda"

    def factors(
        self, linear: Float[Tensor, "*each row tile"], name: str, offset: Float[Tensor, " tile"] | None = None
    ) -> Factors:
        logits = linear if offset is None else linear + offset
        shift = finite_maximum(logits)
        weights = self.buffer(f"{name} weights", tuple(logits.shape), logits)
        sums = logits.new_empty(2, *shift.shape)
        n_rows, n_columns = shift.numel(), logits.shape[-1]
        assert logits.is_contiguous()
        if logits.numel():
            with _on(logits):
                programs.factors[(n_rows,)](
                    logits, shift, weights, sums, n_rows, n_columns, MASKED=MASKED_BITS, COLUMNS=_ROW_COLUMNS
                )
        return Factors(shift, logits, weights, sums[0], sums[1])

    def changes(
        self,
        added: Float[Tensor, "component row tile"],
        base: Factors,
        final: Factors,
        out: Float[Tensor, "3 2 component row"],
    ) -> None:
        self._launch(added, None, base, final, out, None)

    def head_changes(
        self,
        left: Float[Tensor, "head row inner"],
        right: RightFactors,
        base: Factors,
        final: Factors,
        out: Float[Tensor, "3 2 head row"],
        total: Float[Tensor, "row tile"] | None = None,
    ) -> None:
        self._launch(left, right.entries, base, final, out, total)

    def removals(
        self, removed: Float[Tensor, "change row tile"], clean: Factors, out: Float[Tensor, "3 change row"]
    ) -> None:
        n_changes, n_rows, n_columns = removed.shape
        n_blocks = triton.cdiv(n_columns, _COLUMNS)
        blocks = self.buffer("blocks", (3, n_changes, n_blocks, n_rows), removed)
        assert removed.is_contiguous() and clean.logits.is_contiguous()
        if removed.numel():
            with _on(removed):
                programs.removals[(triton.cdiv(n_rows, _ROWS), n_blocks)](
                    removed, clean.logits, clean.weights, blocks, n_changes, n_rows, n_columns, n_blocks,
                    ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=_WARPS,
                )  # fmt: skip
        highest = blocks[0].amax(-2)
        factor = torch.exp2(blocks[0] - highest[..., None, :])
        torch.add(clean.shift, highest, out=out[0])
        torch.sum(factor.mul_(blocks[1]), -2, out=out[1])
        torch.sum(blocks[2], -2, out=out[2])

    def _launch(
        self,
        first: Float[Tensor, "component row width"],
        right: Float[Tensor, "component inner tile"] | None,
        base: Factors,
        final: Factors,
        out: Float[Tensor, "3 2 component row"],
        total: Float[Tensor, "row tile"] | None,
    ) -> None:
        n_components, n_rows = first.shape[:2]
        n_columns = final.logits.shape[-1]
        n_blocks = triton.cdiv(n_columns, _COLUMNS)
        blocks = self.buffer("blocks", (3, 2, n_components, n_blocks, n_rows), final.logits)
        assert final.logits.is_contiguous() and base.logits.stride()[-2:] == (n_columns, 1)
        strides = (0,) * 6 if right is None else (*first.stride(), *right.stride())
        precision = "bfloat16" if first.dtype == torch.bfloat16 else self.precision
        if blocks.numel():
            with _on(first):
                programs.changes[(triton.cdiv(n_rows, _ROWS), n_blocks)](
                    first, first, first if right is None else right, base.logits, final.logits,
                    blocks if total is None else total, blocks, n_components, n_rows, n_columns, first.shape[2],
                    *strides, base.logits.stride(0) if base.logits.ndim == 3 else 0, n_blocks,
                    PRODUCT=right is not None, TOTAL=total is not None, PRECISION=precision, EMULATED=INTERPRETED,
                    ROWS=_ROWS, COLUMNS=_COLUMNS, INNER=_INNER, num_warps=_WARPS,
                )  # fmt: skip
        # The blocks of a row, each with a maximum of its own, are put together.
        highest = blocks[0].amax(-2)
        down = blocks[0] - highest[..., None, :]
        factor = down.exp2()
        for sign, state in enumerate((base, final)):
            torch.add(state.shift, highest[sign], out=out[0, sign])
        torch.sum(factor * blocks[1], -2, out=out[1])
        torch.sum(down.mul_(blocks[1]).add_(blocks[2]).mul_(factor), -2, out=out[2])


KERNELS = TritonKernels


def _on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Launch on the device of a tensor, which may not be the current one."""
    return torch.cuda.device_of(tensor)
