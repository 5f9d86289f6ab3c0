"""BLOOM: ALiBi in place of position embeddings, and a LayerNorm after the embedding."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import LINEAR, OUT, Family, Row, Table, head_width, sizes
from headscope.model.config import HookedTransformerConfig

__all__ = ["BLOOM"]


class _Bloom(Family):
    model_type = "bloom"
    architecture = "BloomForCausalLM"
    examples = ("bigscience/bloom-560m", "bigscience/bloom-1b7")
    prefix = "transformer."
    layer_prefix = "h.{}."

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        if hf.get("apply_residual_connection_post_layernorm"):
            raise CheckpointError("BLOOM with apply_residual_connection_post_layernorm is not supported.")
        n_layers, d_model, n_heads, d_vocab = sizes(hf, "n_layer", "hidden_size", "n_head", "vocab_size")
        return {
            "n_layers": n_layers,
            "d_model": d_model,
            "n_ctx": hf.get("seq_length", 2048),
            "n_heads": n_heads,
            "d_head": head_width(hf, "hidden_size", "n_head"),
            "d_mlp": 4 * d_model,
            "d_vocab": d_vocab,
            "act_fn": "gelu_fast",
            "eps": hf.get("layer_norm_epsilon", 1e-5),
            "normalization_type": "LN",
            "post_embedding_ln": True,
            "positional_embedding_type": "alibi",
            "tie_word_embeddings": hf.get("tie_word_embeddings", True),
        }

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            "n_layer": cfg.n_layers,
            "hidden_size": cfg.d_model,
            "n_head": cfg.n_heads,
            "seq_length": cfg.n_ctx,
            "vocab_size": cfg.d_vocab,
            "layer_norm_epsilon": cfg.eps,
        }

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "embed.W_E": Row("word_embeddings.weight"),
            "embed.ln.w": Row("word_embeddings_layernorm.weight"),
            "embed.ln.b": Row("word_embeddings_layernorm.bias"),
            "ln_final.w": Row("ln_f.weight"),
            "ln_final.b": Row("ln_f.bias"),
            "unembed.W_U": Row("lm_head.weight", LINEAR),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "attn.W_Q attn.W_K attn.W_V": Row("self_attention.query_key_value.weight", "(h n e) d -> n h d e"),
            "attn.b_Q attn.b_K attn.b_V": Row("self_attention.query_key_value.bias", "(h n e) -> n h e"),
            "attn.W_O": Row("self_attention.dense.weight", OUT),
            "attn.b_O": Row("self_attention.dense.bias"),
            "ln1.w": Row("input_layernorm.weight"),
            "ln1.b": Row("input_layernorm.bias"),
            "ln2.w": Row("post_attention_layernorm.weight"),
            "ln2.b": Row("post_attention_layernorm.bias"),
            "mlp.W_in": Row("mlp.dense_h_to_4h.weight", LINEAR),
            "mlp.b_in": Row("mlp.dense_h_to_4h.bias"),
            "mlp.W_out": Row("mlp.dense_4h_to_h.weight", LINEAR),
            "mlp.b_out": Row("mlp.dense_4h_to_h.bias"),
        }


BLOOM = _Bloom()
