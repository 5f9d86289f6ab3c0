"""GPT-J: parallel attention and MLP with one shared norm, and rotary positions on adjacent dimensions.

Its one norm is `ln1` and `ln2` here, with equal weights.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from headscope.model.checkpoints.families.base import OUT, QUERY, Row, Table, linear, norm
from headscope.model.checkpoints.families.gpt2 import GPT2Like
from headscope.model.config import HookedTransformerConfig

__all__ = ["GPTJ", "GPTJLike"]


class GPTJLike(GPT2Like):
    """Base class of GPT-J and CodeGen, which has another layout of attention."""

    names = {**GPT2Like.names, "rotary_dim": "rotary_dim"}
    defaults = {**GPT2Like.defaults, "rotary_dim": 64, "tie_word_embeddings": False}

    fixed = {
        **GPT2Like.fixed,
        "parallel_attn_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": True,
    }

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        table = {name: row for name, row in super().outside(cfg, hf).items() if name != "pos_embed.W_pos"}
        return {**table, "unembed.b_U": Row("lm_head.bias")}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            **self.attention(),
            **norm("ln1 ln2", "ln_1"),
            **linear("mlp.in", "mlp.fc_in"),
            **linear("mlp.out", "mlp.fc_out"),
        }

    @abstractmethod
    def attention(self) -> Table:
        """Return the rows of attention."""


class _GPTJ(GPTJLike):
    model_type = "gptj"
    architecture = "GPTJForCausalLM"
    examples = ("EleutherAI/gpt-j-6b",)

    def attention(self) -> Table:
        return {
            "attn.W_Q": Row("attn.q_proj.weight", QUERY),
            "attn.W_K": Row("attn.k_proj.weight", QUERY),
            "attn.W_V": Row("attn.v_proj.weight", QUERY),
            "attn.W_O": Row("attn.out_proj.weight", OUT),
        }


GPTJ = _GPTJ()
