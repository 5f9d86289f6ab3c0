"""Cohere's Command R and Aya (parallel blocks, LayerNorms without biases) and Command R7B and A (also local layers).

The factor on the logits is folded into `W_U`: back in `transformers` it is one, and the unembedding is not tied to the
embedding. Of Cohere 2, only local layers rotate queries and keys.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.entries import changed
from headscope.model.checkpoints.families.base import Table, norm
from headscope.model.checkpoints.families.llama import LlamaLike
from headscope.model.config import HookedTransformerConfig

__all__ = ["COHERE", "COHERE2"]


class _Cohere(LlamaLike):
    model_type = "cohere"
    architecture = "CohereForCausalLM"
    examples: ClassVar[tuple[str, ...]] = ("CohereLabs/c4ai-command-r-v01", "CohereLabs/aya-23-8B")
    windowed: ClassVar[bool | None] = False
    default_base = 500_000.0
    names = {**LlamaLike.names, "eps": "layer_norm_eps", "use_qk_norm": "use_qk_norm"}
    defaults = {**LlamaLike.defaults, "eps": 1e-5, "tie_word_embeddings": True, "use_qk_norm": False}
    fixed = {
        **LlamaLike.fixed,
        "normalization_type": "LN",
        "parallel_attn_mlp": True,
        "rotary_adjacent_pairs": True,
    }

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().config(hf)
        return {**fields, **({"qk_norm_type": "LN", "qk_norm_per_head": True} if fields["use_qk_norm"] else {})}

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**super().entries(cfg, state), "logit_scale": 1.0}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        table = {name: row for name, row in super().outside(cfg, hf).items() if name != "ln_final.b"}
        return {**table, "unembed.W_U": replace(table["unembed.W_U"], scale=hf.get("logit_scale", 0.0625))}

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        rest = {name: row for name, row in super().layer(cfg, hf).items() if not name.startswith("ln")}
        return {**rest, **norm("ln1 ln2", "input_layernorm", bias=False)}

    def biases(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        return super().biases(changed(hf, mlp_bias=False))


class _Cohere2(_Cohere):
    model_type = "cohere2"
    architecture = "Cohere2ForCausalLM"
    examples = ("CohereLabs/c4ai-command-r7b-12-2024", "CohereLabs/c4ai-command-a-03-2025")
    windowed = None
    default_window = 4096
    default_base = 10_000.0

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        if self.window(hf) is None:
            raise CheckpointError("Cohere 2 without a sliding_window in config.json is not supported.")
        return super().config(changed(hf, use_qk_norm=False))  # an entry that this class does not read

    def period(self, hf: Mapping[str, Any]) -> int:
        return hf.get("sliding_window_pattern", 4)

    def rotary_layers(self, hf: Mapping[str, Any]) -> list[bool]:
        return self.local_layers(hf)

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        entries = super().entries(cfg, state)
        return {**entries, "sliding_window": entries["sliding_window"] or self.default_window}


COHERE, COHERE2 = _Cohere(), _Cohere2()
