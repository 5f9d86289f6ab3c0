"""Jamba: Mamba, attention without positions in every so many layers, and experts in every so many.

In the config these layers are said by a period and an offset (Lieber et al. 2024, arXiv 2403.19887).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.entries import changed
from headscope.model.checkpoints.families.base import LINEAR, Row, Table
from headscope.model.checkpoints.families.hybrid import IN_PLACE, Hybrid, renamed
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.checkpoints.families.moe import WithExperts, dense_fields
from headscope.model.config import HookedTransformerConfig

__all__ = ["JAMBA"]


class _Jamba(Hybrid, WithExperts):
    model_type = "jamba"
    architecture = "JambaForCausalLM"
    examples = ("ai21labs/Jamba-v0.1", "ai21labs/AI21-Jamba-Mini-1.7", "ai21labs/AI21-Jamba-Reasoning-3B")
    mixer = "mamba"
    kinds: ClassVar[Mapping[str, str]] = IN_PLACE
    names = LlamaLike.names
    defaults = LlamaLike.defaults

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        complete = self.complete(hf)
        period, offset = complete["expert_layer_period"], complete["expert_layer_offset"]
        if complete["num_experts"] == 1:
            plain = super().config(changed(hf, num_experts=1, num_experts_per_tok=1))
            return {**plain, "num_experts": None, "experts_per_token": None}
        with_experts = [layer % period == offset for layer in range(complete["num_hidden_layers"])]
        return {**super().config(hf), **dense_fields(with_experts, complete["intermediate_size"])}

    def rotates(self, hf: Mapping[str, Any]) -> bool:
        return False

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        entries = {name: value for name, value in super().entries(cfg, state).items() if not name.startswith("rope_")}
        attention = [layer in cfg.layers_with("attn") for layer in range(cfg.n_layers)]
        experts = [cfg.has_experts(layer) for layer in range(cfg.n_layers)]
        return {
            **entries,
            **_periodic("attn", attention),
            **_periodic("expert", experts),
            "num_experts": cfg.num_experts or 1,
            "num_local_experts": cfg.num_experts or 1,
            "num_experts_per_tok": cfg.experts_per_token or 1,
        }

    def layer_entries(self, kinds: list[str]) -> dict[str, Any]:
        return {}

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return ()

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {**super().outside(cfg, hf), "ln_final.w": Row("final_layernorm.weight")}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return renamed(super().layer(cfg, hf), {"post_attention_layernorm": "pre_ff_layernorm"})

    def dense(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return renamed(super().dense(cfg, hf), {"mlp": "feed_forward"})

    def experts(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        of_experts = super().experts(cfg, hf)
        table = {
            name: replace(row, experts=tuple(each.replace("mlp.", "feed_forward.") for each in row.experts))
            for name, row in renamed(of_experts, {"mlp": "feed_forward"}).items()
        }
        return {**table, "mlp.W_router": Row("feed_forward.router.weight", LINEAR)}


def _periodic(what: str, layers: list[bool]) -> dict[str, int]:
    """Return the entries that say of which layers something is true."""
    for period in range(1, len(layers) + 2):
        for offset in range(period):
            if layers == [layer % period == offset for layer in range(len(layers))]:
                return {f"{what}_layer_period": period, f"{what}_layer_offset": offset}
    raise CheckpointError(
        f"JambaForCausalLM in transformers has {what} layers at equal distances; here they are "
        f"{[layer for layer, each in enumerate(layers) if each]}."
    )


JAMBA = _Jamba()
