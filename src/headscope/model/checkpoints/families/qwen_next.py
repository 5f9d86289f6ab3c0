"""Qwen3-Next and Qwen 3.5 (text, with experts or without): three layers with a gated delta net to each with attention.

Attention is gated; a head's gate is in the projection of its queries. Norms multiply by one plus their weight, but for
those in the mixers.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from headscope.model.checkpoints.families.base import Table, one_plus_norms
from headscope.model.checkpoints.families.hybrid import IN_PLACE, Hybrid
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.checkpoints.families.qwen_moe import Qwen2Moe
from headscope.model.config import HookedTransformerConfig

__all__ = ["QWEN3_5", "QWEN3_5_MOE", "QWEN3_NEXT"]

# Where in a head's dimensions the positions of images are; those of text are the same everywhere.
_OF_IMAGES = ("mrope_section", "mrope_interleaved")


class _GatedAttention(Hybrid):
    """Base class of them all."""

    prepends_bos = False
    mixer = "linear_attn"
    kinds: ClassVar[Mapping[str, str]] = IN_PLACE
    rotary_part: ClassVar[float | None] = 0.25
    beside: ClassVar[tuple[str, ...]] = ("mtp.",)

    def complete(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        complete = super().complete(hf)
        rope = complete.get("rope_parameters") or {}
        return {**complete, "rope_parameters": {name: rope[name] for name in rope if name not in _OF_IMAGES}}

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return LlamaLike.biases(self, hf)

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {name: value for name, value in super().entries(cfg, state).items() if name != "rope_scaling"}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return one_plus_norms(super().outside(cfg, hf))

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        table = dict(one_plus_norms(super().layer(cfg, hf)))
        for kind, pattern in (("W", "(h n e) d -> n h d e"), ("b", "(h n e) -> n h e")):
            row = table.pop(f"attn.{kind}_Q", None)
            if row is not None:
                table[f"attn.{kind}_Q attn.{kind}_G"] = replace(row, pattern=pattern)
        return table


class _Qwen35(_GatedAttention):
    model_type = "qwen3_5_text"
    architecture = "Qwen3_5ForCausalLM"
    examples: ClassVar[tuple[str, ...]] = ("Qwen/Qwen3.5-0.8B", "Qwen/Qwen3.5-4B", "Qwen/Qwen3.5-9B")
    fixed: ClassVar[Mapping[str, Any]] = {**LlamaLike.fixed, "use_qk_norm": True, "gated_attn": True}


class _Qwen3Next(_GatedAttention, Qwen2Moe):
    model_type = "qwen3_next"
    architecture = "Qwen3NextForCausalLM"
    examples = ("Qwen/Qwen3-Next-80B-A3B-Instruct", "Qwen/Qwen3-Coder-Next")
    fixed = {**_Qwen35.fixed, "gate_shared_expert": True}


class _Qwen35Moe(_Qwen3Next):
    """Experts in every layer, whose scores sum to one; the entries for dense layers are not read."""

    model_type = "qwen3_5_moe_text"
    architecture = "Qwen3_5MoeForCausalLM"
    examples = ("Qwen/Qwen3.5-35B-A3B", "Qwen/Qwen3.5-122B-A10B")
    fixed = {**_Qwen3Next.fixed, "norm_topk_prob": True}

    def complete(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        complete = super().complete(hf)
        unread = {"mlp_only_layers": [], "decoder_sparse_step": 1}
        return {**complete, **unread, "intermediate_size": complete["moe_intermediate_size"]}


QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT = _Qwen35(), _Qwen35Moe(), _Qwen3Next()
