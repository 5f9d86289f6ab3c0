"""StableLM: Llama with LayerNorm and rotary positions on part of each head; in some, parallel blocks with one norm."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.model.checkpoints.families.base import Row, Table, norm
from headscope.model.checkpoints.families.llama import QKV_BIASES, LlamaLike, any_bias
from headscope.model.config import HookedTransformerConfig

__all__ = ["STABLELM"]


class _StableLM(LlamaLike):
    model_type = "stablelm"
    architecture = "StableLmForCausalLM"
    examples = ("stabilityai/stablelm-2-1_6b", "stabilityai/stablelm-3b-4e1t")
    windowed = False
    rotary_part = 0.25
    names = {
        **LlamaLike.names,
        "eps": "layer_norm_eps",
        "parallel_attn_mlp": "use_parallel_residual",
        "use_qk_norm": "qk_layernorm",
    }
    fixed = {**LlamaLike.fixed, "normalization_type": "LN"}
    defaults = {**LlamaLike.defaults, "eps": 1e-5, "parallel_attn_mlp": False, "use_qk_norm": False}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().config(hf)
        return {**fields, **({"qk_norm_type": "LN", "qk_norm_per_head": True} if fields["use_qk_norm"] else {})}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            **super().entries(cfg, state),
            "use_qkv_bias": any_bias(state, *QKV_BIASES),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        table = super().layer(cfg, hf)
        if not cfg.parallel_attn_mlp:
            return table
        matrices = {name: row for name, row in table.items() if not name.startswith("ln")}
        return {**matrices, **norm("ln1 ln2", "input_layernorm")}

    def qk_norms(self, cfg: HookedTransformerConfig) -> Table:
        # A module for each head, and none has a bias.
        axes = {"q": "h", "k": "g"}
        return {
            f"attn.{each}_norm.w": Row(f"self_attn.{each}_layernorm.norms.{{}}.weight", one_by_one=axis)
            for each, axis in axes.items()
        }

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return QKV_BIASES if hf.get("use_qkv_bias") else ()


STABLELM = _StableLM()
