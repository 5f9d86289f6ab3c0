"""Heat maps side by side, on shared or separate color scales: layers by heads, or rows by the tokens of a prompt."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.analysis.core.named_arrays import cell_label
from headscope.views.drawing.theme import DIVERGING, RISING, plot_text, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["color_scale", "component_maps", "position_maps"]

# Pixels: above the panels, below them, between two rows of them (more under tokens), the least width of a panel's
# column, the least length of a color bar with its title, and the height of a legend.
_TOP, _BOTTOM, _BETWEEN, _BELOW_TOKENS, _COLUMN, _BAR, _LEGEND = 96, 60, 84, 130, 9, 210, 34
_AT_THE_BOTTOM = {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"}
_HATCH = {"symbol": "line-ne", "line": {"color": "rgba(140,140,140,0.9)", "width": 1.4}}
_FRAMED = {"showgrid": False, "showline": True, "mirror": True, "linecolor": "rgb(128,128,128)"}


def component_maps(
    maps: Mapping[str, Float[Tensor, "layer component"]],
    *,
    title: str,
    data: str,
    unit: str,
    whole: Sequence[str] = (),
    rising: bool = False,
    limit: float | None = None,
    own_scales: bool = False,
    across: int | None = None,
    idle: Mapping[str, Bool[Tensor, "layer component"]] | None = None,
    rule: str = "",
) -> "go.Figure":
    """Draw one map for each entry of `maps`.

    Args:
        maps: Values by the title of their map, with a column for each head.
        title: The figure's title.
        data: Description of the data.
        unit: Unit of the values.
        whole: The names of the last columns, which are no heads: `mixer`, `MLP`.
        rising: Use a scale from zero (white) up (blue), for values that are never negative; otherwise one centered on
            zero, blue above and red below.
        limit: Value with the full color; the largest magnitude by default.
        own_scales: Give each map its own color scale, for values of different magnitude.
        across: Maps in a row; as many as have room by default, or two if more than three have their own scales.
        idle: The cells of each map that do not stand out, which are hatched.
        rule: What it takes to stand out, for the legend.

    Example:
        >>> import torch
        >>> figure = component_maps({"score": torch.rand(2, 3)}, title="A score", data="a text", unit="nats",
        ...                         whole=["MLP"])
        >>> figure.data[0].customdata[1][2]
        'mlp1'
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    shown = {name: values.cpu().double().numpy() for name, values in maps.items()}
    n_layers, width = next(iter(shown.values())).shape
    columns = [*map(str, range(width - len(whole))), *whole]
    names = [[cell_label({"layer": layer, "part": each}) for each in columns] for layer in range(n_layers)]
    # Gaps between cells help only while cells are large.
    gap = 1 if width <= 32 and n_layers <= 32 else 0
    # Each map with its own color bar needs room: more than three go in rows of two.
    fitting = max(1, 1000 // (_COLUMN * width + 100))
    across = across or min(len(shown), 2 if own_scales and len(shown) > 3 else fitting)
    down = -(-len(shown) // across)
    tall = max(170, n_layers * min(26, max(13, 640 // n_layers)))
    area = down * tall + (down - 1) * _BETWEEN
    figure = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=tuple(shown),
        horizontal_spacing=0.18 if own_scales else 0.08,
        vertical_spacing=_BETWEEN / area,
    )
    for number, (name, values) in enumerate(shown.items()):
        heatmap = go.Heatmap(
            z=values,
            x=columns,
            y=[str(layer) for layer in range(n_layers)],
            customdata=names,
            coloraxis=_numbered("coloraxis", number if own_scales else 0),
            xgap=gap,
            ygap=gap,
            hovertemplate="%{customdata}: " + name + " %{z:+.4f} " + unit + "<extra></extra>",
        )
        figure.add_trace(heatmap, row=1 + number // across, col=1 + number % across)
    figure.update_xaxes(type="category", **_FRAMED)
    for number in range(max(0, len(shown) - across), len(shown)):  # the lowest of each column
        figure.update_xaxes(title_text="head", row=1 + number // across, col=1 + number % across)
    figure.update_yaxes(autorange="reversed", type="category", **_FRAMED)
    figure.update_yaxes(title_text="layer", col=1)
    _hatch(figure, idle, rule, tall / n_layers, across)
    below = _BOTTOM + (_LEGEND if idle else 0)
    styled(figure, title, data, height=_TOP + area + below, margin={"t": _TOP, "b": below}, legend=_AT_THE_BOTTOM)
    every = list(shown.values())
    for number, measured in enumerate([[values] for values in every] if own_scales else [every]):
        bar: dict[str, Any] = {}
        if own_scales:
            (_, right), (low, high) = (figure.layout[_numbered(f"{each}axis", number)].domain for each in "xy")
            bar = {"x": right + 0.01, "y": (low + high) / 2, "len": max(high - low, min(1.0, _BAR / area))}
        scale = color_scale(measured, unit, rising=rising, limit=limit, **bar)
        figure.update_layout({_numbered("coloraxis", number): scale})
    return figure


def position_maps(
    maps: Mapping[str, Float[Tensor, "row pos"]],
    *,
    rows: Sequence[str],
    row_title: str,
    positions: Sequence[int | str],
    tokens: Sequence[str],
    title: str,
    data: str,
    unit: str,
    across: int = 1,
    idle: Mapping[str, Bool[Tensor, "row pos"]] | None = None,
    rule: str = "",
) -> "go.Figure":
    """Draw one map for each entry of `maps`, all on one color scale, with the tokens of a prompt across.

    Args:
        maps: Values by the title of their map.
        rows: Labels of the rows.
        row_title: Name of the rows: heads or layers.
        positions: Each token's position, for the hover text.
        tokens: The tokens.
        title: The figure's title.
        data: Description of the data.
        unit: Unit of the values.
        across: Maps in a row.
        idle: The cells of each map that do not stand out, which are hatched.
        rule: What it takes to stand out, for the legend.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    shown = {name: values.cpu().double().numpy() for name, values in maps.items()}
    down = -(-len(shown) // across)
    tall = max(150, len(rows) * min(26, max(13, 640 // len(rows))))
    area = down * tall + (down - 1) * _BELOW_TOKENS
    figure = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=tuple(shown),
        horizontal_spacing=0.06,
        vertical_spacing=_BELOW_TOKENS / area,
        shared_yaxes=True,
    )
    tokens = [plot_text(token.replace("\n", "\\n")) for token in tokens]
    places = list(range(len(tokens)))
    for number, (name, values) in enumerate(shown.items()):
        heatmap = go.Heatmap(
            z=values,
            x=places,
            y=list(rows),
            customdata=[[f"{at} {token}" for at, token in zip(positions, tokens, strict=True)]] * len(rows),
            coloraxis="coloraxis",
            xgap=1 if len(tokens) <= 64 else 0,
            ygap=1 if len(rows) <= 32 else 0,
            hovertemplate=f"{name}, {row_title} %{{y}}, %{{customdata}}: %{{z:+.4f}} {unit}<extra></extra>",
        )
        figure.add_trace(heatmap, row=1 + number // across, col=1 + number % across)
    below = 110 + (_LEGEND if idle else 0)
    figure.update_xaxes(tickvals=places, ticktext=tokens, tickangle=-45 if len(tokens) <= 20 else -90, **_FRAMED)
    figure.update_yaxes(autorange="reversed", type="category", **_FRAMED)
    figure.update_yaxes(title_text=row_title, col=1)
    _hatch(figure, idle, rule, tall / len(rows), across)
    return styled(
        figure,
        title,
        data,
        height=_TOP + area + below,
        margin={"t": _TOP, "b": below},
        legend=_AT_THE_BOTTOM,
        coloraxis=color_scale(shown.values(), unit),
    )


def _hatch(
    figure: "go.Figure",
    idle: Mapping[str, Bool[Tensor, "row column"]] | None,
    rule: str,
    row_height: float,
    across: int,
) -> None:
    """Draw a stroke across each cell that does not stand out, in the order of the maps; colors go on being seen."""
    import plotly.graph_objects as go

    if not idle:
        return
    for number, (heatmap, cells) in enumerate(zip(figure.data, idle.values(), strict=True)):
        rows, columns = (cells.cpu().numpy() & np.isfinite(np.asarray(heatmap.z, dtype=float))).nonzero()
        strokes = go.Scatter(
            x=[heatmap.x[column] for column in columns],
            y=[heatmap.y[row] for row in rows],
            mode="markers",
            marker={**_HATCH, "size": max(4.0, 0.55 * row_height)},
            name=f"does not stand out ({rule})",
            showlegend=number == 0,
            legendgroup="idle",
            hoverinfo="skip",
        )
        figure.add_trace(strokes, row=1 + number // across, col=1 + number % across)
    # Markers would stretch the axes beyond the cells.
    n_rows, n_columns = next(iter(idle.values())).shape
    figure.update_xaxes(range=[-0.5, n_columns - 0.5], zeroline=False)
    figure.update_yaxes(autorange=False, range=[n_rows - 0.5, -0.5], zeroline=False)


def color_scale(
    maps: Iterable[np.ndarray], unit: str, *, rising: bool = False, limit: float | None = None, **bar: Any
) -> dict[str, Any]:
    """Return a color axis up to a limit, or the largest magnitude: from zero if `rising`, or else centered on it."""
    widest = limit or max(float(np.nanmax(np.abs(values), initial=0.0)) for values in maps) or 1.0
    return {
        "colorscale": RISING if rising else DIVERGING,
        "cmin": 0.0 if rising else -widest,
        "cmax": widest,
        "colorbar": {"title": {"text": unit}, "thickness": 14, "outlinewidth": 0, "exponentformat": "e", **bar},
    }


def _numbered(name: str, number: int) -> str:
    """Return plotly's name of the first, second, ... of its axes."""
    return f"{name}{number + 1}" if number else name
