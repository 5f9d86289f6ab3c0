"""The loops of the CPU kernels, compiled by numba when first called, and kept on disk.

A row's factors (a few KiB) stay in the first cache while all components pass over them; 2^d is made once for both
signs and summed on the spot, so nothing of the size of a tile is written. 2^x is a polynomial of degree 6 on
[-1/2, 1/2] (relative error 1.6e-7, two bits in the last place) whose exponent is set by integer arithmetic: unlike a
call into a math library it is inlined, and runs on whole vectors.

A head's logits are made a few rows at a time, in the first cache, right before their sums are: a library's product
writes all of them to memory and a second loop reads them back, which for factors of rank 64 costs as much as the
multiplications. A block of the product stays in registers over the whole inner axis, both factors repacked so that
every step reads what lies side by side (Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix
Multiplication", sections 4 and 6).
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, int32, njit
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from headscope.ops.kernels.interface import BITS, MASKED_BITS

__all__ = [
    "N_COLUMNS",
    "changes",
    "count_excess",
    "factors",
    "follow",
    "formed",
    "head_changes",
    "pack",
    "product",
    "removals",
    "top",
]

# Sums may be reordered into vectors and products fused; NaN and infinities keep their meaning.
_FUSED = {"reassoc", "contract", "arcp", "nsz", "afn"}
_MASKED = float32(MASKED_BITS)
_NOTHING, _NAN = float32(np.finfo(np.float32).min / 2), float32(np.nan)
_BITS = float32(BITS)
_MINUS_TWO_NATS = float32(-2 * BITS)
_LOWEST = float32(-125.0)  # 2^-125 is nothing beside a sum of at least 1


# Rows, and vectors of so many numbers in a row, whose sums are kept in registers: of 32 vectors of AVX-512, 24, while 3
# vectors and 8 numbers are read for 24 multiplications; of 16 of AVX2, 12. The compiled code has these numbers in it,
# and machines may share a folder of it (NUMBA_CACHE_DIR): they follow from the features that numba compiles for, which
# it looks code up by, not from those of this processor, which NUMBA_CPU_NAME may hide from it.
_FEATURES: str = cpu_target.target_context.codegen().magic_tuple()[2]
_ROWS, _VECTORS, _WIDTH = (8, 3, 16) if "+avx512f" in _FEATURES.split(",") else (6, 2, 8)
N_COLUMNS = _VECTORS * _WIDTH


def _bitcast(given: Any, read: Any, kind: Any) -> Any:
    """Make a function that reads the bits of one type of number as another."""

    @intrinsic
    def bitcast(typing_context: Any, bits: Any) -> Any:
        del typing_context, bits
        return read(given), lambda context, builder, signature, arguments: builder.bitcast(arguments[0], kind)

    return bitcast


_as_float = _bitcast(types.int32, types.float32, ir.FloatType())
_as_int = _bitcast(types.float32, types.int32, ir.IntType(32))


@njit(fastmath=_FUSED, inline="always")
def _exp2(x: Any) -> Any:
    """Return 2^x for x between -125 and 127."""
    whole = np.rint(x)
    rest = x - whole
    power = float32(1.535336188319500e-4)
    power = power * rest + float32(1.339887440266574e-3)
    power = power * rest + float32(9.618437357674640e-3)
    power = power * rest + float32(5.550332471162809e-2)
    power = power * rest + float32(2.402264791363012e-1)
    power = power * rest + float32(6.931472028550421e-1)
    power = power * rest + float32(1.0)
    return power * _as_float((int32(whole) + int32(127)) << int32(23))


@njit(fastmath=_FUSED, inline="always")
def _tanh(y: Any) -> Any:
    """Return the hyperbolic tangent; NaN becomes a number."""
    size = abs(y)
    power = size * _MINUS_TWO_NATS
    t = _exp2(power if power > _LOWEST else _LOWEST)
    # Near 0, where `1 - t` would keep few bits, an odd polynomial (relative error 1.5e-8 up to 1/2).
    square = y * y
    rest = float32(1.724149095e-2)
    rest = rest * square + float32(-5.304549400e-2)
    rest = rest * square + float32(1.332587895e-1)
    rest = rest * square + float32(-3.333314390e-1)
    far = (float32(1.0) - t) / (float32(1.0) + t)
    return y + y * (square * rest) if size < float32(0.5) else far if y > float32(0.0) else -far


@njit(error_model="numpy", fastmath=_FUSED, inline="always")
def _highest(logits: Any) -> Any:
    """Return the maximum, finite where all are masked; NaN if one is."""
    # A maximum of floats is not taken in vectors, where it would lose NaN. As whole numbers they have the same order
    # once the bits below the sign of negative ones are turned, and NaN is counted.
    largest, strange = int32(-(2**31)), float32(0.0)
    for token in range(len(logits)):
        bits = _as_int(logits[token])
        ordered = bits ^ ((bits >> int32(31)) & int32(0x7FFFFFFF))
        largest = largest if largest > ordered else ordered
        strange += float32(0.0) if logits[token] == logits[token] else float32(1.0)
    highest = _as_float(largest ^ ((largest >> int32(31)) & int32(0x7FFFFFFF)))
    highest = highest if highest > _NOTHING else _NOTHING
    return highest if strange == 0.0 else _NAN


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FUSED)
def factors(linear: Any, offset: Any, logits: Any, weights: Any, shift: Any, sums: Any) -> None:
    """Fill `shift [row]`, `logits` and `weights`, and `sums [2, row]` with Z and S, of `linear + offset`."""
    rows, tile = linear.shape
    for row in range(rows):
        from_row, row_logits, row_weights = linear[row], logits[row], weights[row]
        for token in range(tile):
            row_logits[token] = from_row[token] + offset[token]
        highest = _highest(row_logits)
        z = float32(0.0)
        s = float32(0.0)
        for token in range(tile):
            logit = row_logits[token] - highest
            logit = logit if logit > _MASKED else _MASKED
            weight = _exp2(logit if logit > _LOWEST else _LOWEST)
            row_logits[token] = logit
            row_weights[token] = weight
            z += weight
            s += logit * weight
        shift[row] = highest
        # The clamps above hide NaN, which the maximum has.
        sums[0, row] = z if highest == highest else highest
        sums[1, row] = s if highest == highest else highest


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FUSED)
def formed(added: Any, sign: Any, linear: Any, offset: Any, cap: Any, gain: Any, out: Any) -> None:
    """Fill `out [3, component, row]` with shift, Z and S of `gain (linear + sign * added) + offset`, capped softly.

    The cap is `c tanh(l / c)`, with `tanh y = (1 - t) / (1 + t)` for `t = exp(-2 y)` unless y is small, and none if 0.
    """
    components, rows, tile = added.shape
    logits = np.empty(tile, np.float32)
    for row in range(rows):
        state = linear[row]
        for component in range(components):
            change, factor = added[component, row], gain[component, row]
            for token in range(tile):
                logits[token] = factor * (state[token] + sign * change[token]) + offset[token]
            if cap > 0.0:
                for token in range(tile):
                    ratio = logits[token] / cap
                    logits[token] = cap * _tanh(ratio) if ratio == ratio else ratio
            highest = _highest(logits)
            z = float32(0.0)
            s = float32(0.0)
            for token in range(tile):
                logit = logits[token] - highest
                logit = logit if logit > _MASKED else _MASKED
                weight = _exp2(logit if logit > _LOWEST else _LOWEST)
                z += weight
                s += logit * weight
            out[0, component, row] = highest
            out[1, component, row] = z if highest == highest else highest
            out[2, component, row] = s if highest == highest else highest


@njit(error_model="numpy", fastmath=_FUSED)
def _moments_of_sum(logits: Any, changes: Any, sign: Any) -> Any:
    """Return maximum, Z and S of one row's `logits + sign * changes`."""
    highest = logits[0] + sign * changes[0]
    for token in range(len(logits)):
        logit = logits[token] + sign * changes[token]
        highest = highest if highest > logit else logit
    z = float32(0.0)
    s = float32(0.0)
    for token in range(len(logits)):
        logit = logits[token] + sign * changes[token] - highest
        weight = _exp2(logit if logit > _LOWEST else _LOWEST)
        z += weight
        s += logit * weight
    return highest, z if s == s else s, s  # comparisons hide NaN from the maximum and from z


@njit(error_model="numpy", fastmath=_FUSED, inline="always")
def _sums_of_change(change: Any, base: Any, of_base: Any, final: Any, of_final: Any, bound: Any) -> Any:
    """Return shift, Z and S of one row's `base + change`, and those of `final - change`."""
    plus_z, plus_s, minus_z, minus_s = float32(0.0), float32(0.0), float32(0.0), float32(0.0)
    outside = float32(0.0)  # counted in the lanes of the sums beside it
    for token in range(len(base)):
        d = change[token]
        outside += float32(0.0) if abs(d) <= bound else float32(1.0)
        power = _exp2(d)
        inverse = float32(1.0) / power
        plus = of_base[token] * power
        plus_z += plus
        plus_s += (base[token] + d) * plus
        minus = of_final[token] * inverse
        minus_z += minus
        minus_s += (final[token] - d) * minus
    if outside == 0.0:
        return (float32(0.0), plus_z, plus_s), (float32(0.0), minus_z, minus_s)
    return _moments_of_sum(base, change, float32(1.0)), _moments_of_sum(final, change, float32(-1.0))


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FUSED)
def changes(
    added: Any,
    base_shift: Any,
    base_logits: Any,
    base_weights: Any,
    final_shift: Any,
    final_logits: Any,
    final_weights: Any,
    bound: Any,
    out: Any,
) -> None:
    """Fill `out [3, 2, component, row]` with shift, Z and S of `base + added` and `final - added`."""
    components, rows, _ = added.shape
    for row in range(rows):
        base, of_base, final, of_final = base_logits[row], base_weights[row], final_logits[row], final_weights[row]
        for component in range(components):
            plus, minus = _sums_of_change(added[component, row], base, of_base, final, of_final, bound)
            out[0, 0, component, row], out[0, 1, component, row] = (
                base_shift[row] + plus[0],
                final_shift[row] + minus[0],
            )
            for moment in range(1, 3):
                out[moment, 0, component, row], out[moment, 1, component, row] = plus[moment], minus[moment]


@intrinsic
def _multiply(typing_context: Any, left: Any, step: Any, right: Any, inner: Any, out: Any, stride: Any) -> Any:
    """Write a block of a product to the address `out`, with `stride` bytes from row to row.

    Its factors are at the addresses `left`, with `step` bytes from row to row, and `right`, as `[inner, N_COLUMNS]`.
    """
    del typing_context, left, step, right, inner, out, stride
    number, integer = ir.FloatType(), ir.IntType(64)
    vector = ir.VectorType(number, _WIDTH)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature
        builder.function.attributes.add("noinline")  # one copy: its compilation takes longer than the loops'
        left, step, right, inner, out, stride = arguments

        def at(address: Any, offset: Any, kind: Any) -> Any:
            return builder.inttoptr(builder.add(address, offset), kind.as_pointer())

        kind = ir.FunctionType(vector, [vector] * 3)
        multiply_add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{_WIDTH}f32")
        of_row = [builder.mul(step, integer(row)) for row in range(_ROWS)]
        before, body, after = builder.block, builder.append_basic_block("body"), builder.append_basic_block("after")
        builder.branch(body)

        builder.position_at_end(body)
        k, left_now, right_now = (builder.phi(integer) for _ in range(3))
        sums = [builder.phi(vector) for _ in range(_ROWS * _VECTORS)]
        columns = [builder.load(at(right_now, integer(4 * _WIDTH * v), vector), align=4) for v in range(_VECTORS)]
        added = []
        for row in range(_ROWS):
            entry = builder.load(at(left_now, of_row[row], number), align=4)
            first = builder.insert_element(vector(ir.Undefined), entry, ir.IntType(32)(0))
            spread = builder.shuffle_vector(first, first, ir.VectorType(ir.IntType(32), _WIDTH)(None))
            for v, column in enumerate(columns):
                added.append(builder.call(multiply_add, [spread, column, sums[row * _VECTORS + v]]))
        walks = [(k, integer(0), 1), (left_now, left, 4), (right_now, right, 4 * N_COLUMNS)]
        ends = [(phi, start, builder.add(phi, integer(by))) for phi, start, by in walks]
        for phi, start, end in ends + [(each, vector(None), end) for each, end in zip(sums, added, strict=True)]:
            phi.add_incoming(start, before)
            phi.add_incoming(end, body)
        builder.cbranch(builder.icmp_signed("<", ends[0][2], inner), body, after)

        builder.position_at_end(after)
        for row in range(_ROWS):
            start = builder.add(out, builder.mul(stride, integer(row)))
            for v in range(_VECTORS):
                builder.store(added[row * _VECTORS + v], at(start, integer(4 * _WIDTH * v), vector), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


@njit(nogil=True, cache=True, error_model="numpy")
def _block(left: Any, step: Any, right: Any, inner: Any, out: Any, stride: Any) -> None:
    _multiply(left, step, right, inner, out, stride)


@njit(nogil=True, cache=True, error_model="numpy")
def pack(right: Any, packed: Any) -> None:
    """Copy `right [head, inner, tile]` to `packed [head, block, inner, columns]`, with zeros behind the last column."""
    heads, inner, tile = right.shape
    for head in range(heads):
        for block in range(packed.shape[1]):
            start = block * N_COLUMNS
            width = min(N_COLUMNS, tile - start)
            for k in range(inner):
                if width == N_COLUMNS:  # a fixed number of vectors
                    for column in range(N_COLUMNS):
                        packed[head, block, k, column] = right[head, k, start + column]
                else:
                    for column in range(N_COLUMNS):
                        entry = right[head, k, start + min(column, width - 1)]
                        packed[head, block, k, column] = entry if column < width else float32(0.0)


@njit(nogil=True, cache=True, error_model="numpy")
def product(left: Any, right: Any, out: Any) -> None:
    """Fill `out [row, tile]` with `left [row, inner]` times the packed `right [block, inner, columns]`."""
    rows, inner = left.shape
    tile = out.shape[1]
    # Blocks are read and written by address, with numbers of float32 side by side. What lies otherwise takes a detour:
    # rows, as do the last ones, which fill no block, and columns, as do those that go over an edge.
    in_place = rows // _ROWS * _ROWS if left.strides[1] == 4 or inner == 1 else 0
    copied = np.empty((-(-(rows - in_place) // _ROWS) * _ROWS, inner), np.float32)
    for row in range(len(copied)):
        for k in range(inner):
            copied[row, k] = left[in_place + row, k] if in_place + row < rows else float32(0.0)
    edge = np.empty((_ROWS, N_COLUMNS), np.float32)
    for block in range(len(right)):
        column = block * N_COLUMNS
        width = min(N_COLUMNS, tile - column)
        is_direct = width == N_COLUMNS and out.strides[1] == 4
        factor = right.ctypes.data + block * right.strides[0]
        for row in range(0, rows, _ROWS):
            source, step = left.ctypes.data + row * left.strides[0], left.strides[0]
            if row >= in_place:
                source, step = copied.ctypes.data + (row - in_place) * copied.strides[0], copied.strides[0]
            if is_direct and row + _ROWS <= rows:
                into = out.ctypes.data + row * out.strides[0] + 4 * column
                _block(source, step, factor, inner, into, out.strides[0])
                continue
            _block(source, step, factor, inner, edge.ctypes.data, edge.strides[0])
            for each in range(min(_ROWS, rows - row)):
                for entry in range(width):
                    out[row + each, column + entry] = edge[each, entry]


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FUSED)
def head_changes(
    left: Any,
    right: Any,
    base_shift: Any,
    base_logits: Any,
    base_weights: Any,
    final_shift: Any,
    final_logits: Any,
    final_weights: Any,
    bound: Any,
    strip: Any,
    total: Any,
    out: Any,
) -> None:
    """Do the same as `changes` for `left [row, head, inner]` times the packed `right`, and make `total` their sum.

    `right` may be one for all heads. `strip` is room for the products of some rows; `total` may be without rows, and
    then is not filled.
    """
    rows, heads, _ = left.shape
    for head in range(heads):
        for start in range(0, rows, len(strip)):
            stop = min(start + len(strip), rows)
            product(left[start:stop, head], right[head % len(right)], strip[: stop - start])
            for row in range(start, stop):
                change = strip[row - start]
                if len(total):
                    of_row = total[row]
                    for token in range(len(change)):
                        of_row[token] = change[token] if head == 0 else of_row[token] + change[token]
                plus, minus = _sums_of_change(
                    change, base_logits[row], base_weights[row], final_logits[row], final_weights[row], bound
                )
                out[0, 0, head, row], out[0, 1, head, row] = base_shift[row] + plus[0], final_shift[row] + minus[0]
                for moment in range(1, 3):
                    out[moment, 0, head, row], out[moment, 1, head, row] = plus[moment], minus[moment]


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FUSED)
def follow(total: Any, before: Any, after: Any, by: Any, attn_rest: Any, mlp_rest: Any, mlp: Any) -> None:
    """Add `before + by * attn_rest` to `total`, and fill `mlp` with `after - total - by * mlp_rest`."""
    rows, tile = total.shape
    for row in range(rows):
        middle, start, end, out, factor = total[row], before[row], after[row], mlp[row], by[row]
        for token in range(tile):
            logit = middle[token] + start[token] + factor * attn_rest[token]
            middle[token] = logit
            out[token] = end[token] - logit - factor * mlp_rest[token]


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FUSED)
def removals(removed: Any, shift: Any, logits: Any, weights: Any, bound: Any, out: Any) -> None:
    """Fill `out [3, change, row]` with shift and Z of `logits - removed`, and the sum of `weights * removed`."""
    components, rows, tile = removed.shape
    for row in range(rows):
        clean = weights[row]
        for component in range(components):
            change = removed[component, row]
            z, gap = float32(0.0), float32(0.0)
            outside = float32(0.0)  # counted in the lanes of the sums beside it
            for token in range(tile):
                d = change[token]
                outside += float32(0.0) if abs(d) <= bound else float32(1.0)
                z += clean[token] * _exp2(-d)
                gap += clean[token] * d
            out[0, component, row] = shift[row]
            if outside > 0.0:
                highest, z, _ = _moments_of_sum(logits[row], change, float32(-1.0))
                out[0, component, row] += highest
            out[1, component, row] = z
            out[2, component, row] = gap


@njit(nogil=True, cache=True, error_model="numpy")
def count_excess(entries: Any, than: Any, excess: Any) -> None:
    """Add to `excess [row]` how many entries of a row are above `than [row, 1]`, less how many are below."""
    rows, tile = entries.shape
    for row in range(rows):
        of_row, own = entries[row], than[row, 0]
        more = int32(0)
        for token in range(tile):
            more += int32(of_row[token] > own) - int32(of_row[token] < own)
        excess[row] += more


@njit(error_model="numpy", fastmath=_FUSED, inline="always")
def _insert(logits: Any, best: Any) -> None:
    """Put those of `logits` that are above the last of `best`, which is in descending order, where they belong."""
    last = len(best) - 1
    for token in range(len(logits)):
        logit = logits[token]
        if logit > best[last]:
            at = last
            while at > 0 and best[at - 1] < logit:
                best[at] = best[at - 1]
                at -= 1
            best[at] = logit


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FUSED)
def top(
    left: Any, right: Any, final: Any, cap: Any, targets: Any, strip: Any, best: Any, z: Any, target: Any, ties: Any
) -> None:
    """Merge `final [row, tile]` less each head's `left [row, head, inner]` times the packed `right`, capped softly.

    Without heads, `final` itself is merged. The rest is what `interface.Top` has, and room for the logits of some rows.
    """
    rows, tile = final.shape
    for prediction in range(len(best)):
        for start in range(0, rows, len(strip)):
            stop = min(start + len(strip), rows)
            if len(right):
                product(left[start:stop, prediction], right[prediction % len(right)], strip[: stop - start])
            else:
                strip[:] = float32(0.0)
            for row in range(start, stop):
                logits, state, largest = strip[row - start], final[row], best[prediction, row]
                for token in range(tile):
                    logits[token] = state[token] - logits[token]
                if cap > 0.0:
                    for token in range(tile):
                        ratio = logits[token] / cap
                        logits[token] = cap * _tanh(ratio) if ratio == ratio else ratio
                column = targets[row]
                if 0 <= column < tile:
                    own, equal = logits[column], 0
                    for token in range(column):
                        equal += logits[token] == own
                    for place in range(len(largest)):
                        equal += largest[place] == own
                    target[prediction, row], ties[prediction, row] = own, equal
                highest, old = _highest(logits), largest[0] if largest[0] > _NOTHING else _NOTHING
                if highest > largest[-1]:
                    _insert(logits, largest)
                shift = largest[0] if largest[0] > _NOTHING else _NOTHING
                tile_z = float32(0.0)
                for token in range(tile):
                    power = (logits[token] - shift) * _BITS
                    tile_z += _exp2(power if power > _LOWEST else _LOWEST)
                earlier_z = z[prediction, row]
                if shift > old:
                    earlier_z *= np.exp(np.float64(old) - np.float64(shift))
                # The clamp above hides NaN, which the maximum has.
                z[prediction, row] = earlier_z + tile_z if highest == highest else highest
