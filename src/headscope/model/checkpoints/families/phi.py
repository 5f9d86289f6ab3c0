"""Phi 1 and 2 (parallel attention and MLP with one shared norm, like GPT-J) and Phi 3 (Llama with fused matrices)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import KEY, LINEAR, OUT, QUERY, Row, Table
from headscope.model.checkpoints.families.llama import QKV_BIASES, LlamaLike
from headscope.model.config import HookedTransformerConfig

__all__ = ["PHI", "PHI3"]


class _Phi(LlamaLike):
    model_type = "phi"
    architecture = "PhiForCausalLM"
    examples = ("microsoft/phi-1", "microsoft/phi-1_5", "microsoft/phi-2")

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        if hf.get("qk_layernorm"):
            raise CheckpointError("Phi with qk_layernorm is not supported.")
        return {
            **super().config({"partial_rotary_factor": 0.5, **hf}),
            "act_fn": hf.get("hidden_act", "gelu_new"),
            "gated_mlp": False,
            "normalization_type": "LN",
            "eps": hf.get("layer_norm_eps", 1e-5),
            "parallel_attn_mlp": True,
        }

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**super().entries(cfg, state), "layer_norm_eps": cfg.eps}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            **super().outside(cfg, hf),
            "ln_final.w": Row("final_layernorm.weight"),
            "ln_final.b": Row("final_layernorm.bias"),
            "unembed.b_U": Row("lm_head.bias"),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "attn.W_Q": Row("self_attn.q_proj.weight", QUERY),
            "attn.W_K": Row("self_attn.k_proj.weight", KEY),
            "attn.W_V": Row("self_attn.v_proj.weight", KEY),
            "attn.W_O": Row("self_attn.dense.weight", OUT),
            **QKV_BIASES,
            "attn.b_O": Row("self_attn.dense.bias"),
            "ln1.w ln2.w": Row("input_layernorm.weight", shared=True),
            "ln1.b ln2.b": Row("input_layernorm.bias", shared=True),
            "mlp.W_in": Row("mlp.fc1.weight", LINEAR),
            "mlp.b_in": Row("mlp.fc1.bias"),
            "mlp.W_out": Row("mlp.fc2.weight", LINEAR),
            "mlp.b_out": Row("mlp.fc2.bias"),
        }

    def local_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        return []


class _Phi3(LlamaLike):
    model_type = "phi3"
    architecture = "Phi3ForCausalLM"
    examples = ("microsoft/Phi-3-mini-4k-instruct", "microsoft/Phi-3-mini-128k-instruct", "microsoft/phi-4")

    def local_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        return [True] * hf["num_hidden_layers"]

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        original = cfg.longrope_original_ctx_len if cfg.longrope_short_factors is not None else cfg.n_ctx
        return {**super().entries(cfg, state), "original_max_position_embeddings": original}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "attn.W_Q attn.W_K attn.W_V": Row("self_attn.qkv_proj.weight", (QUERY, KEY, KEY)),
            "attn.W_O": Row("self_attn.o_proj.weight", OUT),
            "ln1.w": Row("input_layernorm.weight"),
            "ln2.w": Row("post_attention_layernorm.weight"),
            "mlp.W_gate mlp.W_in": Row("mlp.gate_up_proj.weight", "(n m) d -> n d m"),
            "mlp.W_out": Row("mlp.down_proj.weight", LINEAR),
        }


PHI, PHI3 = _Phi(), _Phi3()
