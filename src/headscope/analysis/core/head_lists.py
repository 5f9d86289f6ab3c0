"""Lists of heads: by name, as results keep them, and in order of a number."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.components import Component, all_heads, components
from headscope.analysis.core.result import HeadScore, Ranking, component_label
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer

__all__ = ["chosen_heads", "head_columns", "head_labels", "heads_tensor", "one_vocabulary", "rank_heads"]


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
            raise InvalidInputError(f"{head.label} is no head. Name heads, such as (10, 7) or '10.7'.")
        if chosen.count(head) > 1:
            raise InvalidInputError(f"head {head.label} is named twice; name each once.")
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


def heads_tensor(heads: Iterable[Component]) -> Int[Tensor, "head 2"]:
    """Layer and head of each, as results keep them."""
    return torch.tensor([(head.layer, head.head) for head in heads])


def head_labels(heads: Int[Tensor, "head 2"]) -> tuple[str, ...]:
    """`10.7`, ..."""
    return tuple(component_label(layer, head) for layer, head in heads.tolist())


def head_columns(heads: Int[Tensor, "head 2"]) -> dict[str, Any]:
    """Columns layer, head and label of a table with a row per head."""
    return {"layer": heads[:, 0].tolist(), "head": heads[:, 1].tolist(), "label": list(head_labels(heads))}


def rank_heads(
    heads: Int[Tensor, "head 2"],
    values: Float[Tensor, " head"],
    k: int,
    *,
    name: str,
    unit: str = "",
    largest: bool = True,
) -> Ranking:
    """The `k` heads with the largest (or smallest) values; NaN is left out."""
    if k < 1:
        raise InvalidInputError(f"k must be at least 1; got {k}.")
    order = values.argsort(descending=largest, stable=True).tolist()
    known = [row for row in order if not bool(values[row].isnan())][:k]
    scores = (HeadScore(int(heads[row, 0]), int(heads[row, 1]), float(values[row])) for row in known)
    return Ranking(scores, name=name, unit=unit)
