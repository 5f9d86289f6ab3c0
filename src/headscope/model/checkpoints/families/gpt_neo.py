"""GPT-Neo: GPT-2 with every other layer local, and unscaled attention scores."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.model.checkpoints.families.base import OUT, QUERY, Row, Table, linear, norm
from headscope.model.checkpoints.families.gpt2 import GPT2Like
from headscope.model.checkpoints.families.rope import window_fields
from headscope.model.config import HookedTransformerConfig

__all__ = ["GPT_NEO"]


class _GPTNeo(GPT2Like):
    model_type = "gpt_neo"
    architecture = "GPTNeoForCausalLM"
    examples = ("EleutherAI/gpt-neo-125m", "EleutherAI/gpt-neo-1.3B", "roneneldan/TinyStories-33M")
    ignore = (".attn.attention.bias", ".attn.attention.masked_bias")

    names = {
        "n_layers": "num_layers", "d_model": "hidden_size", "n_heads": "num_heads", "n_ctx": "max_position_embeddings",
        "d_vocab": "vocab_size", "d_mlp": "intermediate_size", "act_fn": "activation_function",
        "eps": "layer_norm_epsilon", "tie_word_embeddings": "tie_word_embeddings",
    }  # fmt: skip
    fixed = {**GPT2Like.fixed, "use_attn_scale": False}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        written_out = [kind for group, times in hf["attention_types"] for _ in range(times) for kind in group]
        kinds = hf.get("attention_layers") or written_out
        windows = window_fields(hf.get("window_size", 256), [kind == "local" for kind in kinds])
        return {**super().config(hf), **windows}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        kinds = cfg.attn_types if cfg.use_local_attn and cfg.attn_types else ["global"] * cfg.n_layers
        window = {"window_size": cfg.window_size or 256, "attention_types": [[kinds[: cfg.n_layers], 1]]}
        return {**super().entries(cfg, state), **window}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "attn.W_Q": Row("attn.attention.q_proj.weight", QUERY),
            "attn.W_K": Row("attn.attention.k_proj.weight", QUERY),
            "attn.W_V": Row("attn.attention.v_proj.weight", QUERY),
            **linear("attn.O", "attn.attention.out_proj", OUT),
            **norm("ln1", "ln_1"),
            **norm("ln2", "ln_2"),
            **linear("mlp.in", "mlp.c_fc"),
            **linear("mlp.out", "mlp.c_proj"),
        }


GPT_NEO = _GPTNeo()
