"""Granite: Llama with four scalar multipliers, which are folded into the adjacent weights.

The embedding's goes into `W_E`, the residual one into all that attention and MLP write, the logits' into `W_U`, and
that of the attention scores is `attn_scale`. Back in `transformers` the model has factors of one.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from headscope.model.checkpoints.families.base import Table
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.config import HookedTransformerConfig

__all__ = ["GRANITE", "Granite", "with_residual_multiplier"]

_WRITTEN = ("attn.W_O", "attn.b_O", "mlp.W_out", "mlp.b_out", "mlp.shared.W_out")


class Granite(LlamaLike):
    """Granite, and what its variants share."""

    model_type = "granite"
    architecture = "GraniteForCausalLM"
    prepends_bos = False
    examples: ClassVar[tuple[str, ...]] = ("ibm-granite/granite-3.1-2b-base", "ibm-granite/granite-3.3-8b-base")

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().config(hf), "attn_scale": 1 / hf.get("attention_multiplier", 1.0)}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**super().entries(cfg, state), "attention_multiplier": 1 / cfg.attn_scale}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        table = super().outside(cfg, hf)
        embedding, head = table["embed.W_E"], table["unembed.W_U"]
        return {
            **table,
            "embed.W_E": replace(embedding, scale=hf.get("embedding_multiplier", 1.0)),
            "unembed.W_U": replace(head, scale=1 / hf.get("logits_scaling", 1.0)),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return with_residual_multiplier(super().layer(cfg, hf), hf)


def with_residual_multiplier(table: Table, hf: Mapping[str, Any]) -> Table:
    """Return the rows of a layer with the residual multiplier in all that writes to the stream."""
    factor = hf.get("residual_multiplier", 1.0)
    return {name: replace(row, scale=factor) if name in _WRITTEN else row for name, row in table.items()}


GRANITE = Granite()
