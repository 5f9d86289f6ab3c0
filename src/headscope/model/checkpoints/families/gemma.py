"""Gemma 1, 2 and 3 (text): Llama with a scaled embedding, norms that multiply by one plus their weight, and GELU.

Both are folded: `W_E` has the factor `sqrt(d_model)`, which the tied unembedding has not, and a norm's `w` the one.
Gemma 2 has post-norms, soft caps and every other layer local; VaultGemma is Gemma 2 without post-norms; Gemma 3 has
norms on queries and keys instead of the caps, and five local layers, with a base of their own, to one global.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import Row, Table, one_plus_norms
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.checkpoints.families.rope import rope_entries_by_type, rope_fields_by_type
from headscope.model.config import HookedTransformerConfig

__all__ = ["GEMMA", "GEMMA2", "GEMMA3", "VAULTGEMMA"]


class _Gemma(LlamaLike):
    model_type = "gemma"
    architecture = "GemmaForCausalLM"
    examples: ClassVar[tuple[str, ...]] = ("google/gemma-2b", "google/gemma-7b")
    windowed: ClassVar[bool | None] = False
    defaults = {**LlamaLike.defaults, "d_head": 256}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        if hf.get("use_bidirectional_attention"):
            raise CheckpointError("use_bidirectional_attention in config.json is not supported: attention is causal.")
        fields = super().config(hf)
        act_fn = hf.get("hidden_activation") or "gelu_pytorch_tanh"
        if self.model_type == "gemma":
            act_fn = hf.get("hidden_activation") or hf.get("hidden_act") or act_fn
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
    examples: ClassVar[tuple[str, ...]] = ("google/gemma-2-2b", "google/gemma-2-9b")
    windowed = None
    fixed: ClassVar[Mapping[str, Any]] = {**LlamaLike.fixed, "use_normalization_before_and_after": True}
    default_window = 4096
    default_caps: ClassVar[tuple[float | None, float | None]] = (50.0, 30.0)  # of scores, of logits
    local_period = 2

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        attention, final = self.default_caps
        return {
            **super().config(hf),
            "attn_scale": math.sqrt(hf.get("query_pre_attn_scalar", 256)),
            "attn_scores_soft_cap": float(hf.get("attn_logit_softcapping", attention) or -1),
            "output_logits_soft_cap": float(hf.get("final_logit_softcapping", final) or -1),
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
    default_base = 1_000_000.0
    local_period = 6
    default_caps = (None, None)

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        for entry in ("attn_logit_softcapping", "use_bidirectional_attention"):
            if hf.get(entry):
                raise CheckpointError(f"Gemma 3 with {entry} = {hf[entry]!r} in config.json is not supported.")
        return super().config(hf)

    def rope(self, hf: Mapping[str, Any], d_head: int) -> dict[str, Any]:
        local_base = hf.get("rope_local_base_freq", 10_000.0)
        return rope_fields_by_type(hf, d_head, base=self.default_base, local_base=local_base)

    def period(self, hf: Mapping[str, Any]) -> int:
        return hf.get("sliding_window_pattern", self.local_period)

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        local_base = {"rope_local_base_freq": float(cfg.rotary_base_local or 0)}
        return {**super().entries(cfg, state), **rope_entries_by_type(cfg), **local_base}


class _VaultGemma(_Gemma2):
    model_type = "vaultgemma"
    architecture = "VaultGemmaForCausalLM"
    examples = ("google/vaultgemma-1b",)
    fixed = LlamaLike.fixed

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        with_one_norm = _Gemma.layer(self, cfg, hf)
        return {**with_one_norm, "ln2.w": replace(with_one_norm["ln2.w"], theirs="pre_feedforward_layernorm.weight")}


GEMMA, GEMMA2, GEMMA3, VAULTGEMMA = _Gemma(), _Gemma2(), _Gemma3(), _VaultGemma()
