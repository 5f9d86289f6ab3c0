"""SmolLM3: Llama in which every fourth layer does not rotate queries and keys (Yang et al. 2025, arXiv 2501.18795)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.model.checkpoints.families.llama import LlamaLike, layers_that_rotate
from headscope.model.config import HookedTransformerConfig

__all__ = ["SMOLLM3"]


class _SmolLM3(LlamaLike):
    model_type = "smollm3"
    architecture = "SmolLM3ForCausalLM"
    prepends_bos = False
    examples = ("HuggingFaceTB/SmolLM3-3B", "HuggingFaceTB/SmolLM3-3B-Base")
    defaults = {**LlamaLike.defaults, "tie_word_embeddings": True}
    default_base = 2_000_000.0

    def rotary_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        return layers_that_rotate(hf)

    def local_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        if hf.get("layer_types") is not None:
            return super().local_layers(hf)
        return [bool(hf.get("use_sliding_window")) and not rotates for rotates in self.rotary_layers(hf)]

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            **super().entries(cfg, state),
            "no_rope_layers": [int(each) for each in cfg.rotary_layers or [True] * cfg.n_layers],
        }


SMOLLM3 = _SmolLM3()
