"""Lists of heads: by name, as results keep them, and in order of a number."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from headscope.analysis.core.components import Component, all_heads, components
from headscope.analysis.core.named_arrays import Label
from headscope.analysis.core.result import Result, component_label
from headscope.errors import InvalidInputError
from headscope.model.config import HookedTransformerConfig
from headscope.model.transformer import HookedTransformer

__all__ = ["HeadListResult", "chosen_heads", "heads_tensor", "one_vocabulary", "over_layers"]


def chosen_heads(model: HookedTransformer, heads: Iterable[object] | None) -> tuple[Component, ...]:
    """Heads by name, each once; all for `None`.

    Raises:
        InvalidInputError: for one that does not exist or is named twice, an MLP, or none at all.
    """
    chosen = all_heads(model.cfg) if heads is None else components(model.cfg, heads)
    if not chosen:
        raise InvalidInputError("no heads are named; give at least one, such as (0, 0).")
    for head in chosen:
        if head.head is None:
            raise InvalidInputError(
                f"{head.label} is no head. Name heads, such as (10, 7) or '10.7'.", code="HS-HEADS-05"
            )
        if chosen.count(head) > 1:
            raise InvalidInputError(f"head {head.label} is named twice; name each once.", code="HS-HEADS-04")
    return chosen


def one_vocabulary(model: HookedTransformer) -> int:
    """The size of the vocabulary that a model both reads and predicts.

    Raises:
        InvalidInputError: if these are two.
    """
    cfg = model.cfg
    if cfg.d_vocab_out != cfg.d_vocab:
        raise InvalidInputError(
            f"copying is about tokens that are both read and predicted, and {cfg.model_name!r} reads "
            f"d_vocab = {cfg.d_vocab} tokens but predicts d_vocab_out = {cfg.d_vocab_out}."
        )
    return cfg.d_vocab


def over_layers(
    cfg: HookedTransformerConfig, values: Shaped[Tensor, "some *measured"], part: str = "attn"
) -> Shaped[Tensor, "layer *measured"]:
    """Put what was measured of the layers that have a part where these layers are; NaN (a count: 0) at the others.

    Args:
        cfg: The model's config.
        values: A row for each layer that has the part.
        part: `attn`, `mixer` or `mlp`.
    """
    layers = cfg.layers_with(part)
    if len(layers) == cfg.n_layers:
        return values
    rows = values.new_full((cfg.n_layers, *values.shape[1:]), torch.nan if values.is_floating_point() else 0)
    rows[list(layers)] = values
    return rows


def heads_tensor(heads: Iterable[Component]) -> Int[Tensor, "head 2"]:
    """Layer and head of each, as results keep them."""
    return torch.tensor([(head.layer, head.head) for head in heads])


@dataclass(frozen=True, repr=False)
class HeadListResult(Result):
    """A result about some heads, each a row of its arrays.

    Attributes:
        heads: Layer and head of each row.
    """

    coords: ClassVar[Mapping[str, str]] = {"head": "labels"}
    heads: Int[Tensor, "head 2"]

    @property
    def labels(self) -> tuple[str, ...]:
        """`10.7`, ... for each head."""
        return tuple(component_label(layer, head) for layer, head in self.heads.tolist())

    def axis_columns(self, axis: str, labels: Sequence[Label]) -> dict[str, Sequence[Any]]:
        if axis != "head":
            return super().axis_columns(axis, labels)
        layers, heads = zip(*(map(int, str(label).split(".")) for label in labels), strict=True)
        return {"layer": layers, "head": heads, "label": labels}
