"""Tests of means over prompts against zero, and corrections for the number of cells looked at.

If a patch does nothing, a prompt's change of the metric is as likely to be `x` as `-x`. So the signs of prompts can be
flipped, all cells of a prompt together, and what was measured compared with what all flips give (Fisher 1935, "The
Design of Experiments", section 21). That needs no normal distribution. For up to 16 prompts all flips are gone through
(exact; the smallest p-value is `2 / 2**prompts`), beyond that they are drawn.

Of many cells looked at, some stand out by chance. `adjusted` gives p-values that may be compared with a level as they
are:

- `"max"` compares each cell with the largest of all cells at each flip (Westfall and Young 1993; Nichols and Holmes
  2002). The probability that any idle cell stands out is below the level. Since whole prompts are flipped, cells that
  go together are counted as such, and 6 prompts are enough whatever the number of cells.
- `"holm"` (Holm 1979) says the same of any p-values. The smallest is multiplied by the number of cells: with sign
  flips, 144 cells need 13 prompts before any of them can stand out.
- `"bh"` (Benjamini and Hochberg 1995) keeps the expected share of idle cells among those that stand out below the
  level.

A cell that is zero in every prompt can never stand out, however signs are flipped, so it does not count among the cells
looked at; neither does NaN.
"""

import math
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.errors import InvalidInputError, check_at_least
from headscope.ops.devices import sums_device

__all__ = ["Correction", "TestMethod", "adjusted", "corrected", "looked_at", "p_values", "t_test"]

Correction = Literal["max", "holm", "bh", "none"]
TestMethod = Literal["sign_flip", "t"]

_EXACT = 16  # prompts of which all flips are gone through
_BLOCK_NUMBERS = 2**22  # float64 held of flipped means at a time
_TIE = 1e-9  # of a mean: sums of the same numbers in another order


def looked_at(rows: Float[Tensor, "prompt *cell"]) -> Bool[Tensor, "*cell"]:
    """Tell the cells that count: those that are numbers, and not zero in all prompts."""
    return rows.isfinite().all(0) & (rows != 0).any(0)


def p_values(
    rows: Float[Tensor, "prompt *cell"], method: TestMethod = "sign_flip", *, flips: int = 65_535, seed: int = 0
) -> Float[Tensor, "*cell"]:
    """Return two-sided p-values of each cell's mean over prompts being zero; NaN for NaN.

    Args:
        rows: The value of each prompt, prompts being drawn independently.
        method: `"sign_flip"`, or `"t"`: Student's, which takes prompts' values to be normal.
        flips: How many flips are drawn for more than 16 prompts; what was measured counts as one more.
        seed: Of these.

    Raises:
        InvalidInputError: For fewer than two prompts, or a method that is not there.

    Example:
        >>> rows = torch.tensor([[1.0, 0.2], [2.0, -0.3], [1.5, 0.1], [0.5, -0.2], [1.0, 0.4], [2.5, -0.1]])
        >>> p_values(rows), p_values(rows, "t")
        (tensor([0.0312, 1.0000], dtype=torch.float64), tensor([0.0053, 0.8831], dtype=torch.float64))
    """
    if method not in get_args(TestMethod):
        raise InvalidInputError(f"method must be one of {', '.join(get_args(TestMethod))}; got {method!r}.")
    return t_test(rows) if method == "t" else _sign_flips(rows, flips, seed, largest=False)


def adjusted(
    rows: Float[Tensor, "prompt *cell"],
    correction: Correction = "max",
    *,
    method: TestMethod = "sign_flip",
    flips: int = 65_535,
    seed: int = 0,
) -> Float[Tensor, "*cell"]:
    """Return p-values corrected for the number of cells; see the module, and `p_values` for the arguments.

    Raises:
        InvalidInputError: For a correction that is not there, or `"max"` with another method than sign flips.

    Example:
        >>> rows = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))
        >>> rows[:, 0] += 2
        >>> for correction in ("none", "max", "holm", "bh"):
        ...     print(correction, int((adjusted(rows, correction) < 0.05).sum()))
        none 4
        max 1
        holm 1
        bh 1
    """
    if correction != "max":
        p = p_values(rows, method, flips=flips, seed=seed)
        return corrected(p, correction, looked_at(rows).to(p.device))
    if method != "sign_flip":
        raise InvalidInputError(f"correction 'max' needs sign flips; with method {method!r} take 'holm' or 'bh'.")
    return _sign_flips(rows, flips, seed, largest=True)


def corrected(
    p: Float[Tensor, "*cell"], correction: Correction, among: Bool[Tensor, "*cell"] | None = None
) -> Float[Tensor, "*cell"]:
    """Correct p-values of several cells; those not looked at have 1, and NaN stays NaN.

    Args:
        p: The p-values.
        correction: `"holm"`, `"bh"` or `"none"`.
        among: The cells looked at; default: all that are not NaN.

    Raises:
        InvalidInputError: For another correction.

    Example:
        >>> corrected(torch.tensor([0.01, 0.04, 0.03, torch.nan]), "holm")
        tensor([0.0300, 0.0600, 0.0600,    nan])
        >>> corrected(torch.tensor([0.01, 0.04, 0.03, torch.nan]), "bh")
        tensor([0.0300, 0.0400, 0.0400,    nan])
    """
    if correction not in ("holm", "bh", "none"):
        raise InvalidInputError(f"correction must be one of {', '.join(get_args(Correction))}; got {correction!r}.")
    if correction == "none":
        return p
    counted = ~p.isnan() if among is None else among & ~p.isnan()
    ordered, order = p[counted].sort()
    n = len(ordered)
    rank = torch.arange(1, n + 1, dtype=p.dtype, device=p.device)
    if correction == "holm":
        made = (ordered * (n + 1 - rank)).cummax(0).values if n else ordered
    else:
        made = (ordered * n / rank).flip(0).cummin(0).values.flip(0) if n else ordered
    result = torch.where(p.isnan(), p, torch.ones_like(p))
    result[counted] = torch.empty_like(made).scatter_(0, order, made.clamp(max=1))
    return result


def t_test(rows: Float[Tensor, "prompt *cell"]) -> Float[Tensor, "*cell"]:
    """Return two-sided p-values of Student's t test of each cell's mean; 1 for zero in all prompts, NaN for NaN."""
    from scipy.special import stdtr

    n = _checked(rows)
    exact = rows.detach().cpu().double()
    t = exact.mean(0).abs() / (exact.std(0) / math.sqrt(n))
    p = torch.from_numpy(np.asarray(2 * stdtr(n - 1, -t.numpy())))
    return torch.where((exact == 0).all(0), 1.0, p).to(sums_device(rows.device))


def _checked(rows: Tensor) -> int:
    if len(rows) < 2:
        raise InvalidInputError(f"a test needs at least two prompts; got {len(rows)}.")
    return len(rows)


def _sign_flips(rows: Float[Tensor, "prompt *cell"], flips: int, seed: int, *, largest: bool) -> Float[Tensor, "*cell"]:
    """Shares of flips at which a cell (or the largest of all) is as far from zero as it was measured.

    A flip leaves the sum of squares as it is, so that means over its root are in order of their t-values: that makes
    cells of any scale comparable.
    """
    check_at_least(1, flips=flips)
    n, cells = _checked(rows), rows.shape[1:]
    exact = rows.detach().cpu().double().reshape(n, -1)
    counted = looked_at(exact)
    shown = exact[:, counted]
    shown = shown / shown.abs().amax(0)  # tiny numbers have squares too
    shown = shown / shown.square().sum(0).sqrt()
    measured = shown.sum(0).abs()
    reached = torch.zeros_like(measured)
    least, total = measured - _TIE, 0
    together = max(1, _BLOCK_NUMBERS // max(1, shown.shape[1]))
    for signs in _signs(n, flips, seed, together):
        flipped = (signs @ shown).abs_()
        if not largest:
            reached += (flipped >= least).sum(0)
        elif flipped.shape[1]:
            ordered = flipped.amax(1).sort().values
            reached += len(signs) - torch.searchsorted(ordered, least)
        total += len(signs)
    p = torch.where(exact.isfinite().all(0), 1.0, torch.nan).double()
    p[counted] = reached / total
    return p.view(cells).to(sums_device(rows.device))


def _signs(n: int, flips: int, seed: int, together: int) -> Iterator[Float[Tensor, "flip prompt"]]:
    """All flips with the first prompt as it was (a flip of all prompts changes no size), or drawn ones behind none."""
    if n <= _EXACT:
        for numbers in torch.arange(2 ** (n - 1), device="cpu").split(together):
            bits = numbers[:, None] >> torch.arange(n, device="cpu")
            yield 1.0 - 2.0 * (bits & 1).double()
        return
    yield torch.ones(1, n, dtype=torch.float64, device="cpu")
    generator = torch.Generator("cpu").manual_seed(seed)
    # Blocks of one size whatever the number of cells, so that the same flips are drawn for any.
    for start in range(0, flips, 4096):
        signs = torch.randint(2, (min(4096, flips - start), n), generator=generator, device="cpu").double() * 2 - 1
        yield from signs.split(together)
