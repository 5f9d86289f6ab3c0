"""Composition scores: how much of one matrix's output another one reads, from their thin factors."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.ops.devices import Budget
from headscope.ops.factored import FactoredMatrix

__all__ = ["composition_scores"]


def composition_scores(
    left: FactoredMatrix, right: FactoredMatrix, broadcast_dims: bool = True
) -> Float[Tensor, "*leads"]:
    """Return `|left @ right| / (|left| |right|)` in Frobenius norms, for each pair of matrices of two stacks.

    As defined in "A Mathematical Framework for Transformer Circuits" (Elhage et al. 2021); for random matrices it is
    near `1 / sqrt(d_model)`. With `left` the OV circuits of some heads and `right` the QK or OV circuits of later
    ones, this is their Q-, K- or V-composition (activations are row vectors, so the earlier head is on the left).

    Args:
        left: `[*left_lead, rows, d_model]`, the matrices that write.
        right: `[*right_lead, d_model, columns]`, the matrices that read.
        broadcast_dims: Score each of `left` with each of `right`, giving `[*left_lead, *right_lead]`. If False, the
            leading axes broadcast against each other, and matrices are paired up.

    Returns:
        Scores between 0 and 1; NaN for a matrix of zeros. float32 for factors in half precision.

    Raises:
        InvalidInputError: If `left.rdim` is not `right.ldim`, or leading axes that are paired up do not broadcast.

    The norms are those of `[left.mdim, right.mdim]` products: no d_model by d_model matrix is made. Cost:
    `2 * left.mdim * d_model * right.mdim` operations per pair.

    Example:
        >>> write = FactoredMatrix(torch.eye(4)[:, :2], torch.eye(4)[:2])  # axes 0 and 1 of four
        >>> read = FactoredMatrix(torch.eye(4)[:, 1:3], torch.eye(4)[1:3])  # axes 1 and 2
        >>> composition_scores(write, read)
        tensor(0.5000)
    """
    if left.rdim != right.ldim:
        raise InvalidInputError(
            f"left.rdim must equal right.ldim; got left {list(left.shape)} and right {list(right.shape)}."
        )
    # A rotation of one side changes no Frobenius norm, so thin triangular factors stand in for the whole matrices.
    written, read = left.turned_l(), right.turned_r()
    written_norm, read_norm = torch.linalg.matrix_norm(written), torch.linalg.matrix_norm(read)
    if broadcast_dims:
        norms = _product_norms(written.reshape(-1, *written.shape[-2:]), read)
        norms = norms.reshape(written_norm.shape + read_norm.shape)
        return norms / written_norm.reshape(written_norm.shape + (1,) * read_norm.ndim) / read_norm
    try:
        torch.broadcast_shapes(written_norm.shape, read_norm.shape)
    except RuntimeError:
        raise InvalidInputError(
            "with broadcast_dims=False the leading axes must broadcast; "
            f"got left {list(left.shape)} and right {list(right.shape)}."
        ) from None
    return torch.linalg.matrix_norm(written @ read) / written_norm / read_norm


def _product_norms(
    left: Float[Tensor, "n_left rank_l d_model"], right: Float[Tensor, "*lead d_model rank_r"]
) -> Float[Tensor, "n_left n_right"]:
    """Frobenius norm of every product of a `left` and a `right` matrix, many pairs to one matrix product."""
    n_right = math.prod(right.shape[:-2])
    rank_l, rank_r = left.shape[-2], right.shape[-1]
    columns = right.movedim(-2, 0).reshape(right.shape[-2], -1)
    at_once = max(1, Budget.of(left.device).pair_numbers // max(1, rank_l * columns.shape[1]))
    norms = [
        torch.linalg.vector_norm((some.flatten(0, 1) @ columns).view(-1, rank_l, n_right, rank_r), dim=(1, 3))
        for some in left.split(at_once)
    ]
    return torch.cat(norms)
