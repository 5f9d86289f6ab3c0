"""Models that read images too, of which the text model is loaded: Gemma 3 from 4B on, Gemma 4, Mistral 3,
Llama 4 and Qwen 3.5.

With tokens alone in the input, the text model is all that runs. Its config is the entry `text_config`, and its tensors
are under `language_model`; those of the vision model and of the projection from it are left out. Back in `transformers`
the model is one of text alone.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.entries import ReadEntries
from headscope.model.checkpoints.families.base import Family, Table
from headscope.model.checkpoints.families.gemma import GEMMA3
from headscope.model.checkpoints.families.gemma4 import GEMMA4, GEMMA4_UNIFIED
from headscope.model.checkpoints.families.llama4 import LLAMA4
from headscope.model.checkpoints.families.mistral import MINISTRAL3, MISTRAL
from headscope.model.checkpoints.families.qwen_next import QWEN3_5, QWEN3_5_MOE
from headscope.model.config import HookedTransformerConfig

__all__ = [
    "GEMMA3_MULTIMODAL",
    "GEMMA4_MULTIMODAL",
    "GEMMA4_UNIFIED_MULTIMODAL",
    "LLAMA4_MULTIMODAL",
    "MISTRAL3",
    "QWEN3_5_MOE_MULTIMODAL",
    "QWEN3_5_MULTIMODAL",
]

logger = logging.getLogger("headscope")

# In the layout of transformers 5 and in the older one, which the checkpoints on the hub have.
_TEXT = ("model.language_model.", "language_model.model.", "language_model.")
_VISION = (
    "vision_tower.", "vision_model.", "visual.", "multi_modal_projector.", "vision_embedder.", "embed_vision.",
    "audio_tower.", "embed_audio.",
)  # fmt: skip


class _WithText(Family):
    """Base class of these models, which name the families of their text models.

    Attributes:
        texts: Families that the text model can be of; the first is that of a `text_config` that does not say.
        text_defaults: Entries that a `text_config` may lack.
        tied: Embedding and unembedding are one if no entry says.
    """

    texts: ClassVar[tuple[Family, ...]]
    text_defaults: ClassVar[Mapping[str, Any]] = {}
    tied: ClassVar[bool] = True

    def text(self, hf: Mapping[str, Any]) -> tuple[Family, dict[str, Any]]:
        """Return the family of the text model, and its config."""
        given = hf["text_config"]
        if not isinstance(given, Mapping):
            raise CheckpointError(f"text_config in config.json must hold the text model's entries; got {given!r}.")
        entries = {"model_type": self.texts[0].model_type, **self.text_defaults, **given}
        for family in self.texts:
            if family.model_type == entries["model_type"]:
                # Whether embedding and unembedding are one is said outside.
                return family, {**entries, "tie_word_embeddings": hf.get("tie_word_embeddings", self.tied)}
        raise CheckpointError(
            f"{self.model_type} with a text model of model_type {entries['model_type']!r} is not supported. Supported: "
            f"{', '.join(family.model_type for family in self.texts)}."
        )

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        family, entries = self.text(hf)
        return family.config(entries)

    def convert(
        self, tensors: Mapping[str, Tensor], cfg: HookedTransformerConfig, hf: Mapping[str, Any]
    ) -> Iterator[tuple[str, Tensor]]:
        family, entries = self.text(hf)
        vision = {name for name in tensors if name.removeprefix("model.").startswith(_VISION)}
        if vision:
            logger.warning(
                "the text model alone is loaded; %d tensors that read images or sound are left out.", len(vision)
            )
        names = {_of_text(name, family.prefix): name for name in tensors if name not in vision}
        read = ReadEntries(entries)
        family.config(read)
        yield from family.convert(_Renamed(tensors, names), cfg, read)
        read.check_all_read()

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        family, entries = self.text(hf)
        return family.outside(cfg, entries)

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        family, entries = self.text(hf)
        return family.layer(cfg, entries)

    def export(
        self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        reasons = []
        for family in self.texts:
            try:
                return family.export(cfg, state)
            except CheckpointError as error:
                reasons.append(error.message)
        raise CheckpointError(" ".join(reasons))


class _Renamed(Mapping[str, Tensor]):
    """Tensors under other names, read on access like those they are."""

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _of_text(name: str, prefix: str) -> str:
    """Return the name that a tensor has in a checkpoint of the text model alone."""
    for each in _TEXT:
        if name.startswith(each):
            rest = name.removeprefix(each)
            return rest if rest.startswith("lm_head.") else prefix + rest
    return name


class _Gemma3Multimodal(_WithText):
    model_type = "gemma3"
    architecture = "Gemma3ForConditionalGeneration"
    examples = ("google/gemma-3-4b-pt", "google/gemma-3-12b-it", "google/gemma-3-27b-it", "google/medgemma-4b-it")
    texts = (GEMMA3,)
    text_defaults = {
        "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    }  # fmt: skip

    def text(self, hf: Mapping[str, Any]) -> tuple[Family, dict[str, Any]]:
        family, entries = super().text(hf)
        if entries.get("final_logit_softcapping"):
            raise CheckpointError("final_logit_softcapping of a Gemma 3 that reads images is not supported.")
        return family, entries


class _Gemma4Multimodal(_WithText):
    model_type = "gemma4"
    architecture = "Gemma4ForConditionalGeneration"
    examples: ClassVar[tuple[str, ...]] = ("google/gemma-4-31B-it", "google/gemma-4-26B-A4B-it")
    texts = (GEMMA4,)
    text_defaults = {
        "vocab_size": 262_144, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30,
        "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 131_072,
    }  # fmt: skip


class _Gemma4UnifiedMultimodal(_Gemma4Multimodal):
    model_type = "gemma4_unified"
    architecture = "Gemma4UnifiedForConditionalGeneration"
    examples = ("google/gemma-4-12B-it",)
    texts = (GEMMA4_UNIFIED,)
    text_defaults = {**_Gemma4Multimodal.text_defaults, "max_position_embeddings": 262_144}


class _Mistral3(_WithText):
    model_type = "mistral3"
    architecture = "Mistral3ForConditionalGeneration"
    examples = ("mistralai/Mistral-Small-3.1-24B-Base-2503", "mistralai/Ministral-3-3B-Instruct-2512")
    texts = (MISTRAL, MINISTRAL3)


class _Llama4Multimodal(_WithText):
    model_type = "llama4"
    architecture = "Llama4ForConditionalGeneration"
    examples = ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "meta-llama/Llama-4-Maverick-17B-128E")
    texts = (LLAMA4,)
    text_defaults = {
        "vocab_size": 202_048, "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16_384,
        "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "num_local_experts": 16,
        "num_experts_per_tok": 1, "max_position_embeddings": 131_072,
    }  # fmt: skip
    tied = False


class _Qwen35Multimodal(_WithText):
    model_type = "qwen3_5"
    architecture = "Qwen3_5ForConditionalGeneration"
    examples = ("Qwen/Qwen3.5-0.8B", "Qwen/Qwen3.5-4B", "Qwen/Qwen3.5-27B")
    texts = (QWEN3_5,)
    tied = False


class _Qwen35MoeMultimodal(_WithText):
    model_type = "qwen3_5_moe"
    architecture = "Qwen3_5MoeForConditionalGeneration"
    examples = ("Qwen/Qwen3.5-35B-A3B", "Qwen/Qwen3.5-122B-A10B")
    texts = (QWEN3_5_MOE,)
    tied = False


GEMMA4_MULTIMODAL, GEMMA4_UNIFIED_MULTIMODAL = _Gemma4Multimodal(), _Gemma4UnifiedMultimodal()
GEMMA3_MULTIMODAL, LLAMA4_MULTIMODAL, MISTRAL3 = _Gemma3Multimodal(), _Llama4Multimodal(), _Mistral3()
QWEN3_5_MULTIMODAL, QWEN3_5_MOE_MULTIMODAL = _Qwen35Multimodal(), _Qwen35MoeMultimodal()
