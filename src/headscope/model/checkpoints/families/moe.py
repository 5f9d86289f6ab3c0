"""Mixtures of experts: Mixtral (Mistral), OLMoE (OLMo 2's norms of queries and keys) and Qwen 3 MoE (Qwen 3).

`transformers` joins the experts' matrices in one tensor; the checkpoints on the hub have them one by one.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import LINEAR, Row, Table, sizes
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.config import HookedTransformerConfig

__all__ = ["MIXTRAL", "OLMOE", "QWEN3_MOE"]


class _WithExperts(LlamaLike):
    windowed = True
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
        of_one = "mlp.experts.{}."
        return {
            **{name: row for name, row in super().layer(cfg, hf).items() if not name.startswith("mlp.")},
            "mlp.W_router": Row("mlp.gate.weight", LINEAR, also=("block_sparse_moe.gate.weight",)),
            "mlp.W_gate mlp.W_in": Row(
                "mlp.experts.gate_up_proj",
                "x (n m) d -> n x d m",
                experts=(of_one + "gate_proj.weight", of_one + "up_proj.weight"),
            ),
            "mlp.W_out": Row("mlp.experts.down_proj", "x d m -> x m d", experts=(of_one + "down_proj.weight",)),
        }


class _Mixtral(_WithExperts):
    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    examples = ("mistralai/Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x7B-Instruct-v0.1")
    fixed = {**LlamaLike.fixed, "norm_topk_prob": True}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        table, of_one = dict(super().layer(cfg, hf)), "block_sparse_moe.experts.{}."
        of_their_experts = {"mlp.W_gate mlp.W_in": ("w1.weight", "w3.weight"), "mlp.W_out": ("w2.weight",)}
        for name, theirs in of_their_experts.items():
            table[name] = replace(table[name], experts=tuple(of_one + each for each in theirs))
        return table


class _Olmoe(_WithExperts):
    model_type = "olmoe"
    architecture = "OlmoeForCausalLM"
    examples = ("allenai/OLMoE-1B-7B-0924",)
    defaults = {**_WithExperts.defaults, "eps": 1e-5}
    fixed = {**LlamaLike.fixed, "use_qk_norm": True, "qk_norm_all_heads": True}


class _Qwen3Moe(_WithExperts):
    model_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    prepends_bos = False
    examples = ("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B-Base")
    fixed = {**LlamaLike.fixed, "use_qk_norm": True}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        if hf.get("mlp_only_layers") or hf.get("decoder_sparse_step", 1) != 1:
            raise CheckpointError(
                "Qwen 3 MoE with experts in some layers only (mlp_only_layers, decoder_sparse_step) is not supported."
            )
        window = hf.get("sliding_window") if hf.get("use_sliding_window") else None
        (d_mlp,) = sizes(hf, "moe_intermediate_size")
        return super().config({**hf, "sliding_window": window, "intermediate_size": d_mlp})

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**super().entries(cfg, state), "moe_intermediate_size": cfg.d_mlp}


MIXTRAL, OLMOE, QWEN3_MOE = _Mixtral(), _Olmoe(), _Qwen3Moe()
