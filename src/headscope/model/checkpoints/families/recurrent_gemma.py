"""RecurrentGemma (Griffin): two layers with a real-gated linear recurrent unit to each with windowed attention.

As in Gemma, embeddings are scaled and norms multiply by one plus their weight. De et al. 2024, arXiv 2402.19427.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.entries import changed
from headscope.model.checkpoints.families.base import Table, one_plus_norms, sizes
from headscope.model.checkpoints.families.hybrid import Hybrid, renamed
from headscope.model.checkpoints.families.llama import LlamaLike, any_bias
from headscope.model.config import HookedTransformerConfig

__all__ = ["RECURRENT_GEMMA"]

_KINDS = {"linear_attention": "recurrent", "sliding_attention": "attention"}


class _RecurrentGemma(Hybrid):
    model_type = "recurrent_gemma"
    architecture = "RecurrentGemmaForCausalLM"
    prepends_bos = False
    examples: ClassVar[tuple[str, ...]] = ("google/recurrentgemma-2b", "google/recurrentgemma-9b")
    mixer = "temporal_block"
    kinds: ClassVar[Mapping[str, str]] = {"mixer+mlp": "linear_attention", "attn+mlp": "sliding_attention"}
    names: ClassVar[dict[str, str]] = {
        **{field: entry for field, entry in Hybrid.names.items() if field != "n_ctx"},
        "act_fn": "hidden_activation",
        "output_logits_soft_cap": "logits_soft_cap",
    }
    rotary_part = 0.5
    windowed = None
    defaults = {**LlamaLike.defaults, "output_logits_soft_cap": 30.0}
    fixed: ClassVar[Mapping[str, Any]] = {**LlamaLike.fixed, "n_ctx": 8192}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        (width,) = sizes(self.complete(hf), "intermediate_size")
        if width % 2:
            raise CheckpointError(f"intermediate_size in config.json must be even; got {width}.")
        return {**super().config(changed(hf, max_position_embeddings=8192)), "d_mlp": width // 2}

    def complete(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        complete = super().complete(hf)
        return {**complete, "sliding_window": complete["attention_window_size"]}

    def local_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        return [True] * len(hf["layer_types"])

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        assert cfg.d_mlp is not None
        entries = super().entries(cfg, state)
        own = {
            "intermediate_size": 2 * cfg.d_mlp,
            "attention_window_size": cfg.window_size,
            "attention_bias": any_bias(state, *(f"attn.{shared}b_{each}" for each in "QKV" for shared in ("", "_"))),
        }
        return {name: value for name, value in entries.items() if name != "sliding_window"} | own

    def layer_entries(self, kinds: list[str]) -> dict[str, Any]:
        return {"block_types": [_KINDS[kind] for kind in kinds]}

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*super().biases(changed(hf, mlp_bias=True)), "attn.b_O")))

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        table = one_plus_norms(renamed(super().outside(cfg, hf), {"norm": "final_norm"}))
        # As there: a number in bfloat16.
        scale = float(torch.tensor(cfg.d_model**0.5, dtype=torch.bfloat16))
        return {**table, "embed.W_E": replace(table["embed.W_E"], scale=scale)}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        theirs = {
            "input_layernorm": "temporal_pre_norm",
            "post_attention_layernorm": "channel_pre_norm",
            "self_attn": "temporal_block",
            "mlp": "mlp_block",
        }
        return one_plus_norms(renamed(super().layer(cfg, hf), theirs))


RECURRENT_GEMMA = _RecurrentGemma()
