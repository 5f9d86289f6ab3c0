"""Short names of activations, and the full names of their hook points."""

import re
from typing import Literal

__all__ = ["POST_NORMS", "Part", "get_act_name", "post_scale_name"]

Part = Literal["attn", "mlp"]
POST_NORMS: dict[Part, str] = {"attn": "ln1_post", "mlp": "ln2_post"}

_IN_ATTENTION = ("q", "k", "v", "z", "gate", "rot_q", "rot_k", "result", "pattern", "attn_scores")
_IN_MLP = ("pre", "post", "mid", "pre_linear", "expert_weights", "expert_indices")
_SYNONYMS = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "query": "q",
    "key": "k",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_mid": "mid",
    "mlp_post": "post",
}
_PARTS = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}
_COMPACT = re.compile(r"([a-z]+)(\d+)([a-z]?.*)")


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """Return the full hook name for a short one.

    Args:
        name: A short name (`"resid_pre"`, `"q"`, `"pattern"`, `"scale"`), a compact one with its layer in it
            (`"k6"`, `"scale4ln1"`), or a full name, which is returned as it is.
        layer: The layer; none for `embed`, `pos_embed` and the final norm.
        layer_type: The part of the layer, where the name leaves it open: `"attn"`, `"mlp"`, `"ln1"`, `"ln2"`.

    Example:
        >>> get_act_name("k", 6), get_act_name("resid_pre", 2), get_act_name("scale")
        ('blocks.6.attn.hook_k', 'blocks.2.hook_resid_pre', 'ln_final.hook_scale')
        >>> get_act_name("scale4ln1")
        'blocks.4.ln1.hook_scale'
    """
    if layer is None and layer_type is None:
        if "." in name or name.startswith("hook_"):
            return name
        compact = _COMPACT.fullmatch(name)
        if compact:
            name, layer, layer_type = compact.groups()
    name = _SYNONYMS.get(name, name)
    if name in _IN_ATTENTION:
        part = "attn"
    elif name in _IN_MLP:
        part = "mlp"
    else:
        part = _PARTS.get(layer_type or "", layer_type or "")
    if layer is None and name in ("scale", "normalized"):
        part = "ln_final"
    block = "" if layer is None else f"blocks.{layer}."
    return f"{block}{part}{'.' if part else ''}hook_{name}"


def post_scale_name(layer: int, of: Part = "attn") -> str:
    """Return the hook point that shows what the post-norm of a layer's attention or MLP divides by, if there is one."""
    return f"blocks.{layer}.{POST_NORMS[of]}.hook_scale"
