"""CWM, the Code World Model: Llama with three windowed layers to each global one."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.model.checkpoints.entries import changed, defaulted
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.config import HookedTransformerConfig

__all__ = ["CWM"]

_ROPE = {
    "rope_type": "llama3", "rope_theta": 1_000_000.0, "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


class _CWM(LlamaLike):
    model_type = "cwm"
    architecture = "CwmForCausalLM"
    examples = ("facebook/cwm", "facebook/cwm-pretrain", "facebook/cwm-sft")
    defaults = {**LlamaLike.defaults, "eps": 1e-5}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        rope = hf.get("rope_scaling") or hf.get("rope_parameters") or _ROPE
        own = {"rope_theta": 1_000_000.0, "head_dim": 128, "num_key_value_heads": 8, "sliding_window": 8192}
        return super().config(changed(defaulted(hf, **own), rope_parameters=rope))

    def local_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        if hf.get("layer_types"):
            return super().local_layers(hf)
        return [layer % 4 != 0 for layer in range(hf["num_hidden_layers"])]

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**super().entries(cfg, state), "bos_token_id": 128000}  # its class does not accept none

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return super().biases(changed(hf, attention_bias=False))


CWM = _CWM()
