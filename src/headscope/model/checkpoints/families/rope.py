"""Rotary positions and windows in `config.json`, in the layouts of transformers 4 and 5, in both directions."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from headscope.errors import CheckpointError
from headscope.model.config import HookedTransformerConfig

__all__ = [
    "rope_entries",
    "rope_entries_by_type",
    "rope_fields",
    "rope_fields_by_type",
    "window_entries",
    "window_fields",
]


# Every entry about rotary positions that a family reads; another could change the angles.
_ENTRIES = frozenset(
    "rope_type type rope_theta partial_rotary_factor factor original_max_position_embeddings attention_factor "
    "beta_fast beta_slow mscale mscale_all_dim truncate short_factor long_factor low_freq_factor "
    "high_freq_factor".split()
)


def rope_fields(
    hf: Mapping[str, Any],
    d_head: int,
    *,
    base: float = 10000.0,
    part: float | None = 1.0,
    rope: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Convert entries on rotary positions to fields of our config.

    Args:
        hf: The contents of a `config.json`.
        d_head: Width of a head.
        base: What the base is if no entry says.
        part: Share of a head's dimensions that is rotated if no entry says; `None` for a class that always rotates all.
        rope: The entry on them, if it is not `rope_scaling` or `rope_parameters`.

    Raises:
        CheckpointError: for a scaling that is not supported, or an unknown entry.
    """
    nested = rope is not None
    rope = rope if rope is not None else hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    unknown = rope.keys() - _ENTRIES
    if unknown:
        raise CheckpointError(
            f"config.json has {min(unknown)} among its entries on rotary positions, which this family does not read."
        )
    share = rope.get("partial_rotary_factor", hf.get("partial_rotary_factor"))
    if part is None and share not in (None, 1.0):
        raise CheckpointError(
            f"partial_rotary_factor = {share} in config.json is not supported: this family rotates all of a head."
        )
    fields = {
        "positional_embedding_type": "rotary",
        "rotary_dim": int(d_head * (share if share is not None else part or 1.0)),
        "rotary_base": rope.get("rope_theta", hf.get("rope_theta", base)),
    }
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _SCALINGS:
        raise CheckpointError(
            f"rotary positions of type {kind!r} in config.json are not supported. Supported: {', '.join(_SCALINGS)}.",
            code="HS-CHECKPOINT-06",
        )
    n_ctx: Any = hf.get("max_position_embeddings")
    # Where both are given, transformers takes the entry outside.
    outside = None if nested else hf.get("original_max_position_embeddings")
    original: Any = outside or rope.get("original_max_position_embeddings") or n_ctx
    return {**fields, **_SCALINGS[kind](rope, original, n_ctx)}


def rope_fields_by_type(hf: Mapping[str, Any], d_head: int, *, base: float, local_base: float) -> dict[str, Any]:
    """Convert entries on rotary positions by type of layer, where only those of global layers may be scaled.

    Args:
        hf: The contents of a `config.json`.
        d_head: Width of a head.
        base: What the base of global layers is if no entry says.
        local_base: That of local layers.

    Raises:
        CheckpointError: for scaled local layers, entries that are not by type, and as `rope_fields`.
    """
    by_type = hf.get("rope_parameters") or {}
    if unknown := by_type.keys() - {"full_attention", "sliding_attention"}:
        raise CheckpointError(
            f"rope_parameters in config.json has {min(unknown)!r}; this family has them by type of layer, "
            "'full_attention' and 'sliding_attention'."
        )
    scaling = hf.get("rope_scaling") or {}
    if "rope_type" not in scaling and scaling.get("type", "default") != "default":
        raise CheckpointError(
            f"rope_scaling in config.json has 'type': {scaling['type']!r}, which transformers 5 does not read in this "
            "family, and versions before do: write it as 'rope_type'.",
            code="HS-CHECKPOINT-06",
        )
    everywhere = {**(by_type.get("full_attention") or {}), **scaling}
    local = by_type.get("sliding_attention") or {}
    kind = local.get("rope_type", local.get("type", "default"))
    if kind != "default" or local.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError(f"scaled rotary positions of local layers in config.json are not supported: {local!r}.")
    fields = rope_fields(hf, d_head, base=base, part=None, rope=everywhere)
    return {**fields, "rotary_base_local": local.get("rope_theta", local_base)}


def rope_entries_by_type(cfg: HookedTransformerConfig) -> dict[str, Any]:
    """Convert fields back to entries: the inverse of `rope_fields_by_type`."""
    assert cfg.rotary_base_local is not None
    local = {"rope_type": "default", "rope_theta": float(cfg.rotary_base_local)}
    entries = rope_entries(cfg)
    return {
        **entries,
        "rope_parameters": {"full_attention": entries["rope_parameters"], "sliding_attention": local},
        "rope_scaling": None,
    }


def _number(rope: Mapping[str, Any], name: str) -> float:
    value = rope[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(
            f"{name} among the entries on rotary positions in config.json must be a number; got {value!r}."
        )
    return float(value)


def _linear(rope: Mapping[str, Any], original: int, n_ctx: int) -> dict[str, Any]:
    return {"rotary_scaling_factor": _number(rope, "factor")}


def _dynamic(rope: Mapping[str, Any], original: int, n_ctx: int) -> dict[str, Any]:
    # Made for texts longer than those in training, which the base grows for.
    factor = _number(rope, "factor")
    return {"dynamic_NTK_factor": factor, "NTK_original_ctx_len": n_ctx, "n_ctx": int(n_ctx * factor)}


def _llama3(rope: Mapping[str, Any], original: int, n_ctx: int) -> dict[str, Any]:
    return {
        "use_NTK_by_parts_rope": True,
        "NTK_by_parts_factor": _number(rope, "factor"),
        "NTK_by_parts_low_freq_factor": _number(rope, "low_freq_factor"),
        "NTK_by_parts_high_freq_factor": _number(rope, "high_freq_factor"),
        "NTK_original_ctx_len": original,
    }


def _yarn(rope: Mapping[str, Any], original: int, n_ctx: int) -> dict[str, Any]:
    factor = float(rope.get("factor") or n_ctx / original)
    return {
        "use_yarn_rope": True,
        "yarn_factor": factor,
        "yarn_attention_factor": _yarn_attention(rope, factor),
        "yarn_beta_fast": float(rope.get("beta_fast") or 32),
        "yarn_beta_slow": float(rope.get("beta_slow") or 1),
        "yarn_original_max_position_embeddings": original,
        "yarn_truncate": bool(rope.get("truncate", True)),
    }


def _longrope(rope: Mapping[str, Any], original: int, n_ctx: int) -> dict[str, Any]:
    return {
        "longrope_short_factors": [float(each) for each in rope["short_factor"]],
        "longrope_long_factors": [float(each) for each in rope["long_factor"]],
        "longrope_original_ctx_len": original,
        "longrope_attention_factor": _longrope_attention(rope, rope.get("factor") or n_ctx / original, original),
    }


# From the entries, the context in training and the context now to fields of our config.
_SCALINGS: dict[str, Callable[[Mapping[str, Any], int, int], dict[str, Any]]] = {
    "default": lambda rope, original, n_ctx: {},
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
}


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
    length: dict[str, int] = {}
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
            "truncate": cfg.yarn_truncate,
        }
    elif cfg.dynamic_NTK_factor is not None:
        scaling = {"rope_type": "dynamic", "factor": cfg.dynamic_NTK_factor}
        length = {"max_position_embeddings": cfg.NTK_original_ctx_len}
    elif cfg.rotary_scaling_factor != 1.0:
        scaling = {"rope_type": "linear", "factor": cfg.rotary_scaling_factor}
    part = cfg.rotary_dim / cfg.d_head
    base = float(cfg.rotary_base)
    return {
        "rope_parameters": {**scaling, "rope_theta": base, "partial_rotary_factor": part},  # transformers 5
        "rope_theta": base,
        "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
        "partial_rotary_factor": part,
        **length,
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
