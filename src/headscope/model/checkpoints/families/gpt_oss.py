"""gpt-oss: experts with clamped gates and biases, windows in every other layer, and sinks in the softmax of attention.

The checkpoints of OpenAI have the experts' matrices in MXFP4, which is undone before they come here.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.entries import changed, defaulted
from headscope.model.checkpoints.families.base import LINEAR, Row, Table
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.checkpoints.families.moe import WithExperts
from headscope.model.checkpoints.families.rope import rope_fields
from headscope.model.config import HookedTransformerConfig

__all__ = ["GPT_OSS"]

_ALPHA = 1.702  # of the sigmoid in the gate, which makes the activation the quick GELU
_ROPE = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
         "original_max_position_embeddings": 4096}  # fmt: skip


class _GptOss(WithExperts):
    model_type = "gpt_oss"
    architecture = "GptOssForCausalLM"
    examples = ("openai/gpt-oss-20b", "openai/gpt-oss-120b")
    windowed = None
    default_window = 128
    defaults = {**WithExperts.defaults, "eps": 1e-5}
    fixed: ClassVar[Mapping[str, Any]] = {
        **LlamaLike.fixed, "act_fn": "quick_gelu", "gated_mlp_offset": 1.0, "expert_output_biases": True,
        "use_attn_sinks": True, "norm_topk_prob": True,
    }  # fmt: skip

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        if hf.get("swiglu_alpha", _ALPHA) != _ALPHA:
            raise CheckpointError(
                f"swiglu_alpha = {hf['swiglu_alpha']} in config.json is not supported: it must be {_ALPHA}."
            )
        fields = super().config(hf)
        rope = hf.get("rope_scaling") or hf.get("rope_parameters") or _ROPE
        return {
            **fields,
            **rope_fields(changed(hf, rope_scaling=rope), fields["d_head"], base=150000.0, part=None),
            "gated_mlp_limit": float(hf.get("swiglu_limit", 7.0)),
        }

    def local_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        if hf.get("layer_types"):
            return super().local_layers(hf)
        return [layer % 2 == 0 for layer in range(hf["num_hidden_layers"])]

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return super().biases(defaulted(hf, attention_bias=True))

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**super().entries(cfg, state), "swiglu_limit": cfg.gated_mlp_limit, "swiglu_alpha": _ALPHA}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {**super().layer(cfg, hf), "attn.b_sink": Row("self_attn.sinks")}

    def experts(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "mlp.W_router": Row("mlp.router.weight", LINEAR),
            "mlp.b_router": Row("mlp.router.bias"),
            # Gates and linear factors take turns.
            "mlp.W_gate mlp.W_in": Row("mlp.experts.gate_up_proj", "x d (m n) -> n x d m"),
            "mlp.b_gate mlp.b_in": Row("mlp.experts.gate_up_proj_bias", "x (m n) -> n x m"),
            "mlp.W_out": Row("mlp.experts.down_proj"),
            "mlp.b_out_expert": Row("mlp.experts.down_proj_bias"),
        }


GPT_OSS = _GptOss()
