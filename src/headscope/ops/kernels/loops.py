"""The loops of the CPU kernels, compiled by numba when first called, and kept on disk.

A row's factors (a few KiB) stay in the first cache while all components pass over them; 2^d is made once for both
signs and summed on the spot, so nothing of the size of a tile is written. 2^x is a polynomial of degree 6 on
[-1/2, 1/2] (relative error 1.6e-7, two bits in the last place) whose exponent is set by integer arithmetic: unlike a
call into a math library it is inlined, and runs on whole vectors.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, int32, njit
from numba.core import types
from numba.extending import intrinsic

from headscope.ops.kernels.interface import MASKED_BITS

__all__ = ["changes", "count_excess", "factors", "removals"]

# Sums may be reordered into vectors and products fused; NaN and infinities keep their meaning.
_FUSED = {"reassoc", "contract", "arcp", "nsz", "afn"}
_MASKED = float32(MASKED_BITS)
_LOWEST = float32(-125.0)  # 2^-125 is nothing beside a sum of at least 1


@intrinsic
def _as_float(typing_context: Any, bits: Any) -> Any:
    """Read the bits of an int32 as a float32."""
    del typing_context, bits

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


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


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FUSED)
def factors(logits: Any, shift: Any, weights: Any, sums: Any) -> None:
    """Subtract `shift` from the logits, and fill `weights` with their powers and `sums [2, row]` with Z and S."""
    rows, tile = logits.shape
    for row in range(rows):
        z = float32(0.0)
        s = float32(0.0)
        highest = shift[row]
        row_logits, row_weights = logits[row], weights[row]
        for token in range(tile):
            logit = row_logits[token] - highest
            logit = logit if logit > _MASKED else _MASKED
            weight = _exp2(logit if logit > _LOWEST else _LOWEST)
            row_logits[token] = logit
            row_weights[token] = weight
            z += weight
            s += logit * weight
        # The clamps above hide NaN, which the maximum has.
        sums[0, row] = z if highest == highest else highest
        sums[1, row] = s if highest == highest else highest


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FUSED)
def _moments_of_sum(logits: Any, changes: Any, sign: Any, out: Any) -> None:
    """Fill `out` with maximum, Z and S of one row's `logits + sign * changes`."""
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
    out[0] = highest
    out[1] = z if s == s else s  # comparisons hide NaN from the maximum and from z
    out[2] = s


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
    components, rows, tile = added.shape
    moments = np.empty(3, np.float32)
    for row in range(rows):
        base, final = base_logits[row], final_logits[row]
        of_base, of_final = base_weights[row], final_weights[row]
        for component in range(components):
            change = added[component, row]
            plus_z, plus_s, minus_z, minus_s = float32(0.0), float32(0.0), float32(0.0), float32(0.0)
            outside = float32(0.0)  # counted in the lanes of the sums beside it
            for token in range(tile):
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
                out[0, 0, component, row], out[0, 1, component, row] = base_shift[row], final_shift[row]
                out[1, 0, component, row], out[1, 1, component, row] = plus_z, minus_z
                out[2, 0, component, row], out[2, 1, component, row] = plus_s, minus_s
                continue
            _moments_of_sum(base, change, float32(1.0), moments)
            out[0, 0, component, row] = base_shift[row] + moments[0]
            out[1, 0, component, row], out[2, 0, component, row] = moments[1], moments[2]
            _moments_of_sum(final, change, float32(-1.0), moments)
            out[0, 1, component, row] = final_shift[row] + moments[0]
            out[1, 1, component, row], out[2, 1, component, row] = moments[1], moments[2]


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FUSED)
def removals(removed: Any, shift: Any, logits: Any, weights: Any, bound: Any, out: Any) -> None:
    """Fill `out [3, change, row]` with shift and Z of `logits - removed`, and the sum of `weights * removed`."""
    components, rows, tile = removed.shape
    moments = np.empty(3, np.float32)
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
                _moments_of_sum(logits[row], change, float32(-1.0), moments)
                out[0, component, row] += moments[0]
                z = moments[1]
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
