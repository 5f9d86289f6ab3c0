"""Seed-OSS: Llama with biases on queries, keys and values, and an own entry for that of the output."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.model.checkpoints.entries import changed
from headscope.model.checkpoints.families.llama import QKV_BIASES, LlamaLike, any_bias
from headscope.model.config import HookedTransformerConfig

__all__ = ["SEED_OSS"]


class _SeedOss(LlamaLike):
    model_type = "seed_oss"
    architecture = "SeedOssForCausalLM"
    prepends_bos = False
    examples = ("ByteDance-Seed/Seed-OSS-36B-Base", "ByteDance-Seed/Seed-OSS-36B-Instruct")
    windowed = False
    defaults = {**LlamaLike.defaults, "d_head": 128}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            **super().entries(cfg, state),
            "attention_bias": any_bias(state, *QKV_BIASES),
            "attention_out_bias": any_bias(state, "attn.b_O"),
        }

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        with_mlp = super().biases(changed(hf, attention_bias=False))
        attention = QKV_BIASES if hf.get("attention_bias", True) else ()
        return (*attention, *(("attn.b_O",) if hf.get("attention_out_bias") else ()), *with_mlp)


SEED_OSS = _SeedOss()
