"""Hugging Face architectures that headscope can load: one short file per family, one line here.

A family says how to read its config, and which of its tensors become which of ours. `CONTRIBUTING.md` shows how to
add one.
"""

from collections.abc import Mapping
from typing import Any

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.apertus import APERTUS
from headscope.model.checkpoints.families.base import Family
from headscope.model.checkpoints.families.bloom import BLOOM
from headscope.model.checkpoints.families.codegen import CODEGEN
from headscope.model.checkpoints.families.cohere import COHERE, COHERE2
from headscope.model.checkpoints.families.cwm import CWM
from headscope.model.checkpoints.families.dbrx import DBRX
from headscope.model.checkpoints.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from headscope.model.checkpoints.families.exaone4 import EXAONE4
from headscope.model.checkpoints.families.fairseq import BIOGPT, XGLM
from headscope.model.checkpoints.families.falcon import FALCON
from headscope.model.checkpoints.families.field import FIELD, MINGPT, Saved, saved_with
from headscope.model.checkpoints.families.gemma import GEMMA, GEMMA2, GEMMA3, VAULTGEMMA
from headscope.model.checkpoints.families.gemma4 import GEMMA4, GEMMA4_UNIFIED
from headscope.model.checkpoints.families.glm import GLM, GLM4
from headscope.model.checkpoints.families.gpt2 import GPT2
from headscope.model.checkpoints.families.gpt_neo import GPT_NEO
from headscope.model.checkpoints.families.gpt_oss import GPT_OSS
from headscope.model.checkpoints.families.gptj import GPTJ
from headscope.model.checkpoints.families.granite import GRANITE
from headscope.model.checkpoints.families.granite_moe import GRANITE_MOE, GRANITE_MOE_SHARED
from headscope.model.checkpoints.families.helium import HELIUM
from headscope.model.checkpoints.families.hunyuan import HUNYUAN
from headscope.model.checkpoints.families.hybrid import LFM2
from headscope.model.checkpoints.families.hybrid_mamba import BAMBA, FALCON_H1, GRANITE_MOE_HYBRID, NEMOTRON_H
from headscope.model.checkpoints.families.internlm import INTERNLM3
from headscope.model.checkpoints.families.jamba import JAMBA
from headscope.model.checkpoints.families.llama import LLAMA
from headscope.model.checkpoints.families.llama4 import LLAMA4
from headscope.model.checkpoints.families.mistral import MINISTRAL, MINISTRAL3, MISTRAL
from headscope.model.checkpoints.families.moe import MIXTRAL, OLMOE
from headscope.model.checkpoints.families.mpt import MPT
from headscope.model.checkpoints.families.multimodal import (
    GEMMA3_MULTIMODAL,
    GEMMA4_MULTIMODAL,
    GEMMA4_UNIFIED_MULTIMODAL,
    LLAMA4_MULTIMODAL,
    MISTRAL3,
    QWEN3_5_MOE_MULTIMODAL,
    QWEN3_5_MULTIMODAL,
)
from headscope.model.checkpoints.families.nanochat import NANOCHAT
from headscope.model.checkpoints.families.neox import NEOX
from headscope.model.checkpoints.families.olmo import OLMO, OLMO2, OLMO3
from headscope.model.checkpoints.families.opt import OPT
from headscope.model.checkpoints.families.persimmon import PERSIMMON
from headscope.model.checkpoints.families.phi import PHI, PHI3
from headscope.model.checkpoints.families.phimoe import PHIMOE
from headscope.model.checkpoints.families.qwen import QWEN2, QWEN3
from headscope.model.checkpoints.families.qwen_moe import QWEN2_MOE, QWEN3_MOE
from headscope.model.checkpoints.families.qwen_next import QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT
from headscope.model.checkpoints.families.recurrent_gemma import RECURRENT_GEMMA
from headscope.model.checkpoints.families.seed_oss import SEED_OSS
from headscope.model.checkpoints.families.smollm3 import SMOLLM3
from headscope.model.checkpoints.families.squared_relu import ARCEE, JAIS2, NEMOTRON
from headscope.model.checkpoints.families.stablelm import STABLELM
from headscope.model.checkpoints.families.starcoder import GPT_BIGCODE, STARCODER2

__all__ = ["FAMILIES", "FIELD", "Family", "Saved", "family_of", "saved_with"]

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        ARCEE, BIOGPT, CODEGEN, CWM, GPT_BIGCODE, HELIUM, INTERNLM3, JAIS2, MPT, NEMOTRON, STARCODER2, XGLM, BLOOM,
        FALCON, GEMMA, GEMMA2, GEMMA3, GEMMA4, GEMMA4_UNIFIED, GPT2, GPTJ, GPT_NEO, GRANITE, LLAMA, MISTRAL,
        MIXTRAL, NEOX, OLMO, OLMO2, OLMOE, OPT, PHI, PHI3, QWEN2, QWEN3, QWEN3_MOE, STABLELM, APERTUS,
        GEMMA3_MULTIMODAL, GEMMA4_MULTIMODAL, GEMMA4_UNIFIED_MULTIMODAL, LLAMA4, LLAMA4_MULTIMODAL, MISTRAL3,
        NANOCHAT, PERSIMMON, DBRX, DEEPSEEK_V2, DEEPSEEK_V3, GPT_OSS, GRANITE_MOE, GRANITE_MOE_SHARED, PHIMOE,
        QWEN2_MOE, COHERE, COHERE2, EXAONE4, GLM, GLM4, HUNYUAN, MINISTRAL, MINISTRAL3, OLMO3, SEED_OSS, SMOLLM3,
        VAULTGEMMA, BAMBA, FALCON_H1, GRANITE_MOE_HYBRID, JAMBA, LFM2, NEMOTRON_H, QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT,
        QWEN3_5_MOE_MULTIMODAL, QWEN3_5_MULTIMODAL, RECURRENT_GEMMA,
    )
}  # fmt: skip


# Decoder-only models that cannot be loaded, and why.
_REFUSED = {
    "openai-gpt": "GPT-1 has its norms on the residual stream itself, which is then no sum of what layers add to it",
    **dict.fromkeys(
        ("zamba", "zamba2"),
        "Zamba has one attention block that several layers share, which reads the embedding beside the residual stream",
    ),
    "olmo_hybrid": "OLMo Hybrid has its norms behind attention, and before its mixers",
    **dict.fromkeys(
        ("gemma3n", "gemma3n_text"),
        "Gemma 3n has several residual streams side by side, layers that take keys and values from an earlier one, and "
        "embeddings added in every layer",
    ),
}


def family_of(hf_config: Mapping[str, Any]) -> Family:
    """Return the family of a Hugging Face config by its `model_type`, or the field's own models without one.

    Raises:
        CheckpointError: for a family that is not supported; the message lists those that are.
    """
    for own in (MINGPT, FIELD):
        if own.is_of(hf_config):
            return own
    model_type = hf_config.get("model_type")
    if model_type in _REFUSED:
        raise CheckpointError(
            f"model_type {model_type!r} in config.json is not supported: {_REFUSED[model_type]}.",
            code="HS-CHECKPOINT-05",
        )
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"model_type {model_type!r} in config.json is not supported. Supported: {', '.join(sorted(FAMILIES))}.",
            code="HS-CHECKPOINT-05",
        )
    return FAMILIES[model_type]
