"""Llama 1 to 3, and the base class of Llama-like families, which override the differences.

RMSNorm, rotary positions in halves, grouped-query attention, a gated MLP. SmolLM, Yi, Vicuna, TinyLlama and many others
are saved as `model_type: llama`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import (
    BIAS,
    KEY,
    KEY_BIAS,
    LINEAR,
    OUT,
    QUERY,
    Family,
    Row,
    Table,
    linear,
    norm,
)
from headscope.model.checkpoints.families.rope import rope_entries, rope_fields, window_entries, window_fields
from headscope.model.config import HookedTransformerConfig

__all__ = [
    "LLAMA", "QKV_BIASES", "LlamaLike", "any_bias", "attention_rows", "layers_that_rotate",
    "norms_without_weights", "with_fused_mlp",
]  # fmt: skip

QKV_BIASES = ("attn.b_Q", "attn.b_K", "attn.b_V")


def attention_rows(out: str) -> dict[str, Row]:
    """Return the rows of attention with its biases, for the name of the output projection."""
    return {
        **linear("attn.Q", "self_attn.q_proj", QUERY, BIAS),
        **linear("attn.K", "self_attn.k_proj", KEY, KEY_BIAS),
        **linear("attn.V", "self_attn.v_proj", KEY, KEY_BIAS),
        **linear("attn.O", f"self_attn.{out}", OUT),
    }


class LlamaLike(Family):
    """Base class of Llama and its variants, which override the differences.

    Attributes:
        windowed: All layers have windowed attention, or none; `None` for those of the entry `layer_types`.
        local_type: What `layer_types` calls them.
        default_window: Its length if no entry says.
        local_period: Every so many layers one is global, the others local, if no entry says; 0 if all are global.
        default_base: Base of the rotary frequencies if no entry says.
        rotary_part: Share of a head's dimensions that is rotated if no entry says; `None` if the class always rotates
            all.
    """

    ignore: ClassVar[tuple[str, ...]] = (".rotary_emb.inv_freq",)
    windowed: ClassVar[bool | None] = None
    local_type: ClassVar[str] = "sliding_attention"
    default_window: ClassVar[int | None] = None
    local_period: ClassVar[int] = 0
    default_base: ClassVar[float] = 10_000.0
    rotary_part: ClassVar[float | None] = None
    names = {**Family.names, "eps": "rms_norm_eps", "d_head": "head_dim"}
    defaults = {"act_fn": "silu", "eps": 1e-6, "tie_word_embeddings": False, "d_head": None}
    fixed: ClassVar[Mapping[str, Any]] = {"gated_mlp": True, "normalization_type": "RMS"}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields, groups = super().config(hf), hf.get("num_key_value_heads")
        return {
            **fields,
            "n_key_value_heads": None if groups == fields["n_heads"] else groups or None,
            **self.rope(hf, fields["d_head"]),
            **window_fields(self.window(hf), self.local_layers(hf)),
            "rotary_layers": self.rotary_layers(hf),
        }

    def rope(self, hf: Mapping[str, Any], d_head: int) -> dict[str, Any]:
        """Return the fields on rotary positions."""
        return rope_fields(hf, d_head, base=self.default_base, part=self.rotary_part)

    def window(self, hf: Mapping[str, Any]) -> int | None:
        """Return the number of keys that a query of a local layer sees."""
        return hf.get("sliding_window", self.default_window)

    def local_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        """Return True for each layer with windowed attention."""
        n_layers = hf["num_hidden_layers"]
        if self.windowed is not None:
            return [self.windowed] * n_layers
        types = hf.get("layer_types")
        if not types:
            period = self.period(hf)
            return [bool(period and (layer + 1) % period) for layer in range(n_layers)]
        if unknown := set(types) - {"full_attention", self.local_type}:
            raise CheckpointError(f"layers of type {min(unknown)!r} in config.json are not supported in this family.")
        return [layer_type == self.local_type for layer_type in types]

    def period(self, hf: Mapping[str, Any]) -> int:
        """Return how many layers there are to each global one, if no entry names their types."""
        return self.local_period

    def rotary_layers(self, hf: Mapping[str, Any]) -> list[bool] | None:
        """Return True for each layer that rotates queries and keys; `None` if all do."""
        return None

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            **super().entries(cfg, state),
            "num_key_value_heads": cfg.n_key_value_heads or cfg.n_heads,
            "attention_bias": any_bias(state, *QKV_BIASES, "attn.b_O"),
            "mlp_bias": any_bias(state, "mlp.b_gate", "mlp.b_in", "mlp.b_out"),
            **rope_entries(cfg),
            **window_entries(cfg),
        }

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "embed.W_E": Row("embed_tokens.weight"),
            **norm("ln_final", "norm", bias=cfg.centered_norm),
            "unembed.W_U": Row("lm_head.weight", LINEAR),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        rows = {
            **attention_rows("o_proj"),
            **norm("ln1", "input_layernorm", bias=cfg.centered_norm),
            **norm("ln2", "post_attention_layernorm", bias=cfg.centered_norm),
            **(linear("mlp.gate", "mlp.gate_proj") if cfg.gated_mlp else {}),
            **linear("mlp.in", "mlp.up_proj"),
            **linear("mlp.out", "mlp.down_proj"),
            **(self.qk_norms(cfg) if cfg.use_qk_norm else {}),
        }
        biases = self.biases(hf)
        return {name: row for name, row in rows.items() if ".b_" not in name or name in biases}

    def qk_norms(self, cfg: HookedTransformerConfig) -> Table:
        """Return the rows of the norms of queries and keys."""
        return {f"attn.{each}_norm.w": Row(f"self_attn.{each}_norm.weight") for each in "qk"}

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the biases that a layer of this checkpoint has."""
        attention = (*QKV_BIASES, "attn.b_O") if hf.get("attention_bias") else ()
        return (*attention, *(("mlp.b_gate", "mlp.b_in", "mlp.b_out") if hf.get("mlp_bias") else ()))


def layers_that_rotate(hf: Mapping[str, Any]) -> list[bool]:
    """Return True for each layer that rotates queries and keys, of entries on those that do not."""
    period = hf.get("no_rope_layer_interval", 4)
    # The entry is 1 for layers that do rotate, whatever its name says.
    rotate = hf.get("no_rope_layers") or [(layer + 1) % period for layer in range(hf["num_hidden_layers"])]
    return [bool(each) for each in rotate[: hf["num_hidden_layers"]]]


def norms_without_weights(cfg: HookedTransformerConfig) -> dict[str, Tensor]:
    """Return the weights, all one, of norms of queries and keys that have none in the checkpoint."""
    layers = cfg.qk_norm_layers or [cfg.use_qk_norm] * cfg.n_layers
    names = [f"blocks.{layer}.attn.{each}_norm.w" for layer in range(cfg.n_layers) if layers[layer] for each in "qk"]
    return {name: torch.ones(cfg.d_head) for name in names}


def any_bias(state: Mapping[str, Tensor], *names: str) -> bool:
    """Return True if any of these biases of a layer is not zero, whether or not heads share it."""
    endings = tuple(f".{name}" for name in names)
    return any(bool(tensor.any()) for name, tensor in state.items() if name.replace("._", ".").endswith(endings))


def with_fused_mlp(table: Table) -> Table:
    """Return a layer's rows with one tensor for the gate and the linear factor of the MLP, one after the other."""
    rest = {name: row for name, row in table.items() if name not in ("mlp.W_gate", "mlp.W_in")}
    return {**rest, "mlp.W_gate mlp.W_in": Row("mlp.gate_up_proj.weight", "(n m) d -> n d m")}


class _Llama(LlamaLike):
    model_type = "llama"
    architecture = "LlamaForCausalLM"
    examples = ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-2-7b-hf", "huggyllama/llama-7b",
                "HuggingFaceTB/SmolLM2-135M", "TinyLlama/TinyLlama-1.1B-Chat-v1.0")  # fmt: skip
    windowed = False


LLAMA = _Llama()
