"""Tensors, lists and numbers as NumPy arrays."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from headscope.errors import InvalidInputError

__all__ = ["to_numpy"]


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
