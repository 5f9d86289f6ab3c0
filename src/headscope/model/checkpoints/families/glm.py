"""GLM (half of each head's dimensions rotated, in adjacent pairs) and GLM-4 (0414), which has post-norms as well."""

from collections.abc import Mapping
from typing import Any, ClassVar

from headscope.model.checkpoints.families.base import Row, Table
from headscope.model.checkpoints.families.llama import QKV_BIASES, LlamaLike, with_fused_mlp
from headscope.model.config import HookedTransformerConfig

__all__ = ["GLM", "GLM4"]


class _Glm(LlamaLike):
    model_type = "glm"
    architecture = "GlmForCausalLM"
    prepends_bos = False
    examples: ClassVar[tuple[str, ...]] = (
        "zai-org/glm-4-9b-hf",
        "zai-org/glm-4-9b-chat-hf",
        "zai-org/glm-edge-1.5b-chat",
    )
    windowed = False
    rotary_part = 0.5
    defaults = {**LlamaLike.defaults, "eps": 1.5625e-7, "d_head": 128}
    fixed: ClassVar[Mapping[str, Any]] = {**LlamaLike.fixed, "rotary_adjacent_pairs": True}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return with_fused_mlp(super().layer(cfg, hf))

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return QKV_BIASES if hf.get("attention_bias", True) else ()


class _Glm4(_Glm):
    model_type = "glm4"
    architecture = "Glm4ForCausalLM"
    examples = ("zai-org/GLM-4-9B-0414", "zai-org/GLM-4-32B-0414", "zai-org/GLM-Z1-9B-0414")
    fixed = {**_Glm.fixed, "use_normalization_before_and_after": True}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            **super().layer(cfg, hf),
            "ln1_post.w": Row("post_self_attn_layernorm.weight"),
            "ln2_post.w": Row("post_mlp_layernorm.weight"),
        }


GLM, GLM4 = _Glm(), _Glm4()
