"""Top-k probabilities of many perturbed predictions at once: the final one, and that without each head.

For the final logits `f` and the logits `d` that each head adds to them, this reduces over the vocabulary, tile by tile,
the log-partition and the `k` largest of `softmax(f)` and of every `softmax(f - d)`, and the rank of the token that came
next. Values are enough, since the other tokens' identities are not needed: a tile costs a product, a maximum, an
exponential and a sum, and only rows where it holds one of the `k` largest values so far are sorted. Ties go to the
token with the lower id.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.ops.activations import cap_logits
from headscope.ops.changed_predictions import Prediction
from headscope.ops.devices import Budget, Tile, sums_device, wide
from headscope.ops.kernels.head_products import HeadProducts, times
from headscope.ops.kernels.products import linear
from headscope.ops.parallel import RowChunks
from headscope.ops.vocab import check_targets, token_mean

__all__ = ["LensTop", "TopProblem", "lens_top"]


@dataclass(frozen=True, kw_only=True)
class TopProblem(Prediction):
    """Final states, their unembedding, and the heads for one batch of positions (rows).

    Attributes:
        heads: Head outputs before `W_O`, divided by the frozen scale; `None` for the final logits alone.
        W_O: Output weights of the heads.
    """

    heads: Float[Tensor, "layer head row d_head"] | None
    W_O: Float[Tensor, "layer head d_head d_model"]


@dataclass(frozen=True)
class LensTop:
    """Top-k results: the final prediction first, then those without each head, layer by layer.

    Attributes:
        log_probs: Of the `k` likeliest tokens, in descending order, in nats, float64.
        place: Rank of the token that came next: 0 for the likeliest, `k` if not among the top `k` or masked.
    """

    log_probs: Float[Tensor, "prediction row k"]
    place: Int[Tensor, "prediction row"]


def lens_top(problem: TopProblem, *, k: int = 1) -> LensTop:
    """Solve a `TopProblem`.

    Cost: `2 * d_vocab * d_model` operations a row for the final logits, `2 * d_vocab * layers * heads * d_head` for the
    heads with one exponential each, and `2 * d_vocab * layers * heads * d_head * d_model` once for `W_O W_U` (for fewer
    rows than d_head, the heads go through d_model instead). Memory: `W_O W_U` of a vocabulary tile, and a tile of a
    layer's heads for each thread.

    Raises:
        InvalidInputError: if `k` or a target is out of range.

    Example:
        >>> W_U = torch.tensor([[1.0, 3.0, 2.0]])
        >>> problem = TopProblem(
        ...     torch.ones(1, 1), W_U, torch.zeros(3), torch.tensor([2]), heads=None, W_O=torch.zeros(0, 0, 1, 1)
        ... )
        >>> top = lens_top(problem, k=2)
        >>> top.log_probs.exp(), top.place
        (tensor([[[0.6652, 0.2447]]], dtype=torch.float64), tensor([[1]]))
    """
    d_vocab = problem.W_U.shape[1]
    if not 1 <= k <= d_vocab:
        raise InvalidInputError(f"k must be between 1 and d_vocab = {d_vocab}; got {k}.")
    check_targets(problem.targets, d_vocab)
    rows, device = len(problem.rows), problem.rows.device
    products = None if problem.heads is None else HeadProducts(problem.heads, problem.W_O)
    n_layers, n_heads = (0, 0) if products is None else products.left.shape[:2]
    n_predictions = 1 + n_layers * n_heads
    running = _RunningTop(problem, n_predictions, k)
    mean = token_mean(problem.W_U, problem.soft_cap)
    budget = Budget.of(device)
    if budget.is_accelerators:
        shared = problem.W_O[..., 0].numel()
        size = budget.tile_of(rows, d_vocab, per_row=max(n_heads, 1), shared=shared)
    else:  # half as high and twice as wide as other tiles, as the largest values of each are merged
        size = Tile(max(1, budget.core_tile.rows // 2), 2 * budget.core_tile.vocab)
    n_tiles = -(-d_vocab // size.vocab)
    space = max(n_heads, 1) * min(size.rows, rows) * (-(-d_vocab // n_tiles))
    with RowChunks(rows, size.rows, partial(problem.rows.new_empty, space), device) as chunks:
        for number in range(n_tiles):
            tile = slice(number * d_vocab // n_tiles, (number + 1) * d_vocab // n_tiles)
            W_U = problem.W_U[:, tile] - mean
            right = None if products is None else products.right(W_U)

            def reduce(
                chunk: slice, buffer: Tensor, tile: slice = tile, W_U: Tensor = W_U, right: Tensor | None = right
            ) -> None:
                final = linear(problem.rows[chunk], W_U).add_(problem.offset[tile])
                if products is not None and right is not None:
                    for layer in range(n_layers):
                        left = products.left[layer, :, chunk]
                        out = buffer[: n_heads * final.numel()].view(n_heads, *final.shape)
                        times(left, right[layer], out)
                        torch.sub(final, out, out=out)
                        which = slice(1 + layer * n_heads, 1 + (layer + 1) * n_heads)
                        running.add(out, which, chunk, tile)
                running.add(final[None], slice(0, 1), chunk, tile)

            chunks.run(reduce)
    return running.result()


class _RunningTop:
    """Sums and largest values over the tiles so far, for every prediction. Threads write to disjoint rows."""

    def __init__(self, problem: TopProblem, n_predictions: int, k: int) -> None:
        self.soft_cap = problem.soft_cap
        self.targets = problem.targets.long()
        final = problem.rows
        shape = n_predictions, len(final)
        self.best = final.new_full((*shape, k), -torch.inf)
        lowest = torch.finfo(final.dtype).min
        self.shift = torch.full(shape, lowest, dtype=torch.float64, device=sums_device(final.device))
        self.z = torch.zeros_like(self.shift)
        self.target = final.new_full(shape, -torch.inf)
        self.ties = torch.zeros(shape, dtype=torch.long, device=final.device)

    def add(self, logits: Float[Tensor, "prediction row tile"], which: slice, chunk: slice, tile: slice) -> None:
        """Merge a tile of logits before the cap; their memory is overwritten."""
        if self.soft_cap:
            logits = cap_logits(logits, self.soft_cap)
        best = self.best[which, chunk]
        self._note_targets(logits, best, which, chunk, tile)
        highest = logits.amax(-1)
        k = best.shape[-1]
        if k == 1:
            torch.maximum(best, highest[..., None], out=best)
        else:
            # Most tiles hold nothing above the k-th value so far: only rows where one does are sorted.
            enters = highest > best[..., -1]
            candidates = logits[enters].topk(min(k, logits.shape[-1]), dim=-1).values
            best[enters] = torch.cat([best[enters], candidates], dim=-1).topk(k, dim=-1).values
        # All tokens of a tile may be masked.
        highest = highest.clamp_(min=torch.finfo(logits.dtype).min)
        z = logits.sub_(highest[..., None]).exp_().sum(-1)
        shift, z, old = wide(highest), wide(z), self.shift[which, chunk]
        new = torch.maximum(old, shift)
        self.z[which, chunk] = self.z[which, chunk] * (old - new).exp() + z * (shift - new).exp()
        self.shift[which, chunk] = new

    def _note_targets(self, logits: Tensor, best: Tensor, which: slice, chunk: slice, tile: slice) -> None:
        """Note, for rows whose target is in this tile, its logit and the number of earlier tokens tied with it."""
        targets = self.targets[chunk] - tile.start
        rows = ((targets >= 0) & (targets < logits.shape[-1])).nonzero()[:, 0]
        if not len(rows):
            return
        targets_here, logits_here = targets[rows], logits[:, rows]
        target_logit = logits_here.gather(-1, targets_here.expand(len(logits_here), -1)[..., None])
        earlier = torch.arange(logits.shape[-1], device=targets.device) < targets_here[:, None]
        ties = ((logits_here == target_logit) & earlier).sum(-1) + (best[:, rows] == target_logit).sum(-1)
        self.target[which, rows + chunk.start] = target_logit[..., 0]
        self.ties[which, rows + chunk.start] = ties

    def result(self) -> LensTop:
        # `best` holds every value above the target's, or k of them, and then the target is not among the top k anyway.
        # A masked target ties with each of the k that was minus infinity, and so is not among them either.
        place = (self.best > self.target[..., None]).sum(-1) + self.ties
        place = place.clamp(max=self.best.shape[-1])
        log_z = self.shift + self.z.log()
        return LensTop(wide(self.best) - log_z[..., None], place.to(log_z.device))
