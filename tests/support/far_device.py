"""A stand-in for a GPU: tensors that say they are on another device and compute on the CPU, as strict as CUDA is.

An operator whose tensors are on two devices is refused as CUDA refuses it: only numbers without dimensions and
indices may come from the CPU. So are `numpy()`, and drawing on the device with a generator of the CPU. With
`float64=False` it is as strict as Apple's MPS too, which has no numbers of 64 bits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

__all__ = ["FAR", "FarTensor", "far", "far_device", "near"]

if not hasattr(Tensor, "is_far"):  # once a process, and the collection of examples imports this file again
    _setup_privateuseone_for_python_backend("far")
FAR = torch.device("far", 0)
COPIES = {"_to_copy", "copy_", "_copy_from", "_copy_from_and_resize"}
WIDE = {torch.float64, torch.complex128}
INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put", "_index_put_impl_"}


class FarTensor(Tensor):
    """A tensor on the stand-in; `near` is the CPU's that holds its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> "FarTensor":
        assert not isinstance(near, FarTensor)
        if near.dtype in WIDE and not _strictness.float64:
            raise TypeError(f"the device has no {near.dtype}")
        made = Tensor._make_wrapper_subclass(
            cls, near.size(), strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype,
            layout=near.layout, device=FAR, requires_grad=False,
        )  # fmt: skip
        made.near = near
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.near.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.near.numpy(force=True)
        raise TypeError("can't convert a tensor on the device to numpy; use Tensor.cpu() first.")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()


def dispatched(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator on the tensors that hold the numbers."""
    name = func.overloadpacket.__name__
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    some_far = any(isinstance(each, FarTensor) for each in tensors)
    device = kwargs.get("device")
    if device is not None:
        to_far = torch.device(device).type == FAR.type
        if to_far and isinstance(kwargs.get("generator"), torch.Generator):
            raise RuntimeError("expected a generator of the device, and found one of the CPU")
        kwargs = {**kwargs, "device": torch.device("cpu")}
    else:
        to_far = some_far
    if some_far and name not in COPIES:
        indices = [each for each in tree_flatten(args[1])[0] if isinstance(each, Tensor)] if name in INDEXING else []
        strays = [
            each
            for each in tensors
            if not isinstance(each, FarTensor) and each.ndim > 0 and not any(each is index for index in indices)
        ]
        if strays:
            raise RuntimeError(
                f"{func}: tensors on the device and on the CPU, such as one of shape {list(strays[0].shape)}"
            )
    if name == "copy_":
        to_far = isinstance(args[0], FarTensor)
    args, kwargs = tree_map_only(FarTensor, lambda each: each.near, (args, kwargs))
    with torch.no_grad():
        out = func(*args, **kwargs)
    if not to_far:
        return out
    given = {id(each.near): each for each in tensors if isinstance(each, FarTensor)}
    return tree_map_only(Tensor, lambda each: given.get(id(each)) if id(each) in given else FarTensor(each), out)


class _Made(TorchDispatchMode):
    """Makes new tensors where they are asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})


class _FromLists(TorchFunctionMode):
    """Makes tensors of lists, which `torch.tensor` does below the dispatch of operators."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            return func(args[0], _without_lists(args[1]), *args[2:])
        if func not in (torch.tensor, torch.as_tensor):
            return func(*args, **kwargs)
        device = kwargs.get("device")
        device = torch.device(device) if device is not None else None
        if func is torch.as_tensor and isinstance(args[0], Tensor):
            return args[0].to(device=device, dtype=kwargs.get("dtype"))
        made = func(*args, **{**kwargs, "device": "cpu"})
        return FarTensor(made) if (device or torch.get_default_device()).type == FAR.type else made


def _without_lists(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_without_lists, index))
    return torch.tensor(index, device="cpu", dtype=None if index else torch.long) if isinstance(index, list) else index


@dataclass
class _Strictness:
    """What the stand-in has."""

    float64: bool = True


_strictness = _Strictness()


@contextmanager
def far_device(*, by_default: bool, float64: bool = True) -> Iterator[None]:
    """Let tensors be made on `FAR`; with `by_default`, those for which no device is named too."""
    with _Made(), _FromLists():
        torch.set_default_device(FAR if by_default else None)
        _strictness.float64 = float64
        try:
            yield
        finally:
            torch.set_default_device(None)
            _strictness.float64 = True


def far(module: nn.Module) -> nn.Module:
    """Put a module's tensors on the stand-in."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                each._parameters[name] = nn.Parameter(FarTensor(parameter.detach()), parameter.requires_grad)
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = FarTensor(buffer)
    return module


def near(tensor: Tensor) -> Tensor:
    """The numbers of a tensor, wherever it is."""
    return tensor.near if isinstance(tensor, FarTensor) else tensor
