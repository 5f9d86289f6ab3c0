"""One layer's attention patterns, reduced as they pass: nothing of the size of a pattern is kept.

On a CPU a pattern is gone through a few rows at a time, in scratch memory that stays in the cache. Fresh memory for a
whole batch's pattern costs more than the arithmetic on it: each page of it is a fault.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.summaries import hashed
from headscope.analysis.heads.scores import SCORES, defining_keys
from headscope.ops.devices import Budget

__all__ = ["JOINED", "N_SIGNS", "PatternSums", "Places", "distance_edges", "reduced"]

JOINED = 0.2
"""The attention from which a head joins a query and a key: at most five keys of each query."""

N_SIGNS = 16
_ROW_SPAN = 1 << 20  # more than any row has positions
_SCRATCH = 1 << 19  # numbers: 2 MiB, which stay near a core, for few calls of operators


def distance_edges(n_ctx: int) -> tuple[int, ...]:
    """Return the edges of the bins of distances up to a context's: 0, 1, 2, 4, 8, ...

    Example:
        >>> distance_edges(9)
        (0, 1, 2, 4, 8, 16)
    """
    edges = [0, 1]
    while edges[-1] < n_ctx:
        edges.append(2 * edges[-1])
    return tuple(edges)


class Places:
    """The places of a batch that patterns are summed over, the same for all layers.

    Args:
        batch: The batch.
        n_before: Number of rows of the data before it.
        n_ctx: The model's context.
        both_ways: Keys behind the query are in sight too.
        dtype: The dtype that patterns are summed in.
    """

    def __init__(self, batch: Batch, n_before: int, n_ctx: int, *, both_ways: bool, dtype: torch.dtype) -> None:
        tokens, self.counted = batch.tokens, batch.counted
        n_rows, self.n_pos = tokens.shape
        self.batch, self.dtype, self._both_ways, self._n_ctx = batch, dtype, both_ways, n_ctx
        real = torch.ones_like(self.counted) if batch.attention_mask is None else batch.attention_mask.bool()
        here = torch.arange(self.n_pos, device=tokens.device)
        self.start = (real.long().cumsum(-1) * real == 1).long().argmax(-1)
        is_start = here == self.start[:, None]
        apart = here[:, None] != here
        self.to_others = (self.counted[:, :, None] & ~is_start[:, None, :] & apart).to(dtype)
        self.distance = (here[:, None] - here).abs().to(dtype)
        self.asking = self.counted.to(dtype)
        # Other random signs for each row, which follow from its number in the data.
        numbers = torch.arange(n_before, n_before + n_rows, device=tokens.device)
        bits = hashed(numbers[:, None] * _ROW_SPAN + here)
        powers = torch.arange(N_SIGNS, device=tokens.device)
        self.signs = (1 - 2 * (bits[..., None] >> powers & 1)).to(dtype)

    @cached_property
    def pairs(self) -> dict[str, Int[Tensor, "3 n"]]:
        """Row, query and key of the pairs that define a kind."""
        keys = defining_keys(self.batch, both_ways=self._both_ways)
        return {name: keys[at].nonzero().T for at, name in enumerate(SCORES)}

    @cached_property
    def has_pair(self) -> dict[str, Tensor]:
        """The queries `[row, pos]` that have such a key."""
        found = {}
        for name, (row, query, _) in self.pairs.items():
            found[name] = torch.zeros_like(self.counted)
            found[name][row, query] = True
        return found

    @cached_property
    def bins(self) -> Float[Tensor, "pair bin"]:
        """The bin of the distance of each pair of positions, one-hot."""
        edges = torch.tensor(distance_edges(self._n_ctx), device=self.distance.device)
        bins = torch.bucketize(self.distance.flatten().long(), edges, right=True) - 1
        return torch.nn.functional.one_hot(bins, len(edges) - 1).to(self.dtype)


@dataclass(frozen=True)
class PatternSums:
    """The pattern of a layer, reduced.

    Attributes:
        shares: Attention of each query to itself, to the token before, to the start, to what followed earlier copies,
            to earlier copies.
        entropy: Its entropy, of the attention that goes to keys where a sink takes some.
        distance: Its mean distance.
        distance_squared: The mean square of it.
        mass: All of it: 1, or less where a sink takes some.
        to_others: What goes to other tokens than the start and the query's own.
        on_keys: What each key is given by the queries that count.
        largest: The largest to another token than the start, in each row.
        bins: All of it, by distance.
        sketch: Random projections of what goes to others, whose products estimate those of patterns.
        joined: Head, row, query and key where a head joins two others by `JOINED` or more.
        joined_weights: The attention there.
    """

    shares: Float[Tensor, "share row head pos"]
    entropy: Float[Tensor, "row head pos"]
    distance: Float[Tensor, "row head pos"]
    distance_squared: Float[Tensor, "row head pos"]
    mass: Float[Tensor, "row head pos"]
    to_others: Float[Tensor, "row head pos"]
    on_keys: Float[Tensor, "row head pos"]
    largest: Float[Tensor, "row head"]
    bins: Float[Tensor, "head bin"]
    sketch: Float[Tensor, "row head pos sign"]
    joined: Int[Tensor, "4 n"]
    joined_weights: Float[Tensor, " n"]


def reduced(pattern: Float[Tensor, "row head query_pos key_pos"], places: Places) -> PatternSums:
    """Reduce a layer's pattern."""
    n_rows, n_heads, n_pos, _ = pattern.shape
    fitting = max(1, _SCRATCH // pattern[0].numel())
    n_at_once = n_rows if Budget.of(pattern.device).is_accelerators else fitting
    scratch = pattern.new_empty((min(n_at_once, n_rows), n_heads, n_pos, n_pos), dtype=places.dtype)
    total = pattern.new_zeros((n_heads, n_pos, n_pos), dtype=places.dtype)
    parts: list[tuple[Tensor, ...]] = []
    joined, joined_weights = [], []
    tiny = torch.finfo(places.dtype).tiny
    for at in range(0, n_rows, n_at_once):
        rows = slice(at, at + n_at_once)
        weights = pattern[rows].to(places.dtype)
        room = scratch[: len(weights)]
        mass = weights.sum(-1)
        torch.clamp(weights, min=tiny, out=room).log_().mul_(weights)
        entropy = mass.log() - room.sum(-1) / mass
        distance = torch.mul(weights, places.distance, out=room).sum(-1) / mass
        squared = room.mul_(places.distance).sum(-1) / mass
        asked = torch.mul(weights, places.asking[rows, None, :, None], out=room)
        total += asked.sum(0)
        on_keys = asked.sum(-2)
        others = torch.mul(weights, places.to_others[rows, None], out=room)
        sketch = (others.flatten(1, 2) @ places.signs[rows]).unflatten(1, (n_heads, n_pos))
        parts.append((entropy, distance, squared, mass, others.sum(-1), on_keys, others.amax((-2, -1)), sketch))
        flat = _where(others >= JOINED)
        joined.append(flat + at * pattern[0].numel())
        joined_weights.append(others.flatten()[flat])
    entropy, distance, squared, mass, to_others, on_keys, largest, sketch = (
        torch.cat(each) for each in zip(*parts, strict=True)
    )
    row, head, query, key = torch.unravel_index(torch.cat(joined), pattern.shape)
    return PatternSums(
        shares=_shares(pattern, places),
        entropy=entropy,
        distance=distance,
        distance_squared=squared,
        mass=mass,
        to_others=to_others,
        on_keys=on_keys,
        largest=largest,
        bins=total.flatten(1) @ places.bins,
        sketch=sketch,
        joined=torch.stack([head, row, query, key]),
        joined_weights=torch.cat(joined_weights),
    )


def _where(mask: Bool[Tensor, "*any"]) -> Int[Tensor, " n"]:
    """The flat places that are true; on a CPU found by numpy, in a quarter of the time."""
    if mask.device.type != "cpu":
        return mask.flatten().nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def _shares(pattern: Tensor, places: Places) -> Float[Tensor, "share row head pos"]:
    """Attention to one key or a few, NaN where a query has no such key."""
    n_rows, n_heads, n_pos, _ = pattern.shape
    to_self = pattern.diagonal(0, -2, -1)
    at = places.start[:, None, None, None].expand(n_rows, n_heads, n_pos, 1)
    to_start = pattern.gather(-1, at)[..., 0]
    # Nearly every query has a token before it, so that no list of these is made.
    before = pattern.new_zeros(n_rows, n_heads, n_pos)
    before[..., 1:] = pattern.diagonal(-1, -2, -1)
    before = before.masked_fill(~places.has_pair["previous_token"][:, None], torch.nan)
    shares = {"self": to_self, "start": to_start, "previous_token": before}
    for name in ("duplicate_token", "induction"):
        row, query, key = places.pairs[name]
        paid = pattern.new_zeros((n_rows * n_pos, n_heads), dtype=places.dtype)
        paid.index_add_(0, row * n_pos + query, pattern[row, :, query, key].to(places.dtype))
        paid = paid.view(n_rows, n_pos, n_heads).transpose(1, 2)
        shares[name] = paid.masked_fill(~places.has_pair[name][:, None], torch.nan)
    order = ("self", "previous_token", "start", "induction", "duplicate_token")
    return torch.stack([shares[name].to(places.dtype) for name in order])
