"""Confidence intervals of means over prompts, by resampling the prompts.

Of n prompts, n are drawn with replacement, thousands of times, and the mean is taken of each draw (Efron and Tibshirani
1993, "An Introduction to the Bootstrap"). How an interval is made of these means decides if it covers what it says:

- `"studentized"` (chapter 12.5; the default) takes quantiles of `t = (drawn mean - mean) / error of the draw`, and goes
  out from the mean by these times the mean's own error. It is the one to use for 8 to 20 prompts: nominal 95 %
  intervals cover 93 to 98 % whether prompts' values are normal, uniform, exponential or of heavy tails (Student t with
  5 degrees of freedom), in 3,000 simulated tables each. Two or three prompts have hardly any draws that differ: their
  ends are Student's t's, and so is an end whose quantile is of draws without spread (few prompts differ from zero).
- `"bca"` (bias-corrected and accelerated, chapter 14.3) takes quantiles of the drawn means themselves, moved for their
  bias and skewness. It covers 86 to 92 % at 8 prompts, 91 to 94 % at 20.
- `"percentile"` takes these quantiles as they are: 85 to 90 % at 8, 90 to 93 % at 20.

All cells of a table are resampled together, from the same draws. Cells go in blocks, so that memory is bounded by
`draws x block`, whatever their number. With the default of 1,999 draws and 32 prompts a cell costs some 0.3 Mflop.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from headscope.analysis.core.stats import LEVEL, threshold
from headscope.errors import InvalidInputError, check_at_least
from headscope.ops.devices import sums_device, wide

__all__ = ["IntervalMethod", "bootstrap_interval", "proportion_interval"]

IntervalMethod = Literal["studentized", "bca", "percentile"]

_BLOCK_NUMBERS = 2**22  # float64 held of the draws at a time
_FEWEST = 4  # prompts whose draws make quantiles


def bootstrap_interval(
    rows: Float[Tensor, "prompt *cell"],
    level: float = LEVEL,
    *,
    method: IntervalMethod = "studentized",
    draws: int = 1_999,
    seed: int = 0,
) -> tuple[Float[Tensor, "*cell"], Float[Tensor, "*cell"]]:
    """Return the ends of a confidence interval of each cell's mean over prompts.

    Args:
        rows: The value of each prompt, prompts being drawn independently. A cell with NaN has NaN for ends.
        level: The probability that the interval misses the true mean.
        method: How the interval is made of the draws; see the module.
        draws: How many times prompts are drawn.
        seed: Of the draws.

    Raises:
        InvalidInputError: For fewer than two prompts, a level that is no probability, or a method that is not there.

    Example:
        >>> rows = torch.tensor([1.9, 2.4, 2.1, 3.0, 1.2, 2.2, 2.6, 1.8])
        >>> low, high = bootstrap_interval(rows)
        >>> print(f"{rows.mean():.2f}, from {low:.2f} to {high:.2f}")
        2.15, from 1.67 to 2.56
    """
    if method not in get_args(IntervalMethod):
        raise InvalidInputError(f"method must be one of {', '.join(get_args(IntervalMethod))}; got {method!r}.")
    if not 0 < level < 1:
        raise InvalidInputError(f"level is the probability of missing the mean, between 0 and 1; got {level}.")
    check_at_least(1, draws=draws)
    n, *cells = rows.shape
    if n < 2:
        raise InvalidInputError(f"an interval needs at least two prompts; got {n}.")
    values = rows.detach().cpu().double().reshape(n, -1)
    counts = _draws(n, draws, seed)
    ends = torch.empty(2, values.shape[1], dtype=torch.float64, device="cpu")
    make = _MAKERS[method]
    for block in torch.arange(values.shape[1], device="cpu").split(max(1, _BLOCK_NUMBERS // draws)):
        ends[:, block] = make(values[:, block], counts, level)
    low, high = ends.view(2, *cells).to(sums_device(rows.device))
    return low, high


def _draws(n: int, draws: int, seed: int) -> Float[Tensor, "draw prompt"]:
    """Draw prompts: the share of each draw that each prompt is."""
    drawn = torch.randint(n, (draws, n), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    counts = torch.zeros(draws, n, dtype=torch.float64, device="cpu")
    counts.scatter_add_(1, drawn, torch.ones_like(counts))
    return counts / n


def _studentized(values: Tensor, counts: Tensor, level: float) -> Float[Tensor, "2 cell"]:
    n, mean = len(values), values.mean(0)
    error = values.std(0) / math.sqrt(n)
    t = mean.new_tensor([[1.0], [-1.0]]) * threshold(1, n - 1.0, level)
    if n >= _FEWEST:
        away = values - mean  # moments of what is left lose nothing to cancellation
        drawn, squares = away.T @ counts.T, away.square().T @ counts.T
        # Of a draw as of the prompts themselves. A draw of one prompt alone has no error: it is as far out as can be.
        of_draw = ((squares - drawn.square()).clamp(min=0) / (n - 1)).sqrt()
        tiny = 1e-6 * error[:, None]
        alone = torch.where(drawn.abs() > tiny, drawn.sign() * torch.inf, 0.0)
        of_draws = torch.where(of_draw > tiny, drawn / of_draw, alone)
        quantiles = _quantiles(of_draws, [[1 - level / 2], [level / 2]])
        t = torch.where(quantiles.isfinite(), quantiles, t)
    return torch.where(error > 0, mean - t * error, mean)


def _percentile(values: Tensor, counts: Tensor, level: float) -> Float[Tensor, "2 cell"]:
    mean = values.mean(0)
    return mean + _quantiles((values - mean).T @ counts.T, [[level / 2], [1 - level / 2]])


def _bca(values: Tensor, counts: Tensor, level: float) -> Float[Tensor, "2 cell"]:
    from scipy.special import ndtr, ndtri

    mean = values.mean(0)
    away = values - mean
    drawn, spread = away.T @ counts.T, away.square().sum(0)
    tie = 1e-9 * spread.sqrt()[:, None]  # a draw whose mean is the same but for rounding counts half
    below = ((drawn < -tie).double().mean(1) + (drawn <= tie).double().mean(1)) / 2
    least = 0.5 / len(counts)
    bias = ndtri(below.clamp(least, 1 - least).numpy())
    # Left out one at a time, the means differ as the values do, the other way round.
    acceleration = (away.pow(3).sum(0) / (6 * spread.pow(1.5))).nan_to_num().numpy()
    moved = bias + ndtri(np.array([[level / 2], [1 - level / 2]]))
    shares = torch.from_numpy(ndtr(bias + moved / (1 - acceleration * moved)))
    return mean + torch.where(spread > 0, _quantiles(drawn, shares), 0.0)


def _quantiles(drawn: Float[Tensor, "cell draw"], shares: object) -> Float[Tensor, "share cell"]:
    """Quantiles of each cell's draws that are not NaN, interpolated; `shares` is `[share, 1]` or `[share, cell]`."""
    ordered = drawn.sort(1).values  # NaN comes last
    known = (~ordered.isnan()).sum(1)
    at = torch.as_tensor(shares, dtype=torch.float64, device="cpu") * (known - 1).clamp(min=0)
    # Past the last whole draw there is nothing to interpolate with.
    first = at.nan_to_num().floor().long()
    after = torch.minimum(first + 1, (known - 1).clamp(min=0))
    a, b = ordered.gather(1, first.T).T, ordered.gather(1, after.T).T
    return torch.where(known > 0, a + (b - a) * (at - first), torch.nan)


_MAKERS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "studentized": _studentized,
    "bca": _bca,
    "percentile": _percentile,
}


def proportion_interval(
    count: Shaped[Tensor, "*cell"], n: int, level: float = LEVEL
) -> tuple[Float[Tensor, "*cell"], Float[Tensor, "*cell"]]:
    """Return the ends of the confidence interval of a share, `count` of `n` (Wilson 1927).

    Example:
        >>> low, high = proportion_interval(torch.tensor([18.0]), 20)
        >>> print(f"{float(low):.2f} to {float(high):.2f}")
        0.70 to 0.97
    """
    from scipy.special import ndtri

    z = float(-ndtri(level / 2))
    share = wide(count) / n
    center = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)).sqrt()
    return (center - reach).clamp(min=0), (center + reach).clamp(max=1)
