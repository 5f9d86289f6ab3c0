"""Catalog of the families that can be loaded, with example models and the weight processing that applies."""

from dataclasses import dataclass
from typing import Any

from headscope.errors import MissingDependencyError
from headscope.model.checkpoints.families import FAMILIES
from headscope.model.config import HookedTransformerConfig
from headscope.model.weights.processing import WeightProcessing, inapplicable_processing

__all__ = ["KnownFamily", "known_families"]

# A small model with the config entries of all families at once; which processing applies does not depend on size.
_SMALL: dict[str, Any] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner"), 16),
    **dict.fromkeys(("max_position_embeddings", "max_seq_len", "n_positions", "vocab_size"), 16),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok", "num_key_value_heads"), 2
    ),
    **dict.fromkeys(("head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("moe_intermediate_size", "intermediate_size_mlp", "shared_expert_intermediate_size"), 16),
    "mamba_n_heads": 4,
    "hybrid_override_pattern": "M*-",
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank"), 8),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group"), 1),
    "attn_config": {"kv_n_heads": 2},
    "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 2, "moe_top_k": 2},
    "attention_types": [[["global", "local"], 1]],
    "final_logit_softcapping": 30.0,
    "hidden_size_per_layer_input": 0,
}
_WITHOUT_CAP = (
    "gemma3",
    "gemma3_text",
)


@dataclass(frozen=True)
class KnownFamily:
    """One family of checkpoints.

    Attributes:
        model_type: The name in `config.json`.
        architecture: The class in `transformers`.
        examples: Hub ids of models.
        processing: The rewrites of `WeightProcessing` that apply.
        left_out: Those that do not, with the reason; all, if the installed `transformers` is too old for the family.
    """

    model_type: str
    architecture: str
    examples: tuple[str, ...]
    processing: tuple[str, ...]
    left_out: dict[str, str]


def known_families() -> list[KnownFamily]:
    """List all families that can be loaded, by name.

    Example:
        >>> families = {family.model_type: family for family in known_families()}
        >>> families["llama"].left_out["center_writing_weights"]
        "only LayerNorm ignores the mean of the residual stream; this model's norm is RMS."
    """
    rows = []
    for model_type, family in sorted(FAMILIES.items()):
        small = {name: value for name, value in _SMALL.items() if model_type not in _WITHOUT_CAP or "cap" not in name}
        try:
            fields = family.config({**small, "text_config": small})
            left_out = inapplicable_processing(HookedTransformerConfig(**fields, device="cpu"))
        except MissingDependencyError as error:
            left_out = dict.fromkeys(WeightProcessing.names(), error.message)
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
