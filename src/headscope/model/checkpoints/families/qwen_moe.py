"""Qwen 2 MoE (Qwen 2 with experts, and an MLP with a gate of its own beside them) and Qwen 3 MoE (Qwen 3 with experts).

Some layers may have a dense MLP instead.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from headscope.model.checkpoints.entries import changed
from headscope.model.checkpoints.families.base import LINEAR, Row, Table, sizes
from headscope.model.checkpoints.families.llama import QKV_BIASES, LlamaLike, any_bias
from headscope.model.checkpoints.families.moe import WithExperts, dense_fields, gated_rows
from headscope.model.config import HookedTransformerConfig

__all__ = ["QWEN2_MOE", "QWEN3_MOE", "Qwen2Moe"]


class _Qwen3Moe(WithExperts):
    model_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    prepends_bos = False
    examples = ("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B-Base")
    fixed = {**LlamaLike.fixed, "use_qk_norm": True}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        d_mlp, d_dense, n_layers = sizes(hf, "moe_intermediate_size", "intermediate_size", "num_hidden_layers")
        dense, step = hf.get("mlp_only_layers") or (), hf.get("decoder_sparse_step", 1)
        with_experts = [layer not in dense and (layer + 1) % step == 0 for layer in range(n_layers)]
        window = hf.get("sliding_window", 4096) if hf.get("use_sliding_window") else None
        fields = super().config(changed(hf, sliding_window=window, intermediate_size=d_mlp))
        return {**fields, **dense_fields(with_experts, d_dense)}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            **super().entries(cfg, state),
            "moe_intermediate_size": cfg.d_mlp,
            "intermediate_size": cfg.d_mlp_dense or cfg.d_mlp,
            "mlp_only_layers": [layer for layer in range(cfg.n_layers) if not cfg.has_experts(layer)],
            "decoder_sparse_step": 1,
        }


class Qwen2Moe(_Qwen3Moe):
    """Qwen 2 with experts, and an MLP with a gate of its own beside them."""

    model_type = "qwen2_moe"
    architecture = "Qwen2MoeForCausalLM"
    examples = ("Qwen/Qwen1.5-MoE-A2.7B", "Qwen/Qwen2-57B-A14B")
    windowed: ClassVar[bool | None] = None
    fixed = {**LlamaLike.fixed, "gate_shared_expert": True}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        (d_shared,) = sizes(hf, "shared_expert_intermediate_size")
        return {**super().config(hf), "d_mlp_shared": d_shared}

    def local_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        if hf.get("layer_types"):
            return super().local_layers(hf)
        before = hf.get("max_window_layers", 28)
        return [layer % 2 == 0 and layer < before for layer in range(hf["num_hidden_layers"])]

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return QKV_BIASES if hf.get("qkv_bias", True) else ()

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            **super().entries(cfg, state),
            "shared_expert_intermediate_size": cfg.d_mlp_shared,
            "qkv_bias": any_bias(state, "attn.b_Q", "attn._b_K", "attn.b_K", "attn._b_V", "attn.b_V"),
        }

    def experts(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            **super().experts(cfg, hf),
            **gated_rows("mlp.shared", "mlp.shared_expert"),
            "mlp.W_shared_gate": Row("mlp.shared_expert_gate.weight", LINEAR),
        }


QWEN2_MOE, QWEN3_MOE = Qwen2Moe(), _Qwen3Moe()
