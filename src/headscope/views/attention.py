"""Attention patterns over their tokens: `attention_heads` for several heads, `attention_pattern` for one.

Hover over or tap a token to see what it attends to, click to pin it, select heads by their thumbnails. A pattern takes
one byte per pair of positions (half that for causal attention), so 12 heads over 512 tokens make a page of 2 MB.
Weights from 0 to 1 are then shown to within 0.002.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from headscope.errors import InvalidInputError
from headscope.views.drawing.arrays import checked_tokens, to_array
from headscope.views.drawing.packing import checked_labels
from headscope.views.html import HtmlView, quantized

__all__ = ["attention_heads", "attention_pattern", "attention_patterns"]

_ALLOWED = (
    "[head, query_pos, key_pos], or the same with one leading axis of size 1, as in cache['pattern', layer] of one "
    "sequence"
)


def attention_heads(
    attention: Any,
    tokens: Any,
    attention_head_names: Sequence[str] | None = None,
    *,
    min_value: float | None = None,
    max_value: float | None = None,
    mask_upper_tri: bool | None = None,
    title: str = "",
    focus: int | None = None,
) -> HtmlView:
    """Show several heads' attention over one sequence of tokens, which may also be the first argument.

    Args:
        attention: Weights `[head, query_pos, key_pos]` or `[1, head, query_pos, key_pos]`: a tensor, array or lists.
            Any real numbers are allowed (scores, differences of patterns): below zero is red, above it blue.
        tokens: The tokens as strings.
        attention_head_names: A name for each head; `0`, `1`, ... by default.
        min_value: The value with the lowest color; by default 0, or minus `max_value` if any value is negative.
        max_value: The value with the full color; the largest by default.
        mask_upper_tri: Leave out attention to later positions. By default it is left out if there is none.
        title: A heading.
        focus: Position to pin at first, as if clicked.

    Raises:
        InvalidInputError: For another shape, a wrong number of tokens or names, or an empty range.

    Example:
        >>> import torch
        >>> view = attention_heads(torch.eye(3).expand(2, 3, 3), ["a", " b", " c"], attention_head_names=["0.1", "0.4"])
        >>> view.data["heads"]
        ['0.1', '0.4']
    """
    attention, tokens = _in_order(attention, tokens)
    weights = _checked(attention)
    n_heads, n_queries, n_keys = weights.shape
    if n_queries != n_keys:
        raise InvalidInputError(
            f"attention must have as many queries as keys, since both are the same tokens; got shape "
            f"{list(weights.shape)}. Allowed: {_ALLOWED}.",
            code="HS-VIEWS-02",
        )
    names = checked_labels(attention_head_names, n_heads, "attention_head_names")
    strings = checked_tokens(tokens, n_queries, of="attention")
    if focus is not None and not 0 <= focus < n_queries:
        raise InvalidInputError(f"focus is {focus}; it must be a position from 0 to {n_queries - 1}.")
    if mask_upper_tri:
        weights = np.tril(weights)
    low, high = _range(weights, min_value, max_value)
    causal = mask_upper_tri is not False and not np.triu(weights, 1).any()
    kept = weights[:, *np.tril_indices(n_queries)] if causal else weights
    return HtmlView(
        "attention",
        {
            "tokens": strings,
            "heads": names,
            "low": low,
            "high": high,
            "causal": causal,
            "weights": quantized(kept, low, high),
            "focus": focus,
        },
        title,
    )


def attention_pattern(
    attention: Any,
    tokens: Any,
    *,
    min_value: float | None = None,
    max_value: float | None = None,
    mask_upper_tri: bool | None = None,
    title: str = "",
    focus: int | None = None,
) -> HtmlView:
    """Show one head's attention `[query_pos, key_pos]` over its tokens; otherwise like `attention_heads`.

    Example:
        >>> attention_pattern([[1.0, 0.0], [0.3, 0.7]], ["a", " b"], title="10.7").title
        '10.7'
    """
    attention, tokens = _in_order(attention, tokens)
    weights = to_array(attention, "attention")
    while weights.ndim > 2 and weights.shape[0] == 1:
        weights = weights[0]
    if weights.ndim != 2:
        raise InvalidInputError(
            f"attention must be one pattern [query_pos, key_pos]; got shape {list(weights.shape)}. For several heads "
            "use attention_heads."
        )
    return attention_heads(
        weights[None],
        tokens,
        attention_head_names=[""],
        min_value=min_value,
        max_value=max_value,
        mask_upper_tri=mask_upper_tri,
        title=title,
        focus=focus,
    )


attention_patterns = attention_heads  # CircuitsVis has both names, with the arguments in either order


def _in_order(attention: Any, tokens: Any) -> tuple[Any, Any]:
    """Return weights and tokens, whichever came first: weights are never strings."""
    if isinstance(attention, (list, tuple)) and attention and isinstance(attention[0], str):
        return tokens, attention
    return attention, tokens


def _checked(attention: Any) -> np.ndarray:
    weights = to_array(attention, "attention", axes=3)
    if weights.ndim != 3:
        raise InvalidInputError(f"attention has shape {list(weights.shape)}. Allowed: {_ALLOWED}.", code="HS-VIEWS-02")
    if weights.size == 0:
        raise InvalidInputError(f"attention is empty: its shape is {list(weights.shape)}. Allowed: {_ALLOWED}.")
    # Infinities cannot be quantized; the usual ones are scores masked with -inf, which mean no attention at all.
    return np.where(np.isinf(weights), np.nan, weights)


def _range(weights: np.ndarray, low: float | None, high: float | None) -> tuple[float, float]:
    finite = weights[~np.isnan(weights)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if high is None:
        high = max(most, -least) if low is None else max(most, low + 1e-9)
    if low is None:
        low = -abs(high) if least < 0 else 0.0
    if low == high == 0:
        high = 1.0
    if not low < high:
        raise InvalidInputError(f"min_value must be below max_value; got {low:g} and {high:g}.")
    return float(low), float(high)
