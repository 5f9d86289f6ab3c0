"""Folders whose `config.json` has the fields of our config, without a `model_type`, and tensors under our names.

There are three kinds. `save_pretrained` writes everything as it is, with the processing that was done. Others write
such folders by hand. And the field's own small models (attention-only, GELU and SoLU models of 1 to 12 layers) were
published in a layout like it, in safetensors or `*final.pth`, with notes on their training in the config. The oldest
of these call norms `norm1`, `norm2` and `norm`, and those of up to six layers have all matrices the other way round,
outputs first; of up to eight, the positions. Shapes show which, but for positions as many as the stream is wide: there
it counts that a checkpoint is old, which its names show, or that it is called so (`..._old`). What was never trained,
such as a bias of the unembedding, may be missing, and is zero. Othello-GPT has such a
config too, beside weights of minGPT.

An entry that is neither a field nor known to change nothing is refused: to drop it could change the logits.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, ClassVar, get_args, get_origin

from torch import Tensor

from headscope.errors import CheckpointError, InvalidInputError
from headscope.model.checkpoints.families.base import (
    BIAS,
    LINEAR,
    OUT,
    QUERY,
    Family,
    Row,
    Table,
    block_shapes,
    linear,
    norm,
    sizes,
)
from headscope.model.config import HookedTransformerConfig
from headscope.model.parts.attention import FIELD_BUFFERS
from headscope.model.text.tokens import PaddingSide
from headscope.model.weights.processing import WeightProcessing

__all__ = ["FIELD", "MINGPT", "NOT_SAVED", "Saved", "saved_with"]

# What `save_pretrained` writes beside the fields; the first marks the folders that it wrote.
_PROCESSING, _SIDE, _N_PARAMS = "weight_processing", "default_padding_side", "n_params_checkpoint"
# Fields about this run, or computed from the others.
NOT_SAVED = frozenset({"device", "init_weights", "n_devices", "n_params", "uses_rms_norm"})
# Fields that say nothing about the weights in a folder that others wrote: options and the folder's name decide.
_NOT_READ = NOT_SAVED | {"dtype", "model_name", "seed"}
_TYPES = {field.name: field.type for field in dataclasses.fields(HookedTransformerConfig)}
_REQUIRED = ("n_layers", "d_model", "n_ctx", "d_head")
_RENAMED = {
    "normalization": "normalization_type", "ln_eps": "eps", "architecture": "original_architecture",
    "shortformer_pos": "positional_embedding_type",
}  # fmt: skip
# Notes on how the published models were trained, and where their configs were written.
_NOTES = re.compile(
    r"_name_or_path|transformers_version|torch_dtype|checkpoint_(type|every.*|scale)|take_checkpoints|version|control|"
    r"lr(_.*)?|betas?[12]?|(total_)?batch_size(_.*)?|batches_per_step|tokens_per_step|(max|warmup|truncate)_.*|"
    r"save_.*|debug(_.*)?|log_.*|wandb.*|notes?|weight_decay|grad_norm_clip|train_loss_.*|dataset_.*|shuffled_data|"
    r"use_b?float16(_matmul)?|use_acc|use_ET|use_checkpoint_schedule|right_multiply_matrices|"
    r"initializer_scale_.*|weight_init_scheme|W_O_init_scale|fixed_init|store_init"
)
# Choices that our config has not, and what they must be.
_ONLY = {"neuron_scale": 1, "neuron_temp": 1, "use_pos_resid": True, "factored_embed": False}

_OLD = "neel-solu-old"
_CALLED_OLD = re.compile(r"_old(/snapshots/[^/]*)?/?$")  # a folder, the hub's cache of one among them
_OLD_NORM = re.compile(r"(?<![^.])norm(?=[12]?\.)")
# The layout facts that only the tensors show, put beside the entries of the config for the tables to read.
_LEFT, _LEFT_POSITIONS = "matrices have outputs first", "W_pos has d_model first"
_LEFT_LAYOUTS = {
    "attn.W_Q": "h e d -> h d e", "attn.W_K": "h e d -> h d e", "attn.W_V": "h e d -> h d e",
    "attn.W_O": "h d e -> h e d", "mlp.W_in": "m d -> d m", "mlp.W_out": "d m -> m d", "embed.W_E": "d v -> v d",
    "unembed.W_U": "v d -> d v",
}  # fmt: skip


@dataclass(frozen=True)
class Saved:
    """The facts of a model that `save_pretrained` keeps beside its config and its weights."""

    processing: tuple[str, ...]
    padding_side: PaddingSide
    n_params: int | None

    def entries(self) -> dict[str, Any]:
        """Return these as entries of a `config.json`: the inverse of `saved_with`."""
        return {_PROCESSING: list(self.processing), _SIDE: self.padding_side, _N_PARAMS: self.n_params}


def saved_with(hf: Mapping[str, Any]) -> Saved | None:
    """Read what `save_pretrained` kept beside the config; `None` for a folder that it did not write.

    Raises:
        CheckpointError: For an entry that it cannot have written.
    """
    if not FIELD.is_of(hf) or _PROCESSING not in hf:
        return None
    processing, side, n_params = hf[_PROCESSING], hf.get(_SIDE), hf.get(_N_PARAMS)
    names = WeightProcessing.names()
    if not isinstance(processing, list) or not all(each in names for each in processing):
        raise CheckpointError(f"{_PROCESSING} in config.json must list some of {', '.join(names)}; got {processing!r}.")
    if side not in ("left", "right"):
        raise CheckpointError(f"{_SIDE} in config.json must be 'left' or 'right'; got {side!r}.")
    if n_params is not None and (type(n_params) is not int or n_params < 1):
        raise CheckpointError(f"{_N_PARAMS} in config.json must be a number above 0, or null; got {n_params!r}.")
    return Saved(tuple(processing), side, n_params)


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
        """Return True for a config of our own fields."""
        return "model_type" not in hf and set(_REQUIRED) <= hf.keys()

    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        sizes(hf, *_REQUIRED, "d_vocab")
        saved = _PROCESSING in hf
        fields: dict[str, Any] = {}
        unknown = []
        for entry, value in hf.items():
            if entry in _TYPES and (saved or entry not in _NOT_READ):
                if not _fits(value, _TYPES[entry]):
                    raise CheckpointError(f"{entry} = {value!r} in config.json is of the wrong type.")
                fields.setdefault(entry, value)
            elif entry in _RENAMED:
                if entry != "shortformer_pos":
                    fields[_RENAMED[entry]] = value
                elif value:
                    fields[_RENAMED[entry]] = "shortformer"
            elif not (entry in _NOT_READ or _is_known(entry, value, saved)):
                unknown.append(f"{entry} = {value!r}")
        if unknown:
            raise CheckpointError(
                f"config.json has entries that are no fields of HookedTransformerConfig: {', '.join(unknown)}. The "
                "model may compute something else with them. Those that change nothing can be removed from "
                "config.json.",
                code="HS-CHECKPOINT-06",
            )
        if not saved:
            fields["act_fn"] = None if fields.get("attn_only") else fields.get("act_fn")
            called = _OLD if _CALLED_OLD.search(hf.get("_name_or_path", "")) else self.architecture
            fields["original_architecture"] = fields.get("original_architecture") or called
        try:
            HookedTransformerConfig(**{**fields, "device": "cpu"})
        except InvalidInputError as error:
            raise CheckpointError(f"config.json: {error.message}", code=error.code) from None
        return fields

    def renamed(self, name: str) -> str:
        if ".mixer." in name:  # the names of `transformers`
            return name
        name = _OLD_NORM.sub("ln", name)
        return f"ln_final.{name.removeprefix('ln.')}" if name.startswith("ln.") else name

    def convert(
        self, tensors: Mapping[str, Tensor], cfg: HookedTransformerConfig, hf: Mapping[str, Any]
    ) -> Iterator[tuple[str, Tensor]]:
        if hf.get("architecture", _OLD) not in (self.architecture, _OLD):
            raise CheckpointError(f"checkpoints of architecture {cfg.original_architecture!r} are not supported.")
        if _PROCESSING not in hf:
            hf = {**hf, **self._layout(tensors, cfg)}
        # The unembedding is in the folder, and is the embedding no longer once weights are processed.
        yield from super().convert(tensors, dataclasses.replace(cfg, tie_word_embeddings=False), hf)

    def _layout(self, tensors: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> dict[str, bool]:
        """Return which way round matrices and positions are, and note in the config that a checkpoint is old."""
        names = {self.renamed(name): name for name in tensors}
        shapes = {name: tuple(tensors[names[name]].shape) for name in _TELLING if name in names}
        old = any(_OLD_NORM.search(name) for name in tensors) or cfg.original_architecture == _OLD
        if cfg.d_model != cfg.d_vocab:
            left = shapes.get("embed.W_E") == (cfg.d_model, cfg.d_vocab)
        elif cfg.d_model != cfg.d_head:
            left = shapes.get("blocks.0.attn.W_Q") == (cfg.n_heads, cfg.d_head, cfg.d_model)
        else:
            left = old and cfg.n_layers <= 6
        old = old or left
        if old and cfg.original_architecture == self.architecture:
            cfg.original_architecture = _OLD
        if cfg.d_model == cfg.n_ctx:  # only the age of the checkpoint says
            left_positions = old and cfg.n_layers <= 8
        else:
            left_positions = shapes.get("pos_embed.W_pos") == (cfg.d_model, cfg.n_ctx)
        return {_LEFT: left, _LEFT_POSITIONS: left_positions}

    def outside(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        norm = {"LN": ["ln_final.w", "ln_final.b"], "RMS": ["ln_final.w"]}.get(str(cfg.final_norm), [])
        after_embedding = ["embed.ln.w", "embed.ln.b"] if cfg.post_embedding_ln else []
        has_positions = cfg.positional_embedding_type in ("standard", "shortformer")
        positions = Row("pos_embed.W_pos", "d p -> p d" if hf.get(_LEFT_POSITIONS) else "")
        return {
            **({"pos_embed.W_pos": positions} if has_positions else {}),
            **_rows(["embed.W_E", *after_embedding, *norm, "unembed.W_U", "unembed.b_U"], hf),
        }

    def layer(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any]) -> Table:
        return self.layer_at(cfg, hf, 0)

    def layer_at(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any], layer: int) -> Table:
        return _rows(list(block_shapes(cfg, layer)), hf)

    def entries(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
        raise CheckpointError("this layout has no class in transformers: save the model with save_pretrained.")


_TELLING = ("embed.W_E", "blocks.0.attn.W_Q", "pos_embed.W_pos")


def _fits(value: Any, kind: Any) -> bool:
    """Return True if a value from JSON is of a field's type; `1` and `"false"` are no booleans."""
    for each in get_args(kind) if isinstance(kind, UnionType) else (kind,):
        if each is Any or type(value) is (get_origin(each) or each) or (each is float and type(value) is int):
            return True
    return False


def _is_known(entry: str, value: Any, saved: bool) -> bool:
    """Return True if an entry that is no field changes nothing."""
    if saved and entry in (_PROCESSING, _SIDE, _N_PARAMS):
        return True
    return value == _ONLY[entry] if entry in _ONLY else bool(_NOTES.fullmatch(entry))


def _rows(names: list[str], hf: Mapping[str, Any]) -> Table:
    layouts = _LEFT_LAYOUTS if hf.get(_LEFT) else {}
    complete = _PROCESSING in hf
    return {name: Row(name, layouts.get(name, ""), optional=not complete and _is_bias(name)) for name in names}


def _is_bias(name: str) -> bool:
    """Return True for the bias of a matrix; those of norms belong to their weights."""
    return name.rpartition(".")[2].lstrip("_").startswith("b_")


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

    def layer_at(self, cfg: HookedTransformerConfig, hf: Mapping[str, Any], layer: int) -> Table:
        return self.layer(cfg, hf)


FIELD, MINGPT = _Field(), _MinGPT()
