"""Qwen 2 and 2.5 (Llama with biases on queries, keys and values) and Qwen 3 (norms on queries and keys instead)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from headscope.model.checkpoints.families.llama import QKV_BIASES, LlamaLike

__all__ = ["QWEN2", "QWEN3"]


class _Qwen2(LlamaLike):
    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    prepends_bos = False
    examples: ClassVar[tuple[str, ...]] = ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B", "Qwen/Qwen2-1.5B")

    default_window = 4096

    def window(self, hf: Mapping[str, Any]) -> int | None:
        return super().window(hf) if hf.get("use_sliding_window") else None

    def local_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        if hf.get("layer_types"):
            return super().local_layers(hf)
        first = hf.get("max_window_layers", 28)
        return [layer >= first for layer in range(hf["num_hidden_layers"])]

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return QKV_BIASES


class _Qwen3(_Qwen2):
    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    examples = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B")
    fixed = {**LlamaLike.fixed, "use_qk_norm": True}

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return LlamaLike.biases(self, hf)


QWEN2, QWEN3 = _Qwen2(), _Qwen3()
