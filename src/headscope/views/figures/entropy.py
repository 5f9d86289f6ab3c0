"""Figures of an `EntropyResult`: entropy along the residual stream, and each component's effect on it."""

from typing import TYPE_CHECKING, Literal

import numpy as np

from headscope.analysis.core.result import check_option
from headscope.analysis.lens.entropy import EntropyResult
from headscope.views.drawing.maps import component_maps
from headscope.views.drawing.theme import PALETTE, state_axis, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["entropy_by_head", "entropy_by_layer"]

_SIDE_BY_SIDE = 33  # states: more have their labels only in a panel as wide as the figure
Which = Literal["all", "heads", "increases"]
_TITLES = {
    "all": "Entropy change by each head and MLP",
    "heads": "Entropy change by each head",
    "increases": "Heads that raise entropy",
}


def entropy_by_layer(result: EntropyResult) -> "go.Figure":
    """Draw entropy at each state of the residual stream, and its change per layer, split into attention and MLP.

    Args:
        result: Result of `measure_entropy`; its means are shown.

    Returns:
        A figure with two panels, in nats: side by side, or one below the other where there are many states, so that
        each has a label.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    means = result.mean()
    entropy = means.resid.cpu().double().numpy()
    labels = list(result.state_labels)
    is_deep = len(labels) > _SIDE_BY_SIDE
    second = {"row": 2, "col": 1} if is_deep else {"row": 1, "col": 2}
    figure = make_subplots(
        rows=second["row"],
        cols=second["col"],
        subplot_titles=("Entropy along the residual stream", "Change in each layer"),
        horizontal_spacing=0.11,
        vertical_spacing=0.24,
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
        figure.add_trace(bars, **second)
    figure.update_xaxes(state_axis(labels), row=1, col=1)
    figure.update_xaxes(title_text="layer", type="category", **second)
    figure.update_yaxes(title_text="entropy (nats)", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="change (nats)", zeroline=True, **second)
    return styled(
        figure,
        "Entropy per layer",
        result.info.data,
        barmode="group",
        height=740 if is_deep else 420,
        margin={"t": 96, "b": 90},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": -0.11 if is_deep else -0.27, "yanchor": "top"},
    )


def _changes(result: EntropyResult, entropy: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    """Name, color and change per layer, for attention and MLP separately where there is a state between them."""
    steps = np.diff(entropy)
    if len(entropy) == 2 * result.n_layers + 1:
        first = "attention or mixer" if "mixer" in result.component_labels else "attention"
        return [(first, PALETTE[0], steps[0::2]), ("MLP", PALETTE[1], steps[1::2])]
    return [("attention and MLP" if result.has_mlp else "attention", PALETTE[0], steps)]


def entropy_by_head(result: EntropyResult, which: Which = "all") -> "go.Figure":
    """Draw each component's effect on entropy: `diff` beside `marginal`, layers down and heads across.

    Args:
        result: Result of `measure_entropy`; its means are shown.
        which: `"all"`; `"heads"` leaves out the MLPs, which are often so large that heads look pale; `"increases"`
            leaves out MLPs and whatever lowers entropy.

    Returns:
        A figure on one color scale centered on zero, in nats: blue raises entropy, red lowers it.

    Raises:
        InvalidInputError: For another `which`.
    """
    check_option("which", which, tuple(_TITLES))
    means = result.mean()
    maps = {"diff": means.diff, "marginal": means.marginal}
    if which != "all":
        maps = {name: values[:, : result.n_heads] for name, values in maps.items()}
    if which == "increases":
        maps = {name: values.clamp(min=0.0) for name, values in maps.items()}
    return component_maps(
        maps,
        whole=result.component_labels[result.n_heads :] if which == "all" else (),
        title=_TITLES[which],
        data=result.info.data,
        unit="nats",
        rising=which == "increases",
    )
