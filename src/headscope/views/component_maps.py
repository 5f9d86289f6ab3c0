"""Maps of one number per component, side by side on one colour scale: layers down, heads across."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.result import component_label
from headscope.views.plots import DIVERGING, RISING, house_template, plot_title

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
) -> "go.Figure":
    """Draw one map for each entry of `maps`.

    Args:
        maps: Values by the name that stands over their map.
        columns: The components: head numbers, and `MLP`.
        title: The figure's title.
        data: What the values were measured on.
        unit: Of the values.
        rising: A scale from zero (white) up (blue), for values that are not below zero; else one centred on zero,
            blue above and red below.
        limit: Where the colour ends; default: the largest magnitude.

    Example:
        >>> import torch
        >>> figure = component_maps(
        ...     {"score": torch.rand(2, 3)}, columns=["0", "1", "MLP"], title="A score", data="a text", unit="nats"
        ... )
        >>> figure.data[0].customdata[1][2]
        'MLP 1'
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    shown = {name: values[:, : len(columns)].double().cpu().numpy() for name, values in maps.items()}
    n_layers = len(next(iter(shown.values())))
    names = [
        [component_label(layer, None if label == "MLP" else int(label)) for label in columns]
        for layer in range(n_layers)
    ]
    # Gaps between cells help while cells are large.
    gap = 1 if len(columns) <= 32 and n_layers <= 32 else 0
    figure = make_subplots(rows=1, cols=len(shown), subplot_titles=tuple(shown), horizontal_spacing=0.08)
    for column, (name, values) in enumerate(shown.items(), start=1):
        heatmap = go.Heatmap(
            z=values,
            x=list(columns),
            y=[str(layer) for layer in range(n_layers)],
            customdata=names,
            coloraxis="coloraxis",
            xgap=gap,
            ygap=gap,
            hovertemplate="%{customdata}: " + name + " %{z:+.4f} " + unit + "<extra></extra>",
        )
        figure.add_trace(heatmap, row=1, col=column)
    widest = limit or max(float(np.nanmax(np.abs(values), initial=0.0)) for values in shown.values()) or 1.0
    axis = {"showgrid": False, "showline": True, "mirror": True, "linecolor": "rgb(128,128,128)", "type": "category"}
    figure.update_xaxes(title_text="head", **axis)
    figure.update_yaxes(autorange="reversed", **axis)
    figure.update_yaxes(title_text="layer", col=1)
    figure.update_layout(
        template=house_template(),
        title=plot_title(title, data),
        coloraxis={
            "colorscale": RISING if rising else DIVERGING,
            "cmin": 0.0 if rising else -widest,
            "cmax": widest,
            "colorbar": {"title": {"text": unit}, "thickness": 14, "outlinewidth": 0},
        },
        height=max(320, min(900, 150 + 26 * n_layers)),
        margin={"t": 96},
    )
    return figure
