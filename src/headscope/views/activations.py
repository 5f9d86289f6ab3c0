"""`text_neuron_activations`: texts coloured by values along two labelled dimensions, on one colour scale."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from headscope.views.drawing.packing import checked_labels, checked_texts, color_limit, packed
from headscope.views.html import HtmlView

__all__ = ["text_neuron_activations"]


def text_neuron_activations(
    tokens: Sequence[str] | Sequence[Sequence[str]],
    activations: Any,
    *,
    first_dimension_name: str = "Layer",
    first_dimension_labels: Sequence[Any] | None = None,
    second_dimension_name: str = "Neuron",
    second_dimension_labels: Sequence[Any] | None = None,
    text_labels: Sequence[Any] | None = None,
    max_value: float | None = None,
    clip: float | None = None,
    name: str = "activation",
    unit: str = "",
    title: str = "",
) -> HtmlView:
    """One text or several, each token coloured by a value: blue above zero, red below.

    Menus choose the text and the place in the two dimensions. All share one colour scale, centred on zero, so that
    colours can be compared between texts and places. Hovering a token (or reaching it by the arrow keys) shows it,
    its position and its value.

    Args:
        tokens: The tokens of one text as strings, or a list of these.
        activations: For one text an array `[token, first, second]`; for several, a list of these. Tensors, arrays or
            nested lists. NaN stays uncoloured. Each value is kept to 1 part in 2,048.
        first_dimension_name: What the first dimension is.
        first_dimension_labels: A label for each place in it; 0, 1, ... by default.
        second_dimension_name: What the second dimension is.
        second_dimension_labels: A label for each place in it; 0, 1, ... by default.
        text_labels: A label for each text; by default its number and how it begins.
        max_value: The magnitude that gets the full colour; by default the largest there is.
        clip: Instead, the quantile of the magnitudes that gets the full colour, such as 0.99. Tooltips say which
            values lie beyond.
        name: What the numbers are.
        unit: Their unit.
        title: A heading.

    Raises:
        InvalidInputError: If texts, arrays and labels do not fit each other, or the colour scale is empty.

    Example:
        >>> import torch
        >>> view = text_neuron_activations(
        ...     [["The", " cat"], ["A", " dog", " ran"]],
        ...     [torch.randn(2, 4, 2), torch.randn(3, 4, 2)],
        ...     first_dimension_name="loss_type",
        ...     second_dimension_name="head",
        ...     second_dimension_labels=["10.7", "11.10"],
        ... )
        >>> view.kind
        'activations'
    """
    texts, arrays = checked_texts(tokens, activations, "[token, first, second]")
    n_first, n_second = arrays[0].shape[1:]
    values = np.concatenate([array.reshape(-1) for array in arrays])
    limit = color_limit(values, max_value, clip)
    sizes = np.abs(values)
    return HtmlView(
        "activations",
        {
            "texts": texts,
            "labels": None if text_labels is None else checked_labels(text_labels, len(texts), "text_labels"),
            "dimensions": [
                [first_dimension_name, checked_labels(first_dimension_labels, n_first, "first_dimension_labels")],
                [second_dimension_name, checked_labels(second_dimension_labels, n_second, "second_dimension_labels")],
            ],
            "limit": limit,
            "beyond": int((sizes > limit).sum()),
            "count": int(values.size),
            "signed": bool((values < 0).any()),
            "name": name,
            "unit": unit,
            **packed(values),
        },
        title,
    )
