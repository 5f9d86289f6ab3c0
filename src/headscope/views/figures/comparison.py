"""Figures that compare two results side by side."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.views.drawing.maps import component_maps
from headscope.views.drawing.theme import PALETTE, plot_text, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["compared_lines", "compared_maps"]


def compared_lines(
    curves: Mapping[str, tuple[Sequence[Any], Sequence[float]]],
    *,
    title: str,
    data: str,
    x: str,
    y: str,
) -> "go.Figure":
    """Draw one line for each entry of `curves`.

    Args:
        curves: Positions and values by name; NaN leaves a gap.
        title: The figure's title.
        data: Description of the data.
        x: Name of the positions.
        y: Name of the values.

    Example:
        >>> figure = compared_lines({"a": ([0, 1], [2.0, 1.0])}, title="Loss", data="a text", x="position", y="nats")
        >>> figure.data[0].name
        'a'
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for at, (name, (places, values)) in enumerate(curves.items()):
        figure.add_trace(
            go.Scatter(
                x=list(places),
                y=list(values),
                mode="lines+markers" if len(values) <= 64 else "lines",
                line={"color": PALETTE[at % len(PALETTE)], "dash": "solid" if at % 2 == 0 else "dash"},
                name=plot_text(name),
                showlegend=True,
                hovertemplate="%{x}: %{y:.4f}",
            )
        )
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y, rangemode="tozero")
    return styled(
        figure,
        title,
        data,
        height=420,
        margin={"t": 96, "b": 100},
        legend={"orientation": "h", "x": 0, "y": -0.27, "yanchor": "top"},
    )


def compared_maps(
    maps: Mapping[str, Float[Tensor, "_ _"]], *, title: str, data: str, unit: str, limit: float | None = None
) -> "go.Figure":
    """Draw head maps of two models on one scale, and their difference (second minus first) if they have the same shape.

    Args:
        maps: Two maps `[layer, head]` by the names of their models. Heads that one lacks are blank.
        title: The figure's title.
        data: Description of the data.
        unit: Unit of the values.
        limit: Value with the full color; the largest magnitude by default.

    Example:
        >>> figure = compared_maps(
        ...     {"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, title="Score", data="a text", unit="nats"
        ... )
        >>> len(figure.data), float(figure.data[2].z.max())
        (3, 0.0)
    """
    layers, heads = (max(values.shape[axis] for values in maps.values()) for axis in (0, 1))
    shown = {}
    for name, values in maps.items():
        shown[plot_text(name)] = torch.full((layers, heads), torch.nan, dtype=torch.float64, device="cpu")
        shown[plot_text(name)][: values.shape[0], : values.shape[1]] = values.cpu().double()
    first, second = maps.values()
    if first.shape == second.shape:
        shown["second − first"] = second.cpu().double() - first.cpu().double()
    return component_maps(shown, title=title, data=data, unit=unit, limit=limit)
