"""`topk_tokens`: for each layer and neuron, the tokens with the largest and the smallest activations."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from headscope.errors import InvalidInputError
from headscope.views.drawing.packing import checked_labels, checked_texts, color_limit, packed, string_table
from headscope.views.html import HtmlView

__all__ = ["topk_tokens"]


def topk_tokens(
    tokens: Sequence[str] | Sequence[Sequence[str]],
    activations: Any,
    *,
    max_k: int = 10,
    first_dimension_name: str = "Layer",
    third_dimension_name: str = "Neuron",
    sample_labels: Sequence[Any] | None = None,
    first_dimension_labels: Sequence[Any] | None = None,
    third_dimension_labels: Sequence[Any] | None = None,
    max_value: float | None = None,
    clip: float | None = None,
    name: str = "activation",
    unit: str = "",
    title: str = "",
) -> HtmlView:
    """A table with a column for each neuron: its tokens with the largest activations, or with the smallest.

    Menus choose the text (or all together), the layer and which neurons to show. Pointing at a token shows it among
    its neighbours.

    Args:
        tokens: The tokens of one text as strings, or a list of these.
        activations: For one text an array `[layer, token, neuron]`; for several, a list of these. NaN is left out.
        max_k: How many tokens to show at each end.
        first_dimension_name: What the array's first axis is.
        third_dimension_name: What its last axis is.
        sample_labels: A label for each text; by default its number and how it begins.
        first_dimension_labels: A label for each place on the first axis.
        third_dimension_labels: A label for each place on the last axis.
        max_value: The magnitude that gets the full colour; by default the largest there is.
        clip: Instead, the quantile of the magnitudes that gets it.
        name: What the numbers are.
        unit: Their unit.
        title: A heading.

    Raises:
        InvalidInputError: If texts, arrays and labels do not fit each other, or `max_k` is below 1.

    Example:
        >>> view = topk_tokens(["The", " cat", " sat"], torch.randn(2, 3, 5), max_k=2)
        >>> view.data["k"]
        2
    """
    texts, arrays = checked_texts(tokens, activations, "[layer, token, neuron]")
    if not isinstance(max_k, int) or max_k < 1:
        raise InvalidInputError(f"max_k is {max_k!r}; it must be a whole number, at least 1.")
    n_layers, _, n_neurons = arrays[0].shape
    everything = np.concatenate(arrays, axis=1)
    k = min(max_k, everything.shape[1])
    strings, texts_of_strings = string_table(texts)
    # All texts together come first; each text is then a stretch of their tokens.
    stretches = [(0, everything.shape[1])] if len(arrays) > 1 else []
    start = 0
    for text in texts:
        stretches.append((start, start + len(text)))
        start += len(text)
    found = [_ends(everything[:, start:stop], start, k) for start, stop in stretches]
    return HtmlView(
        "topk_tokens",
        {
            "strings": strings,
            "texts": texts_of_strings,
            "labels": None if sample_labels is None else checked_labels(sample_labels, len(texts), "sample_labels"),
            "dimensions": [
                [first_dimension_name, checked_labels(first_dimension_labels, n_layers, "first_dimension_labels")],
                [third_dimension_name, checked_labels(third_dimension_labels, n_neurons, "third_dimension_labels")],
            ],
            "k": k,
            "at": base64.b64encode(np.stack([at for at, _ in found]).astype("<i4").tobytes()).decode("ascii"),
            "limit": color_limit(everything, max_value, clip),
            "signed": bool((everything < 0).any()),
            "name": name,
            "unit": unit,
            **packed(np.stack([values for _, values in found])),
        },
        title,
    )


def _ends(values: np.ndarray, start: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and values `[layer, neuron, 2, k]` of the largest and the smallest; -1 and NaN where there are no more."""
    shape = (values.shape[0], values.shape[2], 2, k)
    places, kept = np.full(shape, -1), np.full(shape, np.nan)
    numbers = torch.from_numpy(values).movedim(1, -1)
    missing = numbers.isnan()
    for end, largest in enumerate((True, False)):
        filled = numbers.masked_fill(missing, -torch.inf if largest else torch.inf)
        best = filled.topk(min(k, values.shape[1]), dim=-1, largest=largest)
        none = missing.gather(-1, best.indices).numpy()
        places[:, :, end, : none.shape[-1]] = np.where(none, -1, best.indices.numpy() + start)
        kept[:, :, end, : none.shape[-1]] = np.where(none, np.nan, best.values.numpy())
    return places, kept
