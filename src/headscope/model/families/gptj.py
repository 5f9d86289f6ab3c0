"""GPT-J: attention and MLP side by side behind one norm, and positions that turn neighbouring dimensions.

Its one norm is `ln1` and `ln2` here, with equal weights.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.model.config import HookedTransformerConfig
from headscope.model.families.base import LINEAR, OUT, QUERY, Family, Row, Table, head_width, sizes

__all__ = ["GPTJ"]


class _GPTJ(Family):
    model_type = "gptj"
    architecture = "GPTJForCausalLM"
    examples = ("EleutherAI/gpt-j-6b",)
    prefix = "transformer."
    layer_prefix = "h.{}."
    ignore = (".attn.bias", ".attn.masked_bias")

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        n_layers, d_model, n_heads, n_ctx, d_vocab = sizes(
            hf, "n_layer", "n_embd", "n_head", "n_positions", "vocab_size"
        )
        d_head = head_width(hf, "n_embd", "n_head")
        return {
            "n_layers": n_layers,
            "d_model": d_model,
            "n_ctx": n_ctx,
            "n_heads": n_heads,
            "d_head": d_head,
            "d_mlp": hf.get("n_inner") or 4 * d_model,
            "d_vocab": d_vocab,
            "act_fn": hf.get("activation_function", "gelu_new"),
            "eps": hf.get("layer_norm_epsilon", 1e-5),
            "normalization_type": "LN",
            "parallel_attn_mlp": True,
            "positional_embedding_type": "rotary",
            "rotary_dim": hf.get("rotary_dim") or d_head,
            "rotary_adjacent_pairs": True,
            "tie_word_embeddings": hf.get("tie_word_embeddings", False),
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
            "rotary_dim": cfg.rotary_dim,
        }

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "embed.W_E": Row("wte.weight"),
            "ln_final.w": Row("ln_f.weight"),
            "ln_final.b": Row("ln_f.bias"),
            "unembed.W_U": Row("lm_head.weight", LINEAR),
            "unembed.b_U": Row("lm_head.bias"),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "attn.W_Q": Row("attn.q_proj.weight", QUERY),
            "attn.W_K": Row("attn.k_proj.weight", QUERY),
            "attn.W_V": Row("attn.v_proj.weight", QUERY),
            "attn.W_O": Row("attn.out_proj.weight", OUT),
            "ln1.w ln2.w": Row("ln_1.weight", shared=True),
            "ln1.b ln2.b": Row("ln_1.bias", shared=True),
            "mlp.W_in": Row("mlp.fc_in.weight", LINEAR),
            "mlp.b_in": Row("mlp.fc_in.bias"),
            "mlp.W_out": Row("mlp.fc_out.weight", LINEAR),
            "mlp.b_out": Row("mlp.fc_out.bias"),
        }


GPTJ = _GPTJ()
