"""StableLM: Llama with LayerNorm and rotary positions on part of each head; in some, parallel blocks with one norm."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import Row, Table
from headscope.model.checkpoints.families.llama import QKV_BIASES, LlamaLike, any_bias
from headscope.model.config import HookedTransformerConfig

__all__ = ["STABLELM"]


class _StableLM(LlamaLike):
    model_type = "stablelm"
    architecture = "StableLmForCausalLM"
    examples = ("stabilityai/stablelm-2-1_6b", "stabilityai/stablelm-3b-4e1t")

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        if hf.get("qk_layernorm"):
            raise CheckpointError("StableLM with qk_layernorm, a norm for each head, is not supported.")
        return {
            **super().config({"partial_rotary_factor": 0.25, **hf}),
            "normalization_type": "LN",
            "eps": hf.get("layer_norm_eps", 1e-5),
            "parallel_attn_mlp": hf.get("use_parallel_residual", False),
        }

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            **super().entries(cfg, state),
            "layer_norm_eps": cfg.eps,
            "use_parallel_residual": cfg.parallel_attn_mlp,
            "use_qkv_bias": any_bias(state, "attn.b_Q", "attn._b_K", "attn.b_K", "attn._b_V", "attn.b_V"),
        }

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {**super().outside(cfg, hf), "ln_final.b": Row("norm.bias")}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        matrices = {name: row for name, row in super().layer(cfg, hf).items() if not name.startswith("ln")}
        if cfg.parallel_attn_mlp:
            norms = {
                "ln1.w ln2.w": Row("input_layernorm.weight", shared=True),
                "ln1.b ln2.b": Row("input_layernorm.bias", shared=True),
            }
        else:
            norms = {
                "ln1.w": Row("input_layernorm.weight"),
                "ln1.b": Row("input_layernorm.bias"),
                "ln2.w": Row("post_attention_layernorm.weight"),
                "ln2.b": Row("post_attention_layernorm.bias"),
            }
        return {**matrices, **norms}

    def biases(self, hf: Mapping[str, Any]) -> Table:
        return QKV_BIASES if hf.get("use_qkv_bias") else {}

    def local_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        return []


STABLELM = _StableLM()
