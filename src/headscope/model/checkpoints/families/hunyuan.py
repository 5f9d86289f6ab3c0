"""HunYuan (dense, version 1): Llama with norms of queries and keys behind their rotation.

Its scaling for long texts multiplies the base of the frequencies by a constant, which is folded into `rotary_base`.
"""

from collections.abc import Mapping
from typing import Any

from headscope.model.checkpoints.entries import changed
from headscope.model.checkpoints.families.base import Row, Table
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.checkpoints.families.rope import rope_fields
from headscope.model.config import HookedTransformerConfig

__all__ = ["HUNYUAN"]


class _HunYuan(LlamaLike):
    model_type = "hunyuan_v1_dense"
    architecture = "HunYuanDenseV1ForCausalLM"
    examples = ("tencent/Hunyuan-0.5B-Pretrain", "tencent/Hunyuan-7B-Pretrain", "tencent/Hunyuan-7B-Instruct")
    windowed = False
    fixed = {**LlamaLike.fixed, "use_qk_norm": True, "qk_norm_after_rotation": True}
    defaults = {**LlamaLike.defaults, "eps": 1e-5}

    def rope(self, hf: Mapping[str, Any], d_head: int) -> dict[str, Any]:
        rope = dict(hf.get("rope_scaling") or hf.get("rope_parameters") or {})
        alpha = rope.pop("alpha", None)
        if alpha and rope.get("rope_type", rope.get("type")) == "dynamic":
            fields = rope_fields(changed(hf, rope_scaling={**rope, "rope_type": "default"}), d_head, part=None)
            return {**fields, "rotary_base": fields["rotary_base"] * alpha ** (d_head / (d_head - 2))}
        return rope_fields(changed(hf, rope_scaling=rope), d_head, part=None)

    def qk_norms(self, cfg: HookedTransformerConfig) -> Table:
        theirs = {"q": "query", "k": "key"}
        return {f"attn.{ours}_norm.w": Row(f"self_attn.{name}_layernorm.weight") for ours, name in theirs.items()}


HUNYUAN = _HunYuan()
