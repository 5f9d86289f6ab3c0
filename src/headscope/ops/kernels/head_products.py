"""The heads' contributions to the logits, one vocabulary tile at a time.

A head's logits have rank d_head: as `z (W_O W_U)` they take d_model / d_head times fewer operations than as
`(z W_O) W_U`, once `W_O W_U` of the tile is made, which costs as much as d_head rows through d_model.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.ops.kernels.products import emulates, linear, product, product_each

__all__ = ["HeadProducts", "times"]


class HeadProducts:
    """The two factors of the heads' logits, grouped in the order that is cheaper for this number of rows.

    Args:
        heads: Head outputs before `W_O`.
        W_O: Output weights of the heads.
        dtype: What the factors are rounded to; that of the heads by default. A processor without instructions for
            it multiplies what was rounded in float32.

    Attributes:
        left: The rows' factor, `[layer, head, row, inner]`.
        is_shared: True if the other factor is `W_U` itself, the same for all heads.
    """

    def __init__(
        self,
        heads: Float[Tensor, "layer head row d_head"],
        W_O: Float[Tensor, "layer head d_head d_model"],
        dtype: torch.dtype | None = None,
    ) -> None:
        self.dtype = heads.dtype if dtype is None else dtype
        self._multiplied_in = torch.float32 if emulates(self.dtype, heads.device) else self.dtype
        n_rows, d_head = heads.shape[2:]
        d_model = W_O.shape[-1]
        # Per token of the vocabulary: (z W_O) W_U takes n_rows * d_model multiplications, z (W_O W_U) takes
        # d_head * d_model for the product of weights and n_rows * d_head for the rows. Few rows do not repay it.
        self.is_shared = n_rows * d_model < d_head * (d_model + n_rows)
        self.left = self._rounded(torch.matmul(heads, W_O) if self.is_shared else heads)
        self._W_O = None if self.is_shared else self._rounded(W_O)

    def right(
        self, W_U: Float[Tensor, "d_model tile"], layers: slice = slice(None)
    ) -> Float[Tensor, "layer head inner tile"]:
        """Return the factor of one vocabulary tile, for some layers; the logits are `left @ right`, head by head."""
        W_U = self._rounded(W_U)
        if self._W_O is None:
            return W_U.expand(*self.left[layers].shape[:2], -1, -1)
        return self._rounded(linear(self._W_O[layers], W_U))

    def _rounded(self, entries: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        return entries.to(self.dtype).to(self._multiplied_in)


def times(
    left: Float[Tensor, "head row inner"], right: Float[Tensor, "head inner tile"], out: Float[Tensor, "head row tile"]
) -> Float[Tensor, "head row tile"]:
    """Write each head's product into `out`; where all share the right factor, as one product of all their rows."""
    if right.stride(0) == 0:
        # Taller products run nearer to the processor's rate: one of 288 rows takes 0.86 of the time of nine of 32.
        product(left.flatten(0, 1), right[0], out.view(-1, out.shape[2]))
        return out
    return product_each(left, right, out)
