"""Llamas with a plain MLP and squared ReLU: Arcee (RMSNorm), Jais 2 (LayerNorm, biases) and Nemotron.

Nemotron rotates half of each head, and its LayerNorms multiply by one plus their weight, which is `w` here.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from headscope.model.checkpoints.entries import defaulted
from headscope.model.checkpoints.families.base import Table, one_plus_norms
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.config import HookedTransformerConfig

__all__ = ["ARCEE", "JAIS2", "NEMOTRON"]


class _Arcee(LlamaLike):
    model_type = "arcee"
    architecture = "ArceeForCausalLM"
    examples: ClassVar[tuple[str, ...]] = ("arcee-ai/AFM-4.5B", "arcee-ai/AFM-4.5B-Base")
    windowed = False
    fixed: ClassVar[Mapping[str, Any]] = {**LlamaLike.fixed, "gated_mlp": False}
    defaults = {**LlamaLike.defaults, "act_fn": "relu2", "eps": 1e-5}


class _Jais2(_Arcee):
    model_type = "jais2"
    architecture = "Jais2ForCausalLM"
    examples = ("inceptionai/Jais-2-8B-Chat",)
    names = {**LlamaLike.names, "eps": "layer_norm_eps"}
    fixed = {**_Arcee.fixed, "normalization_type": "LN"}

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return super().biases(defaulted(hf, attention_bias=True, mlp_bias=True))


class _Nemotron(_Arcee):
    model_type = "nemotron"
    architecture = "NemotronForCausalLM"
    examples = ("nvidia/Minitron-4B-Base", "nvidia/Minitron-8B-Base", "nvidia/Nemotron-Mini-4B-Instruct")
    names = {**LlamaLike.names, "eps": "norm_eps"}
    fixed = {**_Arcee.fixed, "normalization_type": "LN"}
    rotary_part = 0.5

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return one_plus_norms(super().outside(cfg, hf))

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return one_plus_norms(super().layer(cfg, hf))


ARCEE, JAIS2, NEMOTRON = _Arcee(), _Jais2(), _Nemotron()
