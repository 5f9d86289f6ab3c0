"""GPT-NeoX and Pythia: LayerNorm, parallel attention and MLP, rotary positions on part of each head."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.model.checkpoints.families.base import LINEAR, OUT, Family, Row, Table, head_width, sizes
from headscope.model.checkpoints.families.llama import any_bias
from headscope.model.checkpoints.families.rope import rope_entries, rope_fields
from headscope.model.config import HookedTransformerConfig

__all__ = ["NEOX"]


class _NeoX(Family):
    model_type = "gpt_neox"
    architecture = "GPTNeoXForCausalLM"
    examples = ("EleutherAI/pythia-70m", "EleutherAI/pythia-1.4b-deduped", "EleutherAI/gpt-neox-20b")
    prefix = "gpt_neox."
    ignore = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        n_layers, d_model, n_heads, d_mlp, n_ctx, d_vocab = sizes(
            hf, "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
            "max_position_embeddings", "vocab_size",
        )  # fmt: skip
        d_head = head_width(hf, "hidden_size", "num_attention_heads")
        older = {"rope_theta": hf.get("rotary_emb_base", 10000), "partial_rotary_factor": hf.get("rotary_pct", 0.25)}
        return {
            "n_layers": n_layers,
            "d_model": d_model,
            "n_ctx": n_ctx,
            "n_heads": n_heads,
            "d_head": d_head,
            "d_mlp": d_mlp,
            "d_vocab": d_vocab,
            "act_fn": hf.get("hidden_act", "gelu"),
            "eps": hf.get("layer_norm_eps", 1e-5),
            "normalization_type": "LN",
            "parallel_attn_mlp": hf.get("use_parallel_residual", True),
            "tie_word_embeddings": hf.get("tie_word_embeddings", False),
            **rope_fields({**older, **hf}, d_head),
        }

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        rope = rope_entries(cfg)
        return {
            "num_hidden_layers": cfg.n_layers,
            "hidden_size": cfg.d_model,
            "num_attention_heads": cfg.n_heads,
            "intermediate_size": cfg.d_mlp,
            "max_position_embeddings": cfg.n_ctx,
            "vocab_size": cfg.d_vocab,
            "hidden_act": cfg.act_fn,
            "layer_norm_eps": cfg.eps,
            "use_parallel_residual": cfg.parallel_attn_mlp,
            "attention_bias": any_bias(state, "attn.b_Q", "attn.b_K", "attn.b_V", "attn.b_O"),
            "rotary_emb_base": rope["rope_theta"],
            "rotary_pct": rope["partial_rotary_factor"],
            **rope,
        }

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "embed.W_E": Row("embed_in.weight"),
            "ln_final.w": Row("final_layer_norm.weight"),
            "ln_final.b": Row("final_layer_norm.bias"),
            "unembed.W_U": Row("lm_head.weight", LINEAR, also=("embed_out.weight",)),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        biases = {
            "attn.b_Q attn.b_K attn.b_V": Row("attention.query_key_value.bias", "(h n e) -> n h e"),
            "attn.b_O": Row("attention.dense.bias"),
        }
        return {
            "ln1.w": Row("input_layernorm.weight"),
            "ln1.b": Row("input_layernorm.bias"),
            "ln2.w": Row("post_attention_layernorm.weight"),
            "ln2.b": Row("post_attention_layernorm.bias"),
            "attn.W_Q attn.W_K attn.W_V": Row("attention.query_key_value.weight", "(h n e) d -> n h d e"),
            "attn.W_O": Row("attention.dense.weight", OUT),
            "mlp.W_in": Row("mlp.dense_h_to_4h.weight", LINEAR),
            "mlp.b_in": Row("mlp.dense_h_to_4h.bias"),
            "mlp.W_out": Row("mlp.dense_4h_to_h.weight", LINEAR),
            "mlp.b_out": Row("mlp.dense_4h_to_h.bias"),
            **(biases if hf.get("attention_bias", True) else {}),
        }


NEOX = _NeoX()
