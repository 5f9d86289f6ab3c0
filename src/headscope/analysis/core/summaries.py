"""Summaries of a bounded size over a corpus, parts of which may be made anywhere and merged: samples, frequent items.

Neither depends on the random state of a process: who is in a sample follows from its number alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from headscope.analysis.core.top_places import TopPlaces
from headscope.errors import check_at_least

__all__ = ["SUMMARIES", "Frequent", "RowSample", "Summary", "hashed"]


@dataclass(frozen=True)
class RowSample:
    """A sample of the rows of a corpus, with numbers of each: those whose numbers hash lowest.

    Every set of k rows is as likely as any other, as far as the hash is random; and parts of a corpus may be gone
    through in any order, and merged in any order, with the same outcome (bottom-k sampling: Cohen and Kaplan 2007).

    Attributes:
        sequences: The rows' numbers, in order of their hashes; -1 behind the last, where there are fewer than k.
        values: What was measured of each; NaN there.
    """

    sequences: Int[Tensor, " k"]
    values: Float[Tensor, "k *measured"]

    @classmethod
    def of(cls, values: Float[Tensor, "row *measured"], k: int, *, first_row: int = 0) -> Self:
        """Return the sample of some rows.

        Args:
            values: What was measured of each row.
            k: How many rows are kept.
            first_row: Number of rows of the data before these.

        Raises:
            InvalidInputError: If `k` is below 1.

        Example:
            >>> values = torch.arange(10.0)
            >>> first, second = RowSample.of(values[:4], 3), RowSample.of(values[4:], 3, first_row=4)
            >>> whole = RowSample.of(values, 3)
            >>> whole.sequences.tolist(), torch.equal(second.merged(first).values, whole.values)
            ([3, 5, 7], True)
        """
        check_at_least(1, k=k)
        numbers = torch.arange(first_row, first_row + len(values), device=values.device)
        return cls._lowest(numbers, values, k)

    def merged(self, other: "RowSample") -> Self:
        """Return the sample of this part of the data and another."""
        sequences = torch.cat([self.sequences, other.sequences])
        values = torch.cat([self.values, other.values])
        return self._lowest(sequences[sequences >= 0], values[sequences >= 0], len(self.sequences))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def _lowest(cls, sequences: Tensor, values: Tensor, k: int) -> Self:
        order = hashed(sequences).argsort(stable=True)[:k]
        missing = k - len(order)
        empty = values.new_full((missing, *values.shape[1:]), torch.nan)
        return cls(pad(sequences[order], (0, missing), value=-1), torch.cat([values[order], empty]))


@dataclass(frozen=True)
class Frequent:
    """The items of most weight, such as tokens, of each of several series, such as heads.

    The summary of Misra and Gries (1982) for weights, merged as Agarwal et al. (2013, "Mergeable summaries") do: where
    there are more than k items, the weight of the (k+1)th is taken from all. What is kept of an item is at most its
    weight, and less by at most `lost`, which is never more than 1 / (k + 1) of all weight. Up to k items are exact.

    Attributes:
        items: The items, that of most weight first; -1 behind the last, where there are fewer than k.
        weights: What is kept of the weight of each; 0 there.
        lost: The most that may be missing from any weight; an item that is not here has at most so much.
    """

    items: Int[Tensor, "*series k"]
    weights: Float[Tensor, "*series k"]
    lost: Float[Tensor, "*series"]

    @classmethod
    def of(
        cls,
        series: Int[Tensor, " n"],
        items: Int[Tensor, " n"],
        weights: Float[Tensor, " n"],
        k: int,
        shape: tuple[int, ...],
    ) -> Self:
        """Return the summary of some entries.

        Args:
            series: The series of each, counted through all axes.
            items: The item of each, from 0; an item may have several entries.
            weights: The weight of each, not negative.
            k: How many items are kept of each series.
            shape: The axes of series.

        Raises:
            InvalidInputError: If `k` is below 1.

        Example:
            >>> series, items = torch.tensor([0, 0, 0, 1, 0]), torch.tensor([5, 6, 5, 6, 7])
            >>> kept = Frequent.of(series, items, torch.tensor([1.0, 2.0, 3.0, 1.0, 0.5]), 2, (2,))
            >>> kept.items.tolist(), kept.weights.tolist(), kept.lost.tolist()
            ([[5, 6], [6, -1]], [[3.5, 1.5], [1.0, 0.0]], [0.5, 0.0])
        """
        check_at_least(1, k=k)
        lost = torch.zeros(shape, dtype=torch.float64, device=weights.device)
        return cls._largest(series, items, weights.double(), k, lost)

    def merged(self, other: "Frequent") -> Self:
        """Return the summary of this part of the data and another."""
        both = torch.cat([self.items, other.items], -1), torch.cat([self.weights, other.weights], -1)
        items, weights = (each.flatten(0, -2) for each in both)
        series = torch.arange(len(items), device=items.device)[:, None].expand_as(items)
        known = items >= 0
        lost = self.lost + other.lost
        return self._largest(series[known], items[known], weights[known], self.items.shape[-1], lost)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def _largest(cls, series: Tensor, items: Tensor, weights: Tensor, k: int, lost: Tensor) -> Self:
        n_series, span = lost.numel(), int(items.max()) + 1 if len(items) else 1
        cells, place = (series * span + items).unique(return_inverse=True)
        totals = weights.new_zeros(len(cells)).index_add_(0, place, weights)
        of_series, item = cells // span, cells % span
        # In order of series, then weight, then item: stable sorts, the first key last. Bits of floats that are not
        # negative are in the order of the floats, and whole numbers are sorted eight times as fast.
        order = (torch.iinfo(torch.int64).max - totals.view(torch.int64)).argsort(stable=True)
        order = order[of_series[order].argsort(stable=True)]
        of_series, item, totals = of_series[order], item[order], totals[order]
        counts = torch.bincount(of_series, minlength=n_series)
        rank = torch.arange(len(cells), device=cells.device) - (counts.cumsum(0) - counts)[of_series]
        room = totals.new_zeros(n_series, k + 1)
        kept_items = torch.full_like(room, -1, dtype=torch.long)
        near = rank <= k
        room[of_series[near], rank[near]] = totals[near]
        kept_items[of_series[near], rank[near]] = item[near]
        taken = room[:, -1:]
        left = (room[:, :-1] - taken).clamp(min=0)
        kept_items = kept_items[:, :-1].masked_fill(left == 0, -1)
        shape = (*lost.shape, k)
        return cls(kept_items.view(shape), left.view(shape), lost + taken.view(lost.shape))


Summary = TopPlaces | RowSample | Frequent
"""A bounded summary of a part of the data: `tensors()` gives what it is made from again, `merged` adds another part."""

SUMMARIES: Mapping[str, type[Summary]] = {
    "top": TopPlaces,
    "sample": RowSample,
    "frequent": Frequent,
}
"""The kinds of summaries, by the names that files have for them."""


def hashed(numbers: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Return a number from 0 to 2^63 - 1 for each number, as if drawn at random: the finalizer of SplitMix64.

    Example:
        >>> hashed(torch.arange(3)) % 100
        tensor([67, 32, 55])
    """
    x = numbers.detach().cpu().numpy().astype(np.uint64)
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return torch.from_numpy((x >> np.uint64(1)).astype(np.int64)).to(numbers.device)
