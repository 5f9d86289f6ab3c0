"""Figures of an `EntropyResult`: entropy along the residual stream, and what each head and MLP does to it."""

from typing import TYPE_CHECKING, Literal

import numpy as np

from headscope.analysis.entropy import EntropyResult
from headscope.analysis.result import check_option
from headscope.views.plots import DIVERGING, PALETTE, RISING, house_template, plot_title

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["entropy_by_head", "entropy_by_layer"]

Which = Literal["all", "heads", "increases"]
_TITLES = {
    "all": "Entropy change by each head and MLP",
    "heads": "Entropy change by each head",
    "increases": "Heads that raise entropy",
}


def entropy_by_layer(result: EntropyResult) -> "go.Figure":
    """Entropy at each state of the residual stream, and its change per layer, attention and MLP apart.

    Args:
        result: What `measure_entropy` gave; its means are shown.

    Returns:
        A figure with two panels, in nats.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    means = result.mean()
    entropy = means.resid.double().cpu().numpy()
    labels = list(result.state_labels)
    figure = make_subplots(
        rows=1,
        cols=2,
        subplot_titles=("Entropy along the residual stream", "Change in each layer"),
        horizontal_spacing=0.11,
        column_widths=[0.5, 0.5],
    )
    figure.add_trace(
        go.Scatter(
            x=labels,
            y=entropy,
            mode="lines+markers",
            line={"color": PALETTE[0]},
            showlegend=False,
            hovertemplate="%{x}<br>%{y:.4f} nats<extra></extra>",
        ),
        row=1,
        col=1,
    )
    for name, color, values in _changes(result, entropy):
        layers = [str(layer) for layer in range(len(values))]
        template = name + " of layer %{x}<br>%{y:+.4f} nats<extra></extra>"
        bars = go.Bar(x=layers, y=values, name=name, marker={"color": color}, hovertemplate=template)
        figure.add_trace(bars, row=1, col=2)
    figure.update_xaxes(title_text="state", tickangle=-45 if len(labels) > 7 else 0, row=1, col=1)
    figure.update_xaxes(title_text="layer", type="category", row=1, col=2)
    figure.update_yaxes(title_text="entropy (nats)", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="change (nats)", zeroline=True, row=1, col=2)
    figure.update_layout(
        template=house_template(),
        title=plot_title("Entropy per layer", result.info.data),
        barmode="group",
        height=420,
        margin={"t": 96, "b": 90},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": -0.27, "yanchor": "top"},
    )
    return figure


def _changes(result: EntropyResult, entropy: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    """Name, colour and change per layer of what can be told apart."""
    steps = np.diff(entropy)
    if len(entropy) == 2 * result.n_layers + 1:
        return [("attention", PALETTE[0], steps[0::2]), ("MLP", PALETTE[1], steps[1::2])]
    return [("attention and MLP" if result.has_mlp else "attention", PALETTE[0], steps)]


def entropy_by_head(result: EntropyResult, which: Which = "all") -> "go.Figure":
    """What each head does to the entropy: `diff` beside `marginal`, layers down and heads across.

    Args:
        result: What `measure_entropy` gave; its means are shown.
        which: `"all"`; `"heads"` leaves the MLPs out, which are often so large that the heads pale beside them;
            `"increases"` leaves out as well whatever lowers entropy.

    Returns:
        A figure on one colour scale centred on zero, in nats: blue raises entropy, red lowers it.

    Raises:
        InvalidInputError: For another `which`.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    check_option("which", which, tuple(_TITLES))
    means = result.mean()
    columns = list(result.component_labels if which == "all" else result.component_labels[: result.n_heads])
    panels = {"diff": means.diff, "marginal": means.marginal}
    shown = {name: values[:, : len(columns)].double().cpu().numpy() for name, values in panels.items()}
    if which == "increases":
        shown = {name: np.where(values > 0, values, 0.0) for name, values in shown.items()}
    layers = [str(layer) for layer in range(result.n_layers)]
    # Gaps between cells help while cells are large.
    gap = 1 if len(columns) <= 32 and len(layers) <= 32 else 0
    figure = make_subplots(rows=1, cols=2, subplot_titles=tuple(shown), horizontal_spacing=0.08)
    for column, (name, values) in enumerate(shown.items(), start=1):
        names = [[_component(layer, label) for label in columns] for layer in layers]
        heatmap = go.Heatmap(
            z=values,
            x=columns,
            y=layers,
            customdata=names,
            coloraxis="coloraxis",
            xgap=gap,
            ygap=gap,
            hovertemplate="%{customdata}: " + name + " %{z:+.4f} nats<extra></extra>",
        )
        figure.add_trace(heatmap, row=1, col=column)
    widest = max(float(np.nanmax(np.abs(values), initial=0.0)) for values in shown.values()) or 1.0
    axis = {"showgrid": False, "showline": True, "mirror": True, "linecolor": "rgb(128,128,128)", "type": "category"}
    figure.update_xaxes(title_text="head", **axis)
    figure.update_yaxes(autorange="reversed", **axis)
    figure.update_yaxes(title_text="layer", col=1)
    figure.update_layout(
        template=house_template(),
        title=plot_title(_TITLES[which], result.info.data),
        coloraxis={
            "colorscale": RISING if which == "increases" else DIVERGING,
            "cmin": 0.0 if which == "increases" else -widest,
            "cmax": widest,
            "colorbar": {"title": {"text": "nats"}, "thickness": 14, "outlinewidth": 0},
        },
        height=max(320, min(900, 150 + 26 * len(layers))),
        margin={"t": 96},
    )
    return figure


def _component(layer: str, label: str) -> str:
    return f"MLP {layer}" if label == "MLP" else f"{layer}.{label}"
