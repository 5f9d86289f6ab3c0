"""StarCoder 2 (Llama with LayerNorm, biases and a plain MLP) and GPT-BigCode (GPT-2 with one key-value head).

GPT-BigCode is StarCoder 1 and SantaCoder. Its queries, keys and values are one tensor: one key and one value for all
heads or, without `multi_query`, head by head.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.entries import defaulted
from headscope.model.checkpoints.families.base import BIAS, KEY, KEY_BIAS, OUT, QUERY, Table, linear, norm
from headscope.model.checkpoints.families.gpt2 import GPT2Like
from headscope.model.checkpoints.families.llama import QKV_BIASES, LlamaLike, any_bias
from headscope.model.config import HookedTransformerConfig

__all__ = ["GPT_BIGCODE", "STARCODER2"]

_BIASES = (*QKV_BIASES, "attn.b_O", "mlp.b_in", "mlp.b_out")


class _StarCoder2(LlamaLike):
    model_type = "starcoder2"
    architecture = "Starcoder2ForCausalLM"
    prepends_bos = False
    examples = ("bigcode/starcoder2-3b", "bigcode/starcoder2-7b", "bigcode/starcoder2-15b")
    windowed = True
    names = {**LlamaLike.names, "eps": "norm_epsilon"}
    fixed = {**LlamaLike.fixed, "gated_mlp": False, "normalization_type": "LN"}
    defaults = {**LlamaLike.defaults, "act_fn": "gelu_pytorch_tanh", "eps": 1e-5, "tie_word_embeddings": True}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        return super().config(defaulted(hf, num_key_value_heads=2))

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        grouped = (name.replace("attn.", "attn._") for name in QKV_BIASES)
        return {**super().entries(cfg, state), "use_bias": any_bias(state, *_BIASES, *grouped)}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        rows = {
            **{name: row for name, row in super().layer(cfg, hf).items() if not name.startswith("mlp.")},
            **linear("mlp.in", "mlp.c_fc"),
            **linear("mlp.out", "mlp.c_proj"),
        }
        return {name: row for name, row in rows.items() if ".b_" not in name or name in self.biases(hf)}

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return _BIASES if hf.get("use_bias", True) else ()


class _GPTBigCode(GPT2Like):
    model_type = "gpt_bigcode"
    architecture = "GPTBigCodeForCausalLM"
    examples = ("bigcode/starcoderbase-1b", "bigcode/starcoder", "bigcode/gpt_bigcode-santacoder")
    names = {**GPT2Like.names, "use_attn_scale": "scale_attn_weights"}
    defaults = {**GPT2Like.defaults, "act_fn": "gelu_pytorch_tanh", "use_attn_scale": True}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        if hf.get("add_cross_attention"):
            raise CheckpointError("config.json asks for cross-attention; only decoder-only models are supported.")
        fields = super().config(hf)
        shared = hf.get("multi_query", True) and fields["n_heads"] > 1
        return {**fields, "n_key_value_heads": 1 if shared else None}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**super().entries(cfg, state), "multi_query": cfg.n_key_value_heads == 1}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        shared = hf.get("multi_query", True)
        layouts = ((QUERY, KEY, KEY), (BIAS, KEY_BIAS, KEY_BIAS)) if shared else _BY_HEAD
        return {
            **linear("attn.Q attn.K attn.V", "attn.c_attn", *layouts),
            **linear("attn.O", "attn.c_proj", OUT),
            **norm("ln1", "ln_1"),
            **norm("ln2", "ln_2"),
            **linear("mlp.in", "mlp.c_fc"),
            **linear("mlp.out", "mlp.c_proj"),
        }


_BY_HEAD = ("(h n e) d -> n h d e", "(h n e) -> n h e")

STARCODER2, GPT_BIGCODE = _StarCoder2(), _GPTBigCode()
