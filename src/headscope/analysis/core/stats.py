"""Means over positions, their standard errors, and the rule for calling a mean different from zero.

Positions of one row (a sequence, or a prompt) are correlated; rows are what was drawn independently. Of values x, let
S_r be the sum over the positions of row r that count and c_r their number. The mean and its squared standard error are

    m = sum_r S_r / sum_r c_r          se^2 = R / (R - 1) * sum_r (S_r - c_r m)^2 / (sum_r c_r)^2

with R - 1 degrees of freedom: that of a ratio of sums over R clusters (Cochran 1977, "Sampling Techniques", chapter 6;
the cluster-robust error of Liang and Zeger 1986). With one position in each row it is std / sqrt(R).

From fewer than eight rows an error is hardly known. They are then cut, each in two, four or eight pieces, and each
piece is compared with the pieces at its place in other rows, so that a trend along rows is no error: batch means, as of
a long simulation (Schmeiser 1982), in strata. They are right as long as positions are correlated over distances shorter
than a piece, and too small where whole rows differ. Of a single row, pieces are compared with the mean of all.

Rows are not all that varies. A head that goes by position does at each position the same in every row, so that more
rows say nothing more about it: with eight positions there are eight numbers. Where that matters, `with_places` adds
what positions (or tokens) differ by: the two-way clustered error of Cameron, Gelbach and Miller 2011, V = V_rows +
V_places - V_cells.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.ops.devices import wide

__all__ = [
    "LEVEL",
    "Estimate",
    "Estimates",
    "by_cluster",
    "difference",
    "estimate",
    "estimates",
    "estimates_of_moments",
    "estimates_over_prompts",
    "known_in_order",
    "place_moments",
    "row_moments",
    "row_moments_of_sums",
    "standard_errors",
    "threshold",
    "with_places",
]

LEVEL = 0.05
"""Family-wise: the probability that among all things looked at, none of which does anything, one is called clear."""

_CUTS = (1, 2, 4, 8)  # pieces that each row is cut into
_PIECES = _CUTS[-1]
_ENOUGH = 7  # degrees of freedom, for which rows are cut
_ROUNDING = 1e-13  # of a sum of squares, below which a difference of such sums is zero
T = TypeVar("T", float, Tensor)
E = TypeVar("E", "Estimate", "Estimates")


@dataclass(frozen=True)
class Estimate:
    """A mean over positions.

    Attributes:
        value: The mean.
        error: One standard error of it; NaN for a single position.
        n: Number of positions.
        freedom: Degrees of freedom of the error.
    """

    value: float
    error: float
    n: int
    freedom: float = math.inf

    def clear(self, among: int = 1, level: float = LEVEL) -> bool:
        """Tell whether it differs significantly from zero, as one of `among` such numbers.

        Example:
            >>> Estimate(2.5, 1.0, 99).clear(), Estimate(2.5, 1.0, 99).clear(among=100)
            (True, False)
        """
        return abs(self.value) > threshold(among, self.freedom, level) * self.error

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Return the confidence interval, which misses the true mean with probability `level`.

        Example:
            >>> low, high = Estimate(1.0, 0.5, 40, freedom=9.0).interval()
            >>> print(f"{low:.2f} to {high:.2f}")
            -0.13 to 2.13
        """
        reach = threshold(1, self.freedom, level) * self.error
        return self.value - reach, self.value + reach


@dataclass(frozen=True)
class Estimates:
    """Means of several things.

    Attributes:
        values: The mean of each.
        errors: One standard error of each.
        freedom: Degrees of freedom of each error.
        n: Number of positions (of the first, if things differ in that).
        each: The values `[*thing, batch, pos]`, NaN where a position does not count; empty if only sums were kept.
    """

    values: Float[Tensor, "*thing"]
    errors: Float[Tensor, "*thing"]
    freedom: Float[Tensor, "*thing"]
    n: int
    each: Float[Tensor, "..."] = field(default_factory=lambda: torch.empty(0))

    def __getitem__(self, at: tuple[int, ...] | int) -> Estimate:
        return Estimate(float(self.values[at]), float(self.errors[at]), self.n, float(self.freedom[at]))

    def clear(self, sign: int = 0, *, among: int | None = None, level: float = LEVEL) -> Bool[Tensor, "*thing"]:
        """Tell which differ significantly from zero (sign 0), are above it (1) or below it (-1).

        Args:
            sign: The side to look at; the test is two-sided all the same.
            among: How many numbers were looked at; default: as many as there are here.
            level: The family-wise level.

        Example:
            >>> zeros = torch.zeros(3)
            >>> Estimates(torch.tensor([0.1, 3.0, -5.0]), zeros + 1, zeros + 40, n=100).clear()
            tensor([False,  True,  True])
        """
        sizes = self.values.abs() if sign == 0 else sign * self.values
        return sizes > threshold(among or self.values.numel(), self.freedom, level) * self.errors

    def contenders(self, *, largest: bool = True) -> list[int]:
        """Return the flat index of the largest, then in order those not significantly different from it.

        They are compared position by position, so that what moves all of them together does not blur the ranking.
        """
        first, *others = known_in_order(self.values.flatten(), largest=largest)
        if not others:
            return [first]
        each = self.each.flatten(0, -3)
        apart = estimates(each[first] - each[others]).clear().tolist()
        return [first, *(at for at, far in zip(others, apart, strict=True) if not far)]


def known_in_order(values: Float[Tensor, " thing"], *, largest: bool = True) -> list[int]:
    """Return the places of the values that are not NaN, the largest (or smallest) first."""
    known = (~values.isnan()).nonzero()[:, 0]
    return known[values[known].argsort(descending=largest, stable=True)].tolist()


def threshold(among: int, freedom: T, level: float = LEVEL) -> T:
    """Return how many standard errors from zero a number must be to be significant, as one of `among`.

    The two-sided quantile of Student's t at `level / among` (Bonferroni's bound). Degrees of freedom are rounded down;
    below one there is no bound, so it is infinite.

    Example:
        >>> for among in (1, 10, 144):
        ...     print(among, [round(threshold(among, freedom), 2) for freedom in (7.0, 31.0, math.inf)])
        1 [2.36, 2.04, 1.96]
        10 [4.03, 3.02, 2.81]
        144 [6.46, 4.02, 3.58]
    """
    from scipy.special import stdtrit

    whole = torch.as_tensor(freedom, dtype=torch.float64, device="cpu").floor()
    quantiles = -torch.from_numpy(np.asarray(stdtrit(whole.numpy(), level / max(1, among) / 2)))
    bounds = torch.where(whole >= 1, quantiles, math.inf)
    return bounds.to(freedom.device) if isinstance(freedom, Tensor) else float(bounds)


def estimate(values: Float[Tensor, "batch pos"]) -> Estimate:
    """Return the mean over all positions that are not NaN, with its error.

    Example:
        >>> estimate(torch.tensor([[1.0, 3.0, torch.nan]]))
        Estimate(value=2.0, error=1.0, n=2, freedom=1.0)
    """
    return estimates(values[None])[0]


def estimates(values: Float[Tensor, "*thing batch pos"]) -> Estimates:
    """Return the mean of each thing over all positions that are not NaN, with its error.

    Example:
        >>> rows = torch.randn(10, 1, generator=torch.Generator().manual_seed(0))  # alike at all positions of a row
        >>> found = estimates(torch.stack([rows.expand(10, 50), torch.ones(10, 50)]))
        >>> [f"{each.value:.2f} ± {each.error:.2f}" for each in (found[0], found[1])]
        ['-0.27 ± 0.36', '1.00 ± 0.00']
    """
    exact = values.detach().cpu().double()
    means = exact.nanmean((-2, -1))
    counted = (~exact.isnan()).flatten(0, -3).any(0)
    # Moments of what is left of the mean lose nothing to cancellation.
    away = (exact - means[..., None, None])[..., counted]
    found = estimates_of_moments(row_moments(away, counted.nonzero()[:, 0]))
    return dataclasses.replace(found, values=means, each=values.detach().cpu())


def by_cluster(
    rows: Float[Tensor, "prompt *cell"],
    clusters: Int[Tensor, " prompt"] | None,
    about: Float[Tensor, "*cell"] | float = 0.0,
) -> Float[Tensor, "cluster *cell"]:
    """Return a value for each cluster of prompts: the mean over its prompts, so that clusters are rows of a test.

    Clusters of several sizes count by these: the mean over clusters is that over prompts.

    Args:
        rows: The value of each prompt.
        clusters: A number for each prompt, the same within a cluster; `None`: each prompt is its own.
        about: The number whose distances are averaged: zero for tests of a mean of zero, the mean itself for its error,
            which then is that of a ratio of sums (see the module).

    Example:
        >>> rows = torch.tensor([[1.0], [3.0], [5.0], [7.0], [2.0]])
        >>> by_cluster(rows[:4], torch.tensor([0, 0, 1, 1])).flatten(), by_cluster(rows, None).shape
        (tensor([2., 6.]), torch.Size([5, 1]))
    """
    if clusters is None:
        return rows
    _, cluster = clusters.to(rows.device).unique(return_inverse=True)
    n_clusters = int(cluster.max()) + 1
    sums = rows.new_zeros(n_clusters, *rows.shape[1:]).index_add_(0, cluster, rows - about)
    return about + sums * (n_clusters / len(rows))


def standard_errors(
    rows: Float[Tensor, "prompt *cell"], clusters: Int[Tensor, " prompt"] | None = None
) -> Float[Tensor, "*cell"]:
    """Return one standard error of each cell's mean over prompts, `std / sqrt(n)`; NaN for a single prompt.

    Args:
        rows: The value of each prompt.
        clusters: A number for each prompt, the same for those not drawn independently; the error is over clusters.

    Example:
        >>> standard_errors(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
        tensor([1., 0.])
    """
    rows = by_cluster(rows, clusters, rows.mean(0))
    if len(rows) < 2:
        return torch.full_like(rows[0], torch.nan)
    return (wide(rows).std(0) / math.sqrt(len(rows))).to(rows)


def estimates_over_prompts(
    rows: Float[Tensor, "prompt cell *cells"], clusters: Int[Tensor, " prompt"] | None = None
) -> Estimates:
    """Return the mean of each cell over prompts, with its error over clusters of them (see `standard_errors`).

    Example:
        >>> rows = torch.tensor([[1.0], [3.0], [5.0], [7.0]])
        >>> for clusters in (None, torch.tensor([0, 0, 1, 1])):
        ...     found = estimates_over_prompts(rows, clusters)[0]
        ...     print(f"{found.value} ± {found.error:.2f}, {found.freedom:.0f} degrees of freedom")
        4.0 ± 1.29, 3 degrees of freedom
        4.0 ± 2.00, 1 degrees of freedom
    """
    rows = wide(rows)
    return estimates(by_cluster(rows, clusters, rows.mean(0)).movedim(0, -1)[..., None])


def row_moments(values: Float[Tensor, "*thing n"], rows: Int[Tensor, " n"]) -> Float[Tensor, "moment stratum *thing"]:
    """Return sums from which means and errors follow, for analyses that keep no single positions.

    Those of different rows may be added, by batches, processes or machines: `estimates_of_moments` takes the sum.

    Args:
        values: At the positions that count; NaN where one does not count for a thing.
        rows: The row of each, positions of a row together and in order.

    Example:
        >>> values, rows = torch.arange(60.0).view(1, 60), torch.arange(20).repeat_interleave(3)
        >>> first, second = row_moments(values[:, :30], rows[:30]), row_moments(values[:, 30:], rows[30:])
        >>> mean = estimates_of_moments(first + second)[0]
        >>> print(f"{mean.value} ± {mean.error:.2f}, {mean.freedom:.0f} degrees of freedom")
        29.5 ± 3.97, 19 degrees of freedom
    """
    exact = wide(values.detach())
    rows = rows.to(exact.device)
    _, row, lengths = rows.unique_consecutive(return_inverse=True, return_counts=True)
    place = torch.arange(len(rows), device=rows.device) - (lengths.cumsum(0) - lengths)[row]
    piece = row * _PIECES + place * _PIECES // lengths[row]

    def by_piece(each: Tensor) -> Tensor:
        sums = each.new_zeros(*each.shape[:-1], len(lengths) * _PIECES)
        return sums.index_add_(-1, piece, each).unflatten(-1, (len(lengths), _PIECES))

    known = ~exact.isnan()
    return _moments(by_piece(exact.masked_fill(~known, 0.0)), by_piece(known.double()))


def row_moments_of_sums(
    sums: Float[Tensor, "row *thing"], counts: Float[Tensor, "row *thing"]
) -> Float[Tensor, "moment stratum *thing"]:
    """Return the same from each row's sum and number of positions, where it cannot be cut: few rows stay few."""
    rows = (wide(each).movedim(0, -1)[..., None] for each in (sums, counts))
    return _moments(*(torch.nn.functional.pad(each, (0, _PIECES - 1)) for each in rows))


def _moments(
    sums: Float[Tensor, "*thing row piece"], counts: Float[Tensor, "*thing row piece"]
) -> Float[Tensor, "moment stratum *thing"]:
    """Moments over rows of each piece, for every way to cut rows: 1 + 2 + 4 + 8 strata."""
    s, c = (
        torch.cat([each.unflatten(-1, (cut, _PIECES // cut)).sum(-1) for cut in _CUTS], dim=-1)
        for each in (sums, counts)
    )
    moments = [each.sum(-2) for each in (s, c, s.square(), s * c, c.square(), (c > 0).double())]
    return torch.stack(moments).movedim(-1, 1)


def estimates_of_moments(moments: Float[Tensor, "moment stratum *thing"]) -> Estimates:
    """Return means and errors from what `row_moments` gave, added over all rows; NaN where nothing counts."""
    total, n, squares, products, squared_counts, rows = moments.cpu().unbind()
    means = total[0] / n[0]
    # Of the residuals S - c m: their sum in each stratum, and that of their squares.
    left = total - n * means
    left_squares = squares - 2 * means * products + squared_counts * means.square()
    several, alone = rows > 1, rows == 1
    about_mean = left_squares - left.square() / rows.clamp(min=1)
    about_mean = torch.where(about_mean > _ROUNDING * squares, about_mean, 0.0) * rows / (rows - 1).clamp(min=1)
    freedom, spread = torch.zeros_like(means), torch.zeros_like(means)
    for start, cut in zip((0, 1, 3, 7), _CUTS, strict=True):
        here = slice(start, start + cut)
        # Pieces that no other row has at their place are a stratum of their own.
        lone, one = alone[here].sum(0), alone[here]
        lone_spread = (left_squares[here] * one).sum(0) - (left[here] * one).sum(0).square() / lone.clamp(min=1)
        lone_spread = lone_spread.clamp(min=0) * lone / (lone - 1).clamp(min=1)
        better = freedom < _ENOUGH
        spread = torch.where(better, (about_mean[here] * several[here]).sum(0) + lone_spread, spread)
        freedom = torch.where(better, ((rows[here] - 1) * several[here]).sum(0) + (lone - 1).clamp(min=0), freedom)
    errors = torch.where(freedom > 0, spread.sqrt() / n[0], torch.nan)
    return Estimates(means, errors, freedom, n=int(n[0].flatten()[0]) if means.numel() else 0)


def place_moments(
    sums: Float[Tensor, "*thing row place"], counts: Float[Tensor, "*thing row place"], n_places: int | None = None
) -> Float[Tensor, "*thing moment"]:
    """Return sums over rows from which `with_places` knows how places differ; those of other rows may be added.

    Args:
        sums: Sum over the positions of a row that are at a place, such as one position, or a few neighboring ones.
        counts: Number of these positions.
        n_places: As many as other rows may have; default: as there are.
    """
    x, c = wide(sums), wide(counts)
    cells = torch.stack([(a * b).sum((-2, -1)) for a, b in ((x, x), (x, c), (c, c))], dim=-1)
    more = 0 if n_places is None else n_places - x.shape[-1]
    by_place = (torch.nn.functional.pad(each.sum(-2), (0, more)) for each in (x, c))
    return torch.cat([*by_place, cells], dim=-1)


def with_places(found: Estimates, moments: Float[Tensor, "*thing moment"]) -> Estimates:
    """Return the same means, with errors over places as well as over rows.

    Degrees of freedom are those of Satterthwaite (1946) for the two parts, and at most those of the places (Cameron and
    Miller 2015): what is the same at three places may be so by chance, however many rows there are.

    Args:
        found: Means and errors over rows, or over rows and other places.
        moments: Of `place_moments`, added over all rows.

    Example:
        >>> by_place = torch.tensor([0.9, 0.1, 0.2, 0.8]).expand(20, 4)  # the same in every row
        >>> ones = torch.ones(20, 4)
        >>> rows = estimates_of_moments(row_moments_of_sums(by_place.sum(-1), ones.sum(-1)))
        >>> both = with_places(rows, place_moments(by_place, ones))
        >>> print(f"{rows[()].error:.2f}, {both[()].error:.2f} with {both[()].freedom:.0f} degrees of freedom")
        0.00, 0.20 with 3 degrees of freedom
    """
    n_places = (moments.shape[-1] - 3) // 2
    x, c, (squares, products, squared_counts) = (
        moments[..., :n_places],
        moments[..., n_places : 2 * n_places],
        moments[..., -3:].unbind(-1),
    )
    total, mean = c.sum(-1), found.values
    n = (c > 0).sum(-1)
    among_places = (x - c * mean[..., None]).square().sum(-1) * n / (n - 1).clamp(min=1)
    within = squares - 2 * mean * products + squared_counts * mean.square()
    # Places that differ no more than their cells would by chance add nothing.
    more = ((among_places - within) / total.square()).clamp(min=0)
    more = torch.where(more > _ROUNDING * mean.square(), more, 0.0)
    rows = found.errors.square()
    freedom = (rows + more).square() / (rows.square() / found.freedom + more.square() / (n - 1).clamp(min=1))
    freedom = torch.where(more > 0, freedom, found.freedom).minimum((n - 1).clamp(min=0))
    return dataclasses.replace(found, errors=(rows + more).sqrt(), freedom=freedom)


def difference(first: E, second: E) -> E:
    """Return the first less the second, of different rows, with the degrees of freedom of Welch (1947), rounded down.

    Example:
        >>> difference(Estimate(3.0, 0.3, 50, 9.0), Estimate(1.0, 0.4, 40, 9.0))
        Estimate(value=2.0, error=0.5, n=40, freedom=16.0)
    """
    if isinstance(first, Estimate) and isinstance(second, Estimate):
        return difference(*(_as_estimates(each) for each in (first, second)))[()]
    assert isinstance(first, Estimates) and isinstance(second, Estimates)
    a, b = first.errors.square(), second.errors.square()
    each = a.square() / first.freedom + b.square() / second.freedom
    freedom = torch.where(each > 0, (a + b).square() / each, torch.minimum(first.freedom, second.freedom))
    return Estimates(first.values - second.values, (a + b).sqrt(), freedom.floor(), min(first.n, second.n))


def _as_estimates(one: Estimate) -> Estimates:
    value, error, freedom = torch.tensor([one.value, one.error, one.freedom], dtype=torch.float64, device="cpu")
    return Estimates(value, error, freedom, one.n)
