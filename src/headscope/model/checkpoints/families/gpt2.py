"""GPT-2, DistilGPT-2 and everything saved as `model_type: gpt2`.

GPT-2 keeps q, k and v side by side in one `Conv1D` of shape [d_model, 3 * d_model] (inputs first, unlike `Linear`).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import LINEAR, Family, Row, Table, linear, norm
from headscope.model.config import HookedTransformerConfig

__all__ = ["GPT2", "GPT2Like"]


class GPT2Like(Family):
    """Base class of GPT-2 and its relatives, which override the differences."""

    prefix = "transformer."
    layer_prefix = "h.{}."
    ignore: ClassVar[tuple[str, ...]] = (".attn.bias", ".attn.masked_bias")

    names = {
        "n_layers": "n_layer", "d_model": "n_embd", "n_heads": "n_head", "n_ctx": "n_positions",
        "d_vocab": "vocab_size", "d_mlp": "n_inner", "act_fn": "activation_function", "eps": "layer_norm_epsilon",
        "tie_word_embeddings": "tie_word_embeddings",
    }  # fmt: skip
    defaults = {"d_mlp": None, "act_fn": "gelu_new", "eps": 1e-5, "tie_word_embeddings": True}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "embed.W_E": Row("wte.weight"),
            "pos_embed.W_pos": Row("wpe.weight"),
            **norm("ln_final", "ln_f"),
            "unembed.W_U": Row("lm_head.weight", LINEAR),
        }


class _GPT2(GPT2Like):
    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    examples = ("openai-community/gpt2", "openai-community/gpt2-medium", "distilbert/distilgpt2")
    names = {
        **GPT2Like.names,
        "use_attn_scale": "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx": "scale_attn_by_inverse_layer_idx",
    }
    defaults = {**GPT2Like.defaults, "use_attn_scale": True, "scale_attn_by_inverse_layer_idx": False}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        if hf.get("add_cross_attention"):
            raise CheckpointError("config.json asks for cross-attention; only decoder-only models are supported.")
        return super().config(hf)

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**super().entries(cfg, state), "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            **linear("attn.Q attn.K attn.V", "attn.c_attn", "d (n h e) -> n h d e", "(n h e) -> n h e"),
            **linear("attn.O", "attn.c_proj", "(h e) d -> h e d"),
            **norm("ln1", "ln_1"),
            **norm("ln2", "ln_2"),
            **linear("mlp.in", "mlp.c_fc", ""),
            **linear("mlp.out", "mlp.c_proj", ""),
        }


GPT2 = _GPT2()
