"""Hybrids of attention and Mamba 2: Bamba, Falcon-H1, Granite 4 and Nemotron-H.

Multipliers on what is read from or written to the residual stream are folded into the adjacent weights, as Granite's;
those of Falcon-H1's projections stay in the mixer. Back in `transformers` the folded ones are one.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.entries import changed
from headscope.model.checkpoints.families.base import LINEAR, Row, Table, sizes
from headscope.model.checkpoints.families.granite import with_residual_multiplier
from headscope.model.checkpoints.families.granite_moe import GraniteMoeShared
from headscope.model.checkpoints.families.hybrid import IN_PLACE, Hybrid, renamed
from headscope.model.checkpoints.families.llama import LlamaLike, any_bias
from headscope.model.checkpoints.families.moe import dense_fields
from headscope.model.config import HookedTransformerConfig

__all__ = ["BAMBA", "FALCON_H1", "GRANITE_MOE_HYBRID", "NEMOTRON_H"]


class _Bamba(Hybrid):
    model_type = "bamba"
    architecture = "BambaForCausalLM"
    examples: ClassVar[tuple[str, ...]] = ("ibm-ai-platform/Bamba-9B-v2", "ibm-ai-platform/Bamba-9B-v1")
    mixer = "mamba"
    kinds: ClassVar[Mapping[str, str]] = IN_PLACE
    rotary_part: ClassVar[float | None] = 0.5

    def layer_entries(self, kinds: list[str]) -> dict[str, Any]:
        return {"attn_layer_indices": [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {**super().outside(cfg, hf), "ln_final.w": Row("final_layernorm.weight")}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        theirs = {"mlp": "feed_forward", "post_attention_layernorm": "pre_ff_layernorm"}
        return renamed(super().layer(cfg, hf), theirs)


class _FalconH1(_Bamba):
    """Attention and Mamba 2 side by side in each layer, with a multiplier on nearly everything."""

    model_type = "falcon_h1"
    architecture = "FalconH1ForCausalLM"
    examples = ("tiiuae/Falcon-H1-0.5B-Base", "tiiuae/Falcon-H1-7B-Base")
    kinds = {"attn+mixer+mlp": "hybrid"}
    rotary_part = None

    def layer_entries(self, kinds: list[str]) -> dict[str, Any]:
        return {}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        factors = {"embed.W_E": "embedding_multiplier", "unembed.W_U": "lm_head_multiplier"}
        return _scaled(super().outside(cfg, hf), {name: hf.get(entry, 1.0) for name, entry in factors.items()})

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        read, written = hf.get("attention_in_multiplier", 1.0), hf.get("attention_out_multiplier", 1.0)
        key, mixed = hf.get("key_multiplier", 1.0), hf.get("ssm_out_multiplier", 1.0)
        gate, down = hf.get("mlp_multipliers") or (1.0, 1.0)
        factors = {
            "attn.W_Q": read, "attn.W_K": read * key, "attn.W_V": read, "attn.b_K": key,
            "attn.W_O": written, "attn.b_O": written, "mixer.out_proj.weight": mixed, "mixer.out_proj.bias": mixed,
            "mlp.W_gate": gate, "mlp.b_gate": gate, "mlp.W_out": down, "mlp.b_out": down,
        }  # fmt: skip
        return _scaled(super().layer(cfg, hf), factors)


def _scaled(table: Table, factors: Mapping[str, float]) -> Table:
    """Return a table in which ours are theirs times a factor."""
    return {name: replace(row, scale=factors[name]) if name in factors else row for name, row in table.items()}


class _GraniteMoeHybrid(Hybrid, GraniteMoeShared):
    """Granite 4: attention, mostly without positions, and Mamba 2; MLPs with experts or, in small models, without."""

    model_type = "granitemoehybrid"
    architecture = "GraniteMoeHybridForCausalLM"
    examples = ("ibm-granite/granite-4.0-h-350m", "ibm-granite/granite-4.0-h-tiny")
    mixer = "mamba"
    kinds: ClassVar[Mapping[str, str]] = IN_PLACE

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        hf = self.complete(hf)
        if hf["num_local_experts"]:
            return super().config(hf)
        one = dict.fromkeys(("num_experts", "num_local_experts", "num_experts_per_tok"), 1)
        one["intermediate_size"] = hf["shared_intermediate_size"]
        dense = {"num_experts": None, "experts_per_token": None, "norm_topk_prob": False, "d_mlp_shared": None}
        return {**super().config(changed(hf, **one)), **dense}

    def rotates(self, hf: Mapping[str, Any]) -> bool:
        return bool(hf["position_embedding_type"] == "rope")

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        rotary = cfg.positional_embedding_type == "rotary"
        entries = super().entries(cfg, state)
        if cfg.num_experts is None:
            entries |= {"num_local_experts": 0, "num_experts": 0, "shared_intermediate_size": cfg.d_mlp}
        return {**entries, "position_embedding_type": "rope" if rotary else "nope"}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        mixer = {"mixer.out_proj.weight": hf.get("residual_multiplier", 1.0)}
        mixer["mixer.out_proj.bias"] = mixer["mixer.out_proj.weight"]
        return _scaled(super().layer(cfg, hf), mixer)

    def dense(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        rows = {
            "mlp.W_gate mlp.W_in": Row("shared_mlp.input_linear.weight", "(n m) d -> n d m"),
            "mlp.W_out": Row("shared_mlp.output_linear.weight", LINEAR),
        }
        return with_residual_multiplier(rows, hf)


class _NemotronH(Hybrid):
    """Layers of one part each, called a mixer whatever it is: Mamba 2, attention without positions, or an MLP.

    An MLP may be one of experts, chosen as in DeepSeek V3, beside a shared one.
    """

    model_type = "nemotron_h"
    architecture = "NemotronHForCausalLM"
    examples = (
        "nvidia/Nemotron-H-4B-Base-8K", "nvidia/Nemotron-H-8B-Base-8K", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    )  # fmt: skip
    mixer = "mixer"
    beside: ClassVar[tuple[str, ...]] = ("mtp.",)
    kinds: ClassVar[Mapping[str, str]] = {"mixer": "linear_attention", "attn": "full_attention", "mlp": "mlp"}
    names = {**Hybrid.names, "eps": "layer_norm_epsilon", "act_fn": "mlp_hidden_act"}
    fixed: ClassVar[Mapping[str, Any]] = {**LlamaLike.fixed, "gated_mlp": False}

    def complete(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        complete = super().complete(hf)
        kinds = complete["layer_types"]
        plain = ["mlp" if kind == "moe" else kind for kind in kinds]
        return {**complete, "layers_block_type": kinds, "layer_types": plain}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        complete = self.complete(hf)
        kinds = complete["layers_block_type"]
        if "moe" not in kinds:
            return super().config(hf)
        if complete["moe_latent_size"] is not None:
            raise CheckpointError(
                f"moe_latent_size = {complete['moe_latent_size']} in config.json is not supported: experts must read "
                "the stream itself."
            )
        n_experts, chosen, n_groups, used, d_mlp, d_shared = sizes(
            complete, "n_routed_experts", "num_experts_per_tok", "n_group", "topk_group", "moe_intermediate_size",
            "moe_shared_expert_intermediate_size",
        )  # fmt: skip
        types = dense_fields([kind != "mlp" for kind in kinds], complete["intermediate_size"])
        return {
            **super().config(changed(hf, intermediate_size=d_mlp)),
            **types,
            **({} if n_groups == 1 else {"expert_groups": n_groups, "expert_groups_per_token": used}),
            "num_experts": n_experts,
            "experts_per_token": chosen,
            "router": "sigmoid",
            "norm_topk_prob": complete["norm_topk_prob"],
            "expert_weight_scale": float(complete["routed_scaling_factor"]),
            "d_mlp_shared": d_shared,
        }

    def rotates(self, hf: Mapping[str, Any]) -> bool:
        return False

    def layer_entries(self, kinds: list[str]) -> dict[str, Any]:
        return {"layers_block_type": kinds}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        entries = {name: value for name, value in super().entries(cfg, state).items() if not name.startswith("rope_")}
        if cfg.num_experts is None:
            return entries
        with_experts = [layer for layer in cfg.layers_with("mlp") if cfg.has_experts(layer)]
        kinds = ["moe" if layer in with_experts else kind for layer, kind in enumerate(entries["layers_block_type"])]
        return {
            **entries,
            "layers_block_type": kinds,
            "intermediate_size": cfg.d_mlp_dense or cfg.d_mlp,
            "mlp_bias": entries["mlp_bias"] or any_bias(state, "mlp.shared.b_in", "mlp.shared.b_out"),
            "n_routed_experts": cfg.num_experts,
            "num_experts_per_tok": cfg.experts_per_token,
            "n_group": cfg.expert_groups or 1,
            "topk_group": cfg.expert_groups_per_token or 1,
            "norm_topk_prob": cfg.norm_topk_prob,
            "routed_scaling_factor": cfg.expert_weight_scale,
            "moe_intermediate_size": cfg.d_mlp,
            "moe_shared_expert_intermediate_size": cfg.d_mlp_shared,
        }

    def renamed(self, name: str) -> str:
        return super().renamed(name).removeprefix("backbone.")

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return super().biases(changed(hf, attention_bias=False))

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return renamed(super().outside(cfg, hf), {"embed_tokens": "embeddings", "norm": "norm_f"})

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        theirs = {"self_attn": "mixer", "mlp": "mixer", "input_layernorm": "norm", "post_attention_layernorm": "norm"}
        return renamed(super().layer(cfg, hf), theirs)

    def layer_at(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any], layer: int) -> Table:
        table = self.layer(cfg, hf)
        if not cfg.has_experts(layer):
            return table
        shared = {
            name.replace("mlp.", "mlp.shared."): replace(row, theirs=row.theirs.replace(".", ".shared_experts.", 1))
            for name, row in table.items()
            if name.startswith("mlp.")
        }
        of_one = "mixer.experts.{}."
        return {
            **{name: row for name, row in table.items() if not name.startswith("mlp.")},
            **shared,
            "mlp.W_router": Row("mixer.gate.weight", LINEAR),
            "mlp.b_choice": Row("mixer.gate.e_score_correction_bias"),
            "mlp.W_in": Row("mixer.experts.up_proj", "x m d -> x d m", experts=(f"{of_one}up_proj.weight",)),
            "mlp.W_out": Row("mixer.experts.down_proj", "x d m -> x m d", experts=(f"{of_one}down_proj.weight",)),
        }


BAMBA, FALCON_H1, GRANITE_MOE_HYBRID, NEMOTRON_H = _Bamba(), _FalconH1(), _GraniteMoeHybrid(), _NemotronH()
