"""GPT-2-like models that were trained with fairseq: XGLM and BioGPT.

Both number positions from 2, and multiply the embedding, but not the unembedding tied to it, by `sqrt(d_model)`, which
is folded into `W_E`. XGLM's positions are sinusoids, which no checkpoint has: they are computed once, as `W_pos`.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import LINEAR, Family, Row, Table, linear, norm
from headscope.model.checkpoints.families.llama import attention_rows
from headscope.model.config import HookedTransformerConfig

__all__ = ["BIOGPT", "XGLM"]

_FIRST = 2  # number of the first position


class _Fairseq(Family):
    defaults: ClassVar[Mapping[str, Any]] = {"act_fn": "gelu", "tie_word_embeddings": True}
    fixed = {**Family.fixed, "eps": 1e-5}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        # A factor can be taken out again exactly only if the unembedding has the embedding without it.
        embedding = state["embed.W_E"]
        (tied,) = Row("", scale=math.sqrt(cfg.d_model)).read(state["unembed.W_U"].T, cfg, 1)
        return {**super().entries(cfg, state), "scale_embedding": torch.equal(tied.to(embedding.dtype), embedding)}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        scale = math.sqrt(cfg.d_model) if hf.get("scale_embedding", True) else 1.0
        return {
            "embed.W_E": Row("embed_tokens.weight", scale=scale),
            **norm("ln_final", "layer_norm"),
            "unembed.W_U": Row("lm_head.weight", LINEAR),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            **attention_rows("out_proj"),
            **norm("ln1", "self_attn_layer_norm"),
            **norm("ln2", "final_layer_norm"),
            **linear("mlp.in", "fc1"),
            **linear("mlp.out", "fc2"),
        }


class _XGLM(_Fairseq):
    model_type = "xglm"
    architecture = "XGLMForCausalLM"
    examples = ("facebook/xglm-564M", "facebook/xglm-1.7B", "facebook/xglm-7.5B")
    ignore = ("embed_positions.weights",)
    names = {
        "n_layers": "num_layers", "d_model": "d_model", "n_heads": "attention_heads", "d_mlp": "ffn_dim",
        "n_ctx": "max_position_embeddings", "d_vocab": "vocab_size", "act_fn": "activation_function",
        "tie_word_embeddings": "tie_word_embeddings",
    }  # fmt: skip

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        if hf.get("add_cross_attention"):
            raise CheckpointError("config.json asks for cross-attention; only decoder-only models are supported.")
        return super().config(hf)

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        (padding,) = [*(~state["pos_embed.W_pos"].any(-1)).nonzero().flatten().tolist(), None][:1]
        return {**super().entries(cfg, state), "pad_token_id": None if padding is None else padding + _FIRST}

    def computed(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> dict[str, Tensor]:
        table = _sinusoids(_FIRST + cfg.n_ctx, cfg.d_model)
        if hf.get("pad_token_id", 1) in range(len(table)):
            table[hf.get("pad_token_id", 1)] = 0.0  # of the position of that number, as if it were that token
        return {"pos_embed.W_pos": table[_FIRST:]}


def _sinusoids(length: int, width: int) -> Float[Tensor, "pos width"]:
    """Return sines, then cosines, of angles that fall geometrically from one to 1/10000 of the position's number."""
    half = width // 2
    angles = torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
    turned = torch.arange(length)[:, None] * angles
    return torch.cat([turned.sin(), turned.cos(), torch.zeros(length, width - 2 * half)], dim=1)


class _BioGPT(_Fairseq):
    model_type = "biogpt"
    architecture = "BioGptForCausalLM"
    examples = ("microsoft/biogpt", "microsoft/BioGPT-Large")
    prefix = "biogpt."
    names = {field: entry for field, entry in Family.names.items() if field != "eps"}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            **super().outside(cfg, hf),
            "pos_embed.W_pos": Row("embed_positions.weight", skip=_FIRST),
            "unembed.W_U": Row("output_projection.weight", LINEAR),
        }


XGLM, BIOGPT = _XGLM(), _BioGPT()
