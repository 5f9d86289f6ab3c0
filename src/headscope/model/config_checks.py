"""Validation of `HookedTransformerConfig`: its choices, the checks of its fields, and those that follow from others."""

import math
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch

from headscope.errors import InvalidInputError

if TYPE_CHECKING:
    from headscope.model.config import HookedTransformerConfig

__all__ = ["ACTIVATIONS", "NORMALIZATIONS", "POSITIONS", "check_and_complete", "keep_first_layers", "parse_dtype"]

NORMALIZATIONS = (None, "LN", "LNPre", "RMS", "RMSPre")
POSITIONS = ("standard", "rotary", "alibi", "shortformer", "none")
ACTIVATIONS = (
    "relu", "relu2", "leaky_relu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "silu", "solu",
    "solu_ln", "xielu",
)  # fmt: skip
ROUTERS = ("softmax", "sigmoid", "sparsemixer")
PARTS = ("attn", "mixer", "mlp")
INIT_MODES = ("gpt2", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "muP")

# Fields of TransformerLens's config that are not supported yet: only these values are accepted.
_NOT_YET: dict[str, Any] = {
    "relative_attention_max_distance": None,
    "relative_attention_num_buckets": None,
    "load_in_4bit": False,
    "trust_remote_code": False,
    "quantization_method": None,
    "use_attention_sinks": False,  # `use_attn_sinks` here
    "use_dynamic_ntk_rope": False,  # the first Qwen's, as is the next; both read `train_seq_length`
    "use_logn_attn": False,
    "yarn_global_attn_only": False,
}
# Fields about rotating queries and keys, with the values that ask for nothing.
_ONLY_ROTARY: dict[str, Any] = {
    "rotary_layers": None, "qk_norm_after_rotation": False, "dynamic_NTK_factor": None, "attn_temperature_slope": 0.0,
    "attn_temperature_layers": None, "attn_temperature_start": 0, "rotary_pairs": None, "rotary_dim_local": None,
}  # fmt: skip
# The same for experts.
_ONLY_EXPERTS: dict[str, Any] = {
    "experts_per_token": None, "mlp_types": None, "d_mlp_dense": None, "d_mlp_shared": None,
    "gate_shared_expert": False, "router": "softmax", "sparsemixer_margin": 0.02, "norm_topk_prob": False,
    "expert_weight_scale": 1.0, "expert_groups": None, "expert_groups_per_token": None, "scale_expert_inputs": False,
    "expert_output_biases": False, "norm_expert_outputs": False,
}  # fmt: skip


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Turn `"float32"`, `"torch.float32"` or a dtype into a floating-point dtype.

    Raises:
        InvalidInputError: if it names no floating-point dtype.

    Example:
        >>> parse_dtype("bfloat16")
        torch.bfloat16
    """
    parsed = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(parsed, torch.dtype) or not parsed.is_floating_point:
        raise InvalidInputError(
            f"dtype must be a floating-point torch dtype or its name, such as 'float32' or 'bfloat16'; got {dtype!r}.",
            code="HS-CONFIG-04",
        )
    return parsed


def check_and_complete(cfg: "HookedTransformerConfig") -> None:
    """Check a config's fields, and fill in those that follow from others.

    Raises:
        InvalidInputError: For sizes that are not positive, an unknown choice, or fields that exclude each other.
    """
    if cfg.n_heads == -1:
        cfg.n_heads = cfg.d_model // cfg.d_head if cfg.d_head else 0
    for name in ("n_layers", "d_model", "n_ctx", "d_head", "n_heads"):
        if getattr(cfg, name) < 1:
            raise InvalidInputError(f"{name} must be at least 1; got {getattr(cfg, name)}.")
    _check_choices(cfg)
    _check_widths(cfg)
    _check_positions(cfg)
    _check_qk_norm(cfg)
    _check_windows(cfg)
    _check_groups(cfg)
    _check_latents(cfg)
    _check_parts(cfg)
    if not cfg.attn_only:
        _check_mlp(cfg)
    if cfg.num_experts is None or cfg.attn_only:
        _check_no_experts(cfg)
    if cfg.d_vocab_out == -1:
        cfg.d_vocab_out = cfg.d_vocab
    if cfg.attn_scale == -1.0:
        cfg.attn_scale = math.sqrt(cfg.d_head)
    if cfg.attn_scores_soft_cap <= 0:
        cfg.attn_scores_soft_cap = -1.0  # other ways to say none
    if cfg.initializer_range < 0:
        cfg.initializer_range = 0.8 / math.sqrt(cfg.d_model) if cfg.init_mode == "gpt2" else 1.0
    cfg.dtype = parse_dtype(cfg.dtype)
    if cfg.device is None:
        cfg.device = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.uses_rms_norm = cfg.normalization_type in ("RMS", "RMSPre")
    cfg.n_params = _n_params(cfg)


def keep_first_layers(cfg: "HookedTransformerConfig", n_layers: int) -> None:
    """Leave out later layers, and fit the widths that are the largest of any layer."""
    cfg.n_layers = n_layers
    _check_widths(cfg)
    _check_positions(cfg)


def _check_choices(cfg: "HookedTransformerConfig") -> None:
    _check_choice(cfg, "normalization_type", NORMALIZATIONS)
    _check_choice(cfg, "positional_embedding_type", POSITIONS)
    _check_choice(cfg, "attention_dir", ("causal", "bidirectional"))
    _check_choice(cfg, "init_mode", INIT_MODES)
    for name, only in _NOT_YET.items():
        if getattr(cfg, name) != only:
            raise InvalidInputError(
                f"{name} = {getattr(cfg, name)!r} is not supported yet: it can only be {only!r}.", code="HS-CONFIG-01"
            )
    if cfg.use_normalization_before_and_after and cfg.use_normalization_after_only:
        raise InvalidInputError(
            "use_normalization_before_and_after and use_normalization_after_only cannot both be set."
        )


def _check_choice(cfg: "HookedTransformerConfig", field: str, allowed: tuple[str | None, ...]) -> None:
    value = getattr(cfg, field)
    if value not in allowed:
        raise InvalidInputError(
            f"{field} must be one of {', '.join(repr(a) for a in allowed)}; got {value!r}. "
            "Other choices of TransformerLens are not supported yet.",
            code="HS-CONFIG-01",
        )


def _check_widths(cfg: "HookedTransformerConfig") -> None:
    for name, total in (("d_head_layers", "d_head"), ("n_key_value_heads_layers", "n_key_value_heads")):
        by_layer = getattr(cfg, name)
        if by_layer is None:
            continue
        if len(by_layer) < cfg.n_layers or min(by_layer) < 1:
            raise InvalidInputError(
                f"{name} must have a positive number for each of {cfg.n_layers} layers; got {by_layer!r}."
            )
        setattr(cfg, total, max(by_layer[: cfg.n_layers]))
    if cfg.resid_scales is not None and (len(cfg.resid_scales) <= cfg.n_layers or min(cfg.resid_scales) <= 0):
        raise InvalidInputError(
            f"resid_scales must have a positive number for each of {cfg.n_layers} layers, and one for the final "
            f"stream; got {cfg.resid_scales!r}."
        )


def _check_positions(cfg: "HookedTransformerConfig") -> None:
    if cfg.alibi_bfloat16 and cfg.positional_embedding_type != "alibi":
        raise InvalidInputError("alibi_bfloat16 = True needs positional_embedding_type = 'alibi'.")
    if cfg.positional_embedding_type != "rotary":
        for name, neutral in _ONLY_ROTARY.items():
            if getattr(cfg, name) != neutral:
                raise InvalidInputError(f"{name} = {getattr(cfg, name)!r} needs positional_embedding_type = 'rotary'.")
        return
    for name in ("rotary_layers", "attn_temperature_layers"):
        _check_layers(cfg, name)
    if cfg.attn_temperature_layers is not None and not cfg.attn_temperature_slope:
        raise InvalidInputError(
            f"attn_temperature_layers = {cfg.attn_temperature_layers!r} needs an attn_temperature_slope."
        )
    if cfg.attn_temperature_length < 1:
        raise InvalidInputError(f"attn_temperature_length must be at least 1; got {cfg.attn_temperature_length}.")
    if cfg.attn_temperature_start < 0:
        raise InvalidInputError(f"attn_temperature_start must not be negative; got {cfg.attn_temperature_start}.")
    local = cfg.use_local_attn and set((cfg.attn_types or ["global"])[: cfg.n_layers]) == {"local"}
    if cfg.d_head_layers is not None and cfg.rotary_dim_local is not None and local:
        # The first layers of a model whose wider, global ones are left out.
        cfg.rotary_dim = min(cfg.rotary_dim or cfg.d_head, cfg.d_head)
        cfg.rotary_pairs = cfg.rotary_pairs and min(cfg.rotary_pairs, cfg.rotary_dim // 2)
    if cfg.rotary_dim is None:
        cfg.rotary_dim = cfg.d_head
    if not 0 < cfg.rotary_dim <= cfg.d_head or cfg.rotary_dim % 2:
        raise InvalidInputError(f"rotary_dim must be even and at most d_head = {cfg.d_head}; got {cfg.rotary_dim}.")
    _check_local_positions(cfg)
    n_pairs = cfg.rotary_dim // 2
    for name in ("longrope_short_factors", "longrope_long_factors"):
        factors = getattr(cfg, name)
        if (factors is None) != (cfg.longrope_short_factors is None) or (
            factors is not None and len(factors) != n_pairs
        ):
            raise InvalidInputError(
                f"{name} must have rotary_dim / 2 = {n_pairs} numbers, and the other as well; got {factors!r}."
            )


def _check_local_positions(cfg: "HookedTransformerConfig") -> None:
    if cfg.rotary_dim_local is not None and cfg.rotary_base_local is None:
        raise InvalidInputError(f"rotary_dim_local = {cfg.rotary_dim_local} needs rotary_base_local.")
    if cfg.rotary_dim_local is not None and (cfg.rotary_dim_local < 1 or cfg.rotary_dim_local % 2):
        raise InvalidInputError(f"rotary_dim_local must be even and positive; got {cfg.rotary_dim_local}.")
    for layer in range(cfg.n_layers if cfg.d_head_layers or cfg.rotary_dim_local else 0):
        local = cfg.use_local_attn and (cfg.attn_types or [])[layer : layer + 1] == ["local"]
        turned = cfg.rotary_dim_local if local and cfg.rotary_dim_local else cfg.rotary_dim
        if (turned or 0) > cfg.head_width_of(layer):
            raise InvalidInputError(
                f"layer {layer} has heads {cfg.head_width_of(layer)} wide, of which {turned} dimensions cannot be "
                "rotated: rotary_dim, and rotary_dim_local for local layers, must be no more than the widths of heads."
            )
    if cfg.rotary_pairs is not None and not 0 <= cfg.rotary_pairs <= (cfg.rotary_dim or 0) // 2:
        raise InvalidInputError(
            f"rotary_pairs must be at most rotary_dim / 2 = {(cfg.rotary_dim or 0) // 2}; got {cfg.rotary_pairs}."
        )


def _check_layers(cfg: "HookedTransformerConfig", name: str) -> None:
    layers = getattr(cfg, name)
    if layers is not None and len(layers) < cfg.n_layers:
        raise InvalidInputError(f"{name} must have True or False for each of {cfg.n_layers} layers; got {layers!r}.")


def _check_qk_norm(cfg: "HookedTransformerConfig") -> None:
    _check_layers(cfg, "qk_norm_layers")
    if cfg.qk_norm_layers is not None and not cfg.use_qk_norm:
        raise InvalidInputError(f"qk_norm_layers = {cfg.qk_norm_layers!r} needs use_qk_norm = True.")
    if cfg.qk_norm_after_rotation and not cfg.use_qk_norm:
        raise InvalidInputError("qk_norm_after_rotation = True needs use_qk_norm = True.")
    _check_choice(cfg, "qk_norm_type", ("RMS", "LN"))
    if cfg.qk_norm_per_head and cfg.qk_norm_all_heads:
        raise InvalidInputError("qk_norm_per_head and qk_norm_all_heads cannot both be set.")


def _check_windows(cfg: "HookedTransformerConfig") -> None:
    if not cfg.use_local_attn:
        if cfg.attn_in_chunks:
            raise InvalidInputError("attn_in_chunks = True needs use_local_attn = True.")
        return
    if cfg.attn_in_chunks and cfg.attention_dir != "causal":
        raise InvalidInputError(f"attn_in_chunks = True needs attention_dir = 'causal'; got {cfg.attention_dir!r}.")
    if cfg.window_size is None or cfg.window_size < 1:
        raise InvalidInputError(f"use_local_attn needs a window_size of at least 1; got {cfg.window_size}.")
    types = cfg.attn_types
    if types is None or len(types) < cfg.n_layers or not set(types) <= {"global", "local"}:
        raise InvalidInputError(
            f"use_local_attn needs attn_types, 'global' or 'local' for each of {cfg.n_layers} layers; got {types!r}."
        )


def _check_groups(cfg: "HookedTransformerConfig") -> None:
    groups = cfg.n_heads if cfg.n_key_value_heads is None else cfg.n_key_value_heads
    wrong = [each for each in (groups, *(cfg.n_key_value_heads_layers or ())) if each < 1 or cfg.n_heads % each]
    if wrong:
        raise InvalidInputError(f"n_key_value_heads must divide n_heads = {cfg.n_heads}; got {wrong[0]}.")


def _check_parts(cfg: "HookedTransformerConfig") -> None:
    if cfg.layer_parts is None:
        if cfg.mixer is not None:
            raise InvalidInputError("mixer needs layer_parts, which say what layers have one.")
        return
    allowed = {"+".join(some) for n in (1, 2, 3) for some in combinations(PARTS, n)}
    wrong = [parts for parts in cfg.layer_parts if parts not in allowed]
    if len(cfg.layer_parts) < cfg.n_layers or wrong:
        raise InvalidInputError(
            f"layer_parts must name the parts of each of {cfg.n_layers} layers, some of {', '.join(PARTS)} in this "
            f"order, such as 'mixer+mlp'; got {wrong[0] if wrong else cfg.layer_parts!r}."
        )
    if cfg.parallel_attn_mlp or cfg.has_post_norms:
        raise InvalidInputError(
            "layer_parts are for blocks whose MLP comes behind the rest, without post-norms: parallel_attn_mlp and "
            "use_normalization_... must be False."
        )
    if cfg.attn_only and cfg.layers_with("mlp"):
        raise InvalidInputError(f"attn_only = True, but layer_parts has MLPs in layers {cfg.layers_with('mlp')}.")
    if cfg.layers_with("mixer") and not isinstance((cfg.mixer or {}).get("model_type"), str):
        raise InvalidInputError(
            "layers with a mixer need cfg.mixer, a dictionary with 'model_type' and the sizes of the mixers; "
            f"got {cfg.mixer!r}."
        )
    cfg.attn_only = not cfg.layers_with("mlp")


def _check_latents(cfg: "HookedTransformerConfig") -> None:
    if cfg.d_latent_kv is None:
        for name in ("d_latent_q", "d_head_v"):
            if getattr(cfg, name) is not None:
                raise InvalidInputError(f"{name} = {getattr(cfg, name)} needs d_latent_kv.")
        return
    for name in ("d_latent_kv", "d_latent_q", "d_head_v"):
        if getattr(cfg, name) is not None and getattr(cfg, name) < 1:
            raise InvalidInputError(f"{name} must be at least 1; got {getattr(cfg, name)}.")
    if cfg.positional_embedding_type != "rotary" or not (cfg.rotary_dim or 0) < cfg.d_head:
        raise InvalidInputError(
            f"d_latent_kv needs rotary positions on a part of each head: rotary_dim below d_head = {cfg.d_head}; got "
            f"positional_embedding_type = {cfg.positional_embedding_type!r} and rotary_dim = {cfg.rotary_dim}."
        )
    only = {"n_key_value_heads": None, "d_head_layers": None, "use_qk_norm": False, "use_v_norm": False}
    for name, needed in {**only, "gated_attn": False}.items():
        if getattr(cfg, name) != needed:
            raise InvalidInputError(f"with d_latent_kv, {name} must be {needed}; got {getattr(cfg, name)!r}.")


def _check_mlp(cfg: "HookedTransformerConfig") -> None:
    if cfg.act_fn is None:
        raise InvalidInputError(
            f"act_fn is needed for a model with MLPs: one of {', '.join(ACTIVATIONS)}; or set attn_only=True.",
            code="HS-CONFIG-03",
        )
    _check_choice(cfg, "act_fn", ACTIVATIONS)
    if cfg.gated_mlp and cfg.act_fn == "solu_ln":
        raise InvalidInputError("act_fn = 'solu_ln' has no gated form: set gated_mlp = False.")
    if cfg.d_mlp is None:
        cfg.d_mlp = 4 * cfg.d_model
    if (cfg.gated_mlp_limit is not None or cfg.gated_mlp_offset) and not cfg.gated_mlp:
        raise InvalidInputError("gated_mlp_limit and gated_mlp_offset need gated_mlp = True.")
    if cfg.gated_mlp_limit is not None and cfg.gated_mlp_limit <= 0:
        raise InvalidInputError(f"gated_mlp_limit must be positive; got {cfg.gated_mlp_limit}.")
    if cfg.num_experts is not None:
        _check_experts(cfg)


def _check_no_experts(cfg: "HookedTransformerConfig") -> None:
    needs = "layers with an MLP" if cfg.attn_only else "num_experts"
    for name, neutral in _ONLY_EXPERTS.items():
        if getattr(cfg, name) != neutral:
            raise InvalidInputError(f"{name} = {getattr(cfg, name)!r} needs {needs}.")


def _check_experts(cfg: "HookedTransformerConfig") -> None:
    experts, chosen = cfg.num_experts or 0, cfg.experts_per_token or 0
    if not 1 <= chosen <= experts:
        raise InvalidInputError(
            f"experts_per_token must be between 1 and num_experts = {experts}; got {cfg.experts_per_token!r}."
        )
    if cfg.is_layer_norm_activation():
        raise InvalidInputError(f"act_fn = {cfg.act_fn!r} has no form with experts: set num_experts = None.")
    types = cfg.mlp_types
    if types is not None and (len(types) < cfg.n_layers or not set(types) <= {"experts", "dense"}):
        raise InvalidInputError(
            f"mlp_types must be 'experts' or 'dense' for each of {cfg.n_layers} layers; got {types!r}."
        )
    _check_choice(cfg, "router", ROUTERS)
    if cfg.router == "sparsemixer" and chosen != 2:
        raise InvalidInputError(f"router = 'sparsemixer' chooses two experts; got experts_per_token = {chosen}.")
    if cfg.gate_shared_expert and cfg.d_mlp_shared is None:
        raise InvalidInputError("gate_shared_expert needs d_mlp_shared.")
    if cfg.norm_expert_outputs and cfg.d_mlp_shared is None:
        raise InvalidInputError("norm_expert_outputs needs d_mlp_shared.")
    groups, used = cfg.expert_groups, cfg.expert_groups_per_token
    if groups is None and used is None:
        return
    if not groups or not used or not 1 <= used <= groups or experts % groups or chosen > used * (experts // groups):
        raise InvalidInputError(
            f"expert_groups must divide num_experts = {experts}, and expert_groups_per_token of them must hold "
            f"experts_per_token = {chosen}; got {groups} and {used}."
        )
    if cfg.router == "sigmoid" and experts // groups < 2:
        raise InvalidInputError(f"with router = 'sigmoid' a group needs two experts or more; got {groups} groups.")


def _n_params(cfg: "HookedTransformerConfig") -> int:
    """Return the number of weights in attention and MLPs."""

    def mlp(width: int | None) -> int:
        return (2 + cfg.gated_mlp) * cfg.d_model * (width or 0)

    total = sum(_n_attention_params(cfg, layer) for layer in cfg.layers_with("attn"))
    for layer in cfg.layers_with("mlp"):
        if not cfg.has_experts(layer):
            total += mlp(cfg.d_mlp_dense or cfg.d_mlp)
            continue
        total += (cfg.num_experts or 0) * (mlp(cfg.d_mlp) + cfg.d_model)
        total += mlp(cfg.d_mlp_shared) + cfg.d_model * cfg.gate_shared_expert
    return total


def _n_attention_params(cfg: "HookedTransformerConfig", layer: int) -> int:
    heads, d_head, latent = cfg.n_heads, cfg.head_width_of(layer), cfg.d_latent_kv
    if latent is None:
        gates = heads if cfg.gated_attn else 0
        return cfg.d_model * d_head * (2 * heads + 2 * cfg.groups_of(layer) + gates)
    turned = cfg.rotary_dim or 0
    queries = (cfg.d_latent_q or cfg.d_model) * heads * d_head + (cfg.d_latent_q or 0) * cfg.d_model
    down, up = cfg.d_model * (latent + turned), latent * heads * (d_head - turned + cfg.value_width)
    return queries + down + up + heads * cfg.value_width * cfg.d_model
