"""`topk_tokens`: the tokens with the largest and smallest activations of each neuron."""

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
    """Show a table with a column for each neuron: its tokens with the largest, or smallest, activations.

    Menus select the text (or all together), the layer and the neurons. Hovering over a token shows it in context.

    Args:
        tokens: The tokens of one text as strings, or a list of these.
        activations: For one text an array `[layer, token, neuron]`; for several, a list of these. NaN is ignored.
        max_k: Number of tokens to show at each end.
        first_dimension_name: Name of the array's first axis.
        third_dimension_name: Name of its last axis.
        sample_labels: A label for each text; by default its number and first words.
        first_dimension_labels: Labels along the first axis.
        third_dimension_labels: Labels along the last axis.
        max_value: The magnitude with the full color; the largest by default.
        clip: Instead, the quantile of the magnitudes with the full color.
        name: Name of the values.
        unit: Their unit.
        title: A heading.

    Raises:
        InvalidInputError: If texts, arrays and labels do not match, or `max_k` is below 1.

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
    # All texts together come first; each text is then a range of their tokens.
    ranges = [(0, everything.shape[1])] if len(arrays) > 1 else []
    start = 0
    for text in texts:
        ranges.append((start, start + len(text)))
        start += len(text)
    extremes = [_extremes(everything[:, start:stop], start, k) for start, stop in ranges]
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
            "at": base64.b64encode(np.stack([at for at, _ in extremes]).astype("<i4").tobytes()).decode("ascii"),
            "limit": color_limit(everything, max_value, clip),
            "signed": bool((everything < 0).any()),
            "name": name,
            "unit": unit,
            **packed(np.stack([values for _, values in extremes])),
        },
        title,
    )


def _extremes(values: np.ndarray, start: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and values `[layer, neuron, 2, k]` of the largest and smallest, padded with -1 and NaN."""
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
