"""Gemma 4 (text): heads of two widths, values behind a norm, and layers that multiply the whole stream by a number.

Global layers have wider heads than local ones, other key-value heads, and in some models values that are their keys
before the norms (`W_V` is a copy of `W_K` then). Each layer multiplies the stream, what came before it and what it
adds, by a number. Here the stream is a sum all the same: the numbers of the layer and of those behind it are in the
weights that write to the stream, so that the final stream is that of `transformers`, and norms on earlier ones take an
`eps` that fits their scale (`cfg.resid_scales`). So nothing a model computes changes, up to rounding.

In models with experts, the MLP and the experts read the stream through norms that differ in their weights, which are
folded into what reads them, as are the factors of the router.
"""

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.entries import changed
from headscope.model.checkpoints.families.base import KEY, KEY_BIAS, LINEAR, Row, Table, own_name, sizes
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.checkpoints.families.moe import gated_rows
from headscope.model.checkpoints.families.rope import rope_entries_by_type, rope_fields_by_type
from headscope.model.config import HookedTransformerConfig

__all__ = ["GEMMA4", "GEMMA4_UNIFIED"]

_GLOBAL_WIDTH = 512
_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
# Entries that count for nothing where others, which are read, are not set.
_OF_OTHER_ENTRIES = (
    "use_double_wide_mlp", "vocab_size_per_layer_input", "num_experts", "top_k_experts", "moe_intermediate_size",
)  # fmt: skip
_NUMBER = "layer_scalar"
# Vectors of a layer with experts that are folded into matrices, by the matrix.
_FOLDED = {
    "mlp.gate_proj.weight": "pre_feedforward_layernorm.weight",
    "mlp.up_proj.weight": "pre_feedforward_layernorm.weight",
    "router.proj.weight": "router.scale",
    "experts.gate_up_proj": "pre_feedforward_layernorm_2.weight",
    "experts.down_proj": "router.per_expert_scale",
}


class _Gemma4(LlamaLike):
    model_type = "gemma4_text"
    architecture = "Gemma4ForCausalLM"
    examples: ClassVar[tuple[str, ...]] = ("google/gemma-4-31B", "google/gemma-4-26B-A4B-it")
    ignore = (*LlamaLike.ignore, f".{_NUMBER}")
    names = {**LlamaLike.names, "act_fn": "hidden_activation"}
    defaults = {**LlamaLike.defaults, "act_fn": "gelu_pytorch_tanh", "tie_word_embeddings": True, "d_head": 256}
    default_window = 512
    local_period = 6
    default_width_by_layer: ClassVar[int] = 256
    fixed: ClassVar[Mapping[str, Any]] = {
        **LlamaLike.fixed, "use_normalization_before_and_after": True, "use_qk_norm": True, "use_v_norm": True,
        "attn_scale": 1.0,
    }  # fmt: skip

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        cap = hf.get("final_logit_softcapping")
        cap = _number(cap, "final_logit_softcapping", "a positive number", least=0.0) if cap else -1.0
        if hf.get("use_bidirectional_attention") == "all":
            raise CheckpointError("use_bidirectional_attention = 'all' in config.json is not supported.")
        by_layer = hf.get("hidden_size_per_layer_input", self.default_width_by_layer)
        for entry, value, reason in (
            ("num_kv_shared_layers", hf.get("num_kv_shared_layers"), "layers take keys and values from earlier ones"),
            ("hidden_size_per_layer_input", by_layer, "each layer adds an embedding of its own"),
        ):
            if value:
                raise CheckpointError(f"{entry} = {value} in config.json is not supported: {reason}.")
        _ = [hf.get(name) for name in _OF_OTHER_ENTRIES]
        fields = super().config(hf)
        local = self.local_layers(hf)
        groups = _by_layer(hf, "num_key_value_heads", fields["n_key_value_heads"] or fields["n_heads"], local)
        widths = _by_layer(hf, "head_dim", fields["d_head"], local)
        alike = set(groups) == {fields["n_heads"]}
        return {
            **fields,
            "n_key_value_heads": None if alike else max(groups),
            "n_key_value_heads_layers": groups if len(set(groups)) > 1 else None,
            "d_head": max(widths),
            "d_head_layers": widths if len(set(widths)) > 1 else None,
            **self._experts(hf, fields["d_mlp"]),
            "output_logits_soft_cap": cap,
        }

    def local_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        return [*super().local_layers(hf)[:-1], False]  # the last is global, whatever the entry says

    def rope(self, hf: Mapping[str, Any], d_head: int) -> dict[str, Any]:
        local = self.local_layers(hf)
        widths = _by_layer(hf, "head_dim", d_head, local)
        of_local = {width for width, each in zip(widths, local, strict=True) if each}
        of_global = {width for width, each in zip(widths, local, strict=True) if not each}
        if len(of_global) > 1 or len(of_local) > 1:
            raise CheckpointError(
                f"per_layer_config in config.json has layers with heads of widths {widths}; supported are one width "
                "for local layers and one for global ones."
            )
        by_type = _mapping(hf.get("rope_parameters") or _ROPE, "rope_parameters")
        of_types = {kind: _mapping(each or {}, f"rope_parameters[{kind!r}]") for kind, each in by_type.items()}
        width, scaled, pairs = of_global.pop(), of_types.get("full_attention", {}), None
        if scaled.get("rope_type") == "proportional":
            part = _number(
                scaled.pop("partial_rotary_factor", 1.0), "partial_rotary_factor", "from 0 to 1", least=0.0, most=1.0
            )
            pairs = int(part * width // 2)
            scaled |= {"rope_type": "linear", "factor": _number(scaled.get("factor", 1.0), "factor", "a number")}
        entries = changed(hf, rope_parameters={**of_types, "full_attention": scaled})
        fields = rope_fields_by_type(entries, width, base=1_000_000.0, local_base=10_000.0)
        return {**fields, "rotary_pairs": pairs, "rotary_dim_local": of_local.pop() if of_local else None}

    def _experts(self, hf: Mapping[str, Any], d_mlp: int) -> dict[str, Any]:
        if not hf.get("enable_moe_block"):
            return {}
        n_experts, chosen, width = sizes(hf, "num_experts", "top_k_experts", "moe_intermediate_size")
        return {
            "num_experts": n_experts,
            "experts_per_token": chosen,
            "norm_topk_prob": True,
            "d_mlp": width,
            "d_mlp_shared": d_mlp,
            "norm_expert_outputs": True,
        }

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        local = [each == "local" for each in cfg.attn_types or ["global"] * cfg.n_layers]
        width, groups = cfg.head_width_of(0), cfg.groups_of(0)
        by_layer = {
            str(layer): {"head_dim": cfg.head_width_of(layer), "num_key_value_heads": cfg.groups_of(layer)}
            for layer in range(cfg.n_layers)
        }
        cap = cfg.output_logits_soft_cap
        others = ("rope_scaling", "rope_theta", "partial_rotary_factor")  # which this class would set `None`
        return {
            **{name: value for name, value in super().entries(cfg, state).items() if name not in others},
            **_rope_entries(cfg, local),
            "head_dim": width,
            "num_key_value_heads": groups,
            "per_layer_config": by_layer,
            "attention_k_eq_v": _keys_are_values(cfg, state, local),
            "final_logit_softcapping": cap if cap > 0 else None,
            "sliding_window": cfg.window_size or self.default_window,
            **self._other_entries(cfg),
        }

    def _other_entries(self, cfg: HookedTransformerConfig) -> dict[str, Any]:
        experts = cfg.num_experts is not None
        return {
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": experts,
            "intermediate_size": cfg.d_mlp_shared if experts else cfg.d_mlp,
            "num_experts": cfg.num_experts,
            "top_k_experts": cfg.experts_per_token,
            "moe_intermediate_size": cfg.d_mlp if experts else None,
        }

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        table = super().outside(cfg, hf)
        scale = math.sqrt(cfg.d_model) * _scales(cfg)[0]
        return {**table, "embed.W_E": dataclasses.replace(table["embed.W_E"], scale=scale)}

    def layer_at(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any], layer: int) -> Table:
        scale = _scales(cfg)[layer]
        rows = {
            **self.layer(cfg, hf),
            "ln1_post.w": Row("post_attention_layernorm.weight", scale=scale),
            "ln2.w": Row("pre_feedforward_layernorm.weight"),
            "ln2_post.w": Row("post_feedforward_layernorm.weight", scale=scale),
        }
        if hf.get("attention_k_eq_v") and not self.local_layers(hf)[layer]:
            for kind, pattern in (("W", KEY), ("b", KEY_BIAS)):
                keys = rows.pop(f"attn.{kind}_K", None)
                if keys is not None:
                    del rows[f"attn.{kind}_V"]
                    rows[f"attn.{kind}_K attn.{kind}_V"] = dataclasses.replace(keys, pattern=pattern, shared=True)
        return rows if cfg.num_experts is None else _with_experts(rows)

    def computed(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> dict[str, Tensor]:
        n_layers = 0 if cfg.num_experts is None else cfg.n_layers
        return {f"blocks.{layer}.ln2.w": torch.ones(cfg.d_model) for layer in range(n_layers)}

    def convert(
        self, tensors: Mapping[str, Tensor], cfg: HookedTransformerConfig, hf: Mapping[str, Any]
    ) -> Iterator[tuple[str, Tensor]]:
        given = {self.renamed(name): name for name in tensors}
        numbers = []
        for layer in range(cfg.n_layers):
            name = f"layers.{layer}.{_NUMBER}"
            if name not in given:
                raise CheckpointError(f"the checkpoint has no tensor {name!r}.")
            tensor = tensors[given[name]]
            if tensor.numel() != 1:
                raise CheckpointError(f"tensor {name!r} must hold one number; its shape is {list(tensor.shape)}.")
            numbers.append(float(tensor))
        wrong = [number for number in numbers if not 0 < number < math.inf]
        if wrong:
            raise CheckpointError(
                f"the checkpoint has a {_NUMBER} of {wrong[0]}; only positive, finite ones can be folded into weights."
            )
        cfg.resid_scales = _resid_scales(numbers, cfg.dtype)
        yield from super().convert(_Folding(tensors, given, cfg), cfg, hf)

    def export(
        self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        entries, tensors = super().export(cfg, state)
        scales, kind = _scales(cfg), state["embed.W_E"]
        for layer in range(cfg.n_layers):
            at = f"{self.prefix}{self.layer_prefix.format(layer)}"
            tensors[at + _NUMBER] = kind.new_tensor([scales[layer] / scales[layer + 1]])
            for name, width in (_vectors(cfg) if cfg.num_experts is not None else {}).items():
                tensors[at + name] = kind.new_ones(width) * (math.sqrt(width) if name == "router.scale" else 1.0)
        return entries, tensors

    def _check_expressible(self, cfg: HookedTransformerConfig, entries: Mapping[str, Any]) -> None:
        super()._check_expressible(dataclasses.replace(cfg, resid_scales=None), entries)


class _Folding(Mapping[str, Tensor]):
    """The tensors of a checkpoint, matrices times the vectors that are folded into them, which are left out."""

    def __init__(self, tensors: Mapping[str, Tensor], given: Mapping[str, str], cfg: HookedTransformerConfig) -> None:
        self._tensors = tensors
        self._factors: dict[str, str] = {}
        for layer in range(cfg.n_layers if cfg.num_experts is not None else 0):
            for matrix, vector in _FOLDED.items():
                names = [f"layers.{layer}.{each}" for each in (matrix, vector)]
                missing = [name for name in names if name not in given]
                if missing:
                    raise CheckpointError(f"the checkpoint has no tensor {missing[0]!r}.")
                self._factors[given[names[0]]] = given[names[1]]

    def __getitem__(self, name: str) -> Tensor:
        tensor, by = self._tensors[name], self._factors.get(name)
        if by is None:
            return tensor
        factor, axis = self._tensors[by], 0 if by.endswith("per_expert_scale") else -1
        if factor.shape != tensor.shape[axis : axis + 1 or None]:
            raise CheckpointError(
                f"the checkpoint's tensors are not of the shapes its config.json says: {by} is {list(factor.shape)}, "
                f"and {name} {list(tensor.shape)}."
            )
        wide = factor.to(torch.promote_types(tensor.dtype, torch.float32))
        if by.endswith("router.scale"):
            wide = wide / math.sqrt(len(wide))
        return tensor * (wide if axis else wide[:, None, None])

    def __iter__(self) -> Iterator[str]:
        left_out = set(self._factors.values())
        return (name for name in self._tensors if name not in left_out)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _resid_scales(numbers: list[float], dtype: torch.dtype) -> list[float]:
    """Return the scale of the stream that enters each layer, and of the final one: 1, unless others are then too small.

    Raises:
        CheckpointError: If the dtype cannot hold streams that are so far apart.
    """
    scales = [math.prod(numbers[layer:], start=1.0) for layer in range(len(numbers) + 1)]
    # Norms square a stream in float32, and weights have its scale.
    smallest = 1e-2 if dtype == torch.float16 else 1e-12
    # One of them is 1, so that others which leave the range of a float are too far from it, whatever the middle.
    in_range = min(scales) > 0 and max(scales) < math.inf
    if in_range and (min(scales) < smallest or max(scales) > 1 / smallest):
        middle = math.sqrt(min(scales)) * math.sqrt(max(scales))
        scales = [scale / middle for scale in scales]
    if not in_range or min(scales) < smallest:
        apart = min(max(scales) / max(min(scales), sys.float_info.min), sys.float_info.max)
        raise CheckpointError(
            f"the numbers that layers multiply the stream by ({_NUMBER}) put its scales {apart:.0e} apart, which "
            f"{str(dtype).removeprefix('torch.')} cannot hold"
            + (": pass dtype='bfloat16' or 'float32'." if dtype == torch.float16 else ".")
        )
    return scales


def _scales(cfg: HookedTransformerConfig) -> list[float]:
    return cfg.resid_scales or [1.0] * (cfg.n_layers + 1)


def _by_layer(hf: Mapping[str, Any], entry: str, otherwise: int, local: list[bool]) -> list[int]:
    """Return the width of heads or the number of key-value heads of each layer."""
    of_global = {
        "head_dim": hf.get("global_head_dim", _GLOBAL_WIDTH),
        "num_key_value_heads": hf.get("num_global_key_value_heads") if hf.get("attention_k_eq_v") else None,
    }
    by_layer = hf.get("per_layer_config")
    if by_layer is not None:
        by_layer = _mapping(by_layer, "per_layer_config")
        if wrong := [layer for layer in by_layer if not str(layer).isdecimal()]:
            raise CheckpointError(f"per_layer_config in config.json has {wrong[0]!r}, which is no number of a layer.")
        by_layer = {layer: _mapping(own, f"per_layer_config[{layer!r}]") for layer, own in by_layer.items()}
    else:
        by_layer = {
            layer: {name: value for name, value in of_global.items() if value is not None}
            for layer, is_local in enumerate(local)
            if not is_local
        }
    for layer, own in by_layer.items():
        if unknown := own.keys() - of_global.keys():
            raise CheckpointError(
                f"per_layer_config in config.json has {min(unknown)!r} for layer {layer}; supported are "
                f"{', '.join(of_global)}."
            )
        sizes(own, *own)
    own = {int(layer): each[entry] for layer, each in by_layer.items() if entry in each}
    return [own.get(layer, otherwise) for layer in range(hf["num_hidden_layers"])]


def _mapping(value: Any, entry: str) -> dict[str, Any]:
    """Copy an entry that must be a mapping.

    Raises:
        CheckpointError: If it is none.
    """
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{entry} in config.json must be a mapping; got {value!r}.")
    return dict(value)


def _number(value: Any, entry: str, wanted: str, *, least: float = -math.inf, most: float = math.inf) -> float:
    """Read an entry that must be a finite number, not out of bounds.

    Raises:
        CheckpointError: If it is not; `wanted` says what it must be.
    """
    if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:
        raise CheckpointError(f"{entry} in config.json must be {wanted}; got {value!r}.")
    return float(value)


def _rope_entries(cfg: HookedTransformerConfig, local: list[bool]) -> dict[str, Any]:
    width = cfg.head_width_of(local.index(False))
    entries = rope_entries_by_type(cfg)
    of_global = {**entries["rope_parameters"]["full_attention"], "partial_rotary_factor": 1.0}
    if cfg.rotary_pairs is not None:
        # The first of these that is rounded to as many pairs.
        parts = (2 * cfg.rotary_pairs / width, (2 * cfg.rotary_pairs + 0.5) / width)
        part = next(each for each in parts if int(each * width // 2) == cfg.rotary_pairs)
        of_global |= {"rope_type": "proportional", "partial_rotary_factor": part}
    return {"rope_parameters": {**entries["rope_parameters"], "full_attention": of_global}}


def _keys_are_values(cfg: HookedTransformerConfig, state: Mapping[str, Tensor], local: list[bool]) -> bool:
    """Return True if the key and value weights of all global layers are equal."""
    names = [own_name(f"attn.{kind}", cfg) for kind in ("W_K", "W_V", "b_K", "b_V")]
    weights = [[state[f"blocks.{at}.{name}"] for name in names] for at, each in enumerate(local) if not each]
    return all(torch.equal(W_K, W_V) and torch.equal(b_K, b_V) for W_K, W_V, b_K, b_V in weights)


def _with_experts(rows: Mapping[str, Row]) -> dict[str, Row]:
    rest = {name: row for name, row in rows.items() if not name.startswith("mlp.") and name != "ln2.w"}
    return {
        **rest,
        **gated_rows("mlp.shared", "mlp"),
        "mlp.ln_shared.w": Row("post_feedforward_layernorm_1.weight"),
        "mlp.W_router": Row("router.proj.weight", LINEAR),
        "mlp.W_gate mlp.W_in": Row("experts.gate_up_proj", "x (n m) d -> n x d m"),
        "mlp.W_out": Row("experts.down_proj", "x d m -> x m d"),
        "mlp.ln_experts.w": Row("post_feedforward_layernorm_2.weight"),
    }


def _vectors(cfg: HookedTransformerConfig) -> dict[str, int]:
    """Return the lengths of the vectors that are folded into matrices."""
    return {
        name: cfg.num_experts or 0 if name == "router.per_expert_scale" else cfg.d_model
        for name in sorted(set(_FOLDED.values()))
    }


class _Gemma4Unified(_Gemma4):
    model_type = "gemma4_unified_text"
    architecture = "Gemma4UnifiedForCausalLM"
    examples = ("google/gemma-4-12B",)
    default_window = 1024
    default_width_by_layer = 0

    def _other_entries(self, cfg: HookedTransformerConfig) -> dict[str, Any]:
        return {}


GEMMA4, GEMMA4_UNIFIED = _Gemma4(), _Gemma4Unified()
