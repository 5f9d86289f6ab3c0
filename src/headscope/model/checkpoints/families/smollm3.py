"""SmolLM3: Llama in which every fourth layer does not rotate queries and keys (Yang et al. 2025, arXiv 2501.18795)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.model.checkpoints.families.llama import LlamaLike
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
        layers, period = hf.get("no_rope_layers"), hf.get("no_rope_layer_interval", 4)
        if layers is None:  # the entry is 1 for layers that do rotate, whatever its name says
            return [bool((layer + 1) % period) for layer in range(hf["num_hidden_layers"])]
        return [bool(each) for each in layers[: hf["num_hidden_layers"]]]

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
