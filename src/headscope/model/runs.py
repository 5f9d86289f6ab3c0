"""Runs of a model, typed by what they are asked to return.

Type checkers see a tensor where logits, a loss or a residual stream comes back, an `Output` for `"both"`, and the kind
of cache that was asked for. At run time this is `HookedRootModule`, with an `ActivationCache` around what it kept.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from torch import Tensor

from headscope.model.activations.cache import ActivationCache
from headscope.model.hooks import HookedRootModule

__all__ = ["Output", "Runs"]

Input = str | Sequence[str] | Tensor
OneTensor = Literal["logits", "loss"]


class Output(NamedTuple):
    """Result of `return_type="both"`."""

    logits: Tensor
    loss: Tensor


class Runs(HookedRootModule):
    """Mixin without fields: calls of a model, with hooks or with a cache."""

    if TYPE_CHECKING:  # torch's own `__call__` runs `forward`, and takes and returns anything

        @overload
        def __call__(self, input: Input, return_type: OneTensor = "logits", **options: Any) -> Tensor: ...

        @overload
        def __call__(
            self, input: Input, return_type: OneTensor | Literal["both"] | None, *, stop_at_layer: int, **options: Any
        ) -> Tensor: ...

        @overload
        def __call__(
            self, input: Input, return_type: Literal["both"], *, stop_at_layer: None = None, **options: Any
        ) -> Output: ...

        @overload
        def __call__(self, input: Input, return_type: None, *, stop_at_layer: None = None, **options: Any) -> None: ...

        @overload
        def __call__(self, *model_args: Any, **options: Any) -> Any: ...

        def __call__(self, *model_args: Any, **options: Any) -> Any: ...

        run_with_hooks = __call__  # takes hooks besides, and returns the same

    @overload  # type: ignore[override]  # the base class, of any module, returns a dictionary
    def run_with_cache(
        self,
        input: Input,
        return_type: OneTensor = "logits",
        *,
        return_cache_object: Literal[True] = True,
        **options: Any,
    ) -> tuple[Tensor, ActivationCache]: ...

    @overload
    def run_with_cache(
        self,
        input: Input,
        return_type: OneTensor | Literal["both"] | None,
        *,
        stop_at_layer: int,
        return_cache_object: Literal[True] = True,
        **options: Any,
    ) -> tuple[Tensor, ActivationCache]: ...

    @overload
    def run_with_cache(
        self,
        input: Input,
        return_type: Literal["both"],
        *,
        stop_at_layer: None = None,
        return_cache_object: Literal[True] = True,
        **options: Any,
    ) -> tuple[Output, ActivationCache]: ...

    @overload
    def run_with_cache(
        self,
        input: Input,
        return_type: None,
        *,
        stop_at_layer: None = None,
        return_cache_object: Literal[True] = True,
        **options: Any,
    ) -> tuple[None, ActivationCache]: ...

    @overload
    def run_with_cache(
        self, *model_args: Any, return_cache_object: Literal[True] = True, **options: Any
    ) -> tuple[Any, ActivationCache]: ...

    @overload
    def run_with_cache(
        self, *model_args: Any, return_cache_object: Literal[False], **options: Any
    ) -> tuple[Any, dict[str, Tensor]]: ...

    def run_with_cache(
        self, *model_args: Any, return_cache_object: bool = True, remove_batch_dim: bool = False, **kwargs: Any
    ) -> tuple[Any, ActivationCache | dict[str, Tensor]]:
        """Run a forward pass and return its output with an `ActivationCache` of its activations.

        Takes the arguments of `forward`, and those of `HookedRootModule.run_with_cache`: `names_filter` (a name, a
        list or a predicate), `device`, `incl_bwd`, `pos_slice`, `reset_hooks_end`, `clear_contexts`. With
        `return_cache_object=False` the activations come as a dictionary.

        Raises:
            UnknownNameError: if `names_filter` names a hook point that does not exist.
        """
        output, cache = super().run_with_cache(*model_args, remove_batch_dim=remove_batch_dim, **kwargs)
        if not return_cache_object:
            return output, cache
        model: Any = self  # a model has more than this mixin
        return output, ActivationCache(cache, model, has_batch_dim=not remove_batch_dim)
