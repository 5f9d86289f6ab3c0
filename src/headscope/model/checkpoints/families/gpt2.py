"""GPT-2, DistilGPT-2 and everything saved as `model_type: gpt2`.

GPT-2 keeps q, k and v side by side in one `Conv1D` of shape [d_model, 3 * d_model] (inputs first, unlike `Linear`).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import LINEAR, Family, Row, Table, head_width, sizes
from headscope.model.config import HookedTransformerConfig

__all__ = ["GPT2", "GPT2Like"]


class GPT2Like(Family):
    """Base class of GPT-2 and its relatives, which override the differences."""

    prefix = "transformer."
    layer_prefix = "h.{}."
    ignore = (".attn.bias", ".attn.masked_bias")

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        n_layers, d_model, n_heads, n_ctx, d_vocab = sizes(
            hf, "n_layer", "n_embd", "n_head", "n_positions", "vocab_size"
        )
        return {
            "n_layers": n_layers,
            "d_model": d_model,
            "n_ctx": n_ctx,
            "n_heads": n_heads,
            "d_head": head_width(hf, "n_embd", "n_head"),
            "d_mlp": hf.get("n_inner") or 4 * d_model,
            "d_vocab": d_vocab,
            "act_fn": hf.get("activation_function", "gelu_new"),
            "eps": hf.get("layer_norm_epsilon", 1e-5),
            "normalization_type": "LN",
            "tie_word_embeddings": hf.get("tie_word_embeddings", True),
        }

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            "n_layer": cfg.n_layers,
            "n_embd": cfg.d_model,
            "n_head": cfg.n_heads,
            "n_positions": cfg.n_ctx,
            "n_inner": cfg.d_mlp,
            "vocab_size": cfg.d_vocab,
            "activation_function": cfg.act_fn,
            "layer_norm_epsilon": cfg.eps,
        }

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "embed.W_E": Row("wte.weight"),
            "pos_embed.W_pos": Row("wpe.weight"),
            "ln_final.w": Row("ln_f.weight"),
            "ln_final.b": Row("ln_f.bias"),
            "unembed.W_U": Row("lm_head.weight", LINEAR),
        }


class _GPT2(GPT2Like):
    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    examples = ("openai-community/gpt2", "openai-community/gpt2-medium", "distilbert/distilgpt2")

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        if hf.get("add_cross_attention"):
            raise CheckpointError("config.json asks for cross-attention; only decoder-only models are supported.")
        return {
            **super().config(hf),
            "use_attn_scale": hf.get("scale_attn_weights", True),
            "scale_attn_by_inverse_layer_idx": hf.get("scale_attn_by_inverse_layer_idx", False),
        }

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            **super().entries(cfg, state),
            "scale_attn_weights": cfg.use_attn_scale,
            "scale_attn_by_inverse_layer_idx": cfg.scale_attn_by_inverse_layer_idx,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "attn.W_Q attn.W_K attn.W_V": Row("attn.c_attn.weight", "d (n h e) -> n h d e"),
            "attn.b_Q attn.b_K attn.b_V": Row("attn.c_attn.bias", "(n h e) -> n h e"),
            "attn.W_O": Row("attn.c_proj.weight", "(h e) d -> h e d"),
            "attn.b_O": Row("attn.c_proj.bias"),
            "ln1.w": Row("ln_1.weight"),
            "ln1.b": Row("ln_1.bias"),
            "ln2.w": Row("ln_2.weight"),
            "ln2.b": Row("ln_2.bias"),
            "mlp.W_in": Row("mlp.c_fc.weight"),
            "mlp.b_in": Row("mlp.c_fc.bias"),
            "mlp.W_out": Row("mlp.c_proj.weight"),
            "mlp.b_out": Row("mlp.c_proj.bias"),
        }


GPT2 = _GPT2()
