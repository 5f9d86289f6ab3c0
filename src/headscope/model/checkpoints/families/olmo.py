"""OLMo 1 (norms without weights), OLMo 2 (post-norms only, and norms on queries and keys) and 3 (also local layers).

In OLMo 3 three layers in four are local, and only the rotary positions of the fourth are scaled.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import Row, Table
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.checkpoints.families.rope import rope_entries_by_type, rope_fields_by_type
from headscope.model.config import HookedTransformerConfig

__all__ = ["OLMO", "OLMO2", "OLMO3", "with_post_norms_only"]


class _Olmo(LlamaLike):
    model_type = "olmo"
    architecture = "OlmoForCausalLM"
    examples = ("allenai/OLMo-1B-hf", "allenai/OLMo-7B-hf")
    names = {**LlamaLike.names, "clip_qkv": "clip_qkv"}
    defaults = {**LlamaLike.defaults, "clip_qkv": None}
    fixed = {**LlamaLike.fixed, "normalization_type": "LNPre", "eps": 1e-5}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return _without_norms(super().outside(cfg, hf))

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return _without_norms(super().layer(cfg, hf))


def _without_norms(table: Table) -> Table:
    return {name: row for name, row in table.items() if not name.startswith("ln")}


def with_post_norms_only(table: Table) -> Table:
    """Return a layer's rows with norms behind attention and MLP instead of in front."""
    return {
        **_without_norms(table),
        "ln1_post.w": Row("post_attention_layernorm.weight"),
        "ln2_post.w": Row("post_feedforward_layernorm.weight"),
    }


class _Olmo2(LlamaLike):
    model_type = "olmo2"
    architecture = "Olmo2ForCausalLM"
    examples = ("allenai/OLMo-2-0425-1B", "allenai/OLMo-2-1124-7B")
    fixed = {**LlamaLike.fixed, "use_normalization_after_only": True, "use_qk_norm": True, "qk_norm_all_heads": True}
    defaults = {**LlamaLike.defaults, "eps": 1e-5}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return with_post_norms_only(super().layer(cfg, hf))


class _Olmo3(_Olmo2):
    model_type = "olmo3"
    architecture = "Olmo3ForCausalLM"
    examples = ("allenai/Olmo-3-1025-7B", "allenai/Olmo-3-1125-32B")
    default_window = 4096
    local_period = 4
    default_base = 500_000.0

    def rope(self, hf: Mapping[str, Any], d_head: int) -> dict[str, Any]:
        # transformers 5 gives this entry to global layers alone, transformers 4 to all.
        if hf.get("rope_theta", self.default_base) != self.default_base and "sliding_attention" not in (
            hf.get("rope_parameters") or {}
        ):
            raise CheckpointError(
                f"rope_theta = {hf['rope_theta']} in config.json does not say whether local layers have it too: write "
                "rope_parameters for 'full_attention' and 'sliding_attention' instead."
            )
        return rope_fields_by_type(hf, d_head, base=self.default_base, local_base=self.default_base)

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**super().entries(cfg, state), **rope_entries_by_type(cfg)}


OLMO, OLMO2, OLMO3 = _Olmo(), _Olmo2(), _Olmo3()
