"""`text_neuron_activations`: texts colored by values along two labeled dimensions, on one color scale."""

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
    """Color the tokens of one or several texts by their values: blue above zero, red below.

    Menus select the text and the index in each of the two dimensions. All share one color scale, centered on zero, so
    that colors can be compared between them. Hovering over a token (or reaching it with the arrow keys) shows the
    token, its position and its value.

    Args:
        tokens: The tokens of one text as strings, or a list of these.
        activations: For one text an array `[token, first, second]`; for several, a list of these. Tensors, arrays or
            nested lists. NaN is not colored. Values are stored to 1 part in 2,048.
        first_dimension_name: Name of the first dimension.
        first_dimension_labels: Labels along it; 0, 1, ... by default.
        second_dimension_name: Name of the second dimension.
        second_dimension_labels: Labels along it; 0, 1, ... by default.
        text_labels: A label for each text; by default its number and first words.
        max_value: The magnitude with the full color; the largest by default.
        clip: Instead, the quantile of the magnitudes with the full color, such as 0.99. Tooltips say which values lie
            beyond.
        name: Name of the values.
        unit: Their unit.
        title: A heading.

    Raises:
        InvalidInputError: If texts, arrays and labels do not match, or the color scale is empty.

    Example:
        >>> import torch
        >>> view = text_neuron_activations(
        ...     [["The", " cat"], ["A", " dog", " ran"]],
        ...     [torch.randn(2, 4, 2), torch.randn(3, 4, 2)],
        ...     first_dimension_name="loss_type",
        ...     second_dimension_name="head",
        ...     second_dimension_labels=["10.7", "11.10"],
        ... )
        >>> view.data["dimensions"]
        [['loss_type', ['0', '1', '2', '3']], ['head', ['10.7', '11.10']]]
    """
    texts, arrays = checked_texts(tokens, activations, "[token, first, second]")
    n_first, n_second = arrays[0].shape[1:]
    values = np.concatenate([array.reshape(-1) for array in arrays])
    limit = color_limit(values, max_value, clip)
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
            "beyond": int((np.abs(values) > limit).sum()),
            "count": int(values.size),
            "signed": bool((values < 0).any()),
            "name": name,
            "unit": unit,
            **packed(values),
        },
        title,
    )
