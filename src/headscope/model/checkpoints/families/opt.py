"""OPT: GPT-2 with ReLU, and learned positions that start at the third row of their table."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import BIAS, LINEAR, OUT, QUERY, Family, Row, Table, head_width, sizes
from headscope.model.config import HookedTransformerConfig

__all__ = ["OPT"]


class _OPT(Family):
    model_type = "opt"
    architecture = "OPTForCausalLM"
    examples = ("facebook/opt-125m", "facebook/opt-1.3b", "facebook/opt-6.7b")
    prefix = "model.decoder."

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        n_layers, d_model, n_heads, d_mlp, n_ctx, d_vocab = sizes(
            hf, "num_hidden_layers", "hidden_size", "num_attention_heads", "ffn_dim", "max_position_embeddings",
            "vocab_size",
        )  # fmt: skip
        wanted = {"word_embed_proj_dim": d_model, "do_layer_norm_before": True, "enable_bias": True,
                  "layer_norm_elementwise_affine": True, "_remove_final_layer_norm": False}  # fmt: skip
        for name, value in wanted.items():
            if hf.get(name, value) not in (value, None):
                raise CheckpointError(f"OPT with {name} = {hf[name]!r} is not supported; it can only be {value!r}.")
        return {
            "n_layers": n_layers,
            "d_model": d_model,
            "n_ctx": n_ctx,
            "n_heads": n_heads,
            "d_head": head_width(hf, "hidden_size", "num_attention_heads"),
            "d_mlp": d_mlp,
            "d_vocab": d_vocab,
            "act_fn": hf.get("activation_function", "relu"),
            "normalization_type": "LN",
            "tie_word_embeddings": hf.get("tie_word_embeddings", True),
        }

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            "num_hidden_layers": cfg.n_layers,
            "hidden_size": cfg.d_model,
            "word_embed_proj_dim": cfg.d_model,
            "num_attention_heads": cfg.n_heads,
            "ffn_dim": cfg.d_mlp,
            "max_position_embeddings": cfg.n_ctx,
            "vocab_size": cfg.d_vocab,
            "activation_function": cfg.act_fn,
        }

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "embed.W_E": Row("embed_tokens.weight"),
            "pos_embed.W_pos": Row("embed_positions.weight", skip=2),
            "ln_final.w": Row("final_layer_norm.weight"),
            "ln_final.b": Row("final_layer_norm.bias"),
            "unembed.W_U": Row("lm_head.weight", LINEAR),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "attn.W_Q": Row("self_attn.q_proj.weight", QUERY),
            "attn.b_Q": Row("self_attn.q_proj.bias", BIAS),
            "attn.W_K": Row("self_attn.k_proj.weight", QUERY),
            "attn.b_K": Row("self_attn.k_proj.bias", BIAS),
            "attn.W_V": Row("self_attn.v_proj.weight", QUERY),
            "attn.b_V": Row("self_attn.v_proj.bias", BIAS),
            "attn.W_O": Row("self_attn.out_proj.weight", OUT),
            "attn.b_O": Row("self_attn.out_proj.bias"),
            "ln1.w": Row("self_attn_layer_norm.weight"),
            "ln1.b": Row("self_attn_layer_norm.bias"),
            "ln2.w": Row("final_layer_norm.weight"),
            "ln2.b": Row("final_layer_norm.bias"),
            "mlp.W_in": Row("fc1.weight", LINEAR),
            "mlp.b_in": Row("fc1.bias"),
            "mlp.W_out": Row("fc2.weight", LINEAR),
            "mlp.b_out": Row("fc2.bias"),
        }


OPT = _OPT()
