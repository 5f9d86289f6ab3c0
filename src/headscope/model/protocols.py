"""`Model`: the face of `HookedTransformer` that modules see which it is built from, and so cannot import."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from headscope.model.config import HookedTransformerConfig
from headscope.model.text.tokens import PaddingSide

__all__ = ["Model"]


@runtime_checkable
class Model(Protocol):
    """A hooked transformer, as loading, exporting and caching see it."""

    if TYPE_CHECKING:
        # Modules find these through __getattr__, which isinstance() does not see; at run time the methods are checked.
        cfg: HookedTransformerConfig
        tokenizer: Any
        weight_processing: tuple[str, ...]
        n_params_checkpoint: int | None
        default_padding_side: PaddingSide
        blocks: nn.ModuleList
        ln_final: nn.Module

        def __init__(self, cfg: HookedTransformerConfig, tokenizer: Any, **options: Any) -> None: ...

        @property
        def unembed(self) -> nn.Module: ...

        @property
        def input_device(self) -> torch.device: ...

        def to(self, device: Any) -> Self: ...

        def place(self, device_map: Any) -> Self: ...

        def load_state_dict(self, state_dict: Mapping[str, Any], *, strict: bool, assign: bool) -> Any: ...

        def named_parameters(self) -> Any: ...

        def named_modules(self) -> Any: ...

    def setup(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def per_layer_if_shown(self, part: str, name: str) -> list[Tensor | None]: ...
