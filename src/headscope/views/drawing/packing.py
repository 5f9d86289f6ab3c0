"""Texts with numbers for their tokens, checked, and packed compactly for the page.

Numbers are stored as float16 times a common power of two, so that each is within 1 part in 2,048 of its value, whatever
their magnitude; NaN stays NaN.
"""

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.views.drawing.arrays import checked_tokens, to_array

__all__ = ["checked_labels", "checked_texts", "color_limit", "is_list", "packed", "string_table"]


def packed(values: np.ndarray) -> dict[str, Any]:
    """Encode numbers as base64 of float16, with the power of two to multiply them by.

    Args:
        values: Any shape; packed in C order.

    Returns:
        `values` (base64, little endian) and `scale`. Decoded numbers differ by at most 1 part in 2,048 or, for numbers
        30,000 times smaller than the largest, by 3e-8 of the largest.

    Example:
        >>> packed(np.array([1.0, -0.5, np.nan]))
        {'values': 'ADwAuAB+', 'scale': 1.0}
    """
    sizes = np.abs(values[np.isfinite(values)])
    largest = float(sizes.max()) if sizes.size else 0.0
    scale = math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest else 1.0
    scale = max(scale, math.ldexp(1.0, -1000))  # so that dividing by it stays finite
    halves = (values / scale).astype("<f2")
    return {"values": base64.b64encode(halves.tobytes()).decode("ascii"), "scale": scale}


def is_list(value: Any) -> bool:
    """Return True for a list, a tuple, or an array or tensor with at least one axis."""
    return isinstance(value, (list, tuple)) or (isinstance(value, (np.ndarray, Tensor)) and value.ndim > 0)


def checked_texts(tokens: Any, activations: Any, axes: str) -> tuple[list[list[str]], list[np.ndarray]]:
    """Check one text or several, each with an array of three axes.

    Args:
        tokens: A list of strings, or a list of such lists.
        activations: One array for one text; a list of arrays, or one array with a leading axis, for several.
        axes: Names of the array's axes, such as `"[token, layer, neuron]"`; `token` must be as long as the text.

    Raises:
        InvalidInputError: For other shapes, or texts and arrays that do not match.
    """
    token_axis = axes.strip("[]").split(", ").index("token")
    if not is_list(tokens):
        raise InvalidInputError(
            f"tokens is {type(tokens).__name__} {tokens!r:.60}; give a list of strings for one text, or a list of "
            "such lists."
        )
    if isinstance(tokens, Tensor) or not len(tokens) or not is_list(tokens[0]):
        texts, arrays, names = [tokens], [to_array(activations, "activations", axes=3)], ["activations"]
    else:
        if not is_list(activations) or len(activations) != len(tokens):
            got = str(len(activations)) if is_list(activations) else f"none: {type(activations).__name__}"
            raise InvalidInputError(
                f"there are {len(tokens)} texts, but activations for {got}; give one array {axes} for each text, or a "
                "list of strings and one array for a single text."
            )
        texts, names = list(tokens), [f"activations[{at}]" for at in range(len(tokens))]
        arrays = [to_array(given, name) for given, name in zip(activations, names, strict=True)]
    for text, array, name in zip(texts, arrays, names, strict=True):
        if not is_list(text):
            raise InvalidInputError(f"the text of {name} is {type(text).__name__}; it must be a list of strings.")
        if array.ndim != 3:
            raise InvalidInputError(f"{name} must have the axes {axes}; got shape {list(array.shape)}.")
        if array.size == 0:
            raise InvalidInputError(f"{name} is empty: its shape is {list(array.shape)}; its axes are {axes}.")
        others, first = (np.delete(each.shape, token_axis).tolist() for each in (array, arrays[0]))
        if others != first:
            raise InvalidInputError(
                f"{name} has shape {list(array.shape)}, and {names[0]} has {list(arrays[0].shape)}; of {axes} only the "
                "number of tokens may differ between texts."
            )
    strings = [
        checked_tokens(text, array.shape[token_axis], of=name)
        for text, array, name in zip(texts, arrays, names, strict=True)
    ]
    return strings, arrays


def checked_labels(labels: Sequence[Any] | None, n: int, name: str) -> list[str]:
    """Return `n` labels as strings; 0, 1, ... by default.

    Raises:
        InvalidInputError: If their number is not `n`.

    Example:
        >>> checked_labels(None, 2, "first_dimension_labels")
        ['0', '1']
    """
    if labels is None:
        return [str(at) for at in range(n)]
    if isinstance(labels, str) or len(labels) != n:
        got = f"the string {labels!r:.60}" if isinstance(labels, str) else f"{len(labels)}"
        raise InvalidInputError(f"{name} must be {n} labels, a list with one for each; got {got}.")
    return [str(label) for label in labels]


def color_limit(values: np.ndarray, max_value: float | None = None, clip: float | None = None) -> float:
    """Return the magnitude with the full color: `max_value`, a quantile of the magnitudes, or the largest of them.

    Raises:
        InvalidInputError: If `max_value` is not above 0, `clip` not in (0, 1], or both are given.

    Example:
        >>> color_limit(np.array([1.0, -4.0, np.nan]))
        4.0
    """
    if max_value is not None and clip is not None:
        raise InvalidInputError(f"max_value is {max_value:g} and clip {clip:g}; both set the color scale: give one.")
    if max_value is not None:
        if not 0 < max_value < math.inf:
            raise InvalidInputError(f"max_value is {max_value:g}; it must be above 0 and finite, or None.")
        return float(max_value)
    if clip is not None and not 0 < clip <= 1:
        raise InvalidInputError(
            f"clip is {clip:g}; it must be a quantile above 0 and at most 1, such as 0.99, or None."
        )
    sizes = np.abs(values[np.isfinite(values)])
    limit = float(np.quantile(sizes, clip)) if clip is not None and sizes.size else 0.0
    if not limit and sizes.size:
        limit = float(sizes.max())
    return limit or 1.0


def string_table(texts: Sequence[Sequence[str]]) -> tuple[list[str], list[list[int]]]:
    """Return the distinct tokens, and the texts as indices into these.

    Example:
        >>> string_table([["a", " b", "a"], ["a"]])
        (['a', ' b'], [[0, 1, 0], [0]])
    """
    table: dict[str, int] = {}
    indices = [[table.setdefault(token, len(table)) for token in text] for text in texts]
    return list(table), indices
