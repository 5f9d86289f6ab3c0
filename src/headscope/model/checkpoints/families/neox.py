"""GPT-NeoX and Pythia: LayerNorm, parallel attention and MLP, rotary positions on part of each head."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.entries import changed
from headscope.model.checkpoints.families.base import LINEAR, OUT, Family, Row, Table, linear, norm
from headscope.model.checkpoints.families.llama import any_bias
from headscope.model.checkpoints.families.rope import rope_entries, rope_fields
from headscope.model.config import HookedTransformerConfig

__all__ = ["NEOX"]


class _NeoX(Family):
    model_type = "gpt_neox"
    architecture = "GPTNeoXForCausalLM"
    prepends_bos = False
    examples = ("EleutherAI/pythia-70m", "EleutherAI/pythia-1.4b-deduped", "EleutherAI/gpt-neox-20b")
    prefix = "gpt_neox."
    ignore = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")

    names = {**Family.names, "parallel_attn_mlp": "use_parallel_residual"}
    defaults = {**Family.defaults, "parallel_attn_mlp": True}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().config(hf)
        own = {"rope_theta": hf.get("rotary_emb_base", 10000), "partial_rotary_factor": hf.get("rotary_pct", 0.25)}
        rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
        for entry, value in own.items():
            if hf.get(entry, value) != value and entry not in rope:
                raise CheckpointError(
                    f"{entry} = {hf[entry]} in config.json is not what this family's own entry says, {value}, and "
                    "transformers reads only that: make rotary_emb_base and rotary_pct say what is meant."
                )
        return {**fields, **rope_fields(changed(hf, **own), fields["d_head"])}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        rope = rope_entries(cfg)
        return {
            **super().entries(cfg, state),
            "attention_bias": any_bias(state, "attn.b_Q", "attn.b_K", "attn.b_V", "attn.b_O"),
            "rotary_emb_base": rope["rope_theta"],
            "rotary_pct": rope["partial_rotary_factor"],
            **rope,
        }

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "embed.W_E": Row("embed_in.weight"),
            **norm("ln_final", "final_layer_norm"),
            "unembed.W_U": Row("lm_head.weight", LINEAR, also=("embed_out.weight",)),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        attention = {
            **linear("attn.Q attn.K attn.V", "attention.query_key_value", "(h n e) d -> n h d e", "(h n e) -> n h e"),
            **linear("attn.O", "attention.dense", OUT),
        }
        with_biases = hf.get("attention_bias", True)
        return {
            **{name: row for name, row in attention.items() if with_biases or ".b_" not in name},
            **norm("ln1", "input_layernorm"),
            **norm("ln2", "post_attention_layernorm"),
            **linear("mlp.in", "mlp.dense_h_to_4h"),
            **linear("mlp.out", "mlp.dense_4h_to_h"),
        }


NEOX = _NeoX()
