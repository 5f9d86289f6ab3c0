"""Devices and dtypes of a model's parameters, and freezing."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from headscope.errors import InvalidInputError, unknown_name
from headscope.model.config import HookedTransformerConfig

__all__ = ["DeviceMap", "Placement", "balanced_device_map", "gpus", "near"]

DeviceMap = Mapping[str, torch.device | str | int]
_ENDS = ("embed", "pos_embed", "ln_final", "unembed")


def gpus(n_devices: int | None = None) -> list[str]:
    """Return the first `n_devices` GPUs; by default all of them, or the CPU if there is none.

    Raises:
        InvalidInputError: If there are fewer.
    """
    available = torch.cuda.device_count()
    if n_devices is None:
        return [f"cuda:{number}" for number in range(available)] or ["cpu"]
    if not 1 <= n_devices <= available:
        raise InvalidInputError(
            f"n_devices = {n_devices}, but this machine has {available} GPUs. Give fewer, or place layers with "
            "device_map."
        )
    return [f"cuda:{number}" for number in range(n_devices)]


def balanced_device_map(model: nn.Module, devices: Sequence[torch.device | str]) -> dict[str, torch.device | str]:
    """Distribute blocks over devices in order, about the same number of bytes on each; the ends go first and last.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> placed = balanced_device_map(model, ["cpu", "meta"])
        >>> placed["embed"], placed["blocks.0"], placed["blocks.4"], placed["unembed"]
        ('cpu', 'cpu', 'meta', 'meta')
    """

    def size(name: str) -> int:
        return sum(parameter.nbytes for parameter in model.get_submodule(name).parameters())

    children = dict(model.named_children())
    blocks = [f"blocks.{number}" for number, _ in enumerate(model.get_submodule("blocks").children())]
    order = [name for name in (*_ENDS[:2], *blocks, *_ENDS[2:]) if name.partition(".")[0] in children]
    total, before = sum(map(size, order)), 0
    placed = {}
    for name in order:
        # A part goes to the device that the middle of its bytes falls on, which balances parts of unequal size.
        share = (before + size(name) / 2) / max(total, 1)
        placed[name] = devices[min(int(share * len(devices)), len(devices) - 1)]
        before += size(name)
    return placed


def near(module: nn.Module, *tensors: Tensor | None) -> tuple[Any, ...]:
    """Move tensors to the device of a module's parameters, leaving those already there, and `None`, as they are."""
    parameter = next(module.parameters(), None)
    if parameter is None:
        return tensors
    return tuple(None if tensor is None else tensor.to(parameter.device) for tensor in tensors)


class Placement(nn.Module):
    """Mixin: moving, converting and freezing a model that has `cfg` and `embed`."""

    cfg: HookedTransformerConfig
    mod_dict: dict[str, nn.Module]

    @property
    def input_device(self) -> torch.device:
        """Device for tokens: that of the embedding."""
        return next(self.get_submodule("embed").parameters()).device

    def to(self, *args: Any, print_details: bool = False, **kwargs: Any) -> Self:
        """Move to a device or convert to a dtype, in place, updating `cfg.device` and `cfg.dtype`.

        Args:
            args: As for any module; `print_details` may stand second.
            print_details: Say where the model is now.
            kwargs: As for any module; `device_or_dtype` is its first argument.
        """
        if len(args) == 2 and isinstance(args[-1], bool):
            args, print_details = args[:1], args[-1]
        if "device_or_dtype" in kwargs:
            args = (kwargs.pop("device_or_dtype"), *args)
        moved = super().to(*args, **kwargs)
        if print_details:
            print(f"Moved {self.cfg.model_name} to {self.cfg.device}, {self.cfg.dtype}.")
        return moved

    def place(self, device_map: DeviceMap) -> Self:
        """Put parts of the model on different devices; a forward pass moves the residual stream between them.

        Args:
            device_map: A device for each part: `"embed"`, `"blocks.3"`, `"unembed"`, ..., or `""` for the rest. The
                longest matching prefix counts.

        Raises:
            UnknownNameError: For a part that does not exist.
            InvalidInputError: If a part has no device.

        Example:
            >>> from headscope import HookedTransformer
            >>> model = HookedTransformer.from_pretrained("headscope-demo")
            >>> _ = model.place({"": "cpu", "blocks.4": "meta", "ln_final": "meta", "unembed": "meta"})
            >>> model("Mary").device.type, model.cfg.n_devices
            ('meta', 2)
        """
        blocks = [f"blocks.{number}" for number in range(self.cfg.n_layers)]
        parts = [*(name for name in _ENDS if name in dict(self.named_children())), *blocks]
        for name in device_map:
            if name not in ("", "blocks", *parts):
                raise unknown_name("part of the model", name, ["blocks", *parts])
        devices = {}
        for part in parts:
            named = [name for name in device_map if name == "" or part == name or part.startswith(f"{name}.")]
            if not named:
                raise InvalidInputError(f"device_map has no device for {part!r}. Name it, or give '' for the rest.")
            devices[part] = device_map[max(named, key=len)]
        for part, device in devices.items():
            self.get_submodule(part).to(device)
        self._note_devices()
        return self

    def mps(self) -> Self:
        """Move to the GPU of an Apple machine."""
        return self.to("mps")

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Every way to move or convert a module (to, cuda, cpu, half, double, ...) comes through here.
        super()._apply(fn, recurse)
        self._note_devices()
        return self

    def _note_devices(self) -> None:
        first = next(self.get_submodule("embed").parameters())
        self.cfg.device, self.cfg.dtype = str(first.device), first.dtype
        self.cfg.n_devices = len({parameter.device for parameter in self.parameters()})

    def freeze(self, *parts: str) -> Self:
        """Freeze the parameters under these names (`"embed"`, `"blocks.0.attn"`), or all.

        Raises:
            UnknownNameError: For a name that is neither a module nor a parameter.
        """
        return self._require_grad(parts, False)

    def unfreeze(self, *parts: str) -> Self:
        """Unfreeze the parameters under these names, or all.

        Raises:
            UnknownNameError: For a name that is neither a module nor a parameter.
        """
        return self._require_grad(parts, True)

    def _require_grad(self, parts: tuple[str, ...], wanted: bool) -> Self:
        names = [name for name, _ in self.named_parameters()]
        for part in parts:
            if not any(name == part or name.startswith(part + ".") for name in names):
                raise unknown_name("module or parameter", part, [*self.mod_dict, *names])
        for name, parameter in self.named_parameters():
            if not parts or any(name == part or name.startswith(part + ".") for part in parts):
                parameter.requires_grad_(wanted)
        return self
