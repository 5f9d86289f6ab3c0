"""The programs of the Triton kernels, each of which reduces one block of rows by vocabulary.

A block's logits of the states are read once, and every component's change passes over them: its logits are made on the
spot from the head's two factors (or read, where the caller made them) and summed, so nothing of a tile's size is
written. Each sum is taken from the block's own maximum, which is right for changes of any size; `merged` in
`triton_kernels` puts the blocks of a row together.

Under Triton's interpreter (`TRITON_INTERPRET=1` before this is imported) they run on the CPU, which is how they are
tested where there is no GPU. It multiplies the bits of bfloat16 as if they were whole numbers, so `EMULATED` widens
them first; and it knows no TF32, so rounding to it is done here, by integer arithmetic, on a GPU too.
"""

import triton
import triton.language as tl
from triton.language import constexpr, tensor

__all__ = ["changes", "factors", "removals"]


@triton.jit
def _to_tf32(x: tensor) -> tensor:
    """Round to the 10 bits of fraction that TF32 has."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def _product(a: tensor, b: tensor, total: tensor, PRECISION: constexpr, EMULATED: constexpr) -> tensor:
    """Return `total + a @ b`, in float32, TF32, or three products of bfloat16; of bfloat16 as it is."""
    if PRECISION == "tf32":
        return tl.dot(_to_tf32(a), _to_tf32(b), total, input_precision="tf32")
    elif PRECISION == "bfloat16x3":
        a_high, b_high = a.to(tl.bfloat16), b.to(tl.bfloat16)
        a_low, b_low = (a - a_high.to(tl.float32)).to(tl.bfloat16), (b - b_high.to(tl.float32)).to(tl.bfloat16)
        if EMULATED:
            a_high, b_high = a_high.to(tl.float32), b_high.to(tl.float32)
            a_low, b_low = a_low.to(tl.float32), b_low.to(tl.float32)
        total = tl.dot(a_low, b_high, total)
        total = tl.dot(a_high, b_low, total)
        return tl.dot(a_high, b_high, total)
    elif PRECISION == "bfloat16":
        if EMULATED:
            a, b = a.to(tl.float32), b.to(tl.float32)
        return tl.dot(a, b, total)
    else:
        return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def _head_logits(
    left: tensor, right: tensor, rows: tensor, columns: tensor, n_rows: tensor, n_columns: tensor, n_inner: tensor,
    left_row: tensor, left_inner: tensor, right_inner: tensor, right_column: tensor,
    PRECISION: constexpr, EMULATED: constexpr, ROWS: constexpr, COLUMNS: constexpr, INNER: constexpr,
) -> tensor:  # fmt: skip
    """Return a block of one head's logits, zero outside."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, n_inner, INNER):
        inner = start + tl.arange(0, INNER)
        a = tl.load(
            left + rows[:, None] * left_row + inner[None, :] * left_inner,
            mask=(rows[:, None] < n_rows) & (inner[None, :] < n_inner), other=0.0,
        )  # fmt: skip
        b = tl.load(
            right + inner[:, None] * right_inner + columns[None, :] * right_column,
            mask=(inner[:, None] < n_inner) & (columns[None, :] < n_columns), other=0.0,
        )  # fmt: skip
        total = _product(a, b, total, PRECISION, EMULATED)
    return total


@triton.jit
def _moments(logits: tensor, here: tensor) -> tensor:
    """Return the maximum of each row, and Z and S from it; entries that are not `here` weigh nothing."""
    highest = tl.max(tl.where(here, logits, float("-inf")), 1)
    shifted = tl.where(here, logits - highest[:, None], 0.0)
    weights = tl.where(here, tl.exp2(shifted), 0.0)
    return highest, tl.sum(weights, 1), tl.sum(shifted * weights, 1)


@triton.jit
def changes(
    added: tensor, left: tensor, right: tensor, base: tensor, final: tensor, total: tensor, out: tensor,
    n_components: tensor, n_rows: tensor, n_columns: tensor, n_inner: tensor,
    left_component: tensor, left_row: tensor, left_inner: tensor,
    right_component: tensor, right_inner: tensor, right_column: tensor, base_component: tensor, n_blocks: tensor,
    PRODUCT: constexpr, TOTAL: constexpr, PRECISION: constexpr, EMULATED: constexpr,
    ROWS: constexpr, COLUMNS: constexpr, INNER: constexpr,
) -> tensor:  # fmt: skip
    """Fill `out [3, 2, component, block, row]` with maximum, Z and S of `base + d` and `final - d` in this block.

    The changes are `left @ right`, component by component, with `PRODUCT`, else `added`. With `TOTAL`, their sum is
    written to `total`.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    block = tl.program_id(1)
    columns = block * COLUMNS + tl.arange(0, COLUMNS)
    here = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
    entries = rows[:, None].to(tl.int64) * n_columns + columns[None, :]
    final_logits = tl.load(final + entries, mask=here, other=0.0)
    base_logits = tl.load(base + entries, mask=here, other=0.0)
    summed = tl.zeros((ROWS, COLUMNS), tl.float32)
    of_a_sum = n_components.to(tl.int64) * n_blocks * n_rows  # entries of each of the 3 x 2 sums
    for component in range(n_components):
        if PRODUCT:
            d = _head_logits(
                left + component * left_component, right + component * right_component, rows, columns,
                n_rows, n_columns, n_inner, left_row, left_inner, right_inner, right_column,
                PRECISION, EMULATED, ROWS, COLUMNS, INNER,
            )  # fmt: skip
        else:
            d = tl.load(added + component * n_rows * n_columns + entries, mask=here, other=0.0)
            if base_component != 0:
                base_logits = tl.load(base + component * base_component + entries, mask=here, other=0.0)
        if TOTAL:
            summed += d
        place = out + (component * n_blocks + block) * n_rows + rows
        highest, z, s = _moments(base_logits + d, here)
        tl.store(place, highest, mask=rows < n_rows)
        tl.store(place + 2 * of_a_sum, z, mask=rows < n_rows)
        tl.store(place + 4 * of_a_sum, s, mask=rows < n_rows)
        highest, z, s = _moments(final_logits - d, here)
        tl.store(place + of_a_sum, highest, mask=rows < n_rows)
        tl.store(place + 3 * of_a_sum, z, mask=rows < n_rows)
        tl.store(place + 5 * of_a_sum, s, mask=rows < n_rows)
    if TOTAL:
        tl.store(total + entries, summed, mask=here)


@triton.jit
def removals(
    removed: tensor, clean: tensor, weights: tensor, out: tensor,
    n_changes: tensor, n_rows: tensor, n_columns: tensor, n_blocks: tensor,
    ROWS: constexpr, COLUMNS: constexpr,
) -> tensor:  # fmt: skip
    """Fill `out [3, change, block, row]` with maximum and Z of `clean - d`, and `sum e d`, in this block."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    block = tl.program_id(1)
    columns = block * COLUMNS + tl.arange(0, COLUMNS)
    here = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
    entries = rows[:, None].to(tl.int64) * n_columns + columns[None, :]
    clean_logits = tl.load(clean + entries, mask=here, other=0.0)
    clean_weights = tl.load(weights + entries, mask=here, other=0.0)
    of_a_sum = n_changes.to(tl.int64) * n_blocks * n_rows
    for change in range(n_changes):
        d = tl.load(removed + change * n_rows * n_columns + entries, mask=here, other=0.0)
        place = out + (change * n_blocks + block) * n_rows + rows
        highest, z, _ = _moments(clean_logits - d, here)
        tl.store(place, highest, mask=rows < n_rows)
        tl.store(place + of_a_sum, z, mask=rows < n_rows)
        tl.store(place + 2 * of_a_sum, tl.sum(clean_weights * d, 1), mask=rows < n_rows)


@triton.jit
def factors(
    logits: tensor, shift: tensor, weights: tensor, out: tensor, n_rows: tensor, n_columns: tensor,
    MASKED: constexpr, COLUMNS: constexpr,
) -> tensor:  # fmt: skip
    """Take a row's `shift` from its logits, and fill `weights` with their powers and `out [2, row]` with Z and S."""
    row = tl.program_id(0)
    highest = tl.load(shift + row)
    start_of_row = row.to(tl.int64) * n_columns
    z = tl.zeros((COLUMNS,), tl.float32)
    s = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, n_columns, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        here = columns < n_columns
        shifted = tl.load(logits + start_of_row + columns, mask=here, other=0.0) - highest
        shifted = tl.where(shifted < MASKED, MASKED, shifted)  # keeps NaN
        powers = tl.where(here, tl.exp2(shifted), 0.0)
        tl.store(logits + start_of_row + columns, shifted, mask=here)
        tl.store(weights + start_of_row + columns, powers, mask=here)
        z += powers
        s += tl.where(here, shifted * powers, 0.0)
    tl.store(out + row, tl.sum(z, 0))
    tl.store(out + n_rows + row, tl.sum(s, 0))
