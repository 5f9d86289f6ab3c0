"""GPT-J: parallel attention and MLP with one shared norm, and rotary positions on adjacent dimensions.

Its one norm is `ln1` and `ln2` here, with equal weights.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.model.checkpoints.families.base import LINEAR, OUT, QUERY, Row, Table
from headscope.model.checkpoints.families.gpt2 import GPT2Like
from headscope.model.config import HookedTransformerConfig

__all__ = ["GPTJ"]


class _GPTJ(GPT2Like):
    model_type = "gptj"
    architecture = "GPTJForCausalLM"
    examples = ("EleutherAI/gpt-j-6b",)

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().config(hf)
        return {
            **fields,
            "parallel_attn_mlp": True,
            "positional_embedding_type": "rotary",
            "rotary_dim": hf.get("rotary_dim") or fields["d_head"],
            "rotary_adjacent_pairs": True,
            "tie_word_embeddings": hf.get("tie_word_embeddings", False),
        }

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**super().entries(cfg, state), "rotary_dim": cfg.rotary_dim}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        table = {name: row for name, row in super().outside(cfg, hf).items() if name != "pos_embed.W_pos"}
        return {**table, "unembed.b_U": Row("lm_head.bias")}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "attn.W_Q": Row("attn.q_proj.weight", QUERY),
            "attn.W_K": Row("attn.k_proj.weight", QUERY),
            "attn.W_V": Row("attn.v_proj.weight", QUERY),
            "attn.W_O": Row("attn.out_proj.weight", OUT),
            "ln1.w ln2.w": Row("ln_1.weight", shared=True),
            "ln1.b ln2.b": Row("ln_1.bias", shared=True),
            "mlp.W_in": Row("mlp.fc_in.weight", LINEAR),
            "mlp.b_in": Row("mlp.fc_in.bias"),
            "mlp.W_out": Row("mlp.fc_out.weight", LINEAR),
            "mlp.b_out": Row("mlp.fc_out.bias"),
        }


GPTJ = _GPTJ()
