"""Which families can be loaded, with models to name and the weight processing that applies to each."""

from dataclasses import dataclass
from typing import Any

from headscope.model.checkpoints.families import FAMILIES
from headscope.model.config import HookedTransformerConfig
from headscope.model.weights.processing import inapplicable_processing

__all__ = ["KnownFamily", "known_families"]

# A small model in the words of every family at once; what decides about processing is the same at every size.
_SMALL: dict[str, Any] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 2),
    **dict.fromkeys(("hidden_size", "n_embd"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "vocab_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "num_experts_per_tok", "num_key_value_heads"), 2),
    "moe_intermediate_size": 16,
    "attention_types": [[["global", "local"], 1]],
    "final_logit_softcapping": 30.0,
}
_WITHOUT_CAP = ("gemma3_text",)


@dataclass(frozen=True)
class KnownFamily:
    """One family of checkpoints.

    Attributes:
        model_type: What `config.json` calls it.
        architecture: The class in `transformers`.
        examples: Models of it, by their hub ids.
        processing: The rewrites of `WeightProcessing` that apply.
        left_out: Those that do not, and why.
    """

    model_type: str
    architecture: str
    examples: tuple[str, ...]
    processing: tuple[str, ...]
    left_out: dict[str, str]


def known_families() -> list[KnownFamily]:
    """Every family that can be loaded, by name.

    Example:
        >>> found = {family.model_type: family for family in known_families()}
        >>> found["llama"].left_out["center_writing_weights"]
        "only LayerNorm ignores the mean of the residual stream; this model's norm is RMS."
    """
    rows = []
    for model_type, family in sorted(FAMILIES.items()):
        small = {name: value for name, value in _SMALL.items() if model_type not in _WITHOUT_CAP or "cap" not in name}
        left_out = inapplicable_processing(HookedTransformerConfig(**family.config(small), device="cpu"))
        rows.append(
            KnownFamily(
                model_type=model_type,
                architecture=family.architecture,
                examples=family.examples,
                processing=tuple(name for name, reason in left_out.items() if not reason),
                left_out={name: reason for name, reason in left_out.items() if reason},
            )
        )
    return rows
