"""Llama 1 to 3, and the base class of Llama-like families, which override the differences.

RMSNorm, rotary positions in halves, grouped-query attention, a gated MLP. SmolLM, Yi, Vicuna, TinyLlama and many others
are saved as `model_type: llama`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from headscope.model.checkpoints.families.base import (
    BIAS,
    KEY,
    KEY_BIAS,
    LINEAR,
    OUT,
    QUERY,
    Family,
    Row,
    Table,
    head_width,
    sizes,
)
from headscope.model.checkpoints.families.rope import rope_entries, rope_fields, window_entries, window_fields
from headscope.model.config import HookedTransformerConfig

__all__ = ["LLAMA", "QKV_BIASES", "LlamaLike", "any_bias"]

QKV_BIASES = {
    "attn.b_Q": Row("self_attn.q_proj.bias", BIAS),
    "attn.b_K": Row("self_attn.k_proj.bias", KEY_BIAS),
    "attn.b_V": Row("self_attn.v_proj.bias", KEY_BIAS),
}
_MLP_BIASES = {
    "mlp.b_gate": Row("mlp.gate_proj.bias"),
    "mlp.b_in": Row("mlp.up_proj.bias"),
    "mlp.b_out": Row("mlp.down_proj.bias"),
}
_QK_NORMS = {"attn.q_norm.w": Row("self_attn.q_norm.weight"), "attn.k_norm.w": Row("self_attn.k_norm.weight")}


class LlamaLike(Family):
    """Base class of Llama and its variants, which override the differences.

    Attributes:
        act_entry: Entry of the activation in `config.json`.
        rope_base: Default base of rotary positions.
    """

    ignore = (".rotary_emb.inv_freq",)
    act_entry: ClassVar[str] = "hidden_act"
    rope_base: ClassVar[float] = 10000.0

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        n_layers, d_model, n_heads, d_mlp, n_ctx, d_vocab = sizes(
            hf, "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
            "max_position_embeddings", "vocab_size",
        )  # fmt: skip
        d_head = hf.get("head_dim") or head_width(hf, "hidden_size", "num_attention_heads")
        groups = hf.get("num_key_value_heads") or n_heads
        return {
            "n_layers": n_layers,
            "d_model": d_model,
            "n_ctx": n_ctx,
            "n_heads": n_heads,
            "n_key_value_heads": None if groups == n_heads else groups,
            "d_head": d_head,
            "d_mlp": d_mlp,
            "d_vocab": d_vocab,
            "act_fn": hf.get(self.act_entry, "silu"),
            "gated_mlp": True,
            "normalization_type": "RMS",
            "eps": hf.get("rms_norm_eps", 1e-6),
            "clip_qkv": hf.get("clip_qkv"),
            "tie_word_embeddings": hf.get("tie_word_embeddings", False),
            **rope_fields(hf, d_head, base=self.rope_base),
            **window_fields(hf.get("sliding_window"), self.local_layers(hf)),
        }

    def local_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        """Return True for each layer with windowed attention."""
        types = hf.get("layer_types") or ["full_attention"] * hf["num_hidden_layers"]
        return [layer_type == "sliding_attention" for layer_type in types]

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            "num_hidden_layers": cfg.n_layers,
            "hidden_size": cfg.d_model,
            "num_attention_heads": cfg.n_heads,
            "num_key_value_heads": cfg.n_key_value_heads or cfg.n_heads,
            "head_dim": cfg.d_head,
            "intermediate_size": cfg.d_mlp,
            "max_position_embeddings": cfg.n_ctx,
            "vocab_size": cfg.d_vocab,
            self.act_entry: cfg.act_fn,
            "rms_norm_eps": cfg.eps,
            "clip_qkv": cfg.clip_qkv,
            "attention_bias": any_bias(state, "attn.b_Q", "attn._b_K", "attn.b_K", "attn._b_V", "attn.b_V", "attn.b_O"),
            "mlp_bias": any_bias(state, "mlp.b_gate", "mlp.b_in", "mlp.b_out"),
            **rope_entries(cfg),
            **window_entries(cfg),
        }

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "embed.W_E": Row("embed_tokens.weight"),
            "ln_final.w": Row("norm.weight"),
            "unembed.W_U": Row("lm_head.weight", LINEAR),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "attn.W_Q": Row("self_attn.q_proj.weight", QUERY),
            "attn.W_K": Row("self_attn.k_proj.weight", KEY),
            "attn.W_V": Row("self_attn.v_proj.weight", KEY),
            "attn.W_O": Row("self_attn.o_proj.weight", OUT),
            "ln1.w": Row("input_layernorm.weight"),
            "ln2.w": Row("post_attention_layernorm.weight"),
            "mlp.W_gate": Row("mlp.gate_proj.weight", LINEAR),
            "mlp.W_in": Row("mlp.up_proj.weight", LINEAR),
            "mlp.W_out": Row("mlp.down_proj.weight", LINEAR),
            **self.biases(hf),
            **(_QK_NORMS if cfg.use_qk_norm else {}),
        }

    def biases(self, hf: Mapping[str, Any]) -> Table:
        """Return the rows of the biases that this checkpoint has."""
        attention = {**QKV_BIASES, "attn.b_O": Row("self_attn.o_proj.bias")} if hf.get("attention_bias") else {}
        return {**attention, **(_MLP_BIASES if hf.get("mlp_bias") else {})}


def any_bias(state: Mapping[str, Tensor], *names: str) -> bool:
    """Return True if any of these biases of a layer is not zero."""
    return any(bool(tensor.any()) for name, tensor in state.items() if name.endswith(tuple(f".{n}" for n in names)))


class _Llama(LlamaLike):
    model_type = "llama"
    architecture = "LlamaForCausalLM"
    examples = ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-2-7b-hf", "huggyllama/llama-7b",
                "HuggingFaceTB/SmolLM2-135M", "TinyLlama/TinyLlama-1.1B-Chat-v1.0")  # fmt: skip

    def local_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        return []


LLAMA = _Llama()
