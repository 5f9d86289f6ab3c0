"""The field's own small models, in the layout they were published in: attention-only, GELU and SoLU models of 1 to 12
layers.

Such a checkpoint is a `config.json` whose entries are the fields of our config, without a `model_type`, and a state
dict (`*final.pth`, or safetensors) whose names are ours. The oldest ones call norms `norm1`, `norm2` and `norm`, and
those of up to six layers have all matrices the other way round, outputs first; of up to eight, the positions. Shapes
show which, but for positions as many as the stream is wide: there it counts that a checkpoint is old, which its names
show, or that it is called so (`..._old`). What was never trained, such as a bias of the unembedding, may be missing,
and is zero. Othello-GPT has such a config too, beside weights of minGPT.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.families.base import BIAS, LINEAR, OUT, QUERY, Family, Row, Table, linear, norm, sizes
from headscope.model.config import HookedTransformerConfig
from headscope.model.parts.attention import FIELD_BUFFERS

__all__ = ["FIELD", "MINGPT"]

_OLD = "neel-solu-old"
_CALLED_OLD = re.compile(r"_old(/snapshots/[^/]*)?/?$")  # a folder, the hub's cache of one among them
_ENTRIES = ("n_layers", "d_model", "n_heads", "d_head", "n_ctx", "d_vocab")
# The layout facts that only the tensors show, put beside the entries of the config for the tables to read.
_LEFT, _LEFT_POSITIONS = "matrices have outputs first", "W_pos has d_model first"
_LEFT_LAYOUTS = {
    "attn.W_Q": "h e d -> h d e", "attn.W_K": "h e d -> h d e", "attn.W_V": "h e d -> h d e",
    "attn.W_O": "h d e -> h e d", "mlp.W_in": "m d -> d m", "mlp.W_out": "d m -> m d", "embed.W_E": "d v -> v d",
    "unembed.W_U": "v d -> d v",
}  # fmt: skip


class _Field(Family):
    model_type = ""
    architecture = "neel"
    examples: ClassVar[tuple[str, ...]] = (
        "NeelNanda/Attn_Only_2L512W_C4_Code", "NeelNanda/GELU_1L512W_C4_Code", "NeelNanda/SoLU_1L512W_C4_Code",
    )  # fmt: skip
    prefix = ""
    layer_prefix = "blocks.{}."
    ignore = tuple(f".attn.{name}" for name in FIELD_BUFFERS)

    def is_of(self, hf: Mapping[str, Any]) -> bool:
        """Return True for a config of one of these models."""
        return "model_type" not in hf and set(_ENTRIES) <= hf.keys()

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        attn_only = hf.get("attn_only", False)
        called = _OLD if _CALLED_OLD.search(hf.get("_name_or_path", "")) else self.architecture
        return {
            **dict(zip(_ENTRIES, sizes(hf, *_ENTRIES), strict=True)),
            "d_mlp": hf.get("d_mlp"),
            "act_fn": None if attn_only else hf["act_fn"],
            "attn_only": attn_only,
            "normalization_type": hf.get("normalization", hf.get("normalization_type", "LN")),
            "final_rms": hf.get("final_rms", False),
            "positional_embedding_type": "shortformer" if hf.get("shortformer_pos") else "standard",
            "original_architecture": hf.get("architecture", called),
            "tokenizer_name": hf.get("tokenizer_name"),
        }

    def renamed(self, name: str) -> str:
        name = name.replace("norm", "ln")
        return f"ln_final.{name.removeprefix('ln.')}" if name.startswith("ln.") else name

    def convert(
        self, tensors: Mapping[str, Tensor], cfg: HookedTransformerConfig, hf: Mapping[str, Any]
    ) -> Iterator[tuple[str, Tensor]]:
        if cfg.original_architecture not in (self.architecture, _OLD):
            raise CheckpointError(f"checkpoints of architecture {cfg.original_architecture!r} are not supported.")
        names = {self.renamed(name): name for name in tensors}
        shapes = {name: tensors[names[name]].shape for name in ("embed.W_E", "pos_embed.W_pos") if name in names}
        left = shapes.get("embed.W_E") == (cfg.d_model, cfg.d_vocab)
        old = any("norm" in name for name in tensors) or left or cfg.original_architecture == _OLD
        cfg.original_architecture = _OLD if old else self.architecture
        if cfg.d_model == cfg.n_ctx:  # only the age of the checkpoint says
            left_positions = old and cfg.n_layers <= 8
        else:
            left_positions = shapes.get("pos_embed.W_pos") == (cfg.d_model, cfg.n_ctx)
        yield from super().convert(tensors, cfg, {**hf, _LEFT: left, _LEFT_POSITIONS: left_positions})

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        norm = {"LN": ["ln_final.w", "ln_final.b"], "RMS": ["ln_final.w"]}.get(str(cfg.final_norm), [])
        return {
            "pos_embed.W_pos": Row("pos_embed.W_pos", "d p -> p d" if hf.get(_LEFT_POSITIONS) else ""),
            **_rows(["embed.W_E", *norm, "unembed.W_U", "unembed.b_U"], hf),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        matrices = [f"attn.W_{each}" for each in "QKVO"] + ([] if cfg.attn_only else ["mlp.W_in", "mlp.W_out"])
        norms = [] if cfg.normalization_type not in ("LN", "RMS") else ["ln1"] + ([] if cfg.attn_only else ["ln2"])
        weights = [f"{norm}.{kind}" for norm in norms for kind in ("w", "b") if kind == "w" or cfg.centered_norm]
        behind_activation = ["mlp.ln.w", "mlp.ln.b"] if norms and cfg.is_layer_norm_activation() else []
        biases = [name.replace(".W_", ".b_") for name in matrices]
        return _rows([*matrices, *biases, *weights, *behind_activation], hf)

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        raise CheckpointError("this layout is read only: save the model's config and state dict instead.")


def _rows(names: list[str], hf: Mapping[str, Any]) -> Table:
    layouts = _LEFT_LAYOUTS if hf.get(_LEFT) else {}
    return {name: Row(name, layouts.get(name, ""), optional=".b_" in name) for name in names}


class _MinGPT(_Field):
    """Models trained with minGPT (Othello-GPT): the same config, and weights under the names of minGPT."""

    architecture = "mingpt"
    examples = ("Baidicoot/Othello-GPT-Transformer-Lens",)
    ignore = (".attn.mask",)

    def is_of(self, hf: Mapping[str, Any]) -> bool:
        """Return True for a config of one of these models."""
        return super().is_of(hf) and hf.get("architecture") == self.architecture

    def renamed(self, name: str) -> str:
        return name

    def convert(
        self, tensors: Mapping[str, Tensor], cfg: HookedTransformerConfig, hf: Mapping[str, Any]
    ) -> Iterator[tuple[str, Tensor]]:
        return Family.convert(self, tensors, cfg, hf)

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            "embed.W_E": Row("tok_emb.weight"),
            "pos_embed.W_pos": Row("pos_emb", "1 p d -> p d"),
            **norm("ln_final", "ln_f"),
            "unembed.W_U": Row("head.weight", LINEAR),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return {
            **linear("attn.Q", "attn.query", QUERY, BIAS),
            **linear("attn.K", "attn.key", QUERY, BIAS),
            **linear("attn.V", "attn.value", QUERY, BIAS),
            **linear("attn.O", "attn.proj", OUT),
            **norm("ln1", "ln1"),
            **norm("ln2", "ln2"),
            **linear("mlp.in", "mlp.0"),
            **linear("mlp.out", "mlp.2"),
        }


FIELD, MINGPT = _Field(), _MinGPT()
