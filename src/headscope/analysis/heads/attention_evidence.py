"""Evidence for head types that are told by attention: what heads pay to the keys that define a kind, beside controls.

| control  | what these keys get if                                            | takes out heads that                |
|----------|-------------------------------------------------------------------|-------------------------------------|
| even     | the rest of the attention is spread evenly over all other keys    | look at everything alike            |
| position | kinds that match tokens: the row's tokens are shuffled            | go by position, or rest at its start|
|          | `previous_token`: they are those two before                       | look at all that is near            |

The control is the larger of the two. Errors are over rows, positions and tokens (`with_places`): what a head does by
position it does in every row, and a context of nine tokens has eight positions to tell that from; and a vocabulary of
three tokens has three, for which any weights at all may happen to match each with itself.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.stats import (
    estimates_of_moments,
    place_moments,
    row_moments_of_sums,
    with_places,
)
from headscope.analysis.heads.evidence import Measured
from headscope.analysis.heads.scores import SCORES, defining_keys
from headscope.analysis.recording.record import record_patterns
from headscope.analysis.storage.accumulator import Measure
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import wide

__all__ = ["AttentionEvidence", "attention_evidence", "attention_moments"]

_PREVIOUS = SCORES.index("previous_token")
_SINGLE, _PER_DOUBLING = 16, 8  # positions that are places of their own, and places for each doubling after them
_VARYING = [0, 0, 0, 0, 4]  # what stands for paid, even, elsewhere, and what is paid above each, place by place
_GROUPS = 32  # of tokens, in which those of a large vocabulary are put together


@dataclass(frozen=True)
class AttentionEvidence:
    """Attention of every head to the keys that define each of `SCORES`.

    Attributes:
        measured: Scores, controls, errors, by the length of rows; of all rows at once under 0.
        start: Attention to the first position of a row: BOS, where there is one.
    """

    measured: Mapping[int, Measured]
    start: Float[Tensor, "layer head"]


def attention_moments(model: HookedTransformer, seed: int, *, by_length: bool = False) -> Measure:
    """Return a function that sums attention to the keys that define each of `SCORES`, for `attention_evidence`.

    Args:
        model: The model.
        seed: Of the shuffled control. Each batch is shuffled by its place in the data, so that any part of the data
            gives what it gives as a part of all of it.
        by_length: Rows of different lengths are summed apart.
    """
    both_ways = model.cfg.attention_dir != "causal"
    n_places = int(_places(torch.tensor([model.cfg.n_ctx - 1], device="cpu"))[0]) + 1
    n_groups = min(model.cfg.d_vocab, _GROUPS)

    def measure(batch: Batch, n_before: int) -> dict[str, Tensor]:
        keys = defining_keys(batch, both_ways=both_ways)
        real = torch.ones_like(batch.tokens) if batch.attention_mask is None else batch.attention_mask.long()
        in_sight = real.sum(-1, keepdim=True).expand_as(real) if both_ways else real.cumsum(-1)
        n_keys = keys.sum(-1)
        n_others = in_sight[None] - n_keys
        # A query with nothing else to look at tells nothing.
        keys = keys & (n_others > 0)[..., None]
        share = n_keys / n_others.clamp(min=1)
        # For the token before, the one before that; and for all kinds, the start of the row.
        nearby = torch.zeros_like(keys[0])
        nearby[:, :, :-1] = keys[_PREVIOUS, :, :, 1:]
        nearby &= batch.counted[:, None, :]
        start = batch.counted[:, :, None] & (real.cumsum(-1) * real == 1)[:, None, :]
        place = _places(torch.arange(keys.shape[2], device=keys.device)).expand_as(batch.tokens)
        # Positions and tokens, side by side: two ways to put the queries of a row together.
        cells = torch.cat([one_hot(place), one_hot(batch.tokens % n_groups, n_groups)], dim=-1).float()
        of_place, of_token = slice(0, -n_groups), slice(-n_groups, None)
        weights = torch.cat([keys.float(), (keys * share[..., None]).float(), torch.stack([nearby, start]).float()])
        paid, paid_by_share, (paid_nearby, paid_start) = _attention_to(model, batch, weights, cells).split(
            [len(SCORES), len(SCORES), 2]
        )
        generator = torch.Generator().manual_seed(seed * 1_000_003 + n_before)
        other = Batch(_shuffled(batch, generator), batch.attention_mask, batch.counted)
        elsewhere = _attention_to(model, other, keys.float(), cells)
        elsewhere[_PREVIOUS] = paid_nearby
        asked = keys.any(-1)
        counts, spread = (
            torch.einsum("nrq,rqc->nrc", wide(each), wide(cells)).cpu()[:, :, None, None]
            for each in (asked, asked * share)
        )
        # With attention p on the keys, others get (1 - p) / n_others each.
        spread = spread - paid_by_share
        # [number, kind, row, layer, head, cell]
        sums = torch.stack([paid, spread, elsewhere, paid - spread, paid - elsewhere])
        # An even spread over the keys in sight changes along the row, and with how common a token is, by itself: what
        # varies is what is paid.
        varying = sums[_VARYING]
        counts = counts.expand_as(sums)
        width = keys.shape[2] if by_length else 0
        by_row = (each[..., of_place].sum(-1).movedim(2, 0) for each in (sums, counts))
        varying, counts = varying.movedim(2, -2), counts.movedim(2, -2)
        return {
            f"rows {width}": row_moments_of_sums(*by_row),
            f"places {width}": place_moments(varying[..., of_place], counts[..., of_place], n_places),
            f"tokens {width}": place_moments(varying[..., of_token], counts[..., of_token]),
            "start": paid_start[..., of_place].sum((0, -1)),
            "queries": batch.counted.sum().cpu().double(),
        }

    return measure


def attention_evidence(sums: Mapping[str, Tensor]) -> AttentionEvidence:
    """Attention to the keys that define each of `SCORES`, and its controls, from sums over the data."""
    widths = sorted(int(name.removeprefix("rows ")) for name in sums if name.startswith("rows "))
    parts = ("rows", "places", "tokens")
    measured = {width: _measured(*(sums[f"{part} {width}"] for part in parts)) for width in widths}
    return AttentionEvidence(measured, (sums["start"] / sums["queries"]).float())


def _measured(rows: Tensor, places: Tensor, tokens: Tensor) -> Measured:
    """Scores, the larger of both controls, and the errors of their difference."""
    means = estimates_of_moments(rows)
    varying = dataclasses.replace(means, values=means.values[_VARYING])
    found = with_places(with_places(varying, places), tokens)
    paid, even, elsewhere = means.values[:3]
    use_place = elsewhere > even
    control = torch.where(use_place, elsewhere, even)
    error, freedom = (torch.where(use_place, each[4], each[3]) for each in (found.errors, found.freedom))
    return Measured(paid.float(), control.float(), error.float(), freedom)


def _places(positions: Int[Tensor, " pos"]) -> Int[Tensor, " pos"]:
    """Return the place of each position: single ones at first, then ever more together."""
    later = _SINGLE + (_PER_DOUBLING * (positions.clamp(min=_SINGLE) / _SINGLE).log2()).floor().long()
    return torch.where(positions < _SINGLE, positions, later)


def _shuffled(batch: Batch, generator: torch.Generator) -> Int[Tensor, "row pos"]:
    """The tokens that count in another order, row by row."""
    tokens = batch.tokens.clone()
    for row, counted in enumerate(batch.counted):
        places = counted.nonzero()[:, 0]
        order = torch.randperm(len(places), generator=generator, device="cpu").to(places.device)
        tokens[row, places] = batch.tokens[row, places[order]]
    return tokens


def _attention_to(
    model: HookedTransformer,
    batch: Batch,
    weights: Float[Tensor, "number row query_pos key_pos"],
    cells: Float[Tensor, "row query_pos cell"],
) -> Float[Tensor, "number row layer head cell"]:
    """Return the weighted attention of each row's queries, summed over the queries in each cell."""

    def summed(pattern: Float[Tensor, "row head query_pos key_pos"]) -> Float[Tensor, "number row head cell"]:
        paid = torch.einsum("rhqk,nrqk->nrhq", pattern.float(), weights)
        return wide(torch.einsum("nrhq,rqc->nrhc", paid, cells))

    return record_patterns(model, batch, summed).movedim(0, 2)
