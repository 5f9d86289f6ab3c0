"""`Slice`: a selection along one axis, however the caller writes it; `at_positions`: one of each row's own."""

import operator
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from headscope.errors import InvalidInputError

__all__ = ["Slice", "SliceInput", "at_positions"]

SliceInput = (
    int | np.integer[Any] | slice | tuple[int | None, ...] | list[int] | list[bool] | Tensor | np.ndarray | None
)


class Slice:
    """A selection along one axis.

    Args:
        input_slice: `None` keeps all; an integer picks one entry and drops the axis; `(stop,)`, `(start, stop)` or
            `(start, stop, step)` is a range; a `slice` is itself; a list, array or tensor of integers picks those
            entries, and one of booleans those that are true. Another `Slice` is copied.

    Attributes:
        mode: `"identity"`, `"int"`, `"slice"` or `"array"`.
        slice: What a tensor's axis is indexed with: an int, a slice, or a NumPy array.

    Raises:
        InvalidInputError: For anything else.

    Example:
        >>> Slice((1, 3)).apply(torch.arange(5), dim=0)
        tensor([1, 2])
        >>> Slice([0, -1]).indices(5)
        array([0, 4])
    """

    mode: Literal["identity", "int", "slice", "array"]

    def __init__(self, input_slice: "SliceInput | Slice" = None) -> None:
        self.slice: int | slice | np.ndarray
        if isinstance(input_slice, Slice):
            self.mode, self.slice = input_slice.mode, input_slice.slice
        elif input_slice is None:
            self.mode, self.slice = "identity", slice(None)
        elif isinstance(input_slice, (slice, tuple)):
            self.mode, self.slice = "slice", _checked_range(input_slice)
        elif isinstance(input_slice, list) or (isinstance(input_slice, (Tensor, np.ndarray)) and input_slice.ndim > 0):
            self.mode, self.slice = "array", _checked_array(input_slice)
        else:
            self.mode, self.slice = "int", _checked_integer(input_slice, input_slice)

    @classmethod
    def unwrap(cls, slice_input: "SliceInput | Slice") -> "Slice":
        """Make a `Slice` in which a lone integer keeps its axis.

        Example:
            >>> Slice.unwrap(2).apply(torch.arange(5))
            tensor([2])
        """
        if isinstance(slice_input, Slice):
            return slice_input
        made = cls(slice_input)
        return cls([made.slice]) if isinstance(made.slice, int) else made

    def apply(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Return the selected entries of `tensor` along `dim`.

        Raises:
            InvalidInputError: If an entry does not exist, or `tensor` has no axis `dim`.
        """
        if not -tensor.ndim <= dim < tensor.ndim:
            raise InvalidInputError(f"there is no axis {dim} in a tensor of shape {list(tensor.shape)}.")
        if self.mode == "identity":
            return tensor
        index: Any = self.slice if self.mode != "array" else torch.as_tensor(self.slice, device=tensor.device)
        try:
            return tensor[(*[slice(None)] * (dim % tensor.ndim), index)]
        except IndexError:
            raise self._out_of_range(tensor.shape[dim]) from None

    def indices(self, max_ctx: int | None = None) -> np.ndarray:
        """Return the selected positions of an axis of size `max_ctx`, as a 1-D int64 array.

        Raises:
            InvalidInputError: If `max_ctx` is missing (only a single integer can do without) or too small.
        """
        if max_ctx is None:
            if self.mode != "int":
                raise InvalidInputError("max_ctx, the size of the axis, is needed unless one integer is selected.")
            return np.array([self.slice], dtype=np.int64)
        try:
            return np.atleast_1d(np.arange(max_ctx, dtype=np.int64)[self.slice])
        except IndexError:
            raise self._out_of_range(max_ctx) from None

    def _out_of_range(self, size: int) -> InvalidInputError:
        return InvalidInputError(f"{self!r} does not fit an axis of size {size}.")

    def __repr__(self) -> str:
        shown = self.slice.tolist() if isinstance(self.slice, np.ndarray) else self.slice
        return f"Slice({None if self.mode == 'identity' else shown})"


def _checked_range(given: "slice | tuple[Any, ...]") -> slice:
    parts = given if isinstance(given, tuple) else (given.start, given.stop, given.step)
    if not 1 <= len(parts) <= 3:
        raise _not_a_slice(given)
    made = slice(*(None if part is None else _checked_integer(part, given) for part in parts))
    if made.step is not None and made.step < 1:
        raise InvalidInputError(f"a slice steps forwards: its step must be at least 1; got {given}.")
    return made


def _checked_array(given: "list[Any] | Tensor | np.ndarray") -> np.ndarray:
    array = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if array.ndim != 1 or (array.dtype.kind not in "iub" and array.size > 0):
        raise _not_a_slice(given)
    # PyTorch would read unsigned bytes as a mask.
    return array if array.dtype == np.bool_ else array.astype(np.int64)


def _checked_integer(number: Any, given: Any) -> int:
    try:
        return int(operator.index(number))
    except TypeError:
        raise _not_a_slice(given) from None


def _not_a_slice(given: Any) -> InvalidInputError:
    return InvalidInputError(
        "a slice must be None, an integer, a slice, a (stop,), (start, stop) or (start, stop, step) tuple of "
        f"integers, or a list, array or tensor of indices along one axis; got {given!r}."
    )


def at_positions(x: Shaped[Tensor, "row pos *rest"], at: Int[Tensor, "row n"]) -> Shaped[Tensor, "row n *rest"]:
    """Return the entries of each row at positions of its own.

    Example:
        >>> at_positions(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), torch.tensor([[1], [0]])).flatten().tolist()
        [2.0, 3.0]
    """
    return x.gather(1, at.view(*at.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:]))
