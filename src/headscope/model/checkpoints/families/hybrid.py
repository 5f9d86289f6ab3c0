"""Hybrid models: layers with attention, and layers with a mixer in its place or beside it (LFM 2).

Mixers are the modules of `transformers`, made from the entries that it fills in, and their tensors keep their names.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from headscope.model.checkpoints.families.base import Row, Table
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.config import HookedTransformerConfig
from headscope.model.parts.mixers import mixer_entries, mixer_tensors

__all__ = ["LFM2"]


class _Hybrid(LlamaLike):
    """Base class of hybrid families.

    Attributes:
        mixer: What a layer's mixer is called.
        kinds: What the kinds of layers are called, by their parts.
    """

    windowed = False
    mixer: ClassVar[str]
    kinds: ClassVar[Mapping[str, str]]

    def complete(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        """Return a `config.json` with the entries that `transformers` fills in, and each layer's kind."""
        from transformers import AutoConfig

        config = AutoConfig.for_model(self.model_type, **{name: hf[name] for name in hf if name != "model_type"})
        return {**config.to_dict(), "layer_types": list(config.layer_types)}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        hf = self.complete(hf)
        parts = {kind: parts for parts, kind in self.kinds.items()}
        return {
            **super().config(hf),
            "layer_parts": [parts[kind] for kind in hf["layer_types"]],
            "mixer": mixer_entries(self.model_type, hf),
        }

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        assert cfg.layer_parts is not None and cfg.mixer is not None
        kinds = [self.kinds[parts] for parts in cfg.layer_parts[: cfg.n_layers]]
        return {**super().entries(cfg, state), **cfg.mixer, "layer_types": kinds}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        mixer = {f"mixer.{name}": Row(f"{self.mixer}.{name}") for name in mixer_tensors(cfg)}
        return {**super().layer(cfg, hf), **mixer}


class _Lfm2(_Hybrid):
    """Gated short convolutions, and attention with norms on queries and keys; the final norm is `embedding_norm`."""

    model_type = "lfm2"
    architecture = "Lfm2ForCausalLM"
    examples = ("LiquidAI/LFM2-350M", "LiquidAI/LFM2-1.2B", "LiquidAI/LFM2-2.6B")
    mixer = "conv"
    kinds: ClassVar[Mapping[str, str]] = {"mixer+mlp": "conv", "attn+mlp": "full_attention"}
    names = {**_Hybrid.names, "eps": "norm_eps"}
    fixed = {**LlamaLike.fixed, "act_fn": "silu", "use_qk_norm": True}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().config(hf), "d_mlp": _lfm2_width(self.complete(hf))}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**super().entries(cfg, state), "block_auto_adjust_ff_dim": False}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {**super().outside(cfg, hf), "ln_final.w": Row("embedding_norm.weight")}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        theirs = {
            "ln1.w": "operator_norm",
            "ln2.w": "ffn_norm",
            "attn.W_O": "self_attn.out_proj",
            "attn.q_norm.w": "self_attn.q_layernorm",
            "attn.k_norm.w": "self_attn.k_layernorm",
            "mlp.W_gate": "feed_forward.w1",
            "mlp.W_in": "feed_forward.w3",
            "mlp.W_out": "feed_forward.w2",
        }
        return _renamed(super().layer(cfg, hf), theirs)


def _renamed(table: Table, theirs: Mapping[str, str]) -> Table:
    """Return a table in which some tensors have other names in the checkpoint."""
    return {
        name: replace(row, theirs=f"{theirs[name]}.weight") if name in theirs else row for name, row in table.items()
    }


def _lfm2_width(hf: Mapping[str, Any]) -> int:
    """Return the MLPs' width: two thirds of the entry, a multiple of another, unless it is said to be as it is."""
    width = int(hf["intermediate_size"])
    if not hf["block_auto_adjust_ff_dim"]:
        return width
    width = int(2 * width / 3)
    if hf["block_ffn_dim_multiplier"] is None:
        return width
    multiple = hf["block_multiple_of"]
    return multiple * -(-int(hf["block_ffn_dim_multiplier"] * width) // multiple)


LFM2 = _Lfm2()
