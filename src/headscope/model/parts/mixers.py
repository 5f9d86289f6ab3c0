"""Mixers: parts of a layer that carry a state from token to token, where attention would look back.

Gated short convolutions (LFM 2), Mamba (Jamba), Mamba 2 (Bamba, Granite 4, Falcon-H1, Nemotron-H), gated delta nets
(Qwen3-Next, Qwen 3.5) and real-gated linear recurrent units (RecurrentGemma). A mixer has no heads that could be told
apart on the residual stream: it is one component, and `hook_mixer_out` shows what it adds. Its arithmetic is that of
the module in `transformers`, made from the checkpoint's own entries, without a cache and in plain PyTorch where the
kernels of other packages are not installed; its tensors have their names there, under `blocks.{l}.mixer`.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope.errors import InvalidInputError, MissingDependencyError
from headscope.model.config import HookedTransformerConfig

__all__ = ["MIXERS", "make_mixer", "mixer_entries", "mixer_inputs", "mixer_output", "mixer_tensors"]


def _masked(module: nn.Module, x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Run a mixer that takes padding out of its state by itself."""
    return module(x, attention_mask=attention_mask)


def _reset_at_first(module: nn.Module, x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Run a mixer whose state begins at position 0 of each row, and whose projections have biases that leak padding."""
    if attention_mask is not None and bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
        raise InvalidInputError(
            "a real-gated linear recurrent unit (RecurrentGemma) cannot keep padding in front of a text out of its "
            "state: pad on the right, padding_side='right'."
        )
    positions = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
    out: Tensor = module(x, positions, None, use_cache=False)[0]
    lru: Any = module.get_submodule("rg_lru")
    lru.recurrent_states = None  # what it keeps for a token after these would keep the graph of this pass alive
    return out


def _scaled_by_section(module: nn.Module, config: Any, theirs: Any) -> None:
    """Give a mixer of Falcon-H1 its multipliers, which there the whole model does."""
    module.register_buffer("mup_vector", theirs.compute_mup_vector(config), persistent=False)


@dataclass(frozen=True)
class MixerKind:
    """One class of `transformers`.

    Attributes:
        name: The class, in the module `modeling_...` of its model type.
        entries: The entries of the config that it reads, besides the sizes of the model.
        one_layer: What the config of a model of one layer, which has a mixer, says of its layers.
        inputs: The matrices that read the normalized stream.
        run: How it is called.
        finish: What is done to a new one, with its config and the module of `transformers`.
    """

    name: str
    entries: tuple[str, ...]
    one_layer: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ("in_proj",)
    run: Callable[[nn.Module, Tensor, Tensor | None], Tensor] = _masked
    finish: Callable[[nn.Module, Any, Any], None] | None = None


_MAMBA = (
    "mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv", "mamba_expand",
    "mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias", "time_step_limit", "hidden_act", "rms_norm_eps",
)  # fmt: skip

_DELTA_NET = (
    "linear_num_value_heads", "linear_num_key_heads", "linear_key_head_dim", "linear_value_head_dim",
    "linear_conv_kernel_dim", "hidden_act", "rms_norm_eps",
)  # fmt: skip
_DELTA_NET_INPUTS = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
_LINEAR = {"layer_types": ["linear_attention"]}
MIXERS: dict[str, MixerKind] = {
    "bamba": MixerKind("BambaMixer", _MAMBA),
    "falcon_h1": MixerKind(
        "FalconH1Mixer",
        (
            *_MAMBA,
            "mamba_d_ssm",
            "mamba_rms_norm",
            "mamba_norm_before_gate",
            "projectors_bias",
            "ssm_in_multiplier",
            "ssm_multipliers",
        ),
        finish=_scaled_by_section,
    ),
    "granitemoehybrid": MixerKind("GraniteMoeHybridMambaLayer", _MAMBA),
    "nemotron_h": MixerKind(
        "NemotronHMamba2Mixer",
        (
            "mamba_num_heads",
            "mamba_head_dim",
            "mamba_hidden_act",
            "n_groups",
            "ssm_state_size",
            "conv_kernel",
            "chunk_size",
            "time_step_min",
            "use_conv_bias",
            "use_bias",
            "layer_norm_epsilon",
        ),
        {"layers_block_type": ["linear_attention"]},
    ),
    "qwen3_5_text": MixerKind("Qwen3_5GatedDeltaNet", _DELTA_NET, _LINEAR, _DELTA_NET_INPUTS),
    "qwen3_5_moe_text": MixerKind("Qwen3_5MoeGatedDeltaNet", _DELTA_NET, _LINEAR, _DELTA_NET_INPUTS),
    "qwen3_next": MixerKind("Qwen3NextGatedDeltaNet", _DELTA_NET, _LINEAR, ("in_proj_qkvz", "in_proj_ba")),
    "recurrent_gemma": MixerKind(
        "RecurrentGemmaRecurrentBlock",
        ("lru_width", "conv1d_width", "hidden_activation"),
        {"block_types": ["recurrent"]},
        ("linear_x", "linear_y"),
        _reset_at_first,
    ),
    "jamba": MixerKind(
        "JambaMambaMixer",
        (
            "mamba_d_state",
            "mamba_d_conv",
            "mamba_expand",
            "mamba_dt_rank",
            "mamba_conv_bias",
            "mamba_proj_bias",
            "hidden_act",
            "rms_norm_eps",
        ),
        {"attn_layer_period": 2, "attn_layer_offset": 1},
    ),
    "lfm2": MixerKind("Lfm2ShortConv", ("conv_L_cache", "conv_bias"), {"layer_types": ["conv"]}),
}


def make_mixer(cfg: HookedTransformerConfig) -> nn.Module:
    """Return a mixer, its weights not set. Without a cache, it is the same for all layers that have one.

    Raises:
        InvalidInputError: If `cfg.mixer` is of a kind that is not known, or its sizes do not fit.
        MissingDependencyError: Without `transformers`.
    """
    kind = _kind(cfg)
    theirs, config = _modeling(cfg), _their_config(cfg)
    # On no device: their constructors would draw from the global generator.
    with torch.device("meta"):
        module: nn.Module = getattr(theirs, kind.name)(config, 0)
    module.to_empty(device=torch.get_default_device())
    if kind.finish is not None:
        kind.finish(module, config, theirs)
    return module.to(cfg.dtype)


def mixer_output(
    cfg: HookedTransformerConfig,
    module: nn.Module,
    normalized: Float[Tensor, "batch pos d_model"],
    attention_mask: Tensor | None,
) -> Float[Tensor, "batch pos d_model"]:
    """Return what a mixer makes of the normalized stream.

    Args:
        cfg: The model's config.
        module: The mixer, or what was put in its place.
        normalized: What it reads.
        attention_mask: `[batch, pos]`, true for real tokens; no padded token gets into its state.

    Raises:
        InvalidInputError: If it cannot keep padding out.
    """
    return _kind(cfg).run(module, normalized, attention_mask)


def mixer_inputs(cfg: HookedTransformerConfig) -> tuple[str, ...]:
    """Return the names of the matrices (outputs first) in a mixer that read the normalized stream."""
    return tuple(f"{name}.weight" for name in _kind(cfg).inputs)


def mixer_tensors(cfg: HookedTransformerConfig) -> tuple[str, ...]:
    """Return the names of a mixer's tensors."""
    return tuple(make_mixer(cfg).state_dict()) if cfg.layers_with("mixer") else ()


def mixer_entries(model_type: str, hf: Mapping[str, Any]) -> dict[str, Any]:
    """Return `cfg.mixer`: of a complete `config.json`, the entries that its mixers read."""
    return {"model_type": model_type, **{name: hf[name] for name in MIXERS[model_type].entries}}


def _kind(cfg: HookedTransformerConfig) -> MixerKind:
    model_type = (cfg.mixer or {}).get("model_type")
    if model_type not in MIXERS:
        raise InvalidInputError(
            f"cfg.mixer has model_type {model_type!r}; mixers are known of {', '.join(sorted(MIXERS))}."
        )
    return MIXERS[model_type]


def _their_config(cfg: HookedTransformerConfig) -> Any:
    """Return a config of `transformers` for one layer of the model."""
    from transformers import AutoConfig

    sizes = {
        "hidden_size": cfg.d_model,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_key_value_heads or cfg.n_heads,
        "num_hidden_layers": 1,
    }
    assert cfg.mixer is not None
    return AutoConfig.for_model(**{**sizes, **_kind(cfg).one_layer, **cfg.mixer})


def _modeling(cfg: HookedTransformerConfig) -> Any:
    assert cfg.mixer is not None
    model_type = cfg.mixer["model_type"].removesuffix("_text")
    try:
        return importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    except ImportError as error:
        raise MissingDependencyError(
            f"mixers of {model_type} are those of a version of transformers that has them: {error}. "
            "Update it: pip install -U transformers.",
            code="HS-DEPENDENCY-02",
        ) from None
