"""OPT and Galactica: GPT-2 with ReLU or GELU, and learned positions that start at the third row of their table.

Galactica has no biases, and norms without weights.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import LINEAR, Family, Row, Table, linear, norm
from headscope.model.checkpoints.families.llama import QKV_BIASES, any_bias, attention_rows
from headscope.model.config import HookedTransformerConfig

__all__ = ["OPT"]


class _OPT(Family):
    model_type = "opt"
    architecture = "OPTForCausalLM"
    examples = ("facebook/opt-125m", "facebook/opt-1.3b", "facebook/opt-6.7b", "facebook/galactica-1.3b")
    prefix = "model.decoder."

    names = {
        **{field: entry for field, entry in Family.names.items() if field != "eps"},
        "d_mlp": "ffn_dim",
        "act_fn": "activation_function",
    }
    defaults = {"act_fn": "relu", "tie_word_embeddings": True}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().config(hf)
        if not hf.get("do_layer_norm_before", True):
            raise CheckpointError(
                "OPT with do_layer_norm_before = False is not supported: its norms are on the residual stream itself, "
                "which is then no sum of what layers add to it. Of the published models this is OPT 350M alone."
            )
        for name, value in {"word_embed_proj_dim": fields["d_model"], "_remove_final_layer_norm": False}.items():
            if hf.get(name, value) not in (value, None):
                raise CheckpointError(f"OPT with {name} = {hf[name]!r} is not supported; it can only be {value!r}.")
        return {**fields, "normalization_type": "LN" if hf.get("layer_norm_elementwise_affine", True) else "LNPre"}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            **super().entries(cfg, state),
            "word_embed_proj_dim": cfg.d_model,
            "layer_norm_elementwise_affine": cfg.normalization_type == "LN",
            "enable_bias": any_bias(state, *QKV_BIASES, "attn.b_O", "mlp.b_in", "mlp.b_out"),
        }

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "embed.W_E": Row("embed_tokens.weight"),
            "pos_embed.W_pos": Row("embed_positions.weight", skip=2),
            **(norm("ln_final", "final_layer_norm") if cfg.normalization_type == "LN" else {}),
            "unembed.W_U": Row("lm_head.weight", LINEAR),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        matrices = {**attention_rows("out_proj"), **linear("mlp.in", "fc1"), **linear("mlp.out", "fc2")}
        norms = {**norm("ln1", "self_attn_layer_norm"), **norm("ln2", "final_layer_norm")}
        return {
            **{name: row for name, row in matrices.items() if ".W_" in name or hf.get("enable_bias", True)},
            **(norms if cfg.normalization_type == "LN" else {}),
        }


OPT = _OPT()
