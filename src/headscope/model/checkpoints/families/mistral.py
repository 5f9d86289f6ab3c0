"""Mistral (Llama with windowed attention, in its first version), Ministral and Ministral 3.

Ministral has a window in some layers; Ministral 3 has none, but queries that grow with their position.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.entries import changed
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.checkpoints.families.rope import rope_fields
from headscope.model.config import HookedTransformerConfig

__all__ = ["MINISTRAL", "MINISTRAL3", "MISTRAL"]

_SLOPE, _LENGTH = "llama_4_scaling_beta", "original_max_position_embeddings"


class _Mistral(LlamaLike):
    model_type = "mistral"
    architecture = "MistralForCausalLM"
    examples: ClassVar[tuple[str, ...]] = ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.3")
    windowed: ClassVar[bool | None] = True
    default_window: ClassVar[int | None] = 4096

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return ()


class _Ministral(_Mistral):
    model_type = "ministral"
    architecture = "MinistralForCausalLM"
    examples = ("mistralai/Ministral-8B-Instruct-2410",)
    windowed = None

    def local_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        return super().local_layers(hf) if hf.get("layer_types") else [True] * hf["num_hidden_layers"]


class _Ministral3(_Mistral):
    model_type = "ministral3"
    architecture = "Ministral3ForCausalLM"
    examples = ("mistralai/Ministral-3-3B-Base-2512", "mistralai/Ministral-3-8B-Base-2512")
    default_window = None
    defaults = {**LlamaLike.defaults, "eps": 1e-5, "d_head": 128}
    scaling = {
        "rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 16.0, _LENGTH: 16384, "mscale": 1.0,
        "mscale_all_dim": 1.0, _SLOPE: 0.1,
    }  # fmt: skip

    def rope(self, hf: Mapping[str, Any], d_head: int) -> dict[str, Any]:
        entries = hf.get("rope_scaling") or hf.get("rope_parameters") or self.scaling
        rope = {name: value for name, value in entries.items() if name not in (_SLOPE, "max_position_embeddings")}
        fields = rope_fields(changed(hf, rope_scaling=rope), d_head, part=None)
        length = fields.get("yarn_original_max_position_embeddings", rope.get(_LENGTH))
        if entries.get(_SLOPE) is None or length is None:
            raise CheckpointError(f"the entries on rotary positions in config.json must have {_SLOPE} and {_LENGTH}.")
        return {**fields, "attn_temperature_slope": entries[_SLOPE], "attn_temperature_length": length}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        entries, length = super().entries(cfg, state), {_LENGTH: cfg.attn_temperature_length}
        rope = {**length, **entries["rope_parameters"], _SLOPE: cfg.attn_temperature_slope}
        return {**entries, "rope_parameters": rope, "rope_scaling": None}


MISTRAL, MINISTRAL, MINISTRAL3 = _Mistral(), _Ministral(), _Ministral3()
