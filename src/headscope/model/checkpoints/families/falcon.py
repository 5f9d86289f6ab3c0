"""Falcon: multi-query attention, or grouped-query (the "new decoder"), with parallel attention and MLP.

Queries, keys and values are one tensor, group by group: the queries of a group, its key, its value. Those with ALiBi
(`falcon-rw`) are what `transformers` computes with its default attention; its `"eager"` one adds the penalties twice.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import LINEAR, OUT, Family, Row, Table, norm
from headscope.model.checkpoints.families.llama import any_bias
from headscope.model.checkpoints.families.rope import rope_entries, rope_fields
from headscope.model.config import HookedTransformerConfig

__all__ = ["FALCON"]

_BIASES = {
    "attn.b_Q attn.b_K attn.b_V": Row(
        "self_attention.query_key_value.bias",
        ("(r g e) -> (g r) e", "(g e) -> g e", "(g e) -> g e"),
        first="(g n e) -> (n g e)",
    ),
    "attn.b_O": Row("self_attention.dense.bias"),
    "mlp.b_in": Row("mlp.dense_h_to_4h.bias"),
    "mlp.b_out": Row("mlp.dense_4h_to_h.bias"),
}
_ALIBI = {"positional_embedding_type": "alibi", "alibi_bfloat16": True}


class _Falcon(Family):
    model_type = "falcon"
    architecture = "FalconForCausalLM"
    examples = ("tiiuae/falcon-7b", "tiiuae/falcon-40b", "tiiuae/falcon-11B", "tiiuae/falcon-rw-1b")
    adopted = ("modeling_falcon.FalconForCausalLM",)
    prefix = "transformer."
    layer_prefix = "h.{}."
    names = {**Family.names, "d_mlp": "ffn_hidden_size", "act_fn": "activation", "eps": "layer_norm_epsilon"}
    defaults = {"n_ctx": 2048, "d_mlp": None, "act_fn": "gelu", "eps": 1e-5, "tie_word_embeddings": True}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        new = hf.get("new_decoder_architecture", False)
        if new and hf.get("parallel_attn") is False:
            raise CheckpointError("Falcon's new decoder with parallel_attn = False does not exist.")
        fields = super().config(hf)
        n_heads = fields["n_heads"]
        old_groups = 1 if hf.get("multi_query", True) else n_heads
        groups = hf.get("num_kv_heads") or n_heads if new else old_groups
        return {
            **fields,
            "n_key_value_heads": None if groups == n_heads else groups,
            "parallel_attn_mlp": new or hf.get("parallel_attn", True),
            **(_ALIBI if hf.get("alibi") else rope_fields(hf, fields["d_head"])),
        }

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        groups = cfg.n_key_value_heads or cfg.n_heads
        norms = [name for name in state if ".ln1." in name]
        two = not all(name in state and state[name].equal(state[name.replace(".ln1.", ".ln2.")]) for name in norms)
        new = cfg.parallel_attn_mlp and (two or groups not in (1, cfg.n_heads))
        return {
            **super().entries(cfg, state),
            "num_kv_heads": groups,
            "multi_query": groups == 1,
            "new_decoder_architecture": new,
            "num_ln_in_parallel_attn": (2 if two else 1) if new else None,
            "parallel_attn": cfg.parallel_attn_mlp,
            "bias": any_bias(state, *(f"attn.{s}b_{m}" for s in ("", "_") for m in "QKVO"), "mlp.b_in", "mlp.b_out"),
            **({"alibi": True} if cfg.positional_embedding_type == "alibi" else rope_entries(cfg)),
        }

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "embed.W_E": Row("word_embeddings.weight"),
            **norm("ln_final", "ln_f"),
            "unembed.W_U": Row("lm_head.weight", LINEAR),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "attn.W_Q attn.W_K attn.W_V": Row(
                "self_attention.query_key_value.weight",
                ("(r g e) d -> (g r) d e", "(g e) d -> g d e", "(g e) d -> g d e"),
                first="(g n e) d -> (n g e) d",
            ),
            "attn.W_O": Row("self_attention.dense.weight", OUT),
            "mlp.W_in": Row("mlp.dense_h_to_4h.weight", LINEAR),
            "mlp.W_out": Row("mlp.dense_4h_to_h.weight", LINEAR),
            **self._norms(cfg, hf),
            **(_BIASES if hf.get("bias") else {}),
        }

    def _norms(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        two = hf.get("new_decoder_architecture") and hf.get("num_ln_in_parallel_attn") in (None, 2)
        if cfg.parallel_attn_mlp and not two:
            return norm("ln1 ln2", "input_layernorm")
        if not two:
            return {**norm("ln1", "input_layernorm"), **norm("ln2", "post_attention_layernorm")}
        # In GGUF files the MLP's norm has the name that a single norm has.
        of_mlp = {
            f"ln2.{kind[0]}": Row(f"ln_mlp.{kind}", also=(f"input_layernorm.{kind}",)) for kind in ("weight", "bias")
        }
        return {**norm("ln1", "ln_attn"), **of_mlp}


FALCON = _Falcon()
