"""Figures of `HeadScores`."""

from typing import TYPE_CHECKING

from headscope.analysis.head_scores import HeadScores
from headscope.views.plots import RISING, house_template, plot_title

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["head_score_maps"]

_KINDS = {"previous_token": "previous token", "duplicate_token": "duplicate token", "induction": "induction"}


def head_score_maps(scores: HeadScores) -> "go.Figure":
    """One map for each kind of head, layers down and heads across, from 0 (white) to 1 (blue)."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    n_layers, n_heads = scores.induction.shape
    layers, heads = [str(layer) for layer in range(n_layers)], [str(head) for head in range(n_heads)]
    figure = make_subplots(rows=1, cols=3, subplot_titles=tuple(_KINDS.values()), horizontal_spacing=0.07)
    for column, (kind, title) in enumerate(_KINDS.items(), start=1):
        heatmap = go.Heatmap(
            z=getattr(scores, kind).double().cpu().numpy(),
            x=heads,
            y=layers,
            coloraxis="coloraxis",
            xgap=1 if n_heads <= 32 else 0,
            ygap=1 if n_layers <= 32 else 0,
            hovertemplate="%{y}.%{x}: " + title + " %{z:.3f}<extra></extra>",
        )
        figure.add_trace(heatmap, row=1, col=column)
    axis = {"showgrid": False, "showline": True, "mirror": True, "linecolor": "rgb(128,128,128)", "type": "category"}
    figure.update_xaxes(title_text="head", **axis)
    figure.update_yaxes(autorange="reversed", **axis)
    figure.update_yaxes(title_text="layer", col=1)
    figure.update_layout(
        template=house_template(),
        title=plot_title("Kinds of head", scores.info.data),
        coloraxis={
            "colorscale": RISING,
            "cmin": 0,
            "cmax": 1,
            "colorbar": {"title": {"text": "score"}, "thickness": 14, "outlinewidth": 0},
        },
        height=max(320, min(900, 150 + 26 * n_layers)),
        margin={"t": 96},
    )
    return figure
