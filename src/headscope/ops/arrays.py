"""Small helpers on arrays: conversion to NumPy, corners, the batch axis, transposes, triangles, sums along an axis."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from headscope.errors import InvalidInputError
from headscope.ops.factored import FactoredMatrix

__all__ = [
    "check_structure",
    "get_corner",
    "get_cumsum_along_dim",
    "get_matrix_corner",
    "get_offset_position_ids",
    "is_lower_triangular",
    "is_square",
    "remove_batch_dim",
    "repeat_along_head_dimension",
    "stack_padded",
    "to_numpy",
    "transpose",
]


def to_numpy(tensor: Any) -> np.ndarray:
    """Convert to a NumPy array.

    Args:
        tensor: A tensor on any device, with or without gradient; an array; a number, boolean or string; or nested
            lists or tuples of these, with rows of equal length.

    Returns:
        The same values. A tensor on the CPU shares its memory with the array, and an array is returned as it is.
        Dtypes that NumPy lacks, such as bfloat16, become float32.

    Raises:
        InvalidInputError: For anything else. (For a `FactoredMatrix`, pass its `.AB`.)

    Example:
        >>> to_numpy(torch.ones(2, dtype=torch.bfloat16, requires_grad=True))
        array([1., 1.], dtype=float32)
        >>> to_numpy([torch.tensor(1.5), 2])
        array([1.5, 2. ])
    """
    if isinstance(tensor, np.ndarray):
        return tensor
    if isinstance(tensor, Tensor):
        return _from_tensor(tensor)
    if isinstance(tensor, (int, float, complex, str, np.generic)):
        return np.array(tensor)
    if isinstance(tensor, (list, tuple)):
        try:
            return np.array([to_numpy(item) for item in tensor])
        except ValueError as error:
            raise InvalidInputError(f"these lists do not form an array: {error}") from None
    raise InvalidInputError(
        f"cannot make an array of {type(tensor).__name__}; give a tensor, an array, a number, or lists of these."
    )


def _from_tensor(tensor: Tensor) -> np.ndarray:
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    try:
        return tensor.numpy(force=True)
    except TypeError:
        return tensor.float().numpy(force=True)


def get_corner(tensor: Tensor | FactoredMatrix, n: int = 3) -> Tensor:
    """Return the first `n` entries along every axis, of a tensor or of the product of a `FactoredMatrix`.

    Example:
        >>> get_corner(torch.arange(25).view(5, 5), 2)
        tensor([[0, 1],
                [5, 6]])
    """
    if isinstance(tensor, FactoredMatrix):
        return tensor.get_corner(n)
    return tensor[tuple(slice(n) for _ in range(tensor.ndim))]


def get_matrix_corner(matrix: FactoredMatrix, n: int = 3) -> Tensor:
    """Return `matrix.get_corner(n)`: the first `n` entries along every axis.

    Example:
        >>> get_matrix_corner(FactoredMatrix(torch.ones(5, 2), torch.ones(2, 5)), 2)
        tensor([[2., 2.],
                [2., 2.]])
    """
    return matrix.get_corner(n)


def remove_batch_dim(tensor: Tensor) -> Tensor:
    """Drop the first axis if its size is 1; return any other tensor as it is.

    Example:
        >>> remove_batch_dim(torch.ones(1, 4)).shape, remove_batch_dim(torch.ones(2, 4)).shape
        (torch.Size([4]), torch.Size([2, 4]))
    """
    return tensor[0] if tensor.ndim > 0 and tensor.shape[0] == 1 else tensor


@overload
def transpose(tensor: Tensor) -> Tensor: ...


@overload
def transpose(tensor: FactoredMatrix) -> FactoredMatrix: ...


def transpose(tensor: Tensor | FactoredMatrix) -> Tensor | FactoredMatrix:
    """Swap the last two axes, whatever the leading ones.

    Example:
        >>> transpose(torch.ones(5, 2, 3)).shape
        torch.Size([5, 3, 2])
    """
    return tensor.T if isinstance(tensor, FactoredMatrix) else tensor.transpose(-2, -1)


def is_square(x: Tensor) -> bool:
    """Return True for a single square matrix.

    Example:
        >>> is_square(torch.ones(3, 3)), is_square(torch.ones(2, 3)), is_square(torch.ones(1, 3, 3))
        (True, False, False)
    """
    return x.ndim == 2 and x.shape[0] == x.shape[1]


def is_lower_triangular(x: Tensor) -> bool:
    """Return True for a single square matrix with zeros above its diagonal.

    Example:
        >>> is_lower_triangular(torch.ones(3, 3).tril()), is_lower_triangular(torch.ones(3, 3))
        (True, False)
    """
    return is_square(x) and bool((x.triu(1) == 0).all())


def get_cumsum_along_dim(tensor: Tensor, dim: int, reverse: bool = False) -> Tensor:
    """Return running sums along `dim`, from the end backwards if `reverse`.

    Example:
        >>> get_cumsum_along_dim(torch.tensor([1, 2, 3]), dim=0, reverse=True)
        tensor([6, 5, 3])
    """
    return tensor.flip(dim).cumsum(dim).flip(dim) if reverse else tensor.cumsum(dim)


def get_offset_position_ids(
    past_kv_pos_offset: int, attention_mask: Int[Tensor, "batch offset_pos"] | Bool[Tensor, "batch offset_pos"]
) -> Int[Tensor, "batch pos"]:
    """Return each token's position among the real tokens of its row; 0 for padding before them.

    Args:
        past_kv_pos_offset: Number of positions already in a key-value cache, which are left out of the result.
        attention_mask: 1 for real tokens, 0 for padding, the cached ones included.

    Example:
        >>> get_offset_position_ids(1, torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]))
        tensor([[0, 0, 1],
                [1, 2, 3]])
    """
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, past_kv_pos_offset:]


def repeat_along_head_dimension(
    tensor: Float[Tensor, "batch pos d_model"], n_heads: int, clone_tensor: bool = True
) -> Float[Tensor, "batch pos n_heads d_model"]:
    """Repeat the vectors for each head.

    Args:
        tensor: Vectors that every head gets.
        n_heads: Number of heads.
        clone_tensor: Give each head its own memory, so that one can be edited in place. A view is enough to read.

    Example:
        >>> repeat_along_head_dimension(torch.ones(2, 5, 8), 3).shape
        torch.Size([2, 5, 3, 8])
    """
    repeated = tensor.unsqueeze(-2).expand(*tensor.shape[:-1], n_heads, -1)
    return repeated.clone(memory_format=torch.contiguous_format) if clone_tensor else repeated


def check_structure(
    t1: Float[Tensor, "row column"], t2: Float[Tensor, "row2 column2"], *, verbose: bool = False
) -> None:
    """Print whether two matrices rise and fall alike, from each row to the next and from each column to the next.

    Args:
        t1: One matrix.
        t2: The other, of the same shape.
        verbose: Print too where the two differ, and how.

    Example:
        >>> check_structure(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 5.0], [6.0, 7.0]]))
        PASSED
        >>> check_structure(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 5.0], [6.0, 3.0]]))
        row mismatch: [0]
    """
    if t1.shape != t2.shape:
        raise InvalidInputError(f"t1 and t2 must have one shape; got {list(t1.shape)} and {list(t2.shape)}.")
    mismatches = {}
    for dim, axis in enumerate(("row", "column")):
        falls = [(each.diff(dim=dim) <= 0).movedim(dim, 0) for each in (t1, t2)]
        mismatches[axis] = (falls[0] != falls[1]).any(1).nonzero().flatten().tolist()
        for at in mismatches[axis] if verbose else ():
            first, second = (each[at].tolist() for each in falls)
            print(f"{axis}s {at} and {at + 1}: t1 falls {first}, t2 falls {second}")
    found = [f"{axis} mismatch: {places}" for axis, places in mismatches.items() if places]
    print(found[0] if found else "PASSED")


def stack_padded(tensors: Sequence[Tensor], fill: float = 0.0) -> Tensor:
    """Stack tensors on the device of the first, those that are shorter along some axis with zeros at its end.

    For what layers have of heads whose widths differ: products over the width are those of the tensors as they are.

    Args:
        tensors: Tensors with the same number of axes.
        fill: Number to pad with.

    Example:
        >>> stack_padded([torch.ones(2), torch.ones(3)])
        tensor([[1., 1., 0.],
                [1., 1., 1.]])
    """
    longest = [max(sizes) for sizes in zip(*(each.shape for each in tensors), strict=True)]

    def padded(tensor: Tensor) -> Tensor:
        lacking = [total - size for total, size in zip(longest, tensor.shape, strict=True)]
        # `pad` takes the last axis first, and for each axis what comes in front and behind.
        return (
            F.pad(tensor, [n for each in reversed(lacking) for n in (0, each)], value=fill) if any(lacking) else tensor
        )

    return torch.stack([padded(each).to(tensors[0].device) for each in tensors])
