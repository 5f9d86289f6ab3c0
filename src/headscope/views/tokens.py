"""Texts with tokens colored by a signed value (`colored_tokens`) or one of several (`colored_tokens_multi`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from headscope.errors import InvalidInputError
from headscope.views.drawing.arrays import checked_tokens, to_array
from headscope.views.drawing.packing import checked_labels, color_limit, packed
from headscope.views.html import HtmlView

__all__ = ["colored_tokens", "colored_tokens_multi"]


def colored_tokens(
    tokens: Sequence[str],
    values: Any,
    *,
    min_value: float | None = None,
    max_value: float | None = None,
    name: str = "value",
    unit: str = "",
    notes: Sequence[str] | None = None,
    marked: Sequence[int] = (),
    first_position: int = 0,
    legend: bool = True,
    title: str = "",
) -> HtmlView:
    """Color tokens by their values: blue above zero, red below, stronger for larger magnitudes.

    Hovering over a token (or reaching it with the arrow keys) shows the token, its position and its value.

    Args:
        tokens: The tokens as strings.
        values: One number per token, `[pos]` or `[1, pos]`: a tensor, array or list. NaN is not colored.
        min_value: The value with the full red; minus `max_value` by default.
        max_value: The value with the full blue; the largest magnitude by default.
        name: Name of the values.
        unit: Their unit.
        notes: One more line for each token's tooltip.
        marked: Indices of tokens to frame.
        first_position: Position of the first token, if this is part of a longer text.
        legend: Show the color scale.
        title: A heading.

    Raises:
        InvalidInputError: If the numbers of tokens, values and notes differ, or an index is out of range.

    Example:
        >>> view = colored_tokens(["The", " cat"], [0.5, -0.25], name="entropy diff", unit="nats")
        >>> view.data["low"], view.data["high"]  # the color scale
        (-0.5, 0.5)
    """
    numbers = to_array(values, axes=1)
    if numbers.ndim != 1:
        raise InvalidInputError(
            f"values must be one number per token, [pos] or [1, pos]; got shape {list(numbers.shape)}.",
            code="HS-VIEWS-02",
        )
    strings = checked_tokens(tokens, len(numbers))
    if notes is not None and (isinstance(notes, str) or len(notes) != len(strings)):
        raise InvalidInputError(f"notes must be {len(strings)} strings, one for each token; got {len(notes)}.")
    outside = [index for index in marked if not 0 <= index < len(strings)]
    if outside:
        raise InvalidInputError(f"marked holds {outside[0]}; it must be indices from 0 to {len(strings) - 1}.")
    high = float(max_value) if max_value is not None else color_limit(numbers)
    low = float(min_value) if min_value is not None else -abs(high)
    if not low <= 0 <= high or low == high:
        raise InvalidInputError(
            f"min_value must be at most 0 and max_value at least 0, and not both 0; got {low:g} and {high:g}."
        )
    return HtmlView(
        "tokens",
        {
            "tokens": strings,
            "values": [float(f"{number:.6g}") for number in numbers.tolist()],
            "low": low,
            "high": high,
            "signed": bool((numbers[np.isfinite(numbers)] < 0).any()) or min_value is not None,
            "name": name,
            "unit": unit,
            "notes": None if notes is None else [str(note) for note in notes],
            "marked": [int(index) for index in marked],
            "first": first_position,
            "legend": legend,
        },
        title,
    )


def colored_tokens_multi(
    tokens: Sequence[str],
    values: Any,
    labels: Sequence[Any] | None = None,
    *,
    shared_scale: bool = False,
    max_value: float | None = None,
    clip: float | None = None,
    name: str = "value",
    unit: str = "",
    first_position: int = 0,
    title: str = "",
) -> HtmlView:
    """Color tokens by one of several values at a time: blue above zero, red below.

    Buttons select the value; a token's tooltip shows all of them.

    Args:
        tokens: The tokens as strings.
        values: A row of numbers for each token, `[pos, kind]` or `[1, pos, kind]`: a tensor, array or lists. NaN is
            not colored. Values are stored to 1 part in 2,048.
        labels: A label for each kind of value; 0, 1, ... by default.
        shared_scale: Color all kinds on one scale; by default each has its own.
        max_value: The magnitude with the full color, for all kinds; a scale's largest by default.
        clip: Instead, the quantile of a scale's magnitudes with the full color.
        name: Common name of the values.
        unit: Their unit.
        first_position: Position of the first token, if this is part of a longer text.
        title: A heading.

    Raises:
        InvalidInputError: If the numbers of tokens, values and labels differ.

    Example:
        >>> view = colored_tokens_multi(["The", " cat"], [[0.5, -2.0], [0.1, 4.0]], labels=["loss", "entropy"])
        >>> view.data["limits"]
        [0.5, 4.0]
    """
    numbers = to_array(values, axes=2)
    if numbers.ndim != 2 or not numbers.size:
        raise InvalidInputError(
            "values must be a row of numbers per token, [pos, kind] or [1, pos, kind]; got shape "
            f"{list(numbers.shape)}."
        )
    strings = checked_tokens(tokens, len(numbers))
    kinds = checked_labels(labels, numbers.shape[1], "labels")
    scales = [numbers] * len(kinds) if shared_scale else list(numbers.T)
    return HtmlView(
        "tokens_multi",
        {
            "tokens": strings,
            "labels": kinds,
            "limits": [color_limit(scale, max_value, clip) for scale in scales],
            "signed": [bool((scale < 0).any()) for scale in scales],
            "name": name,
            "unit": unit,
            "first": first_position,
            **packed(numbers),
        },
        title,
    )
