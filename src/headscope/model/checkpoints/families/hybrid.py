"""Hybrid models: layers with attention, and layers with a mixer in its place or beside it. LFM 2, and the base class.

Mixers are the modules of `transformers`, made from the entries that it fills in, and their tensors keep their names.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from headscope.errors import CheckpointError, MissingDependencyError
from headscope.model.checkpoints.families.base import Row, Table
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.config import HookedTransformerConfig
from headscope.model.parts.mixers import mixer_entries, mixer_tensors

__all__ = ["IN_PLACE", "LFM2", "Hybrid", "renamed"]

# A mixer in place of attention.
IN_PLACE = {"mixer+mlp": "linear_attention", "attn+mlp": "full_attention"}


class Hybrid(LlamaLike):
    """Base class of hybrid families.

    Attributes:
        mixer: What a layer's mixer is called.
        kinds: What the kinds of layers are called, by their parts.
    """

    windowed: ClassVar[bool | None] = False
    mixer: ClassVar[str]
    kinds: ClassVar[Mapping[str, str]]

    def complete(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        """Return a `config.json` with the entries that `transformers` fills in, and each layer's kind.

        Raises:
            MissingDependencyError: If the installed version of `transformers` has no such models.
        """
        from huggingface_hub import errors
        from transformers import CONFIG_MAPPING

        known = self.model_type in CONFIG_MAPPING
        try:
            config: Any = CONFIG_MAPPING[self.model_type].from_dict(dict(hf)) if known else None
        except getattr(errors, "StrictDataclassError", ValueError) as error:
            raise ValueError(error) from error  # which names the file's entry where it is caught
        kinds = getattr(config, "layer_types", None)  # which early versions of transformers give other names
        if kinds is None:
            raise MissingDependencyError(
                f"models of type {self.model_type} take a newer version of transformers than the one installed. "
                "Update it: pip install -U transformers.",
                code="HS-DEPENDENCY-02",
            )
        derived = {"layer_types": list(kinds), "num_hidden_layers": config.num_hidden_layers}
        return {**config.to_dict(), **derived}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        hf = self.complete(hf)
        parts = {kind: parts for parts, kind in self.kinds.items()}
        unknown = [kind for kind in hf["layer_types"] if kind not in parts]
        if unknown:
            raise CheckpointError(f"layers of type {unknown[0]!r} in {self.model_type} are not supported.")
        fields = super().config(hf)
        if not self.rotates(hf):
            rotary = self.rope(hf, fields["d_head"])
            fields = {name: value for name, value in fields.items() if name not in rotary}
            fields["positional_embedding_type"] = "none"
        return {
            **fields,
            "layer_parts": [parts[kind] for kind in hf["layer_types"]],
            "mixer": mixer_entries(self.model_type, hf),
        }

    def rotates(self, hf: Mapping[str, Any]) -> bool:
        """Return True if queries and keys are rotated; else the mixers alone tell positions apart."""
        return True

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        assert cfg.layer_parts is not None and cfg.mixer is not None
        kinds = [self.kinds[parts] for parts in cfg.layer_parts[: cfg.n_layers]]
        rotary = replace(cfg, positional_embedding_type="rotary")  # entries that nobody reads, where nothing is
        entries = {**super().entries(rotary, state), **cfg.mixer}
        return {name: value for name, value in entries.items() if name != "layer_types"} | self.layer_entries(kinds)

    def layer_entries(self, kinds: list[str]) -> dict[str, Any]:
        """Return the entries that say of which kind each layer is."""
        return {"layer_types": kinds}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        mixer = {f"mixer.{name}": Row(f"{self.mixer}.{name}") for name in mixer_tensors(cfg)}
        return {**super().layer(cfg, hf), **mixer}


class _Lfm2(Hybrid):
    """Gated short convolutions, and attention with norms on queries and keys; the final norm is `embedding_norm`."""

    model_type = "lfm2"
    architecture = "Lfm2ForCausalLM"
    examples = ("LiquidAI/LFM2-350M", "LiquidAI/LFM2-1.2B", "LiquidAI/LFM2-2.6B")
    mixer = "conv"
    kinds: ClassVar[Mapping[str, str]] = {"mixer+mlp": "conv", "attn+mlp": "full_attention"}
    names = {**Hybrid.names, "eps": "norm_eps"}
    fixed = {**LlamaLike.fixed, "act_fn": "silu", "use_qk_norm": True}

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().config(hf), "d_mlp": _lfm2_width(self.complete(hf))}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**super().entries(cfg, state), "block_auto_adjust_ff_dim": False}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {**super().outside(cfg, hf), "ln_final.w": Row("embedding_norm.weight")}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        theirs = {
            "input_layernorm": "operator_norm",
            "post_attention_layernorm": "ffn_norm",
            "self_attn.o_proj": "self_attn.out_proj",
            "self_attn.q_norm": "self_attn.q_layernorm",
            "self_attn.k_norm": "self_attn.k_layernorm",
            "mlp.gate_proj": "feed_forward.w1",
            "mlp.up_proj": "feed_forward.w3",
            "mlp.down_proj": "feed_forward.w2",
        }
        return renamed(super().layer(cfg, hf), theirs)


def renamed(table: Table, theirs: Mapping[str, str]) -> Table:
    """Return a table in which what begins with some names begins with others in the checkpoint."""
    rows = dict(table)
    for name, row in table.items():
        for before, after in theirs.items():
            if row.theirs.startswith(f"{before}."):
                rows[name] = replace(row, theirs=after + row.theirs.removeprefix(before))
    return rows


def _lfm2_width(hf: Mapping[str, Any]) -> int:
    """Return the MLPs' width: two thirds of the entry, a multiple of another, unless it is said to be as it is."""
    width = int(hf["intermediate_size"])
    if not hf["block_auto_adjust_ff_dim"]:
        return width
    width = int(2 * width / 3)
    if hf["block_ffn_dim_multiplier"] is None:
        return width
    multiple = hf["block_multiple_of"]
    return multiple * -(-int(hf["block_ffn_dim_multiplier"] * width) // multiple)


LFM2 = _Lfm2()
