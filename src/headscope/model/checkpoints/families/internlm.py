"""InternLM 3: Llama under another name, and with other names for the entries on biases."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.entries import defaulted
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.config import HookedTransformerConfig

__all__ = ["INTERNLM3"]


class _InternLM3(LlamaLike):
    model_type = "internlm3"
    architecture = "InternLM3ForCausalLM"
    examples = ("internlm/internlm3-8b-instruct",)
    adopted = ("modeling_internlm3.InternLM3ForCausalLM",)
    windowed = False
    # `transformers` runs it as LlamaForCausalLM, and writes that in the config.
    fixed = {**LlamaLike.fixed, "original_architecture": "InternLM3ForCausalLM"}
    defaults = {**LlamaLike.defaults, "eps": 1e-5}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        attention, mlp = _has_biases(hf)
        if attention != mlp:
            raise CheckpointError(
                f"InternLM 3 with qkv_bias = {attention} and bias = {mlp} is not supported: they must be equal."
            )
        return super().config(defaulted(hf, head_dim=128, num_key_value_heads=2))

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        entries = super().entries(cfg, state)
        biases = entries["attention_bias"] or entries["mlp_bias"]
        return {**entries, "attention_bias": biases, "mlp_bias": biases}

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        attention, mlp = _has_biases(hf)
        return super().biases({"attention_bias": attention, "mlp_bias": mlp})


def _has_biases(hf: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return whether attention and MLP have biases, under their names at the maker's and in transformers."""
    return hf.get("attention_bias", hf.get("qkv_bias", False)), hf.get("mlp_bias", hf.get("bias", False))


INTERNLM3 = _InternLM3()
