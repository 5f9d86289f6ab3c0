"""Mistral: Llama with windowed attention in every layer, in its first version."""

from collections.abc import Mapping
from typing import Any

from headscope.model.checkpoints.families.llama import LlamaLike

__all__ = ["MISTRAL"]


class _Mistral(LlamaLike):
    model_type = "mistral"
    architecture = "MistralForCausalLM"
    examples = ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.3")

    def local_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        return [True] * hf["num_hidden_layers"]


MISTRAL = _Mistral()
