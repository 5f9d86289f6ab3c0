"""Checked inputs of views: tensors, arrays and lists as NumPy arrays, tokens as plain strings."""

from typing import Any

import numpy as np
from torch import Tensor

from headscope.errors import InvalidInputError

__all__ = ["checked_tokens", "to_array"]


def to_array(values: Any, name: str = "values", *, axes: int | None = None) -> np.ndarray:
    """Convert numbers to a float64 array: a tensor on any device, an array, a number, or nested lists of these.

    Args:
        values: The numbers.
        name: Name of the argument, for errors.
        axes: Number of axes without the batch; one more in front is dropped if its size is 1.

    Raises:
        InvalidInputError: If they are not numbers, or their rows differ in length.

    Example:
        >>> to_array([[1, 2], [3, 4]]).shape
        (2, 2)
    """
    try:
        array = np.asarray(_without_tensors(values), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{name} must be numbers: a tensor, an array, or lists with rows of equal length; "
            f"got {type(values).__name__} ({error})."
        ) from None
    return array[0] if axes is not None and array.ndim == axes + 1 and array.shape[0] == 1 else array


def _without_tensors(values: Any) -> Any:
    if isinstance(values, Tensor):
        return values.detach().cpu().double().numpy()
    if isinstance(values, (list, tuple)):
        return [_without_tensors(value) for value in values]
    return values


def checked_tokens(tokens: Any, n: int | None = None, *, of: str = "values") -> list[str]:
    """Return the tokens as a list of strings, one for each of `n` positions.

    Raises:
        InvalidInputError: If there are none, they are not strings, or their number is not `n`.
    """
    if isinstance(tokens, str):
        raise InvalidInputError(
            f"tokens is one string, {tokens!r:.60}; give a list with one string per token, such as "
            "model.to_str_tokens(text).",
            code="HS-VIEWS-04",
        )
    if isinstance(tokens, Tensor):
        raise InvalidInputError(
            "tokens is a tensor; give the tokens as strings, such as model.to_str_tokens(tokens).", code="HS-VIEWS-04"
        )
    strings = list(tokens)
    wrong = [(i, t) for i, t in enumerate(strings) if not isinstance(t, str)]
    if wrong:
        index, token = wrong[0]
        raise InvalidInputError(
            f"tokens[{index}] is {type(token).__name__} {token!r:.60}; each token must be a string, such as "
            "those of model.to_str_tokens(...)."
        )
    if not strings:
        raise InvalidInputError("there are no tokens to show: the list is empty.")
    if n is not None and len(strings) != n:
        raise InvalidInputError(
            f"there are {len(strings)} tokens, but {of} for {n}; the numbers must be equal.", code="HS-VIEWS-01"
        )
    return strings
