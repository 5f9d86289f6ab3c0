"""OPT: GPT-2 with ReLU, and learned positions that start at the third row of their table."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import LINEAR, Family, Row, Table, linear, norm
from headscope.model.checkpoints.families.llama import attention_rows
from headscope.model.config import HookedTransformerConfig

__all__ = ["OPT"]


class _OPT(Family):
    model_type = "opt"
    architecture = "OPTForCausalLM"
    examples = ("facebook/opt-125m", "facebook/opt-1.3b", "facebook/opt-6.7b")
    prefix = "model.decoder."

    names = {
        **{field: entry for field, entry in Family.names.items() if field != "eps"},
        "d_mlp": "ffn_dim",
        "act_fn": "activation_function",
    }
    defaults = {"act_fn": "relu", "tie_word_embeddings": True}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().config(hf)
        wanted = {"word_embed_proj_dim": fields["d_model"], "do_layer_norm_before": True, "enable_bias": True,
                  "layer_norm_elementwise_affine": True, "_remove_final_layer_norm": False}  # fmt: skip
        for name, value in wanted.items():
            if hf.get(name, value) not in (value, None):
                raise CheckpointError(f"OPT with {name} = {hf[name]!r} is not supported; it can only be {value!r}.")
        return fields

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**super().entries(cfg, state), "word_embed_proj_dim": cfg.d_model}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "embed.W_E": Row("embed_tokens.weight"),
            "pos_embed.W_pos": Row("embed_positions.weight", skip=2),
            **norm("ln_final", "final_layer_norm"),
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


OPT = _OPT()
