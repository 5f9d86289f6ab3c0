"""OLMo 1 (norms without weights) and OLMo 2 (post-norms only, and norms on queries and keys)."""

from collections.abc import Mapping
from typing import Any

from headscope.model.checkpoints.families.base import Row, Table
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.config import HookedTransformerConfig

__all__ = ["OLMO", "OLMO2"]


class _Olmo(LlamaLike):
    model_type = "olmo"
    architecture = "OlmoForCausalLM"
    examples = ("allenai/OLMo-1B-hf", "allenai/OLMo-7B-hf")
    fixed = {**LlamaLike.fixed, "normalization_type": "LNPre", "eps": 1e-5}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return _without_norms(super().outside(cfg, hf))

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return _without_norms(super().layer(cfg, hf))


def _without_norms(table: Table) -> Table:
    return {name: row for name, row in table.items() if not name.startswith("ln")}


class _Olmo2(LlamaLike):
    model_type = "olmo2"
    architecture = "Olmo2ForCausalLM"
    examples = ("allenai/OLMo-2-0425-1B", "allenai/OLMo-2-1124-7B")
    fixed = {**LlamaLike.fixed, "use_normalization_after_only": True, "use_qk_norm": True, "qk_norm_all_heads": True}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            **_without_norms(super().layer(cfg, hf)),
            "ln1_post.w": Row("post_attention_layernorm.weight"),
            "ln2_post.w": Row("post_feedforward_layernorm.weight"),
        }


OLMO, OLMO2 = _Olmo(), _Olmo2()
