"""PhiMoE (Phi 3.5 MoE): Mixtral with LayerNorms and biases, and experts chosen by the sparse mixer.

LongRoPE's long factors serve texts longer than the original context, as in the code of the authors; `transformers` 5.23
never passes the length of the text and keeps the short ones.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.entries import changed
from headscope.model.checkpoints.families.base import LINEAR, Row, Table, norm
from headscope.model.checkpoints.families.llama import any_bias
from headscope.model.checkpoints.families.moe import WithExperts, one_by_one
from headscope.model.checkpoints.families.rope import rope_fields
from headscope.model.config import HookedTransformerConfig

__all__ = ["PHIMOE"]


class _PhiMoe(WithExperts):
    model_type = "phimoe"
    architecture = "PhimoeForCausalLM"
    prepends_bos = False
    examples = ("microsoft/Phi-3.5-MoE-instruct", "microsoft/Phi-mini-MoE-instruct", "microsoft/Phi-tiny-MoE-instruct")
    adopted = ("modeling_phimoe.PhiMoEForCausalLM",)
    defaults = {**WithExperts.defaults, "eps": 1e-5}
    fixed: ClassVar[Mapping[str, Any]] = {"gated_mlp": True, "normalization_type": "LN", "router": "sparsemixer"}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        rope = dict(hf.get("rope_scaling") or hf.get("rope_parameters") or {})
        fields = super().config(changed(hf, rope_scaling=None, rope_parameters=None))
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            rope = _with_attention_factor(rope)
        return {
            **fields,
            **rope_fields(hf, fields["d_head"], base=1000000.0, part=None, rope=rope),
            "sparsemixer_margin": 2 * hf.get("router_jitter_noise", 0.01),
        }

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        entries = super().entries(cfg, state)
        if cfg.longrope_short_factors is not None:
            mscale = dict.fromkeys(("short_mscale", "long_mscale"), cfg.longrope_attention_factor)
            rope = {**entries["rope_parameters"], **mscale}
            entries |= {"rope_parameters": rope, "rope_scaling": rope}
        return {
            **entries,
            "router_jitter_noise": cfg.sparsemixer_margin / 2,
            "lm_head_bias": any_bias({f".{name}": tensor for name, tensor in state.items()}, "unembed.b_U"),
        }

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        bias = {"unembed.b_U": Row("lm_head.bias")} if hf.get("lm_head_bias") else {}
        return {**super().outside(cfg, hf), **norm("ln_final", "norm"), **bias}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            **super().layer(cfg, hf),
            **norm("ln1", "input_layernorm"),
            **norm("ln2", "post_attention_layernorm"),
        }

    def experts(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        table = one_by_one(super().experts(cfg, hf), "block_sparse_moe.experts.{}.")
        router = Row("mlp.router.weight", LINEAR, also=("block_sparse_moe.gate.weight",))
        return {**table, "mlp.W_router": router}


def _with_attention_factor(rope: dict[str, Any]) -> dict[str, Any]:
    """Return entries on scaled positions, with the usual name for what sines and cosines are multiplied by."""
    kind = rope.get("rope_type", rope.get("type"))
    if kind not in ("longrope", "su"):
        raise CheckpointError(
            f"rotary positions of type {kind!r} in the config.json of a PhiMoE are not supported. Supported: default, "
            "longrope."
        )
    short, long = rope.pop("short_mscale", None), rope.pop("long_mscale", None)
    if short is None or short != long:
        raise CheckpointError(
            f"short_mscale and long_mscale in config.json must be one number; got {short!r} and {long!r}: sines and "
            "cosines with another factor in long texts than in short ones are not supported."
        )
    return {**rope, "attention_factor": short}


PHIMOE = _PhiMoe()
