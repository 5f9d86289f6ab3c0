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
    linear,
    norm,
)
from headscope.model.checkpoints.families.rope import rope_entries, rope_fields, window_entries, window_fields
from headscope.model.config import HookedTransformerConfig

__all__ = ["LLAMA", "QKV_BIASES", "LlamaLike", "any_bias", "attention_rows"]

QKV_BIASES = ("attn.b_Q", "attn.b_K", "attn.b_V")
_QK_NORMS = {"attn.q_norm.w": Row("self_attn.q_norm.weight"), "attn.k_norm.w": Row("self_attn.k_norm.weight")}


def attention_rows(out: str) -> dict[str, Row]:
    """Return the rows of attention with its biases, for the name of the output projection."""
    return {
        **linear("attn.Q", "self_attn.q_proj", QUERY, BIAS),
        **linear("attn.K", "self_attn.k_proj", KEY, KEY_BIAS),
        **linear("attn.V", "self_attn.v_proj", KEY, KEY_BIAS),
        **linear("attn.O", f"self_attn.{out}", OUT),
    }


class LlamaLike(Family):
    """Base class of Llama and its variants, which override the differences.

    Attributes:
        windowed: All layers have windowed attention, or none; `None` for those of the entry `layer_types`.
    """

    ignore = (".rotary_emb.inv_freq",)
    windowed: ClassVar[bool | None] = None
    names = {**Family.names, "eps": "rms_norm_eps", "d_head": "head_dim", "clip_qkv": "clip_qkv"}
    defaults = {"act_fn": "silu", "eps": 1e-6, "tie_word_embeddings": False, "d_head": None, "clip_qkv": None}
    fixed: ClassVar[Mapping[str, Any]] = {"gated_mlp": True, "normalization_type": "RMS"}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields, groups = super().config(hf), hf.get("num_key_value_heads")
        return {
            **fields,
            "n_key_value_heads": None if groups == fields["n_heads"] else groups or None,
            **rope_fields(hf, fields["d_head"]),
            **window_fields(hf.get("sliding_window"), self.local_layers(hf)),
        }

    def local_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        """Return True for each layer with windowed attention."""
        n_layers = hf["num_hidden_layers"]
        if self.windowed is not None:
            return [self.windowed] * n_layers
        types = hf.get("layer_types") or ["full_attention"] * n_layers
        return [layer_type == "sliding_attention" for layer_type in types]

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            **super().entries(cfg, state),
            "num_key_value_heads": cfg.n_key_value_heads or cfg.n_heads,
            "attention_bias": any_bias(state, "attn.b_Q", "attn._b_K", "attn.b_K", "attn._b_V", "attn.b_V", "attn.b_O"),
            "mlp_bias": any_bias(state, "mlp.b_gate", "mlp.b_in", "mlp.b_out"),
            **rope_entries(cfg),
            **window_entries(cfg),
        }

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "embed.W_E": Row("embed_tokens.weight"),
            **norm("ln_final", "norm", bias=cfg.centered_norm),
            "unembed.W_U": Row("lm_head.weight", LINEAR),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        rows = {
            **attention_rows("o_proj"),
            **norm("ln1", "input_layernorm", bias=cfg.centered_norm),
            **norm("ln2", "post_attention_layernorm", bias=cfg.centered_norm),
            **(linear("mlp.gate", "mlp.gate_proj") if cfg.gated_mlp else {}),
            **linear("mlp.in", "mlp.up_proj"),
            **linear("mlp.out", "mlp.down_proj"),
            **(_QK_NORMS if cfg.use_qk_norm else {}),
        }
        biases = self.biases(hf)
        return {name: row for name, row in rows.items() if ".b_" not in name or name in biases}

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the biases that a layer of this checkpoint has."""
        attention = (*QKV_BIASES, "attn.b_O") if hf.get("attention_bias") else ()
        return (*attention, *(("mlp.b_gate", "mlp.b_in", "mlp.b_out") if hf.get("mlp_bias") else ()))


def any_bias(state: Mapping[str, Tensor], *names: str) -> bool:
    """Return True if any of these biases of a layer is not zero."""
    return any(bool(tensor.any()) for name, tensor in state.items() if name.endswith(tuple(f".{n}" for n in names)))


class _Llama(LlamaLike):
    model_type = "llama"
    architecture = "LlamaForCausalLM"
    examples = ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-2-7b-hf", "huggyllama/llama-7b",
                "HuggingFaceTB/SmolLM2-135M", "TinyLlama/TinyLlama-1.1B-Chat-v1.0")  # fmt: skip
    windowed = False


LLAMA = _Llama()
