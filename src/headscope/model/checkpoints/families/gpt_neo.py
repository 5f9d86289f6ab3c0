"""GPT-Neo: GPT-2 with every other layer local, and unscaled attention scores."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.model.checkpoints.families.base import LINEAR, OUT, QUERY, Row, Table, head_width, sizes
from headscope.model.checkpoints.families.gpt2 import GPT2Like
from headscope.model.checkpoints.families.rope import window_fields
from headscope.model.config import HookedTransformerConfig

__all__ = ["GPT_NEO"]


class _GPTNeo(GPT2Like):
    model_type = "gpt_neo"
    architecture = "GPTNeoForCausalLM"
    examples = ("EleutherAI/gpt-neo-125m", "EleutherAI/gpt-neo-1.3B", "roneneldan/TinyStories-33M")
    ignore = (".attn.attention.bias", ".attn.attention.masked_bias")

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        n_layers, d_model, n_heads, n_ctx, d_vocab = sizes(
            hf, "num_layers", "hidden_size", "num_heads", "max_position_embeddings", "vocab_size"
        )
        kinds = [kind for group, times in hf["attention_types"] for _ in range(times) for kind in group]
        return {
            "n_layers": n_layers,
            "d_model": d_model,
            "n_ctx": n_ctx,
            "n_heads": n_heads,
            "d_head": head_width(hf, "hidden_size", "num_heads"),
            "d_mlp": hf.get("intermediate_size") or 4 * d_model,
            "d_vocab": d_vocab,
            "act_fn": hf.get("activation_function", "gelu_new"),
            "eps": hf.get("layer_norm_epsilon", 1e-5),
            "normalization_type": "LN",
            "use_attn_scale": False,
            "tie_word_embeddings": hf.get("tie_word_embeddings", True),
            **window_fields(hf.get("window_size", 256), [kind == "local" for kind in kinds]),
        }

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        kinds = cfg.attn_types if cfg.use_local_attn and cfg.attn_types else ["global"] * cfg.n_layers
        return {
            "num_layers": cfg.n_layers,
            "hidden_size": cfg.d_model,
            "num_heads": cfg.n_heads,
            "max_position_embeddings": cfg.n_ctx,
            "intermediate_size": cfg.d_mlp,
            "vocab_size": cfg.d_vocab,
            "activation_function": cfg.act_fn,
            "layer_norm_epsilon": cfg.eps,
            "window_size": cfg.window_size or 256,
            "attention_types": [[kinds[: cfg.n_layers], 1]],
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "attn.W_Q": Row("attn.attention.q_proj.weight", QUERY),
            "attn.W_K": Row("attn.attention.k_proj.weight", QUERY),
            "attn.W_V": Row("attn.attention.v_proj.weight", QUERY),
            "attn.W_O": Row("attn.attention.out_proj.weight", OUT),
            "attn.b_O": Row("attn.attention.out_proj.bias"),
            "ln1.w": Row("ln_1.weight"),
            "ln1.b": Row("ln_1.bias"),
            "ln2.w": Row("ln_2.weight"),
            "ln2.b": Row("ln_2.bias"),
            "mlp.W_in": Row("mlp.c_fc.weight", LINEAR),
            "mlp.b_in": Row("mlp.c_fc.bias"),
            "mlp.W_out": Row("mlp.c_proj.weight", LINEAR),
            "mlp.b_out": Row("mlp.c_proj.bias"),
        }


GPT_NEO = _GPTNeo()
