"""Figures of an `AttentionAttribution`: pairs of parts that make a score, and each side by itself."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from headscope.analysis.attention.score_result import AttentionAttribution
from headscope.analysis.core.stats import standard_errors
from headscope.errors import InvalidInputError
from headscope.views.drawing.maps import color_scale
from headscope.views.drawing.theme import PALETTE, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["attention_pairs", "attention_sides"]

_ROW, _AROUND, _TOP = 30, 110, 96


def attention_pairs(result: AttentionAttribution, *, k: int = 12) -> "go.Figure":
    """Draw what pairs of parts add to the score: parts of the query down, of the key across, blue for looking there.

    The hover text has the standard error over prompts. All cells sum to the score (without ALiBi's penalty).

    Args:
        result: Result of `attribute_attention`.
        k: Show so many parts of each side, those that add or take most; the others are summed in a row and a column.

    Raises:
        InvalidInputError: If `k` is below 1.
    """
    import plotly.graph_objects as go

    means = result.pairs.cpu().double()
    rows, columns = (_strongest(side, k) for side in (means.sum(1), means.sum(0)))
    values, labels = means, []
    for axis, (shown, rest) in enumerate((rows, columns)):
        others = values.index_select(axis, rest).sum(axis, keepdim=True)
        values = torch.cat([values.index_select(axis, shown), *([others] if len(rest) else [])], axis)
        labels.append(_names(result, shown, rest))
    beside = torch.full_like(values, torch.nan)
    if result.errors is not None:
        beside[: len(rows[0]), : len(columns[0])] = result.errors.cpu().double()[rows[0]][:, columns[0]]
    known = np.vectorize(lambda error: "" if np.isnan(error) else f" ± {error:.4f}")(beside.numpy())
    heatmap = go.Heatmap(
        z=values.numpy(),
        x=labels[1],
        y=labels[0],
        customdata=known,
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        hovertemplate="query: %{y}<br>key: %{x}<br>%{z:+.4f}%{customdata}<extra></extra>",
    )
    figure = go.Figure(heatmap)
    return styled(
        figure,
        f"The score of {_what(result)}, by what made query and key",
        str(result.info.data),
        xaxis={"title": {"text": "part of the key"}, "type": "category", "tickangle": -45},
        yaxis={"title": {"text": "part of the query", "standoff": 16}, "type": "category", "autorange": "reversed"},
        height=_TOP + _AROUND + _ROW * len(values),
        margin={"t": _TOP, "b": _AROUND},
        coloraxis=color_scale([values.numpy()], "score"),
    )


def attention_sides(result: AttentionAttribution, *, k: int = 12) -> "go.Figure":
    """Draw what each part adds to the score through the query, and through the key, with its standard error.

    Args:
        result: Result of `attribute_attention`.
        k: Show so many parts of each side, those that add or take most; the others are summed in one bar.

    Raises:
        InvalidInputError: If `k` is below 1.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=2, subplot_titles=("through the query", "through the key"))
    for column, each in enumerate((result.query_parts, result.key_parts), 1):
        per_prompt = each.cpu().double()
        shown, rest = _strongest(per_prompt.mean(0), k)
        bars = torch.cat([per_prompt[:, shown], *([per_prompt[:, rest].sum(1, keepdim=True)] if len(rest) else [])], 1)
        errors = None if result.errors is None else standard_errors(bars, result.clusters).tolist()
        values = bars.mean(0).tolist()
        figure.add_trace(
            go.Bar(
                x=values,
                y=_names(result, shown, rest),
                orientation="h",
                error_x=None if errors is None else {"array": errors, "thickness": 1, "width": 3, "color": PALETTE[5]},
                marker={"color": [PALETTE[0] if value >= 0 else PALETTE[1] for value in values]},
                hovertemplate="%{y}<br>%{x:+.4f}"
                + ("" if errors is None else " ± %{error_x.array:.4f}")
                + "<extra></extra>",
            ),
            row=1,
            col=column,
        )
    figure.update_yaxes(type="category", autorange="reversed")
    figure.update_xaxes(title_text="adds to the score", zeroline=True)
    return styled(
        figure,
        f"What makes the score of {_what(result)}",
        str(result.info.data),
        showlegend=False,
        height=_TOP + _AROUND + 22 * (k + 1),
        margin={"t": _TOP, "b": 70},
    )


def _strongest(sums: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The numbers of the `k` parts of the largest magnitude, the largest first, and of the others."""
    if k < 1:
        raise InvalidInputError(f"k must be at least 1; got {k}.")
    order = sums.abs().argsort(descending=True, stable=True)
    return order[:k], order[k:]


def _names(result: AttentionAttribution, shown: Tensor, rest: Tensor) -> list[str]:
    names = [result.part_labels[number] for number in shown.tolist()]
    return [*names, f"{len(rest)} others"] if len(rest) else names


def _what(result: AttentionAttribution) -> str:
    """The head and the positions."""
    options = result.info.options
    less = f" less {options['against']}" if "against" in options else ""
    return f"{options['head']}, {options['query']} to {options['key']}{less}"
