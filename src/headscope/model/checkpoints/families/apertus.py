"""Apertus: Llama with a plain MLP, whose activation xIELU learns its curvatures, and norms on queries and keys."""

from collections.abc import Mapping
from typing import Any

from headscope.model.checkpoints.entries import changed, defaulted
from headscope.model.checkpoints.families.base import Row, Table
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.config import HookedTransformerConfig
from headscope.model.parts.layers import XIELU

__all__ = ["APERTUS"]

_ROPE = {
    "rope_type": "llama3", "rope_theta": 12_000_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


class _Apertus(LlamaLike):
    model_type = "apertus"
    architecture = "ApertusForCausalLM"
    examples = ("swiss-ai/Apertus-8B-2509", "swiss-ai/Apertus-70B-2509", "swiss-ai/Apertus-8B-Instruct-2509")
    windowed = False
    fixed = {**LlamaLike.fixed, "gated_mlp": False, "use_qk_norm": True}
    defaults = {**LlamaLike.defaults, "act_fn": "xielu", "eps": 1e-5}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        rope = hf.get("rope_scaling") or hf.get("rope_parameters") or _ROPE
        return super().config(changed(defaulted(hf, rope_theta=12_000_000.0), rope_parameters=rope))

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        learned = [f"mlp.act_fn.{name}" for name in XIELU.weights] if cfg.act_fn == "xielu" else []
        return {
            **super().layer(cfg, hf),
            "ln1.w": Row("attention_layernorm.weight"),
            "ln2.w": Row("feedforward_layernorm.weight"),
            **{name: Row(name) for name in learned},
        }

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return super().biases(changed(hf, mlp_bias=False))


APERTUS = _Apertus()
