"""EXAONE 4: post-norms only, norms on queries and keys, and, where there are local layers, rotation only in them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.model.checkpoints.families.base import Table
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.checkpoints.families.olmo import with_post_norms_only
from headscope.model.config import HookedTransformerConfig

__all__ = ["EXAONE4"]


class _Exaone4(LlamaLike):
    model_type = "exaone4"
    architecture = "Exaone4ForCausalLM"
    prepends_bos = False
    examples = ("LGAI-EXAONE/EXAONE-4.0-1.2B", "LGAI-EXAONE/EXAONE-4.0-32B")
    fixed = {**LlamaLike.fixed, "use_normalization_after_only": True, "use_qk_norm": True}
    defaults = {**LlamaLike.defaults, "eps": 1e-5}
    default_window = 4096

    def period(self, hf: Mapping[str, Any]) -> int:
        return hf.get("sliding_window_pattern", 4)

    def rotary_layers(self, hf: Mapping[str, Any]) -> list[bool] | None:
        return None if self.window(hf) is None else self.local_layers(hf)

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        entries = super().entries(cfg, state)
        # Only with a window, even one that no layer has, do layers differ in rotation.
        window = entries["sliding_window"] or (None if cfg.rotary_layers is None else self.default_window)
        return {**entries, "sliding_window": window}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return with_post_norms_only(super().layer(cfg, hf))

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return ()


EXAONE4 = _Exaone4()
