"""Gemma 1, 2 and 3 (text): Llama with a scaled embedding, norms that multiply by one plus their weight, and GELU.

Both are folded: `W_E` has the factor `sqrt(d_model)`, which the tied unembedding has not, and a norm's `w` the one.
Gemma 2 has post-norms, soft caps and every other layer local; Gemma 3 has norms on queries and keys
instead of the caps, and five local layers, with a base of their own, to one global.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from headscope.model.checkpoints.families.base import Row, Table, one_plus_norms
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.checkpoints.families.rope import rope_entries, rope_fields
from headscope.model.config import HookedTransformerConfig

__all__ = ["GEMMA", "GEMMA2", "GEMMA3"]


class _Gemma(LlamaLike):
    model_type = "gemma"
    architecture = "GemmaForCausalLM"
    examples = ("google/gemma-2b", "google/gemma-7b")
    windowed: ClassVar[bool | None] = False

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().config(hf)
        act_fn = hf.get("hidden_activation") or hf.get("hidden_act") or "gelu_pytorch_tanh"
        # Early checkpoints say "gelu" and mean its approximation.
        act_fn = "gelu_pytorch_tanh" if self.model_type == "gemma" and act_fn == "gelu" else act_fn
        return {**fields, "act_fn": act_fn, "tie_word_embeddings": hf.get("tie_word_embeddings", True)}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**super().entries(cfg, state), "hidden_activation": cfg.act_fn}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        table = one_plus_norms(super().outside(cfg, hf))
        return {**table, "embed.W_E": replace(table["embed.W_E"], scale=math.sqrt(cfg.d_model))}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return one_plus_norms(super().layer(cfg, hf))


class _Gemma2(_Gemma):
    model_type = "gemma2"
    architecture = "Gemma2ForCausalLM"
    examples = ("google/gemma-2-2b", "google/gemma-2-9b")
    windowed = None
    fixed: ClassVar[Mapping[str, Any]] = {**LlamaLike.fixed, "use_normalization_before_and_after": True}
    period = 2

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **super().config(hf),
            "attn_scale": math.sqrt(hf.get("query_pre_attn_scalar", 256)),
            "attn_scores_soft_cap": float(hf.get("attn_logit_softcapping") or -1),
            "output_logits_soft_cap": float(hf.get("final_logit_softcapping") or -1),
        }

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        caps = (cfg.attn_scores_soft_cap, cfg.output_logits_soft_cap)
        attention, final = (cap if cap > 0 else None for cap in caps)
        scalar = round(cfg.attn_scale**2, 9)
        return {
            **super().entries(cfg, state),
            "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
            "attn_logit_softcapping": attention,
            "final_logit_softcapping": final,
        }

    def local_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        if hf.get("layer_types"):
            return super().local_layers(hf)
        period = hf.get("sliding_window_pattern", self.period)
        return [bool((layer + 1) % period) for layer in range(hf["num_hidden_layers"])]

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return one_plus_norms({
            **super().layer(cfg, hf),
            "ln1_post.w": Row("post_attention_layernorm.weight"),
            "ln2.w": Row("pre_feedforward_layernorm.weight"),
            "ln2_post.w": Row("post_feedforward_layernorm.weight"),
        })  # fmt: skip


class _Gemma3(_Gemma2):
    model_type = "gemma3_text"
    architecture = "Gemma3ForCausalLM"
    examples = ("google/gemma-3-270m", "google/gemma-3-1b-pt")
    fixed = {**_Gemma2.fixed, "use_qk_norm": True}
    period = 6

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        both = hf.get("rope_parameters") or {}
        local, everywhere = both.get("sliding_attention", {}), both.get("full_attention")
        fields = super().config({**hf, "rope_parameters": everywhere})
        fields |= rope_fields(hf, fields["d_head"], base=1_000_000.0, rope=everywhere)
        return {**fields, "rotary_base_local": local.get("rope_theta", hf.get("rope_local_base_freq", 10000.0))}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        rope = rope_entries(cfg)
        assert cfg.rotary_base_local is not None
        local = {"rope_type": "default", "rope_theta": float(cfg.rotary_base_local)}
        return {
            **super().entries(cfg, state),
            "rope_parameters": {"full_attention": rope["rope_parameters"], "sliding_attention": local},
            "rope_local_base_freq": float(cfg.rotary_base_local),
        }


GEMMA, GEMMA2, GEMMA3 = _Gemma(), _Gemma2(), _Gemma3()
