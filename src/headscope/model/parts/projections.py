"""Products with an axis of heads: into queries, keys and values, and of a pattern with values."""

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.ops.kernels.products import linear_each

__all__ = ["mixed", "project", "ungrouped"]


def ungrouped(shared: Float[Tensor, "batch pos group d_head"], n_heads: int) -> Float[Tensor, "batch pos head d_head"]:
    """Return keys or values of each head, where a group of heads shares them."""
    return shared.repeat_interleave(n_heads // shared.shape[2], dim=2)


def mixed(pattern: Tensor, v: Tensor) -> Tensor:
    """Weight values by a pattern, `[batch, pos, head, d_head]`; a hook's pattern may be broadcast over the batch."""
    return torch.einsum("bhqk,bkhe->bqhe", pattern, v)


def project(
    x: Float[Tensor, "batch pos *head d_model"],
    weight: Float[Tensor, "head d_model d_head"],
    bias: Float[Tensor, "head d_head"],
) -> Float[Tensor, "batch pos head d_head"]:
    """`x W + b` for each head, by one batched product: no weight is copied into another layout."""
    batch, length = x.shape[:2]
    out = linear_each(x.flatten(0, 1).transpose(0, 1) if x.ndim == 4 else x.flatten(0, 1)[None], weight, bias)
    return out.unflatten(1, (batch, length)).permute(1, 2, 0, 3)
