"""Heat maps of one number per component, side by side, on shared or separate color scales: layers by heads."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.result import component_label
from headscope.views.drawing.theme import DIVERGING, RISING, house_template, plot_title

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["component_maps"]


def component_maps(
    maps: Mapping[str, Float[Tensor, "layer component"]],
    *,
    columns: Sequence[str],
    title: str,
    data: str,
    unit: str,
    rising: bool = False,
    limit: float | None = None,
    own_scales: bool = False,
    across: int | None = None,
) -> "go.Figure":
    """Draw one map for each entry of `maps`.

    Args:
        maps: Values by the title of their map.
        columns: The components: head numbers, and `MLP`.
        title: The figure's title.
        data: Description of the data.
        unit: Unit of the values.
        rising: Use a scale from zero (white) up (blue), for values that are never negative; otherwise one centered on
            zero, blue above and red below.
        limit: Value with the full color; the largest magnitude by default.
        own_scales: Give each map its own color scale, for values of different magnitude.
        across: Maps in a row; all by default, or two if more than three have their own scales.

    Example:
        >>> import torch
        >>> figure = component_maps(
        ...     {"score": torch.rand(2, 3)}, columns=["0", "1", "MLP"], title="A score", data="a text", unit="nats"
        ... )
        >>> figure.data[0].customdata[1][2]
        'mlp1'
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    shown = {name: values[:, : len(columns)].double().cpu().numpy() for name, values in maps.items()}
    n_layers = len(next(iter(shown.values())))
    names = [
        [component_label(layer, None if label == "MLP" else int(label)) for label in columns]
        for layer in range(n_layers)
    ]
    # Gaps between cells help only while cells are large.
    gap = 1 if len(columns) <= 32 and n_layers <= 32 else 0
    # Each map with its own color bar needs room: more than three go in rows of two.
    across = across or (2 if own_scales and len(shown) > 3 else len(shown))
    down = -(-len(shown) // across)
    figure = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=tuple(shown),
        horizontal_spacing=0.18 if own_scales else 0.08,
        vertical_spacing=0.3 / down,
    )
    for number, (name, values) in enumerate(shown.items()):
        heatmap = go.Heatmap(
            z=values,
            x=list(columns),
            y=[str(layer) for layer in range(n_layers)],
            customdata=names,
            coloraxis=_numbered("coloraxis", number if own_scales else 0),
            xgap=gap,
            ygap=gap,
            hovertemplate="%{customdata}: " + name + " %{z:+.4f} " + unit + "<extra></extra>",
        )
        figure.add_trace(heatmap, row=1 + number // across, col=1 + number % across)
    axis = {"showgrid": False, "showline": True, "mirror": True, "linecolor": "rgb(128,128,128)", "type": "category"}
    figure.update_xaxes(**axis)
    figure.update_xaxes(title_text="head", row=down)
    figure.update_yaxes(autorange="reversed", **axis)
    figure.update_yaxes(title_text="layer", col=1)
    height = down * (60 + 26 * n_layers) + 90
    figure.update_layout(
        template=house_template(),
        title=plot_title(title, data),
        height=max(320, min(900 * down, height)),
        margin={"t": 96},
    )
    every = list(shown.values())
    for number, measured in enumerate([[values] for values in every] if own_scales else [every]):
        widest = limit or max(float(np.nanmax(np.abs(values), initial=0.0)) for values in measured) or 1.0
        bar: dict[str, Any] = {"title": {"text": unit}, "thickness": 14, "outlinewidth": 0, "exponentformat": "e"}
        if own_scales:
            (_, right), (low, high) = (figure.layout[_numbered(f"{each}axis", number)].domain for each in "xy")
            bar |= {"x": right + 0.01, "y": (low + high) / 2, "len": min(1.0, 1.15 * (high - low))}
        scale = {
            "colorscale": RISING if rising else DIVERGING,
            "cmin": 0.0 if rising else -widest,
            "cmax": widest,
            "colorbar": bar,
        }
        figure.update_layout({_numbered("coloraxis", number): scale})
    return figure


def _numbered(name: str, number: int) -> str:
    """Return plotly's name of the first, second, ... of its axes."""
    return f"{name}{number + 1}" if number else name
