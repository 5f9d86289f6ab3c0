"""Reductions over the vocabulary in tiles, so that the logits of a batch are never all in memory.

A row is a normalized state; its logits are `soft_cap(row @ W_U + b_U)`. The logits of a tile of rows by a tile of the
vocabulary are computed, reduced and dropped. Memory is bounded by the tiles whatever the batch; the work is one product
with `W_U`, `2 * rows * d_model * d_vocab` operations, and one exponential for each logit.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.ops.activations import cap_logits
from headscope.ops.devices import Budget, sums_device, wide
from headscope.ops.kernels.dispatch import kernels_for
from headscope.ops.kernels.interface import BITS, Kernels, RightFactors
from headscope.ops.kernels.products import product
from headscope.ops.parallel import RowChunks

__all__ = [
    "RunningMoments",
    "VocabSummary",
    "check_targets",
    "summarize",
    "token_mean",
    "vocab_tiles",
]

_ROWS_WORTH_LAYING_OUT = 128


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
    (n_rows, _), d_vocab = rows.shape, W_U.shape[1]
    if not 0 <= k <= d_vocab:
        raise InvalidInputError(f"k must be between 0 and d_vocab = {d_vocab}; got {k}.")
    if targets is not None:
        check_targets(targets, d_vocab)
    device = rows.device
    size = Budget.of(device).tile_of(n_rows, d_vocab, per_row=1)
    kernels_here = kernels_for(device, rows.dtype)
    # Few rows are multiplied by W_U as it lies, which is read once: to lay it out for the kernels takes longer.
    lays_out = n_rows >= _ROWS_WORTH_LAYING_OUT
    scaled, offset = rows * BITS, None if b_U is None else b_U * BITS
    running = _RunningSummary(rows, W_U, b_U, targets, k, soft_cap)
    with RowChunks(n_rows, size.rows, kernels_here, device) as chunks:
        for tile in vocab_tiles(d_vocab, size.vocab):
            unembed = kernels_here.prepared(W_U[:, tile].contiguous()) if lays_out else None

            def reduce(
                chunk: slice, kernels: Kernels, tile: slice = tile, unembed: RightFactors | None = unembed
            ) -> None:
                logits = kernels.buffer("logits", (chunk.stop - chunk.start, tile.stop - tile.start), scaled)
                if unembed is None:
                    product(scaled[chunk], W_U[:, tile], logits)
                else:
                    kernels.product(scaled[chunk], unembed, logits)
                if offset is not None:
                    logits += offset[tile]
                running.add(cap_logits(logits, soft_cap * BITS), chunk, tile, kernels)

            chunks.run(reduce)
    return running.result()


def vocab_tiles(d_vocab: int, width: int) -> Iterator[slice]:
    """Cut the vocabulary into tiles of some width; the last is what is left."""
    for start in range(0, d_vocab, width):
        yield slice(start, min(start + width, d_vocab))


class _RunningSummary:
    """Sums and largest logits over the tiles so far, in bits. Threads write to disjoint rows: no lock is needed."""

    def __init__(
        self, rows: Tensor, W_U: Tensor, b_U: Tensor | None, targets: Tensor | None, k: int, soft_cap: float
    ) -> None:
        n_rows = len(rows)
        self.moments = RunningMoments((n_rows,), rows.device)
        self.best = rows.new_full((n_rows, k), -torch.inf)
        self.best_tokens = torch.zeros(n_rows, k, dtype=torch.long, device=rows.device)
        self.waits = Budget.of(rows.device).is_accelerators
        self.targets = None if targets is None else targets.long()
        if self.targets is not None:
            uncapped = (rows * W_U.T[self.targets]).sum(-1) + (0.0 if b_U is None else b_U[self.targets])
            self.target = cap_logits(uncapped, soft_cap) * BITS
            self.rank = torch.zeros(n_rows, dtype=torch.long, device=rows.device)

    def add(self, logits: Float[Tensor, "row tile"], chunk: slice, tile: slice, kernels: Kernels) -> None:
        """Merge a tile of logits, whose memory is overwritten."""
        if self.targets is not None:
            # Computed apart, the target's logit may differ in its last bits from the one in log Z: take the tile's, so
            # that no probability exceeds 1, and the target does not outrank itself.
            column = self.targets[chunk] - tile.start
            inside = (column >= 0) & (column < logits.shape[1])
            own = logits.gather(1, column.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
            target = self.target[chunk] = torch.where(inside, own, self.target[chunk])
            self.rank[chunk] += (logits > target[:, None]).sum(-1)
        if self.best.shape[1]:
            self._keep_best(logits, chunk, tile)
        factors = kernels.factors(logits, "state")
        self.moments.add(wide(factors.shift) / BITS, factors.z, wide(factors.s) / BITS, chunk)

    def _keep_best(self, logits: Float[Tensor, "row tile"], chunk: slice, tile: slice) -> None:
        best, tokens = self.best[chunk], self.best_tokens[chunk]
        known = min(tile.start, best.shape[1])  # the rest is yet to come
        here: Tensor | slice = slice(None)
        if known == best.shape[1] and not self.waits:
            # Most tiles hold nothing above the k-th value so far: only rows where one does are sorted.
            here = (logits.amax(-1) > best[:, -1]).nonzero()[:, 0]
            if not len(here):
                return
        values, columns = logits[here].topk(min(best.shape[1], logits.shape[1]), dim=-1)
        both = torch.cat([best[here, :known], values], 1)
        both_tokens = torch.cat([tokens[here, :known], columns + tile.start], 1)
        merged, order = both.topk(min(best.shape[1], both.shape[1]), dim=-1)
        best[here, : merged.shape[1]] = merged
        tokens[here, : merged.shape[1]] = both_tokens.gather(1, order)

    def result(self) -> VocabSummary:
        moments, dtype = self.moments, self.best
        log_z = moments.log_partition()
        has_targets = self.targets is not None
        return VocabSummary(
            entropy=moments.entropy().to(dtype),
            log_partition=log_z.to(dtype),
            target_log_prob=(wide(self.target) / BITS - log_z).to(dtype) if has_targets else None,
            target_rank=self.rank if has_targets else None,
            top_tokens=self.best_tokens,
            top_log_probs=(wide(self.best) / BITS - log_z[:, None]).to(dtype),
        )
