"""Mixtures of experts: the base class of their families, Mixtral (Mistral) and OLMoE (OLMo 2's norms).

`transformers` joins the experts' matrices in one tensor; the checkpoints on the hub have them one by one.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from headscope.model.checkpoints.families.base import LINEAR, Row, Table, sizes
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.config import HookedTransformerConfig

__all__ = ["MIXTRAL", "OLMOE", "WithExperts", "dense_fields", "gated_rows"]


class WithExperts(LlamaLike):
    """Base class of Llama-like families whose MLPs are experts, in all layers or in some."""

    windowed: ClassVar[bool | None] = True
    names = {**LlamaLike.names, "norm_topk_prob": "norm_topk_prob"}
    defaults = {**LlamaLike.defaults, "norm_topk_prob": False}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        experts = "num_experts" if "num_experts" in hf else "num_local_experts"
        n_experts, chosen = sizes(hf, experts, "num_experts_per_tok")
        return {
            **super().config(hf),
            "num_experts": n_experts,
            "experts_per_token": chosen,
        }

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            **super().entries(cfg, state),
            "num_experts": cfg.num_experts,
            "num_local_experts": cfg.num_experts,
            "num_experts_per_tok": cfg.experts_per_token,
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {name: row for name, row in super().layer(cfg, hf).items() if not name.startswith("mlp.")}

    def layer_at(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any], layer: int) -> Table:
        return {**self.layer(cfg, hf), **(self.experts(cfg, hf) if cfg.has_experts(layer) else self.dense(cfg, hf))}

    def dense(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        """Return the rows of the MLP in a layer without experts."""
        return {name: row for name, row in super().layer(cfg, hf).items() if name.startswith("mlp.")}

    def experts(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        """Return the rows of the router and the experts of a layer."""
        of_one = "mlp.experts.{}."
        return {
            "mlp.W_router": Row("mlp.gate.weight", LINEAR, also=("block_sparse_moe.gate.weight",)),
            "mlp.W_gate mlp.W_in": Row(
                "mlp.experts.gate_up_proj",
                "x (n m) d -> n x d m",
                experts=(of_one + "gate_proj.weight", of_one + "up_proj.weight"),
            ),
            "mlp.W_out": Row("mlp.experts.down_proj", "x d m -> x m d", experts=(of_one + "down_proj.weight",)),
        }


def gated_rows(ours: str, theirs: str) -> dict[str, Row]:
    """Return the rows of a gated MLP without biases."""
    return {
        f"{ours}.W_gate": Row(f"{theirs}.gate_proj.weight", LINEAR),
        f"{ours}.W_in": Row(f"{theirs}.up_proj.weight", LINEAR),
        f"{ours}.W_out": Row(f"{theirs}.down_proj.weight", LINEAR),
    }


def dense_fields(with_experts: list[bool], d_mlp: int) -> dict[str, Any]:
    """Return the fields of our config that say which layers have experts, and how wide the MLPs of the others are."""
    if all(with_experts):
        return {}
    return {"mlp_types": ["experts" if each else "dense" for each in with_experts], "d_mlp_dense": d_mlp}


def one_by_one(table: Table, of_one: str) -> Table:
    """Return the rows of experts whose matrices are called `w1`, `w3` and `w2` on the hub."""
    theirs = {"mlp.W_gate mlp.W_in": ("w1.weight", "w3.weight"), "mlp.W_out": ("w2.weight",)}
    return {
        name: replace(row, experts=tuple(of_one + each for each in theirs[name])) if name in theirs else row
        for name, row in table.items()
    }


class _Mixtral(WithExperts):
    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    examples = ("mistralai/Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x7B-Instruct-v0.1")
    fixed = {**LlamaLike.fixed, "norm_topk_prob": True}
    defaults = {**WithExperts.defaults, "eps": 1e-5}
    default_base = 1_000_000.0

    def experts(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return one_by_one(super().experts(cfg, hf), "block_sparse_moe.experts.{}.")


class _Olmoe(WithExperts):
    model_type = "olmoe"
    architecture = "OlmoeForCausalLM"
    examples = ("allenai/OLMoE-1B-7B-0924",)
    windowed = False
    names = {**WithExperts.names, "clip_qkv": "clip_qkv"}
    defaults = {**WithExperts.defaults, "eps": 1e-5, "clip_qkv": None}
    fixed = {**LlamaLike.fixed, "use_qk_norm": True, "qk_norm_all_heads": True}


MIXTRAL, OLMOE = _Mixtral(), _Olmoe()
