"""The largest values: `top_positions` of a batch, `TopPlaces` over a corpus, and `token_means` by token."""

from dataclasses import dataclass, fields
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headscope.errors import check_at_least
from headscope.ops.devices import sums_device, wide

__all__ = ["Position", "TokenMean", "TopPlaces", "token_means", "top_positions"]


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
class TopPlaces:
    """The largest values over a corpus, of each of several series (such as heads), and where they are.

    They are ordered by value, and equal ones by sequence, then by position. So parts of a corpus may be gone through in
    any order, and merged in any order, with the same outcome.

    Attributes:
        values: The values, largest first; NaN behind the last, where there are fewer than k.
        sequences: The row of the data that each is in; -1 there.
        positions: The position in it; -1 there.
    """

    values: Float[Tensor, "*series k"]
    sequences: Int[Tensor, "*series k"]
    positions: Int[Tensor, "*series k"]

    @classmethod
    def of(cls, values: Float[Tensor, "*series row pos"], k: int, *, first_row: int = 0) -> Self:
        """Return the largest values of some rows.

        Args:
            values: One for each position; NaN is left out. One for each row: `[..., row, 1]`.
            k: How many are kept of each series.
            first_row: Number of rows of the data before these.

        Raises:
            InvalidInputError: if `k` is below 1.

        Example:
            >>> left = TopPlaces.of(torch.tensor([[0.5, 2.0], [2.0, 1.0]]), 2)
            >>> right = TopPlaces.of(torch.tensor([[2.0, 3.0]]), 2, first_row=2)
            >>> right.merged(left).rows()
            ((3.0, 2, 1), (2.0, 0, 1))
        """
        check_at_least(1, k=k)
        n_rows, n_pos = values.shape[-2:]
        sequences = torch.arange(first_row, first_row + n_rows, device=values.device).repeat_interleave(n_pos)
        positions = torch.arange(n_pos, device=values.device).repeat(n_rows)
        flat = values.flatten(-2)
        return cls._largest(flat, sequences.expand(flat.shape), positions.expand(flat.shape), k)

    def merged(self, other: "TopPlaces") -> Self:
        """Return the largest of this part of the data and another."""
        pairs = zip(self.tensors().values(), other.tensors().values(), strict=True)
        values, sequences, positions = (torch.cat(pair, -1) for pair in pairs)
        return self._largest(values, sequences, positions, self.values.shape[-1])

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def rows(self, *series: int) -> tuple[tuple[float, int, int], ...]:
        """Return value, sequence and position of each, of one of the series."""
        values, sequences, positions = (each[series].tolist() for each in self.tensors().values())
        return tuple(each for each in zip(values, sequences, positions, strict=True) if each[1] >= 0)

    @classmethod
    def _largest(cls, values: Tensor, sequences: Tensor, positions: Tensor, k: int) -> Self:
        absent = values.isnan()
        order = torch.arange(values.shape[-1], device=values.device).expand(values.shape)
        # Stable sorts, the first key last. Equal floats are in no order of their own, and topk takes any of them.
        for key in (positions, sequences, -values.masked_fill(absent, 0.0), absent.long()):
            order = order.gather(-1, key.gather(-1, order).argsort(dim=-1, stable=True))
        order, missing = order[..., :k], max(0, k - values.shape[-1])
        found = (values, sequences.masked_fill(absent, -1), positions.masked_fill(absent, -1))
        return cls(
            *(
                nn.functional.pad(each.gather(-1, order), (0, missing), value=fill)
                for each, fill in zip(found, (torch.nan, -1, -1), strict=True)
            )
        )


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
    ordered = wide(values).nan_to_num(nan=worst, posinf=torch.inf, neginf=-torch.inf).flatten()
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
    ids, where = (each.to(sums_device(tokens.device)) for each in tokens[known].unique(return_inverse=True))
    counts = torch.bincount(where, minlength=len(ids))
    means = torch.bincount(where, weights=wide(values[known]), minlength=len(ids)) / counts
    order = means.argsort(descending=True, stable=True).tolist()
    kept = (index for index in order if counts[index] >= min_count)
    return tuple(TokenMean(int(ids[index]), float(means[index]), int(counts[index])) for index in kept)
