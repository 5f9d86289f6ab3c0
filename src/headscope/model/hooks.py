"""Hook points, and the root module that manages them.

A `HookPoint` is an identity whose output hooks can read or replace. Hooks live in torch's own registries, so a point
without hooks costs one call, and `is_listening` tells a layer whether a tensor that only a hook would need has to be
computed at all. A point may be replaced by any module (a sparse autoencoder, say): that counts as listening. Of a
`Reader`, which fills a cache, a layer knows beforehand that it changes nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headscope.differences import tell
from headscope.errors import InvalidInputError, unknown_name
from headscope.ops.indexing import Slice, SliceInput

__all__ = [
    "HookFunction",
    "HookPoint",
    "HookedRootModule",
    "NamesFilter",
    "Reader",
    "is_listening",
    "is_own",
    "is_plain",
    "only_reads",
    "writable",
]

HookFunction = Callable[..., Any]
Hooks = Sequence[tuple[str | Callable[[str], bool], HookFunction]]
Direction = Literal["fwd", "bwd", "both"]
NamesFilter = Callable[[str], bool] | Sequence[str] | str | None


@dataclass(frozen=True)
class Reader:
    """A hook that only looks: it neither writes to a value, returns another, nor asks for its gradient later.

    Example:
        >>> point, shapes = HookPoint(), []
        >>> point.add_hook(Reader(lambda value, hook: shapes.append(tuple(value.shape))))
        >>> point(torch.zeros(2, 3)).shape, shapes
        (torch.Size([2, 3]), [(2, 3)])
    """

    read: HookFunction

    def __call__(self, value: Any, hook: "HookPoint") -> None:
        """Have the value read."""
        self.read(value, hook=hook)


@dataclass(frozen=True)
class LensHandle:
    """A registered hook: its torch handle, and when it is removed."""

    hook: RemovableHandle
    is_permanent: bool = False
    context_level: int | None = None


class HookPoint(nn.Module):
    """An identity in the graph that hooks can read and replace.

    Example:
        >>> point = HookPoint()
        >>> point.add_hook(lambda value, hook: 2 * value)
        >>> point(torch.tensor(3.0))
        tensor(6.)
    """

    fwd_hooks: list[LensHandle]
    bwd_hooks: list[LensHandle]
    ctx: dict[Any, Any]
    name: str | None

    def __init__(self) -> None:
        super().__init__()
        # Past `nn.Module.__setattr__`, which looks for parameters first: more than half of the time it took to make a
        # point, and a block has two dozen.
        self.__dict__.update(fwd_hooks=[], bwd_hooks=[], ctx={}, name=None)

    def forward(self, x: Any) -> Any:
        return x

    def add_hook(
        self,
        hook: HookFunction,
        dir: Literal["fwd", "bwd"] = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
        alias_names: Sequence[str] | None = None,
    ) -> None:
        """Run `hook(value, hook=self)` on each pass; its return value, unless `None`, replaces the value.

        Args:
            hook: Called with the activation (`dir="fwd"`) or its gradient (`"bwd"`), and with this point as `hook`.
            dir: Forward or backward.
            is_permanent: Survive `reset_hooks()` unless permanent hooks are included.
            level: Context level at whose end the hook is removed.
            prepend: Run before existing hooks.
            alias_names: Run it once for each of these names, with a point of that name as `hook`.
        """
        if dir not in ("fwd", "bwd"):
            raise InvalidInputError(f"dir must be 'fwd' or 'bwd'; got {dir!r}.")
        if alias_names is not None:
            hook = partial(_call_under_names, hook, tuple(alias_names))

        if dir == "bwd" and (self.name or "").endswith((".ln1.hook_scale", ".ln1.hook_normalized")):
            tell("gradients of norms")
        if dir == "fwd":
            handle = self.register_forward_hook(partial(_call_on_output, hook, self), prepend=prepend)
        else:
            handle = self.register_full_backward_hook(partial(_call_on_gradient, hook, self), prepend=prepend)
        handles = self.fwd_hooks if dir == "fwd" else self.bwd_hooks
        handles.insert(0 if prepend else len(handles), LensHandle(handle, is_permanent, level))

    def add_perma_hook(self, hook: HookFunction, dir: Literal["fwd", "bwd"] = "fwd") -> None:
        """Add a hook that only `reset_hooks(including_permanent=True)` removes."""
        self.add_hook(hook, dir=dir, is_permanent=True)

    def remove_hooks(self, dir: Direction = "fwd", including_permanent: bool = False, level: int | None = None) -> None:
        """Remove hooks of a direction; with `level`, only those added at that context level."""
        if dir not in ("fwd", "bwd", "both"):
            raise InvalidInputError(f"dir must be 'fwd', 'bwd' or 'both'; got {dir!r}.")

        for handles in [self.fwd_hooks] * (dir != "bwd") + [self.bwd_hooks] * (dir != "fwd"):
            for handle in list(handles):
                if including_permanent or (not handle.is_permanent and level in (None, handle.context_level)):
                    handle.hook.remove()
                    handles.remove(handle)

    def has_hooks(self, dir: Direction = "both", including_permanent: bool = True, level: int | None = None) -> bool:
        """Return True if there is any hook; with `level`, at that context level."""
        handles = (self.fwd_hooks if dir != "bwd" else []) + (self.bwd_hooks if dir != "fwd" else [])
        return any(
            (including_permanent or not handle.is_permanent) and level in (None, handle.context_level)
            for handle in handles
        )

    def clear_context(self) -> None:
        """Clear `ctx`, the scratch space shared by hooks."""
        if self.ctx:
            self.ctx = {}

    def layer(self) -> int:
        """Return the layer in this point's name: 3 for `blocks.3.attn.hook_z`."""
        for part in (self.name or "").split("."):
            if part.isdigit():
                return int(part)
        raise InvalidInputError(f"hook point {self.name!r} belongs to no layer.")


def _call_under_names(function: HookFunction, names: Sequence[str], value: Any, hook: HookPoint) -> Any:
    replaced = None
    for name in names:
        named = copy(hook)
        named.name = name
        returned = function(value if replaced is None else replaced, hook=named)
        replaced = replaced if returned is None else returned
    return replaced


def _call_on_output(hook: HookFunction, point: HookPoint, _module: nn.Module, _inputs: Any, output: Any) -> Any:
    return hook(output, hook=point)


def _call_on_gradient(
    hook: HookFunction, point: HookPoint, _module: nn.Module, _grad_inputs: Any, grad_outputs: Any
) -> Any:
    replaced = hook(grad_outputs[0], hook=point)
    return (replaced,) if isinstance(replaced, Tensor) else replaced


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return True for a module of exactly this class without hooks, which a faster equivalent may stand in for.

    Nor may it have a `forward` of its own, as some packages assign one to wrap it.
    """
    return type(module) is kind and not (
        module._forward_hooks
        or module._backward_hooks
        or module._forward_pre_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def is_own(module: nn.Module) -> bool:
    """Return True for a module of this package (or one that does nothing) without hooks."""
    kind = type(module)
    own = kind.__module__.startswith("headscope.model.") or kind in (nn.Identity, nn.ModuleList)
    return own and is_plain(module, kind)


def is_listening(point: nn.Module) -> bool:
    """Return True if a hook or a replacement module would see or change the value at `point`."""
    return not is_plain(point, HookPoint)


def writable(point: nn.Module, value: Tensor) -> Tensor:
    """Return a value for a point's hooks to write to: a copy, if the graph needs what they may overwrite."""
    return value if only_reads(point) or not value.requires_grad else value.clone()


def only_reads(point: nn.Module) -> bool:
    """Return True if nothing at `point` changes its value or needs its gradient: there are only hooks made to read."""
    if type(point) is not HookPoint or point._forward_pre_hooks or point._backward_hooks or point._backward_pre_hooks:
        return False
    return all(
        isinstance(hook, partial) and hook.func is _call_on_output and isinstance(hook.args[0], Reader)
        for hook in point._forward_hooks.values()
    )


class HookedRootModule(nn.Module):
    """A module that finds its hook points, hooks them by name, and caches what passes through them.

    A subclass calls `self.setup()` at the end of `__init__`; it may be called again at any time, and then finds hook
    points that were added, replaced or nested since.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__()
        self.is_caching = False
        self.context_level = 0
        self.mod_dict: dict[str, nn.Module] = {}
        self.hook_dict: dict[str, HookPoint] = {}

    def setup(self) -> None:
        """Give every module its place as `name` (`"blocks.0.attn"`), and index modules and hook points by it."""
        self.mod_dict, self.hook_dict = {}, {}
        for name, module in self.named_modules():
            if not name:
                continue
            self.mod_dict[name] = module
            module.name = name
            if isinstance(module, HookPoint):
                self.hook_dict[name] = module

    def hook_points(self) -> Iterable[HookPoint]:
        """Return all hook points."""
        return self.hook_dict.values()

    def fires_by_default(self, name: str) -> bool:
        """Return True if a cache of everything includes this hook point, even when not requested by name."""
        return True

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Direction = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove hooks from every point, and empty their contexts."""
        if clear_contexts:
            self.clear_contexts()
        self.remove_all_hook_fns(direction, including_permanent, level)
        self.is_caching = False

    def clear_contexts(self) -> None:
        """Empty the `ctx` of every hook point."""
        for point in self.hook_points():
            point.clear_context()

    def remove_all_hook_fns(
        self, direction: Direction = "both", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """Remove hooks from every point, leaving contexts as they are."""
        for point in self.hook_points():
            point.remove_hooks(direction, including_permanent=including_permanent, level=level)

    def add_hook(
        self,
        name: str | Callable[[str], bool],
        hook: HookFunction,
        dir: Literal["fwd", "bwd"] = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Add a hook to the point called `name`, or to every point whose name satisfies a predicate.

        Raises:
            UnknownNameError: If there is no hook point of that name; the message suggests the nearest names.
        """
        points = self._matching(name)
        if not isinstance(hook, Reader) and not all(self.fires_by_default(point.name or "") for point in points):
            tell("optional points")
        for point in points:
            point.add_hook(hook, dir=dir, is_permanent=is_permanent, level=level, prepend=prepend)

    def add_perma_hook(
        self, name: str | Callable[[str], bool], hook: HookFunction, dir: Literal["fwd", "bwd"] = "fwd"
    ) -> None:
        """Add a hook that only `reset_hooks(including_permanent=True)` removes."""
        self.add_hook(name, hook, dir=dir, is_permanent=True)

    def _matching(self, name: str | Callable[[str], bool]) -> list[HookPoint]:
        if isinstance(name, str):
            if name not in self.hook_dict:
                raise unknown_name(
                    "hook point", name, self.hook_dict, hint="`model.hook_dict` lists them all.", code="HS-NAME-02"
                )
            return [self.hook_dict[name]]
        return [point for point_name, point in self.hook_dict.items() if name(point_name)]

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        *,
        prepend: bool = False,
    ) -> Iterator["HookedRootModule"]:
        """Add hooks for the duration of a `with` block; they are removed at its end even if an error occurs.

        Args:
            fwd_hooks: Pairs of a name (or a predicate on names) and a function.
            bwd_hooks: The same, for gradients.
            reset_hooks_end: `False` leaves the hooks in place.
            clear_contexts: Also empty every point's `ctx` at the end.
            prepend: Run them before the hooks that are there already.
        """
        self.context_level += 1
        level = self.context_level
        try:
            for name, hook in fwd_hooks:
                self.add_hook(name, hook, dir="fwd", level=level, prepend=prepend)
            for name, hook in bwd_hooks:
                self.add_hook(name, hook, dir="bwd", level=level, prepend=prepend)
            yield self
        finally:
            if reset_hooks_end:
                self.reset_hooks(clear_contexts, including_permanent=False, level=level)
            self.context_level -= 1

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Run a forward pass with hooks. To keep backward hooks until `backward()` is called, use `hooks` instead."""
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*model_args, **model_kwargs)

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: SliceInput | Slice = None,
    ) -> tuple[dict[str, Tensor], list[tuple[str, HookFunction]], list[tuple[str, HookFunction]]]:
        """Return a dictionary and the hooks that fill it (gradients under `name + "_grad"`)."""
        store: dict[str, Tensor] = {} if cache is None else cache
        chosen = self._filter_names(names_filter)
        if callable(names_filter) and not all(map(self.fires_by_default, chosen)):
            tell("optional points")
        positions = Slice.unwrap(pos_slice)

        def save(value: Tensor, hook: HookPoint, suffix: str = "") -> None:
            name = hook.name or ""
            kept = value.detach()
            pos_dim = 2 if name.endswith(("hook_attn_scores", "hook_pattern")) else 1
            if pos_slice is not None and kept.ndim > pos_dim:
                kept = positions.apply(kept, dim=pos_dim)
            if remove_batch_dim:
                if kept.shape[0] != 1:
                    raise InvalidInputError(
                        f"remove_batch_dim=True is for a batch of 1; {name} has a batch of {kept.shape[0]}.",
                        code="HS-CACHE-02",
                    )
                kept = kept[0]
            if device is not None:
                kept = kept.to(device)
            store[name + suffix] = kept

        reader, save_gradient = Reader(save), partial(save, suffix="_grad")
        return store, [(name, reader) for name in chosen], [(name, save_gradient) for name in chosen if incl_bwd]

    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Add hooks that fill the returned dictionary at each pass from now on, until `reset_hooks`."""
        store, forward, backward = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for name, hook in forward:
            self.add_hook(name, hook)
        for name, hook in backward:
            self.add_hook(name, hook, dir="bwd")
        self.is_caching = True
        return store

    def _filter_names(self, names_filter: NamesFilter) -> list[str]:
        if names_filter is None:
            return [name for name in self.hook_dict if self.fires_by_default(name)]
        if callable(names_filter):
            return [name for name in self.hook_dict if names_filter(name)]
        several = [names_filter] if isinstance(names_filter, str) else names_filter
        names = list(several) if isinstance(several, Iterable) else [several]
        if not all(isinstance(name, str) or callable(name) for name in names):
            raise InvalidInputError(
                f"names_filter must be a name, several names or a function of a name; got {names_filter!r}."
            )
        for name in names:
            self._matching(name)  # refuses an unknown one
        return names

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: SliceInput | Slice = None,
        **model_kwargs: Any,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Run a forward pass and keep activations.

        Args:
            names_filter: Hook points to keep: a name, several, or a predicate. `None` keeps everything that is computed
                anyway; per-head `result` and split inputs are computed only when requested by name.
            device: Device to keep them on.
            remove_batch_dim: Drop a batch axis of size 1.
            incl_bwd: Run `backward()` on the output too and keep gradients under `name + "_grad"`.
            reset_hooks_end: Remove the caching hooks afterwards.
            clear_contexts: Also empty every point's `ctx`.
            pos_slice: Keep only these positions.

        Returns:
            The model's output and the activations by hook name.
        """
        cache, forward, backward = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim=remove_batch_dim, pos_slice=pos_slice
        )
        with self.hooks(forward, backward, reset_hooks_end, clear_contexts):
            output = self(*model_args, **model_kwargs)
            if incl_bwd:
                _check_scalar(output)
                output.backward()
        return output, cache


def _check_scalar(output: Any) -> None:
    """Raise unless `backward()` can be called on a run's output."""
    if not (isinstance(output, Tensor) and output.numel() == 1 and output.requires_grad):
        given = f"a tensor of shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        if isinstance(output, Tensor) and output.numel() == 1:
            given = "one without gradients"
        raise InvalidInputError(
            f"incl_bwd=True runs backward() on the output, which must be one number with gradients; got {given}. Pass "
            "return_type='loss', outside torch.no_grad(); for another number, run it under model.hooks(...)."
        )
