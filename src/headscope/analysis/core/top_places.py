"""The largest values: `top_positions` over batch and position, and `token_means` by token."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.errors import check_at_least

__all__ = ["Position", "TokenMean", "token_means", "top_positions"]


@dataclass(frozen=True)
class Position:
    """One place in the data, and its value."""

    row: int
    pos: int
    value: float

    def context(self, before: int) -> range:
        """The positions up to and with this one, at most `before` before it, none before the row's start.

        Example:
            >>> Position(0, 2, 1.0).context(20)
            range(0, 3)
        """
        return range(max(0, self.pos - before), self.pos + 1)


@dataclass(frozen=True)
class TokenMean:
    """A token, the mean of the values where it stands, and how often that is."""

    token: int
    mean: float
    count: int


def top_positions(
    values: Float[Tensor, "batch pos"], k: int = 10, *, largest: bool = True, apart: int = 0
) -> tuple[Position, ...]:
    """The positions with the largest (or smallest) values, best first.

    Args:
        values: One number per position; NaN is left out.
        k: How many, if there are as many.
        largest: The largest, or else the smallest.
        apart: Leave out what stands within so many positions of a better one in the same row.

    Raises:
        InvalidInputError: If `k` is below 1.

    Example:
        >>> [(p.row, p.pos) for p in top_positions(torch.tensor([[0.1, 3.0, 2.9], [0.2, 2.0, 1.0]]), 2, apart=1)]
        [(0, 1), (1, 1)]
    """
    check_at_least(1, k=k)
    worst = -torch.inf if largest else torch.inf
    ordered = values.double().nan_to_num(nan=worst, posinf=torch.inf, neginf=-torch.inf).flatten()
    found: list[Position] = []
    for index in ordered.argsort(descending=largest, stable=True).tolist():
        row, pos = divmod(index, values.shape[1])
        value = float(values[row, pos])
        if value == value and all(other.row != row or abs(other.pos - pos) > apart for other in found):
            found.append(Position(row, pos, value))
        if len(found) == k:
            break
    return tuple(found)


def token_means(
    values: Float[Tensor, "batch pos"], tokens: Int[Tensor, "batch pos"], *, min_count: int = 3
) -> tuple[TokenMean, ...]:
    """The mean value of each token, over where it stands, largest first; NaN is left out.

    Args:
        values: One number per position.
        tokens: The token at each.
        min_count: Leave out tokens that stand at fewer positions.

    Example:
        >>> token_means(torch.tensor([[1.0, 3.0, 5.0]]), torch.tensor([[7, 7, 8]]), min_count=2)
        (TokenMean(token=7, mean=2.0, count=2),)
    """
    known = ~values.isnan()
    ids, where = tokens[known].unique(return_inverse=True)
    counts = torch.bincount(where, minlength=len(ids))
    means = torch.bincount(where, weights=values[known].double(), minlength=len(ids)) / counts
    order = means.argsort(descending=True, stable=True).tolist()
    kept = (index for index in order if counts[index] >= min_count)
    return tuple(TokenMean(int(ids[index]), float(means[index]), int(counts[index])) for index in kept)
