"""Top-k probabilities of many perturbed predictions at once: the final one, and that without each head.

For the final logits `f` and the logits `d` that each head adds to them, this reduces over the vocabulary, tile by tile,
the log-partition and the `k` largest of `softmax(f)` and of every `softmax(f - d)`, and the rank of the token that came
next. Values are enough, since the other tokens' identities are not needed: a tile costs a product, a maximum, an
exponential and a sum, and only rows where it holds one of the `k` largest values so far are sorted
(`ops.kernels`: a fused loop on a CPU, PyTorch's operations elsewhere). Ties go to the token with the lower id.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.ops.activations import cap_logits
from headscope.ops.changed_predictions import Prediction
from headscope.ops.devices import Budget, sums_device, wide
from headscope.ops.kernels.dispatch import kernels_for
from headscope.ops.kernels.head_products import HeadProducts
from headscope.ops.kernels.interface import Kernels, RightFactors, Top
from headscope.ops.kernels.tile_weights import head_factors
from headscope.ops.parallel import RowChunks
from headscope.ops.vocab import check_targets, token_mean, vocab_tiles

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
    so_far = _nothing_yet(problem.rows, 1 + n_layers * n_heads, k)
    mean = token_mean(problem.W_U, problem.soft_cap)
    size = Budget.of(device).tile_of(
        rows, d_vocab, per_row=max(n_heads, 1), shared=0 if products is None else problem.W_O[..., 0].numel()
    )
    kernels_here = kernels_for(device, problem.rows.dtype)
    targets = problem.targets.long()
    with RowChunks(rows, size.rows, kernels_here, device) as chunks:
        for tile in vocab_tiles(d_vocab, size.vocab):
            W_U, unembed = _unembedding(problem, mean, tile, kernels_here, chunks)
            factors = [] if products is None else head_factors(products, W_U, kernels_here, chunks)

            def reduce(
                chunk: slice,
                kernels: Kernels,
                tile: slice = tile,
                unembed: RightFactors = unembed,
                factors: list[RightFactors] = factors,
            ) -> None:
                final = kernels.buffer("final", (chunk.stop - chunk.start, unembed.tile), problem.rows)
                kernels.product(problem.rows[chunk], unembed, final).add_(problem.offset[tile])
                columns = targets[chunk] - tile.start
                for layer, right in enumerate(factors):
                    assert products is not None
                    left = products.left[layer, :, chunk]
                    heads = slice(1 + layer * n_heads, 1 + (layer + 1) * n_heads)
                    kernels.head_top(left, right, final, problem.soft_cap, columns, so_far[heads, chunk])
                kernels.top(cap_logits(final, problem.soft_cap)[None], columns, so_far[:1, chunk])

            chunks.run(reduce)
            del W_U, unembed, factors, reduce  # before the next tile's are made
    return _result(so_far)


def _unembedding(
    problem: TopProblem, mean: Tensor, tile: slice, kernels: type[Kernels], chunks: RowChunks[Kernels]
) -> tuple[Tensor, RightFactors]:
    """Return a tile of `W_U` less its mean, and the same as the right factor of products."""
    made: list[tuple[Tensor, RightFactors]] = []

    def make(tile: slice) -> None:
        W_U = problem.W_U[:, tile] - mean
        made.append((W_U, kernels.prepared(W_U)))

    chunks.each([tile], make)
    return made[0]


def _nothing_yet(rows: Tensor, n_predictions: int, k: int) -> Top:
    shape = n_predictions, len(rows)
    # Each row's numbers lie apart from the next one's, so that every part of these tensors has gaps: loops are compiled
    # for memory with gaps and for memory without, seconds each.
    return Top(
        best=rows.new_full((*shape, k + 1), -torch.inf)[..., :k],
        z=torch.zeros((*shape, 2), dtype=torch.float64, device=sums_device(rows.device))[..., 0],
        target=rows.new_full((*shape, 2), -torch.inf)[..., 0],
        ties=torch.zeros((*shape, 2), dtype=torch.long, device=rows.device)[..., 0],
    )


def _result(top: Top) -> LensTop:
    # `best` holds every value above the target's, or k of them, and then the target is not among the top k anyway. A
    # masked target ties with each of the k that was minus infinity, and so is not among them either.
    place = (top.best > top.target[..., None]).sum(-1) + top.ties
    log_z = wide(top.shift_of(top.best)) + top.z.log()
    return LensTop(wide(top.best) - log_z[..., None], place.clamp(max=top.best.shape[-1]).to(log_z.device))
