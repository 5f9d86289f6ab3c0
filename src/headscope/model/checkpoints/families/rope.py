"""Rotary positions and windows in `config.json`, in the layouts of transformers 4 and 5, in both directions."""

import math
from collections.abc import Mapping
from typing import Any

from headscope.errors import CheckpointError
from headscope.model.config import HookedTransformerConfig

__all__ = ["rope_entries", "rope_fields", "window_entries", "window_fields"]


def rope_fields(
    hf: Mapping[str, Any], d_head: int, *, base: float = 10000.0, rope: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Convert entries on rotary positions to fields of our config.

    Args:
        hf: The contents of a `config.json`.
        d_head: Width of a head.
        base: What the base is if no entry says.
        rope: The entry on them, if it is not `rope_parameters` or `rope_scaling`.

    Raises:
        CheckpointError: for a scaling that is not supported.
    """
    rope = rope or hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    part = rope.get("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0))
    fields = {
        "positional_embedding_type": "rotary",
        "rotary_dim": int(d_head * part),
        "rotary_base": rope.get("rope_theta", hf.get("rope_theta", base)),
    }
    kind = rope.get("rope_type", rope.get("type", "default"))
    n_ctx: Any = hf.get("max_position_embeddings")
    original: Any = rope.get("original_max_position_embeddings")
    original = original or hf.get("original_max_position_embeddings") or n_ctx
    if kind == "default":
        return fields
    if kind == "linear":
        return {**fields, "rotary_scaling_factor": float(rope["factor"])}
    if kind == "llama3":
        return {
            **fields,
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": float(rope["factor"]),
            "NTK_by_parts_low_freq_factor": float(rope["low_freq_factor"]),
            "NTK_by_parts_high_freq_factor": float(rope["high_freq_factor"]),
            "NTK_original_ctx_len": original,
        }
    if kind == "yarn" and rope.get("truncate", True):
        factor = float(rope.get("factor") or n_ctx / original)
        return {
            **fields,
            "use_yarn_rope": True,
            "yarn_factor": factor,
            "yarn_attention_factor": _yarn_attention(rope, factor),
            "yarn_beta_fast": float(rope.get("beta_fast") or 32),
            "yarn_beta_slow": float(rope.get("beta_slow") or 1),
            "yarn_original_max_position_embeddings": original,
        }
    if kind in ("longrope", "su"):
        return {
            **fields,
            "longrope_short_factors": [float(each) for each in rope["short_factor"]],
            "longrope_long_factors": [float(each) for each in rope["long_factor"]],
            "longrope_original_ctx_len": original,
            "longrope_attention_factor": _longrope_attention(rope, rope.get("factor") or n_ctx / original, original),
        }
    raise CheckpointError(
        f"rotary positions of type {kind!r} in config.json are not supported. Supported: default, linear, llama3, yarn "
        "(truncated), longrope."
    )


def _yarn_attention(rope: Mapping[str, Any], factor: float) -> float:
    def by(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return by(rope["mscale"]) / by(rope["mscale_all_dim"])
    return by(1.0)


def _longrope_attention(rope: Mapping[str, Any], factor: float, original: int) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def rope_entries(cfg: HookedTransformerConfig) -> dict[str, Any]:
    """Convert fields back to entries: the inverse of `rope_fields`."""
    assert cfg.rotary_dim is not None
    scaling: dict[str, Any] = {"rope_type": "default"}
    if cfg.longrope_short_factors is not None:
        scaling = {
            "rope_type": "longrope",
            "short_factor": cfg.longrope_short_factors,
            "long_factor": cfg.longrope_long_factors,
            "original_max_position_embeddings": cfg.longrope_original_ctx_len,
            "attention_factor": cfg.longrope_attention_factor,
        }
    elif cfg.use_NTK_by_parts_rope:
        scaling = {
            "rope_type": "llama3",
            "factor": cfg.NTK_by_parts_factor,
            "low_freq_factor": cfg.NTK_by_parts_low_freq_factor,
            "high_freq_factor": cfg.NTK_by_parts_high_freq_factor,
            "original_max_position_embeddings": cfg.NTK_original_ctx_len,
        }
    elif cfg.use_yarn_rope:
        scaling = {
            "rope_type": "yarn",
            "factor": cfg.yarn_factor,
            "attention_factor": cfg.yarn_attention_factor,
            "beta_fast": cfg.yarn_beta_fast,
            "beta_slow": cfg.yarn_beta_slow,
            "original_max_position_embeddings": cfg.yarn_original_max_position_embeddings,
        }
    elif cfg.rotary_scaling_factor != 1.0:
        scaling = {"rope_type": "linear", "factor": cfg.rotary_scaling_factor}
    part = cfg.rotary_dim / cfg.d_head
    base = float(cfg.rotary_base)
    return {
        "rope_parameters": {**scaling, "rope_theta": base, "partial_rotary_factor": part},  # transformers 5
        "rope_theta": base,
        "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
        "partial_rotary_factor": part,
    }


def window_fields(window: int | None, local: list[bool]) -> dict[str, Any]:
    """Convert entries on windows to fields of our config.

    Args:
        window: Number of keys a query of a local layer sees.
        local: True for each local layer.
    """
    if window is None or not any(local):
        return {}
    types = ["local" if each else "global" for each in local]
    return {"use_local_attn": True, "window_size": window, "attn_types": types}


def window_entries(cfg: HookedTransformerConfig) -> dict[str, Any]:
    """Return the entries on windows, for families that name each layer's type."""
    types = cfg.attn_types if cfg.use_local_attn and cfg.attn_types else ["global"] * cfg.n_layers
    kinds = {"global": "full_attention", "local": "sliding_attention"}
    return {
        "sliding_window": cfg.window_size if cfg.use_local_attn else None,
        "use_sliding_window": cfg.use_local_attn,
        "layer_types": [kinds[each] for each in types[: cfg.n_layers]],
    }
