"""DBRX: LayerNorms without biases, clipped queries, keys and values, and experts."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.entries import changed
from headscope.model.checkpoints.families.base import KEY, LINEAR, OUT, QUERY, Family, Row, Table, sizes
from headscope.model.checkpoints.families.rope import rope_entries, rope_fields
from headscope.model.config import HookedTransformerConfig

__all__ = ["DBRX"]


class _Dbrx(Family):
    model_type = "dbrx"
    architecture = "DbrxForCausalLM"
    examples = ("databricks/dbrx-base", "databricks/dbrx-instruct")
    prefix = "transformer."
    layer_prefix = "blocks.{}."
    ignore = (".rotary_emb.inv_freq",)
    names: ClassVar[Mapping[str, str]] = {
        "n_layers": "n_layers", "d_model": "d_model", "n_heads": "n_heads", "n_ctx": "max_seq_len",
        "d_vocab": "vocab_size", "tie_word_embeddings": "tie_word_embeddings",
    }  # fmt: skip
    defaults: ClassVar[Mapping[str, Any]] = {"tie_word_embeddings": False}
    fixed: ClassVar[Mapping[str, Any]] = {"gated_mlp": True, "normalization_type": "LN", "eps": 1e-5}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields, attn, ffn = super().config(hf), hf.get("attn_config") or {}, hf.get("ffn_config") or {}
        d_mlp, experts, chosen = sizes(ffn, "ffn_hidden_size", "moe_num_experts", "moe_top_k")
        (groups,) = sizes(attn, "kv_n_heads")
        power = ffn.get("moe_normalize_expert_weights", 1.0)
        if power not in (None, 1):
            raise CheckpointError(
                f"moe_normalize_expert_weights = {power} in config.json is not supported: the weights of experts can "
                "only be made to sum to one (1), or left (null)."
            )
        return {
            **fields,
            "n_key_value_heads": None if groups == fields["n_heads"] else groups,
            "clip_qkv": attn.get("clip_qkv"),
            "d_mlp": d_mlp,
            "act_fn": (ffn.get("ffn_act_fn") or {}).get("name", "silu"),
            "num_experts": experts,
            "experts_per_token": chosen,
            "norm_topk_prob": power is not None,
            **rope_fields(
                changed(hf, max_position_embeddings=fields["n_ctx"]), fields["d_head"], base=_base(hf), part=None
            ),
        }

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            **super().entries(cfg, state),
            **rope_entries(cfg),
            "attn_config": {
                "kv_n_heads": cfg.n_key_value_heads or cfg.n_heads,
                "clip_qkv": cfg.clip_qkv,
                "rope_theta": float(cfg.rotary_base),
            },
            "ffn_config": {
                "ffn_act_fn": {"name": cfg.act_fn},
                "ffn_hidden_size": cfg.d_mlp,
                "moe_num_experts": cfg.num_experts,
                "moe_top_k": cfg.experts_per_token,
                "moe_normalize_expert_weights": 1.0 if cfg.norm_topk_prob else None,
            },
        }

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "embed.W_E": Row("wte.weight"),
            "ln_final.w": Row("norm_f.weight"),
            "unembed.W_U": Row("lm_head.weight", LINEAR),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "attn.W_Q attn.W_K attn.W_V": Row("norm_attn_norm.attn.Wqkv.weight", (QUERY, KEY, KEY)),
            "attn.W_O": Row("norm_attn_norm.attn.out_proj.weight", OUT),
            "ln1.w": Row("norm_attn_norm.norm_1.weight"),
            "ln2.w": Row("norm_attn_norm.norm_2.weight"),
            "mlp.W_router": Row("ffn.router.layer.weight", LINEAR),
            "mlp.W_gate": Row("ffn.experts.mlp.w1", "(x m) d -> x d m"),
            "mlp.W_in": Row("ffn.experts.mlp.v1", "(x m) d -> x d m"),
            "mlp.W_out": Row("ffn.experts.mlp.w2", "(x m) d -> x m d"),
        }


def _base(hf: Mapping[str, Any]) -> float:
    """Return the base of the rotary angles, which the authors put beside the sizes of attention."""
    own = (hf.get("attn_config") or {}).get("rope_theta")
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    other = rope.get("rope_theta", hf.get("rope_theta"))
    if own is not None and other is not None and own != other:
        raise CheckpointError(
            f"config.json has rope_theta = {own} in attn_config and {other} outside it. The code of the authors reads "
            "the first, and transformers 5.23 the second: make them the same."
        )
    return float(own if own is not None else 10000.0 if other is None else other)


DBRX = _Dbrx()
