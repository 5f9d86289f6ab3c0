"""Mistral: Llama with windowed attention in every layer, in its first version."""

from headscope.model.checkpoints.families.llama import LlamaLike

__all__ = ["MISTRAL"]


class _Mistral(LlamaLike):
    model_type = "mistral"
    architecture = "MistralForCausalLM"
    examples = ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.3")
    windowed = True


MISTRAL = _Mistral()
