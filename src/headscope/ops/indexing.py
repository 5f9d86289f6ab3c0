"""`Slice`: one way to say which entries of an axis are wanted, whatever the caller wrote."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headscope.errors import InvalidInputError

__all__ = ["Slice", "SliceInput"]

SliceInput = int | slice | tuple[int, ...] | list[int] | Tensor | None


class Slice:
    """A selection along one axis.

    Args:
        selection: `None` keeps all; an `int` picks one entry and drops the axis; `(stop,)`, `(start, stop)` or
            `(start, stop, step)` is a range; a `slice` is itself; a list or tensor of integers picks those entries.

    Raises:
        InvalidInputError: for anything else.

    Example:
        >>> Slice((1, 3)).apply(torch.arange(5), dim=0)
        tensor([1, 2])
    """

    def __init__(self, selection: "SliceInput | Slice" = None) -> None:
        self.index: Any
        if isinstance(selection, Slice):
            self.index = selection.index
        elif selection is None:
            self.index = slice(None)
        elif isinstance(selection, (int, slice)):
            self.index = selection
        elif isinstance(selection, tuple) and 1 <= len(selection) <= 3:
            self.index = slice(*selection)
        elif isinstance(selection, (list, Tensor)):
            self.index = torch.as_tensor(selection)
        else:
            raise InvalidInputError(
                "a slice must be None, an int, a slice, a (start, stop) tuple, or a list or tensor of indices; "
                f"got {selection!r}."
            )

    def apply(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The selected entries of `tensor` along `dim`."""
        before: Sequence[Any] = [slice(None)] * (dim % tensor.ndim)
        return tensor[(*before, self.index)]

    def indices(self, max_ctx: int) -> Tensor:
        """The selected positions out of `max_ctx`, as a 1-D tensor."""
        return torch.atleast_1d(torch.arange(max_ctx)[self.index])

    def __repr__(self) -> str:
        return f"Slice({self.index!r})"
