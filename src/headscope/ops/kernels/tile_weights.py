"""Products of weights alone, for one tile of the vocabulary, made on the threads that read them."""

from jaxtyping import Float
from torch import Tensor

from headscope.ops.devices import Budget
from headscope.ops.kernels.head_products import HeadProducts
from headscope.ops.kernels.interface import Kernels, RightFactors
from headscope.ops.parallel import RowChunks

__all__ = ["head_factors"]


def head_factors(
    heads: HeadProducts, W_U: Float[Tensor, "d_model tile"], kernels: type[Kernels], chunks: RowChunks[Kernels]
) -> list[RightFactors]:
    """Return the right factors of each layer's heads.

    PyTorch's own threads, which an operation called outside of `chunks` would wake, go on spinning beside those for a
    while.
    """
    n_layers = len(heads.left)
    # A shared factor is laid out once, and an accelerator makes all in one launch.
    at_once = n_layers if heads.is_shared or Budget.of(W_U.device).is_accelerators else 1
    factors: dict[int, RightFactors] = {}

    def make(layers: slice) -> None:
        right = kernels.prepared(heads.right(W_U, layers))
        for at in range(len(right.entries)):
            factors[layers.start + at] = right[at]

    chunks.each([slice(at, at + at_once) for at in range(0, n_layers, max(at_once, 1))], make)
    return [factors[layer] for layer in range(n_layers)]
