"""How sure a mean over the text is, so that the page claims nothing that chance alone would show."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Estimate", "Estimates", "difference", "estimate", "estimates", "sure_bound", "threshold"]

# Where nothing is to be seen, at most one sentence in twenty is to say that something is.
_CHANCE = 0.05
_CHANCE_OF_A_LABEL = 0.01  # of one head labelled by chance in a model, over all its heads and kinds
T = TypeVar("T", float, Tensor)


@dataclass(frozen=True)
class Estimate:
    """A mean over positions.

    Attributes:
        value: The mean.
        error: One standard error of it: the larger of that of independent positions and that of independent
            sequences, whose positions may go up and down together. NaN for a single position.
        n: How many positions.
        freedom: The degrees of freedom the error was taken from.
    """

    value: float
    error: float
    n: int
    freedom: float = math.inf

    def clear(self, among: int = 1) -> bool:
        """Whether it differs from zero by more than chance would give the most extreme of so many.

        Example:
            >>> Estimate(2.5, 1.0, 99).clear(), Estimate(2.5, 1.0, 99).clear(among=100)
            (True, False)
        """
        return self.freedom > 0 and abs(self.value) > threshold(among, self.freedom) * self.error


@dataclass(frozen=True)
class Estimates:
    """Means of several things over the same positions, and what they were taken from.

    Attributes:
        values: The mean of each.
        errors: One standard error of each.
        freedom: The degrees of freedom of each error.
        each: The values at single positions, NaN where one does not count.
        n: How many positions count.
    """

    values: Float[Tensor, "*thing"]
    errors: Float[Tensor, "*thing"]
    freedom: Float[Tensor, "*thing"]
    each: Float[Tensor, "*thing batch pos"]
    n: int

    def __getitem__(self, at: tuple[int, ...] | int) -> Estimate:
        return Estimate(float(self.values[at]), float(self.errors[at]), self.n, float(self.freedom[at]))

    def clear(self, sign: int = 0) -> Bool[Tensor, "*thing"]:
        """Which differ from zero (0), are above it (1) or below it (-1) by more than chance gives the most extreme."""
        sizes = self.values.abs() if sign == 0 else sign * self.values
        return sizes > threshold(self.values.numel(), self.freedom) * self.errors

    def as_good(self, *, largest: bool = True) -> list[int]:
        """The flat index of the largest, then of those that chance may have kept from its place, in order."""
        order = self.values.flatten().argsort(descending=largest, stable=True).tolist()
        each = self.each.flatten(0, -3)
        others = order[1:]
        if not others:
            return order
        apart = estimates(each[order[0]] - each[others]).clear().tolist()
        return [order[0], *(at for at, far in zip(others, apart, strict=True) if not far)]


def threshold(among: int, freedom: T) -> T:
    """Standard errors from zero that chance alone passes with probability 0.05 at least once among so many.

    The two-sided quantile of Student's t, by its expansion in the inverse of the degrees of freedom about the normal
    one (Abramowitz and Stegun 26.7.5); Bonferroni's bound for more than one.

    Example:
        >>> round(threshold(1, math.inf), 2), round(threshold(1, 9.0), 2)  # tables have 1.96 and 2.26
        (1.96, 2.26)
    """
    z = NormalDist().inv_cdf(1 - _CHANCE / (2 * max(1, among)))
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def estimate(values: Float[Tensor, "batch pos"]) -> Estimate:
    """The mean over all positions that are not NaN.

    Example:
        >>> estimate(torch.tensor([[1.0, 3.0, torch.nan]]))
        Estimate(value=2.0, error=1.0, n=2, freedom=1.0)
    """
    return estimates(values[None])[0]


def estimates(values: Float[Tensor, "*thing batch pos"]) -> Estimates:
    """The mean of each thing over all positions that are not NaN; these are the same for all things."""
    exact = values.detach().double().cpu()
    known = ~exact.isnan()
    counts = known.sum((-2, -1)).double()
    rows = known.any(-1).sum(-1).double()
    means = exact.nansum((-2, -1)) / counts
    away = (exact - means[..., None, None]).nan_to_num(nan=0.0)
    by_position = (away.square().sum((-2, -1)) / (counts - 1) / counts).sqrt()
    by_row = (away.sum(-1).square().sum(-1) * rows / (rows - 1)).sqrt() / counts
    wider = (rows > 1) & (by_row > by_position)
    errors = torch.where(wider, by_row, by_position)
    freedom = torch.where(wider, rows, counts) - 1
    n = int(counts.flatten()[0]) if counts.numel() else 0
    return Estimates(means, torch.where(counts > 1, errors, torch.nan), freedom, values.detach().cpu(), n)


def difference(first: Estimate, second: Estimate) -> Estimate:
    """The first less the second, of different positions."""
    error = math.hypot(first.error, second.error)
    return Estimate(first.value - second.value, error, min(first.n, second.n), min(first.freedom, second.freedom))


def sure_bound(n_tests: int) -> float:
    """How many standard errors a number must be from zero, so that one in so many is so by chance 1 % of the time."""
    return float(torch.special.ndtri(torch.tensor(1 - _CHANCE_OF_A_LABEL / max(n_tests, 1), dtype=torch.float64)))
