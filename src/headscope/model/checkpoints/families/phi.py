"""Phi 1 and 2 (parallel attention and MLP with one shared norm, like GPT-J) and Phi 3 (Llama with fused matrices)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.model.checkpoints.entries import defaulted
from headscope.model.checkpoints.families.base import KEY, QUERY, Row, Table, linear, norm
from headscope.model.checkpoints.families.llama import LlamaLike, attention_rows, with_fused_mlp
from headscope.model.config import HookedTransformerConfig

__all__ = ["PHI", "PHI3"]


class _Phi(LlamaLike):
    model_type = "phi"
    architecture = "PhiForCausalLM"
    prepends_bos = False
    examples = ("microsoft/phi-1", "microsoft/phi-1_5", "microsoft/phi-2")
    windowed = False
    rotary_part = 0.5
    names = {**LlamaLike.names, "eps": "layer_norm_eps", "use_qk_norm": "qk_layernorm"}
    fixed = {"gated_mlp": False, "normalization_type": "LN", "parallel_attn_mlp": True}
    defaults = {**LlamaLike.defaults, "act_fn": "gelu_new", "eps": 1e-5, "use_qk_norm": False}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().config(hf)
        return {**fields, **({"qk_norm_type": "LN"} if fields["use_qk_norm"] else {})}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            **super().outside(cfg, hf),
            **norm("ln_final", "final_layernorm"),
            "unembed.b_U": Row("lm_head.bias"),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            **attention_rows("dense"),
            **norm("ln1 ln2", "input_layernorm"),
            **linear("mlp.in", "mlp.fc1"),
            **linear("mlp.out", "mlp.fc2"),
            **(self.qk_norms(cfg) if cfg.use_qk_norm else {}),
        }

    def qk_norms(self, cfg: HookedTransformerConfig) -> Table:
        return {
            **norm("attn.q_norm", "self_attn.q_layernorm"),
            **norm("attn.k_norm", "self_attn.k_layernorm"),
        }


class _Phi3(LlamaLike):
    model_type = "phi3"
    architecture = "Phi3ForCausalLM"
    examples = ("microsoft/Phi-3-mini-4k-instruct", "microsoft/Phi-3-mini-128k-instruct", "microsoft/phi-4")
    adopted = ("modeling_phi3.Phi3ForCausalLM",)
    windowed = True
    rotary_part = 1.0
    defaults = {**LlamaLike.defaults, "eps": 1e-5}

    def rope(self, hf: Mapping[str, Any], d_head: int) -> dict[str, Any]:
        return super().rope(defaulted(hf, original_max_position_embeddings=4096), d_head)

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        entries = super().entries(cfg, state)
        original = entries["rope_parameters"].get("original_max_position_embeddings", cfg.n_ctx)
        return {**entries, "original_max_position_embeddings": original}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        table = with_fused_mlp(super().layer(cfg, hf))
        rest = {name: row for name, row in table.items() if name not in ("attn.W_Q", "attn.W_K", "attn.W_V")}
        return {**rest, "attn.W_Q attn.W_K attn.W_V": Row("self_attn.qkv_proj.weight", (QUERY, KEY, KEY))}

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return ()


PHI, PHI3 = _Phi(), _Phi3()
