"""Reductions over the vocabulary in tiles, so that the logits of a batch are never all in memory.

A row is a normalized state; its logits are `soft_cap(row @ W_U + b_U)`. The logits of a tile of rows by a tile of the
vocabulary are computed, reduced and dropped. Memory is bounded by the tiles whatever the batch; the work is one product
with `W_U`, `2 * rows * d_model * d_vocab` operations, and one exponential for each logit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.ops.devices import Budget, sums_device, wide
from headscope.ops.kernels.products import linear

__all__ = [
    "RunningMoments",
    "VocabSummary",
    "cap_logits",
    "check_targets",
    "cross_entropy",
    "kl_divergence",
    "summarize",
    "token_mean",
]


def cap_logits(logits: Tensor, soft_cap: float) -> Tensor:
    """Return `c * tanh(logits / c)`; a cap of 0 is none."""
    return soft_cap * torch.tanh(logits / soft_cap) if soft_cap else logits


def check_targets(targets: Int[Tensor, " row"], d_vocab: int) -> None:
    """Refuse tokens outside the vocabulary."""
    if targets.numel() and not bool(((targets >= 0) & (targets < d_vocab)).all()):
        raise InvalidInputError(f"targets must be between 0 and d_vocab - 1 = {d_vocab - 1}.", code="HS-TOKENS-01")


def token_mean(W_U: Float[Tensor, "d_model d_vocab"], soft_cap: float) -> Float[Tensor, "d_model _"]:
    """Return the mean over tokens, which the softmax ignores: logits without it span less. 0 under a soft cap."""
    return torch.zeros_like(W_U[:, :1]) if soft_cap else W_U.mean(-1, keepdim=True)


class RunningMoments:
    """Log-partition and entropy of rows whose logits arrive tile by tile.

    Keeps, for each row, a shift `m`, `Z = sum exp(l - m)` and `S = sum (l - m) exp(l - m)` in float64; then
    `log sum exp(l) = m + log Z` and `H = log Z - S / Z`, in nats. They are on the `sums_device` of the device given.

    Example:
        >>> moments = RunningMoments((1,))
        >>> moments.add_logits(torch.zeros(1, 3))
        >>> moments.add_logits(torch.zeros(1, 5))
        >>> round(float(moments.entropy().exp()), 6)
        8.0
    """

    def __init__(self, shape: tuple[int, ...] | torch.Size, device: torch.device | None = None) -> None:
        device = sums_device(torch.get_default_device() if device is None else device)
        self.shift = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        self.z = torch.zeros(shape, dtype=torch.float64, device=device)
        self.s = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, shift: Tensor, z: Tensor, s: Tensor, rows: slice = slice(None)) -> None:
        """Merge a tile's shift, Z and S into the rows `[..., rows]`."""
        shift, z, s = wide(shift), wide(z), wide(s)
        old_shift, old_z, old_s = self.shift[..., rows], self.z[..., rows], self.s[..., rows]
        new_shift = torch.maximum(old_shift, shift)
        old_by, by = old_shift - new_shift, shift - new_shift
        old_factor, factor = old_by.exp(), by.exp()
        # Before the first tile the old shift is -inf and its factor 0; 0 * inf would make S NaN.
        old_by = torch.where(old_by.isinf(), 0.0, old_by)
        self.s[..., rows] = old_factor * (old_s + old_by * old_z) + factor * (s + by * z)
        self.z[..., rows] = old_factor * old_z + factor * z
        self.shift[..., rows] = new_shift

    def add_logits(self, logits: Float[Tensor, "*rows tile"], rows: slice = slice(None)) -> None:
        """Merge a tile of logits."""
        self.add(*tile_moments(logits), rows)

    def log_partition(self) -> Float[Tensor, "*rows"]:
        """Return `log sum exp` of each row's logits."""
        return self.shift + self.z.log()

    def entropy(self) -> Float[Tensor, "*rows"]:
        """Return the entropy of each row's softmax, in nats."""
        return self.z.log() - self.s / self.z


def tile_moments(logits: Float[Tensor, "*rows tile"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return shift (the row maximum), Z and S of one tile, any of whose logits may be minus infinity."""
    shift = logits.amax(-1).clamp(min=torch.finfo(logits.dtype).min / 2)
    # exp is 0 far above this clamp; without it a masked token would add 0 * inf = NaN to S.
    shifted = (logits - shift[..., None]).clamp_(min=-1e4)
    weights = shifted.exp()
    return shift, weights.sum(-1), (shifted * weights).sum(-1)


@dataclass(frozen=True)
class VocabSummary:
    """Statistics of each row's logits.

    Attributes:
        entropy: Of the softmax, in nats, `[row]`.
        log_partition: `log sum exp`, `[row]`.
        target_log_prob: Of the target token, in nats, `[row]`; `None` without targets.
        target_rank: Number of tokens likelier than the target, `[row]`; `None` without targets.
        top_tokens: The most likely tokens, `[row, k]`.
        top_log_probs: Their log-probabilities, `[row, k]`.
    """

    entropy: Float[Tensor, " row"]
    log_partition: Float[Tensor, " row"]
    target_log_prob: Float[Tensor, " row"] | None
    target_rank: Int[Tensor, " row"] | None
    top_tokens: Int[Tensor, "row k"]
    top_log_probs: Float[Tensor, "row k"]


def summarize(
    rows: Float[Tensor, "row d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    b_U: Float[Tensor, " d_vocab"] | None = None,
    *,
    targets: Int[Tensor, " row"] | None = None,
    k: int = 0,
    soft_cap: float = 0.0,
) -> VocabSummary:
    """Return entropy, target log-probability and rank, and top k of each row's logits, in one pass over the vocabulary.

    Args:
        rows: Normalized states.
        W_U: Unembedding.
        b_U: Unembedding bias.
        targets: A token for each row.
        k: Number of most likely tokens to keep.
        soft_cap: `c` of a soft cap on the logits; 0 for none.

    Raises:
        InvalidInputError: if `k` is out of range, or a target is.

    Example:
        >>> summary = summarize(torch.zeros(2, 3), torch.ones(3, 8), k=1)
        >>> summary.entropy.exp().round()
        tensor([8., 8.])
    """
    d_vocab = W_U.shape[1]
    if not 0 <= k <= d_vocab:
        raise InvalidInputError(f"k must be between 0 and d_vocab = {d_vocab}; got {k}.")
    if targets is not None:
        check_targets(targets, d_vocab)
    parts = [
        _summarize_chunk(chunk, W_U, b_U, None if targets is None else targets[at : at + len(chunk)], k, soft_cap)
        for at, chunk in _chunks(rows)
    ]
    joined: dict[str, Any] = {
        name: None if getattr(parts[0], name) is None else torch.cat([getattr(part, name) for part in parts])
        for name in VocabSummary.__dataclass_fields__
    }
    return VocabSummary(**joined)


def cross_entropy(
    rows: Float[Tensor, "row d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    b_U: Float[Tensor, " d_vocab"] | None,
    targets: Int[Tensor, " row"],
    *,
    soft_cap: float = 0.0,
) -> Float[Tensor, " row"]:
    """Return the cross-entropy of each row's target, in nats.

    Example:
        >>> cross_entropy(torch.zeros(1, 2), torch.ones(2, 4), None, torch.tensor([3]))
        tensor([1.3863])
    """
    log_prob = summarize(rows, W_U, b_U, targets=targets, soft_cap=soft_cap).target_log_prob
    assert log_prob is not None
    return -log_prob


def kl_divergence(
    rows: Float[Tensor, "row d_model"],
    other_rows: Float[Tensor, "row d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    b_U: Float[Tensor, " d_vocab"] | None = None,
    *,
    soft_cap: float = 0.0,
) -> Float[Tensor, " row"]:
    """Return `KL(p || q)` in nats, row by row: p predicted from `rows`, q from `other_rows`.

    Tokens that p masks (logits of minus infinity) do not count; the result is infinite where only q masks a token.

    Example:
        >>> kl_divergence(torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[0.0, 100.0]]))
        tensor([0.6931])
    """
    parts = []
    for at, chunk in _chunks(rows):
        other_chunk = other_rows[at : at + len(chunk)]
        log_z_q = RunningMoments((len(chunk),), rows.device)
        shift = torch.full((len(chunk),), -torch.inf, dtype=torch.float64, device=sums_device(rows.device))
        z, gap = torch.zeros_like(shift), torch.zeros_like(shift)
        for tile in vocab_tiles(W_U.shape[1], Budget.of(rows.device).tile.vocab):
            logits = _tile_logits(chunk, W_U, b_U, tile, soft_cap)
            other_logits = _tile_logits(other_chunk, W_U, b_U, tile, soft_cap)
            log_z_q.add_logits(other_logits)
            tile_shift = logits.amax(-1).clamp(min=torch.finfo(logits.dtype).min)
            weights = (logits - tile_shift[:, None]).exp()
            # KL = sum p (l - l') / Z - log Z + log Z': the sum runs along with log Z, so one pass over tiles is enough.
            difference = torch.where(weights > 0, weights * (logits - other_logits), 0.0)
            tile_shift = wide(tile_shift)
            new_shift = torch.maximum(shift, tile_shift)
            old, new = (shift - new_shift).exp(), (tile_shift - new_shift).exp()
            z = old * z + new * wide(weights.sum(-1))
            gap = old * gap + new * wide(difference.sum(-1))
            shift = new_shift
        parts.append(gap / z - (shift + z.log()) + log_z_q.log_partition())
    return torch.cat(parts).to(rows)


def vocab_tiles(d_vocab: int, width: int) -> Iterator[slice]:
    """Cut the vocabulary into tiles of some width; the last is what is left."""
    for start in range(0, d_vocab, width):
        yield slice(start, min(start + width, d_vocab))


def _tile_logits(rows: Tensor, W_U: Tensor, b_U: Tensor | None, tile: slice, soft_cap: float) -> Tensor:
    logits = linear(rows, W_U[:, tile])
    if b_U is not None:
        logits += b_U[tile]
    return cap_logits(logits, soft_cap)


def _chunks(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    step = Budget.of(rows.device).tile.rows
    for at in range(0, max(len(rows), 1), step):
        yield at, rows[at : at + step]


def _summarize_chunk(
    rows: Tensor, W_U: Tensor, b_U: Tensor | None, targets: Tensor | None, k: int, soft_cap: float
) -> VocabSummary:
    n, d_vocab = len(rows), W_U.shape[1]
    moments = RunningMoments((n,), rows.device)
    best = rows.new_full((n, 0), 0.0)
    best_tokens = torch.empty(n, 0, dtype=torch.long, device=rows.device)
    target_logit = rank = None
    if targets is not None:
        targets = targets.long()
        uncapped = (rows * W_U.T[targets]).sum(-1) + (0.0 if b_U is None else b_U[targets])
        target_logit = cap_logits(uncapped, soft_cap)
        rank = torch.zeros(n, dtype=torch.long, device=rows.device)
    for tile in vocab_tiles(d_vocab, Budget.of(rows.device).tile.vocab):
        logits = _tile_logits(rows, W_U, b_U, tile, soft_cap)
        moments.add_logits(logits)
        if k:
            values, tokens = logits.topk(min(k, logits.shape[1]), dim=-1)
            best, best_tokens = torch.cat([best, values], 1), torch.cat([best_tokens, tokens + tile.start], 1)
            best, order = best.topk(min(k, best.shape[1]), dim=-1)
            best_tokens = best_tokens.gather(1, order)
        if targets is not None and rank is not None and target_logit is not None:
            # Computed apart, the target's logit may differ in its last bits from the one in log Z: take the tile's, so
            # that no probability exceeds 1, and keep the target from outranking itself.
            inside = (targets >= tile.start) & (targets < tile.stop)
            target_entries = inside.nonzero()[:, 0], targets[inside] - tile.start
            target_logit[inside] = logits[target_entries]
            logits[target_entries] = -torch.inf
            rank += (logits > target_logit[:, None]).sum(-1)
    log_z = moments.log_partition()
    return VocabSummary(
        entropy=moments.entropy().to(rows),
        log_partition=log_z.to(rows),
        target_log_prob=None if target_logit is None else (wide(target_logit) - log_z).to(rows),
        target_rank=rank,
        top_tokens=best_tokens,
        top_log_probs=(wide(best) - log_z[:, None]).to(rows),
    )
