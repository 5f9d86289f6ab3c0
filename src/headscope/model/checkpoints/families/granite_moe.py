"""Granite with experts, and its variant with an MLP beside them that every token goes through.

`transformers` 5 calls the experts' matrices otherwise than the checkpoints on the hub.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from headscope.model.checkpoints.families.base import LINEAR, Row, Table
from headscope.model.checkpoints.families.granite import Granite, with_residual_multiplier
from headscope.model.checkpoints.families.moe import WithExperts
from headscope.model.config import HookedTransformerConfig

__all__ = ["GRANITE_MOE", "GRANITE_MOE_SHARED", "GraniteMoeShared"]

_EXPERTS = "block_sparse_moe"


class _GraniteMoe(WithExperts, Granite):
    model_type = "granitemoe"
    architecture = "GraniteMoeForCausalLM"
    examples: ClassVar[tuple[str, ...]] = ("ibm-granite/granite-3.1-1b-a400m-base",)
    windowed: ClassVar[bool | None] = False
    fixed = {**Granite.fixed, "norm_topk_prob": True}

    def experts(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        table = {
            "mlp.W_router": Row(f"{_EXPERTS}.router.weight", LINEAR, also=(f"{_EXPERTS}.router.layer.weight",)),
            "mlp.W_gate mlp.W_in": Row(
                f"{_EXPERTS}.experts.gate_up_proj", "x (n m) d -> n x d m", also=(f"{_EXPERTS}.input_linear.weight",)
            ),
            "mlp.W_out": Row(
                f"{_EXPERTS}.experts.down_proj", "x d m -> x m d", also=(f"{_EXPERTS}.output_linear.weight",)
            ),
        }
        return with_residual_multiplier(table, hf)


class GraniteMoeShared(_GraniteMoe):
    """Granite with experts, and an MLP beside them."""

    model_type = "granitemoeshared"
    architecture = "GraniteMoeSharedForCausalLM"
    examples: ClassVar[tuple[str, ...]] = ("ibm-research/moe-7b-1b-active-shared-experts",)

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().config(hf), "d_mlp_shared": hf.get("shared_intermediate_size") or None}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**super().entries(cfg, state), "shared_intermediate_size": cfg.d_mlp_shared or 0}

    def experts(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        table = super().experts(cfg, hf)
        if cfg.d_mlp_shared is None:
            return table
        shared = {
            "mlp.shared.W_gate mlp.shared.W_in": Row("shared_mlp.input_linear.weight", "(n s) d -> n d s"),
            "mlp.shared.W_out": Row("shared_mlp.output_linear.weight", LINEAR),
        }
        return {**table, **with_residual_multiplier(shared, hf)}


GRANITE_MOE, GRANITE_MOE_SHARED = _GraniteMoe(), GraniteMoeShared()
