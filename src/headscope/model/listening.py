"""Fused kernels beside what hooks see: a hook that changes nothing changes no bit of what comes after it.

A fused norm or attention never has the tensors that hook points inside it show, and rounds otherwise than the same
arithmetic step by step. So where somebody listens, those tensors are computed beside the kernel, and the kernel's value
goes on all the same. It gives way only to the steps after a hook that changes what it is shown.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from headscope.model.hooks import is_listening, only_reads

__all__ = ["Show", "unless_changed"]

Inside = TypeVar("Inside")
# Takes a hook point and what it shows; returns what its hooks make of that.
Show = Callable[[nn.Module, Tensor], Tensor]


def unless_changed(
    points: Sequence[nn.Module],
    inside: Callable[[Show], Inside],
    outside: Callable[[Inside], Tensor],
    fused: Callable[[], Tensor],
) -> Tensor:
    """Return the value of a fused kernel, or of the same arithmetic in steps once a hook changes something in there.

    Gradients go through the steps as soon as hooks of somebody else's, or backward hooks, see them: a hook may keep
    what it is shown, and ask for its gradient later.

    Args:
        points: The hook points inside.
        inside: The steps up to the last of them; it is given a function that runs a point's hooks.
        outside: The steps from there on.
        fused: The kernel.
    """
    if not any(map(is_listening, points)):
        return fused()
    if all(map(only_reads, points)):
        with torch.no_grad():
            inside(_call)
        return fused()
    watch = _Watch()
    in_steps = outside(inside(watch))
    if watch.changed:
        return in_steps
    with torch.no_grad():
        value = fused()
    return _ValueOf.apply(in_steps, value) if in_steps.requires_grad else value


def _call(point: nn.Module, value: Tensor) -> Tensor:
    shown: Tensor = point(value)
    return shown


class _Watch:
    """Runs points' hooks, and notes if any of them changes a value, in place or by returning another."""

    def __init__(self) -> None:
        self.changed = False

    def __call__(self, point: nn.Module, value: Tensor) -> Tensor:
        if only_reads(point):
            return _call(point, value)
        # A copy: the graph may need the value as it was, and version counters see neither writes through `.data` or
        # NumPy nor any in inference mode.
        shown = _call(point, value.clone())
        self.changed = self.changed or not _has_values(value) or not _equal(shown, value)
        return shown


def _has_values(value: Tensor) -> bool:
    """Return False for a tensor that stands for one, in compiling or under `vmap`, of which nothing can be asked."""
    if torch.compiler.is_compiling():
        return False
    return type(value) is Tensor and not value.is_meta and not is_functorch_wrapped_tensor(value)


def _equal(shown: Any, before: Tensor) -> bool:
    alike = isinstance(shown, Tensor) and (shown.dtype, shown.device) == (before.dtype, before.device)
    return alike and torch.equal(shown, before)


class _ValueOf(torch.autograd.Function):
    """The second tensor's value with the first one's gradient."""

    @staticmethod
    def forward(ctx: Any, in_steps: Tensor, value: Tensor) -> Tensor:
        return value.clone()  # what is returned as it came counts as a view, which no later hook may write to

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None
