"""Next-token loss after changes to the final state, and the KL divergence from the clean prediction.

For clean logits `f` and changes with logits `d`, the cross-entropy of a target under `softmax(f - d)` and
`KL(softmax(f) || softmax(f - d)) = sum p d + log Z(f - d) - log Z(f)` are reduced over the vocabulary in tiles. Many
changes share one clean prediction, which is computed once. A change is given as the final states it leads to or, for
heads, as the part of their output removed before `W_O`: `removed (W_O W_U)` costs d_model / d_head times less.

Tiles of logits are reduced by `ops.kernels`, in bits.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.ops.activations import cap_logits
from headscope.ops.devices import Budget, sums_device, wide
from headscope.ops.kernels.dispatch import kernels_for
from headscope.ops.kernels.head_products import HeadProducts
from headscope.ops.kernels.interface import BITS, Kernels
from headscope.ops.kernels.products import linear
from headscope.ops.parallel import RowChunks
from headscope.ops.vocab import check_targets, token_mean, vocab_tiles

__all__ = [
    "ChangedPredictions",
    "HeadChanges",
    "Prediction",
    "RowChanges",
    "compare",
    "compare_rows",
]


@dataclass(frozen=True)
class Prediction:
    """Final states and their unembedding.

    Attributes:
        rows: Normalized final states; `logits = soft_cap(rows @ W_U + offset)`.
        W_U: Unembedding.
        offset: Added to all logits; minus infinity masks a token.
        targets: The token that came next.
        soft_cap: `c` of a soft cap `c tanh(l / c)` on all logits; 0 for none.
    """

    rows: Float[Tensor, "row d_model"]
    W_U: Float[Tensor, "d_model d_vocab"]
    offset: Float[Tensor, " d_vocab"]
    targets: Int[Tensor, " row"]
    soft_cap: float = 0.0


@dataclass(frozen=True)
class ChangedPredictions:
    """Losses and KL divergences in nats, float64.

    Attributes:
        loss: Negative log-probability of the target.
        changed_loss: The same after each change.
        kl: `KL(clean || changed)`.
    """

    loss: Float[Tensor, " row"]
    changed_loss: Float[Tensor, "change row"]
    kl: Float[Tensor, "change row"]


# For a chunk of rows: the logits that changes remove (before the cap, in bits), in their order, some at a time.
_RemovedLogits = Callable[[slice, Kernels], Iterator[Tensor]]


class RowChanges:
    """Changed final states, normalized like the clean ones.

    Cost: `2 * d_vocab * d_model` operations and one exponential per logit for each row.
    """

    def __init__(self, clean: Float[Tensor, "row d_model"], changed: Float[Tensor, "change row d_model"]) -> None:
        self.clean, self.changed = clean, changed
        self.n_changes = len(changed)
        self.at_once = Budget.of(clean.device).changes
        self.shared_numbers = 0

    def prepare(self, W_U: Float[Tensor, "d_model tile"], kernels_here: type[Kernels]) -> _RemovedLogits:
        """Return a function that yields the logits each change removes in this tile."""
        unembed = kernels_here.prepared(W_U)

        def removed_logits(chunk: slice, kernels: Kernels) -> Iterator[Tensor]:
            for start in range(0, self.n_changes, self.at_once):
                removed = self.clean[chunk] - self.changed[start : start + self.at_once, chunk]
                out = kernels.buffer("removed", (*removed.shape[:2], W_U.shape[1]), W_U)
                kernels.product(removed.flatten(0, 1), unembed, out.view(-1, W_U.shape[1]))
                yield out

        return removed_logits

    def ordered(self, values: Float[Tensor, "change row"]) -> Float[Tensor, "change row"]:
        """Return results in the order of the changes, in which they already are."""
        return values


class HeadChanges:
    """Heads with part of their output removed: `logits = f - removed W_O W_U`.

    Cost: `2 * d_vocab * d_head` operations for each value, head and row, and `2 * d_vocab * d_head * d_model` once for
    each head (for few rows, `2 * d_vocab * d_model` for each value, head and row instead).

    Args:
        removed: The part of each head's output (before `W_O`) to remove, divided by the final norm's scale; several
            alternatives at once, such as all of it, and all but its mean.
        W_O: Output weights of the heads.
    """

    def __init__(
        self, removed: Float[Tensor, "value head row d_head"], W_O: Float[Tensor, "head d_head d_model"]
    ) -> None:
        self.n_values, self.n_heads, self.n_rows, d_head = removed.shape
        self.n_changes = self.n_values * self.n_heads
        # All values of a head are rows of one product, so that `W_O W_U` is made once for them.
        by_head = removed.transpose(0, 1).reshape(1, self.n_heads, self.n_values * self.n_rows, d_head)
        self.products = HeadProducts(by_head, W_O[None])
        self.heads_at_once = max(1, Budget.of(removed.device).changes // max(self.n_values, 1))
        self.shared_numbers = self.n_heads * d_head  # of `W_O W_U`, for each token

    def prepare(self, W_U: Float[Tensor, "d_model tile"], kernels_here: type[Kernels]) -> _RemovedLogits:
        """Return a function that yields the logits removed in this tile, head by head."""
        left = self.products.left[0].unflatten(1, (self.n_values, self.n_rows))
        right = kernels_here.prepared(self.products.right(W_U)[0])
        n_values = self.n_values

        def removed_logits(chunk: slice, kernels: Kernels) -> Iterator[Tensor]:
            for start in range(0, self.n_heads, self.heads_at_once):
                heads = slice(start, start + self.heads_at_once)
                rows = left[heads, :, chunk].flatten(1, 2)
                out = kernels.head_logits(rows, right[heads], rows.dtype)
                yield out.view(-1, rows.shape[1] // n_values, out.shape[2])

        return removed_logits

    def ordered(self, values: Float[Tensor, "change row"]) -> Float[Tensor, "change row"]:
        """Return results in the order of `[value, head]`."""
        return values.view(self.n_heads, self.n_values, self.n_rows).transpose(0, 1).reshape(-1, self.n_rows)


def compare_rows(clean: Prediction, changed: Float[Tensor, "change row d_model"]) -> ChangedPredictions:
    """Compare predictions from changed final states, normalized like the clean ones; see `RowChanges`.

    Raises:
        InvalidInputError: if a target is out of range.

    Example:
        >>> clean = Prediction(torch.zeros(1, 1), torch.tensor([[0.0, 100.0]]), torch.zeros(2), torch.tensor([0]))
        >>> losses = compare_rows(clean, torch.ones(1, 1, 1))
        >>> losses.loss, losses.changed_loss.round()
        (tensor([0.6931], dtype=torch.float64), tensor([[100.]], dtype=torch.float64))
    """
    return compare(clean, RowChanges(clean.rows, changed))[0]


def compare(clean: Prediction, *changes: RowChanges | HeadChanges) -> tuple[ChangedPredictions, ...]:
    """Compare one clean prediction, which is computed once, with several sets of changes to it.

    Raises:
        InvalidInputError: if a target is out of range.
    """
    n_rows, d_vocab = len(clean.rows), clean.W_U.shape[1]
    check_targets(clean.targets, d_vocab)
    running = _RunningSums(clean, sum(change.n_changes for change in changes))
    starts = list(itertools.accumulate((change.n_changes for change in changes), initial=0))
    mean = token_mean(clean.W_U, clean.soft_cap)
    budget = Budget.of(clean.rows.device)
    size = budget.tile_of(
        n_rows, d_vocab, per_row=budget.changes, shared=sum(change.shared_numbers for change in changes)
    )
    kernels_here = kernels_for(clean.rows.device, clean.rows.dtype)
    with RowChunks(n_rows, size.rows, kernels_here, clean.rows.device) as chunks:
        for tile in vocab_tiles(d_vocab, size.vocab):
            W_U = (clean.W_U[:, tile] - mean).mul_(BITS)
            prepared = [change.prepare(W_U, kernels_here) for change in changes]

            def reduce(
                chunk: slice,
                kernels: Kernels,
                tile: slice = tile,
                W_U: Tensor = W_U,
                prepared: list[_RemovedLogits] = prepared,
            ) -> None:
                logits = linear(clean.rows[chunk], W_U).add_(clean.offset[tile], alpha=BITS)
                removed = (each for removed_logits in prepared for each in removed_logits(chunk, kernels))
                running.add(logits, removed, chunk, tile, kernels)

            chunks.run(reduce)
    everything = running.result()
    return tuple(
        ChangedPredictions(
            everything.loss,
            change.ordered(everything.changed_loss[first : first + change.n_changes]),
            change.ordered(everything.kl[first : first + change.n_changes]),
        )
        for first, change in zip(starts, changes, strict=False)
    )


class _RunningSums:
    """Sums over the tiles so far, for every prediction, in bits. Threads write to disjoint rows: no lock is needed."""

    def __init__(self, clean: Prediction, n_changes: int) -> None:
        self.soft_cap = clean.soft_cap * BITS
        self.targets = clean.targets.long()
        rows = clean.rows
        lowest = torch.finfo(rows.dtype).min
        # The clean prediction first, then the changed ones.
        self.device = sums_device(rows.device)
        self.shift = torch.full((1 + n_changes, len(rows)), lowest, dtype=torch.float64, device=self.device)
        self.z = torch.zeros_like(self.shift)
        self.target = torch.zeros_like(self.shift)
        self.gap = torch.zeros_like(self.shift[1:])

    def add(
        self,
        linear: Float[Tensor, "row tile"],
        changes: Iterator[Float[Tensor, "change row tile"]],
        chunk: slice,
        tile: slice,
        kernels: Kernels,
    ) -> None:
        """Merge a tile, from the clean logits before the cap and the removed ones, whose memory is overwritten.

        All changes are in it, in their order, some at a time.
        """
        targets = self.targets[chunk] - tile.start
        here = (targets >= 0) & (targets < tile.stop - tile.start)  # rows whose target is in this tile
        column = targets.clamp(0, tile.stop - tile.start - 1)[:, None]
        logits = cap_logits(linear, self.soft_cap)
        clean_targets = wide(logits.gather(1, column)[:, 0])
        here = here.to(self.device)
        self.target[0, chunk] = torch.where(here, clean_targets, self.target[0, chunk])
        # The factors take the logits' memory; under a cap the linear part is needed again.
        capped = logits.clone() if self.soft_cap else logits
        clean = kernels.factors(logits, "clean")
        before, now = self._merge(slice(0, 1), chunk, *(each[None].to(self.device) for each in (clean.shift, clean.z)))
        removed_targets, sums = [], []
        for removed in changes:
            if self.soft_cap:
                removed = capped - cap_logits(linear - removed, self.soft_cap)
            removed_targets.append(removed.gather(2, column.expand(len(removed), -1, -1))[..., 0])
            sums.append(removed.new_empty(3, *removed.shape[:2]))
            kernels.removals(removed, clean, sums[-1])
        if not sums:
            return
        # Merged once a tile, not with each few changes: on an accelerator every one of these is a launch.
        changed_targets = clean_targets - torch.cat(removed_targets).to(self.device)
        self.target[1:, chunk] = torch.where(here, changed_targets, self.target[1:, chunk])
        shift, z, gap = torch.cat(sums, 1).to(self.device)
        self.gap[:, chunk] = self.gap[:, chunk] * before + gap * now
        self._merge(slice(1, None), chunk, shift, z)

    def _merge(self, which: slice, chunk: slice, shift: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Merge shift and Z of a tile; return the factors that bring old sums and this tile's to the new shift."""
        new = torch.maximum(self.shift[which, chunk], shift.double())
        before, now = (self.shift[which, chunk] - new).exp2_(), (shift - new).exp2_()
        self.z[which, chunk] = self.z[which, chunk] * before + z * now
        self.shift[which, chunk] = new
        return before, now

    def result(self) -> ChangedPredictions:
        log_z = self.shift + self.z.log2()
        loss = (log_z - self.target) / BITS
        kl = (self.gap / self.z[0] + log_z[1:] - log_z[0]) / BITS
        return ChangedPredictions(loss[0], loss[1:], kl)
