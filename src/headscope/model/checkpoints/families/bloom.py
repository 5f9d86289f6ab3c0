"""BLOOM: ALiBi in place of position embeddings, and a LayerNorm after the embedding."""

from collections.abc import Mapping
from typing import Any

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import LINEAR, OUT, Family, Row, Table, linear, norm
from headscope.model.config import HookedTransformerConfig

__all__ = ["BLOOM"]


class _Bloom(Family):
    model_type = "bloom"
    architecture = "BloomForCausalLM"
    prepends_bos = False
    examples = ("bigscience/bloom-560m", "bigscience/bloom-1b7")
    prefix = "transformer."
    layer_prefix = "h.{}."
    names = {
        "n_layers": "n_layer", "d_model": "hidden_size", "n_heads": "n_head", "d_vocab": "vocab_size",
        "n_ctx": "seq_length", "eps": "layer_norm_epsilon", "tie_word_embeddings": "tie_word_embeddings",
    }  # fmt: skip
    fixed = {
        **Family.fixed, "act_fn": "gelu_fast", "post_embedding_ln": True, "positional_embedding_type": "alibi",
    }  # fmt: skip
    defaults = {"n_ctx": 2048, "eps": 1e-5, "tie_word_embeddings": True}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        if hf.get("apply_residual_connection_post_layernorm"):
            raise CheckpointError("BLOOM with apply_residual_connection_post_layernorm is not supported.")
        return super().config(hf)

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "embed.W_E": Row("word_embeddings.weight"),
            **norm("embed.ln", "word_embeddings_layernorm"),
            **norm("ln_final", "ln_f"),
            "unembed.W_U": Row("lm_head.weight", LINEAR),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            **linear("attn.Q attn.K attn.V", "self_attention.query_key_value", "(h n e) d -> n h d e",
                     "(h n e) -> n h e"),
            **linear("attn.O", "self_attention.dense", OUT),
            **norm("ln1", "input_layernorm"),
            **norm("ln2", "post_attention_layernorm"),
            **linear("mlp.in", "mlp.dense_h_to_4h"),
            **linear("mlp.out", "mlp.dense_4h_to_h"),
        }  # fmt: skip


BLOOM = _Bloom()
