"""Helium: Llama whose rotary positions turn adjacent dimensions."""

from collections.abc import Mapping
from typing import Any

from headscope.model.checkpoints.entries import defaulted
from headscope.model.checkpoints.families.llama import QKV_BIASES, LlamaLike

__all__ = ["HELIUM"]


class _Helium(LlamaLike):
    model_type = "helium"
    architecture = "HeliumForCausalLM"
    examples = ("kyutai/helium-1-2b", "kyutai/helium-1-preview-2b")
    windowed = False
    fixed = {**LlamaLike.fixed, "rotary_adjacent_pairs": True}
    defaults = {**LlamaLike.defaults, "eps": 1e-8}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        return super().config(defaulted(hf, rope_theta=100_000.0, head_dim=128, num_key_value_heads=20))

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(name for name in super().biases(hf) if name in QKV_BIASES or name.startswith("mlp."))


HELIUM = _Helium()
