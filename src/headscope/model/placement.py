"""Where a model's parameters live, in which dtype, and which of them are trained."""

from typing import Any, Self

import torch
from torch import nn

from headscope.errors import unknown_name
from headscope.model.config import HookedTransformerConfig

__all__ = ["Placement"]


class Placement(nn.Module):
    """A mixin: moving, converting and freezing a model that has `cfg` and `embed`."""

    cfg: HookedTransformerConfig
    mod_dict: dict[str, nn.Module]

    @property
    def input_device(self) -> torch.device:
        """Where tokens have to be: the device of the embedding."""
        return next(self.get_submodule("embed").parameters()).device

    def to(self, *args: Any, print_details: bool = False, **kwargs: Any) -> Self:
        """Move to a device or a dtype, in place; `cfg.device` and `cfg.dtype` follow."""
        moved = super().to(*args, **kwargs)
        if print_details:
            print(f"Moved {self.cfg.model_name} to {self.cfg.device}, {self.cfg.dtype}.")
        return moved

    def mps(self) -> Self:
        """Move to the GPU of an Apple machine."""
        return self.to("mps")

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Every way to move or convert a module (to, cuda, cpu, half, double, ...) comes through here.
        super()._apply(fn, recurse)
        first = next(self.get_submodule("embed").parameters())
        self.cfg.device, self.cfg.dtype = str(first.device), first.dtype
        return self

    def freeze(self, *parts: str) -> Self:
        """No gradients for the parameters under these names (`"embed"`, `"blocks.0.attn"`), or for all.

        Raises:
            UnknownNameError: for a name that is neither a module nor a parameter.
        """
        return self._require_grad(parts, False)

    def unfreeze(self, *parts: str) -> Self:
        """Gradients again for the parameters under these names, or for all.

        Raises:
            UnknownNameError: for a name that is neither a module nor a parameter.
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
