"""Persimmon: GPT-NeoX's fused attention one after the other with a plain MLP, and LayerNorms on queries and keys."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.model.checkpoints.families.base import LINEAR, OUT, Family, Row, Table, linear, norm
from headscope.model.checkpoints.families.rope import rope_entries, rope_fields
from headscope.model.config import HookedTransformerConfig

__all__ = ["PERSIMMON"]


class _Persimmon(Family):
    model_type = "persimmon"
    architecture = "PersimmonForCausalLM"
    examples = ("adept/persimmon-8b-base", "adept/persimmon-8b-chat")
    ignore = (".rotary_emb.inv_freq",)
    names = {**Family.names, "use_qk_norm": "qk_layernorm"}
    defaults = {**Family.defaults, "act_fn": "relu2", "use_qk_norm": True}
    fixed = {**Family.fixed, "qk_norm_type": "LN"}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().config(hf)
        return {**fields, **rope_fields(hf, fields["d_head"], part=0.5)}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**super().entries(cfg, state), **rope_entries(cfg)}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "embed.W_E": Row("embed_tokens.weight"),
            **norm("ln_final", "final_layernorm"),
            "unembed.W_U": Row("lm_head.weight", LINEAR),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        norms = {**norm("attn.q_norm", "self_attn.q_layernorm"), **norm("attn.k_norm", "self_attn.k_layernorm")}
        return {
            **linear("attn.Q attn.K attn.V", "self_attn.query_key_value", "(h n e) d -> n h d e", "(h n e) -> n h e"),
            **linear("attn.O", "self_attn.dense", OUT),
            **(norms if cfg.use_qk_norm else {}),
            **norm("ln1", "input_layernorm"),
            **norm("ln2", "post_attention_layernorm"),
            **linear("mlp.in", "mlp.dense_h_to_4h"),
            **linear("mlp.out", "mlp.dense_4h_to_h"),
        }


PERSIMMON = _Persimmon()
