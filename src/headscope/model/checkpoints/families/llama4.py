"""Llama 4 (its text model): experts that read scaled inputs, attention within chunks, and layers without rotation.

Layers that rotate queries and keys may norm them too, without a weight; the others sharpen attention in long texts.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import LINEAR, Row, Table, sizes
from headscope.model.checkpoints.families.llama import LlamaLike, layers_that_rotate, norms_without_weights
from headscope.model.checkpoints.families.moe import WithExperts, dense_fields, gated_rows
from headscope.model.config import HookedTransformerConfig

__all__ = ["LLAMA4"]

_CHUNK, _LENGTH, _SLOPE = 8192, 8192, 0.1


class _Llama4(WithExperts):
    model_type = "llama4_text"
    architecture = "Llama4ForCausalLM"
    examples = ("meta-llama/Llama-4-Scout-17B-16E", "meta-llama/Llama-4-Maverick-17B-128E-Instruct")
    windowed = None
    local_type = "chunked_attention"
    default_base = 500_000.0
    names = LlamaLike.names
    defaults = {**LlamaLike.defaults, "eps": 1e-5, "d_head": 128}
    fixed: ClassVar[Mapping[str, Any]] = {
        **LlamaLike.fixed, "router": "sigmoid", "scale_expert_inputs": True, "rotary_adjacent_pairs": True,
    }  # fmt: skip

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        d_mlp, d_dense, n_layers = sizes(hf, "intermediate_size", "intermediate_size_mlp", "num_hidden_layers")
        step, rotated, fields = hf.get("interleave_moe_layer_step", 1), self.rotary_layers(hf), super().config(hf)
        experts = hf.get("moe_layers")
        experts = range(step - 1, n_layers, step) if experts is None else experts
        fields |= {"d_mlp_shared": d_mlp, "attn_in_chunks": fields.get("use_local_attn", False)}
        if hf.get("use_qk_norm", True) and any(rotated):
            fields |= {"use_qk_norm": True, "qk_norm_after_rotation": True, "qk_norm_layers": rotated}
        slope = hf.get("attn_scale", _SLOPE) if hf.get("attn_temperature_tuning", True) else 0.0
        if slope and not all(rotated):
            fields |= {
                "attn_temperature_slope": slope,
                "attn_temperature_length": hf.get("floor_scale", _LENGTH),
                "attn_temperature_start": 1,
                "attn_temperature_layers": [not each for each in rotated],
            }
        return {**fields, **dense_fields([layer in experts for layer in range(n_layers)], d_dense)}

    def rotary_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        return layers_that_rotate(hf)

    def window(self, hf: Mapping[str, Any]) -> int | None:
        size = hf.get("attention_chunk_size", _CHUNK)
        if not isinstance(size, int):
            raise CheckpointError(f"attention_chunk_size = {size!r} in config.json is not supported: it is no number.")
        return size

    def local_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        return self.rotary_layers(hf) if hf.get("layer_types") is None else super().local_layers(hf)

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        entries = {name: value for name, value in super().entries(cfg, state).items() if "sliding" not in name}
        return {
            **entries,
            "intermediate_size_mlp": cfg.d_mlp_dense or cfg.d_mlp,
            "moe_layers": [layer for layer in range(cfg.n_layers) if cfg.has_experts(layer)],
            "no_rope_layers": [int(each) for each in cfg.rotary_layers or [True] * cfg.n_layers],
            "use_qk_norm": cfg.use_qk_norm,
            "attention_chunk_size": cfg.window_size or _CHUNK,
            "layer_types": [each.replace("sliding", "chunked") for each in entries["layer_types"]],
            "attn_temperature_tuning": bool(cfg.attn_temperature_slope),
            "attn_scale": cfg.attn_temperature_slope,
            "floor_scale": cfg.attn_temperature_length,
        }

    def qk_norms(self, cfg: HookedTransformerConfig) -> Table:
        return {}

    def computed(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> dict[str, Tensor]:
        return norms_without_weights(cfg)

    def dense(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return gated_rows("mlp", "feed_forward")

    def experts(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "mlp.W_router": Row("feed_forward.router.weight", LINEAR),
            "mlp.W_gate mlp.W_in": Row("feed_forward.experts.gate_up_proj", "x d (n m) -> n x d m"),
            "mlp.W_out": Row("feed_forward.experts.down_proj"),
            **gated_rows("mlp.shared", "feed_forward.shared_expert"),
        }


LLAMA4 = _Llama4()
