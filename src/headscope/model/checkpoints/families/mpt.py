"""MPT: ALiBi, LayerNorms without biases, and queries, keys and values that may be clipped.

The choices that `transformers` drops without a word are refused: other slopes of ALiBi than up to 8 (StoryWriter has
16), learned positions, norms of queries and keys, one key for all heads, biases, factors of the logits.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import LINEAR, OUT, Family, Row, Table, norm
from headscope.model.config import HookedTransformerConfig

__all__ = ["MPT"]

_ONLY = {"expansion_ratio": (4,), "no_bias": (True,), "logit_scale": (None,),
         "norm_type": ("layernorm", "low_precision_layernorm")}  # fmt: skip
_ONLY_IN_ATTENTION = {"attn_type": ("multihead_attention",), "prefix_lm": (False,), "qk_ln": (False,), "alibi": (True,),
                      "alibi_bias_max": (8,)}  # fmt: skip


class _MPT(Family):
    model_type = "mpt"
    architecture = "MptForCausalLM"
    prepends_bos = False
    examples = ("mosaicml/mpt-7b", "mosaicml/mpt-7b-instruct", "mosaicml/mpt-30b")
    adopted = ("modeling_mpt.MPTForCausalLM",)
    prefix = "transformer."
    layer_prefix = "blocks.{}."
    names = {
        "n_layers": "n_layers", "d_model": "d_model", "n_heads": "n_heads", "n_ctx": "max_seq_len",
        "d_vocab": "vocab_size", "eps": "layer_norm_epsilon", "tie_word_embeddings": "tie_word_embeddings",
    }  # fmt: skip
    defaults = {"n_ctx": 2048, "eps": 1e-5, "tie_word_embeddings": True}
    fixed = {**Family.fixed, "act_fn": "gelu", "positional_embedding_type": "alibi"}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        attention = hf.get("attn_config") or {}
        if not isinstance(attention, Mapping):
            raise CheckpointError(f"attn_config in config.json must hold entries on attention; got {attention!r}.")
        for given, only in ((hf, _ONLY), (attention, _ONLY_IN_ATTENTION)):
            for entry, allowed in only.items():
                if given.get(entry, allowed[0]) not in allowed:
                    raise CheckpointError(
                        f"MPT with {entry} = {given[entry]!r} is not supported; it can only be {allowed[0]!r}."
                    )
        scale = attention.get("softmax_scale")
        return {
            **super().config(hf),
            "clip_qkv": attention.get("clip_qkv") or None,
            **({} if scale is None else {"attn_scale": 1 / scale}),
        }

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        attention = {
            "clip_qkv": cfg.clip_qkv,
            "softmax_scale": None if cfg.attn_scale == cfg.d_head**0.5 else 1 / cfg.attn_scale,
        }
        return {**super().entries(cfg, state), "attn_config": attention}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "embed.W_E": Row("wte.weight"),
            **norm("ln_final", "norm_f", bias=False),
            "unembed.W_U": Row("lm_head.weight", LINEAR),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "attn.W_Q attn.W_K attn.W_V": Row("attn.Wqkv.weight", "(n h e) d -> n h d e"),
            "attn.W_O": Row("attn.out_proj.weight", OUT),
            **norm("ln1", "norm_1", bias=False),
            **norm("ln2", "norm_2", bias=False),
            "mlp.W_in": Row("ffn.up_proj.weight", LINEAR),
            "mlp.W_out": Row("ffn.down_proj.weight", LINEAR),
        }


MPT = _MPT()
