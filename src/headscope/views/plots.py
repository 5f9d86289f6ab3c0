"""Plotly helpers with the keyword arguments notebooks of the field use: `imshow`, `line`, `scatter`, `hist`.

Each takes tensors, arrays or lists, shows the figure at once, and returns it instead with `return_fig=True`. Heat maps
are centred on zero: blue above, red below. Any argument of the plotly.express function, or of a figure's layout, may
be given too.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.errors import InvalidInputError, unknown_name
from headscope.views.arrays import to_array

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "DIVERGING",
    "PALETTE",
    "RISING",
    "hist",
    "house_template",
    "imshow",
    "line",
    "plot_text",
    "plot_title",
    "scatter",
]

DIVERGING = "RdBu"
# The blue half of RdBu, for what cannot be negative: blue means "more" everywhere.
RISING = (
    (0.0, "rgb(247,247,247)"),
    (0.2, "rgb(209,229,240)"),
    (0.4, "rgb(146,197,222)"),
    (0.6, "rgb(67,147,195)"),
    (0.8, "rgb(33,102,172)"),
    (1.0, "rgb(5,48,97)"),
)
PALETTE = ("#2a6fb0", "#d1602d", "#2e9673", "#8d63b8", "#b98a0a", "#6c7889")


def house_template() -> "go.layout.Template":
    """The look of every figure: white ground, faint grid, colours told apart by colour-blind readers too."""
    import plotly.graph_objects as go

    axis = {"gridcolor": "rgba(128,128,128,0.22)", "zerolinecolor": "rgba(128,128,128,0.55)", "automargin": True}
    return go.layout.Template(
        layout={
            "font": {
                "family": 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif',
                "size": 13,
                "color": "#333b47",
            },
            "title": {"font": {"size": 16}, "x": 0.01, "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"t": 14}},
            "colorway": list(PALETTE),
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "xaxis": axis,
            "yaxis": axis,
            "modebar": {
                "bgcolor": "rgba(0,0,0,0)",
                "color": "rgba(128,128,128,0.7)",
                "activecolor": "rgb(128,128,128)",
            },
            "margin": {"l": 60, "r": 20, "t": 60, "b": 50},
            "colorscale": {"diverging": DIVERGING},
        }
    )


def plot_title(title: str, data: str) -> dict[str, Any]:
    """A title over the name of the data it is about, which is cut where it would run off the figure."""
    data = data if len(data) <= 80 else data[:79].rstrip() + "…"
    subtitle = {"text": f"on {plot_text(data)}" if data else "", "font": {"size": 13}}
    return {"text": title, "subtitle": subtitle}


def plot_text(text: str) -> str:
    """Text for a plotly title or label, which would read `<` as markup; a half surrogate pair is replaced."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")


def imshow(
    tensor: Any,
    renderer: str | None = None,
    *,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    x: Sequence[Any] | None = None,
    y: Sequence[Any] | None = None,
    zmin: float | None = None,
    zmax: float | None = None,
    facet_col: int | None = None,
    facet_labels: Sequence[str] | None = None,
    border: bool = False,
    width: int | None = None,
    height: int | None = None,
    return_fig: bool = False,
    static: bool = False,
    **options: Any,
) -> "go.Figure | None":
    """A heat map, centred on zero: blue above, red below.

    Args:
        tensor: `[y, x]`, or three axes with `facet_col` one of them.
        renderer: Where to show it (plotly's names).
        title: A title.
        labels: Names of `x`, `y` and `color`.
        x: Labels of the columns.
        y: Labels of the rows.
        zmin: The value with the lowest colour; default: as far below zero as the largest magnitude.
        zmax: The value with the highest colour.
        facet_col: The axis to lay out side by side.
        facet_labels: A title for each.
        border: Draw a frame around each map.
        width: In pixels.
        height: In pixels.
        return_fig: Return the figure and do not show it.
        static: Show it without interaction.
        options: Of `plotly.express.imshow`, or of the layout.

    Raises:
        InvalidInputError: For a shape that cannot be drawn, or facet labels that do not fit.
        UnknownNameError: For an option neither knows.

    Example:
        >>> figure = imshow([[1.0, -2.0], [0.5, 0.0]], title="10.7", return_fig=True)
        >>> figure.layout.coloraxis.cmid
        0.0
    """
    import plotly.express as px

    values = to_array(tensor, "tensor")
    if values.ndim != (2 if facet_col is None else 3):
        raise InvalidInputError(
            f"tensor has shape {list(values.shape)}; imshow takes two axes [y, x], or three with facet_col=0, 1 or 2."
        )
    drawn, layout = _split(options, px.imshow)
    if "color_continuous_scale" not in drawn:
        drawn["color_continuous_scale"] = DIVERGING
        if zmin is None and zmax is None:
            drawn.setdefault("color_continuous_midpoint", 0.0)
    figure = px.imshow(
        values,
        labels=_labels(labels, layout),
        x=x,
        y=y,
        zmin=zmin,
        zmax=zmax,
        facet_col=facet_col,
        aspect="auto",
        **drawn,
    )
    if facet_col is not None:
        axis = facet_col if facet_col >= 0 else facet_col + 3
        n_facets = values.shape[axis]
        if facet_labels is not None and len(facet_labels) != n_facets:
            raise InvalidInputError(f"facet_labels must be {n_facets} labels; got {len(facet_labels)}.")
        for index, note in enumerate(figure.layout.annotations):
            note.text = str(facet_labels[index]) if facet_labels is not None else str(index)
    if border:
        figure.update_xaxes(showline=True, linewidth=1, linecolor="rgb(120,120,120)", mirror=True)
        figure.update_yaxes(showline=True, linewidth=1, linecolor="rgb(120,120,120)", mirror=True)
    return _finish(figure, title, width, height, layout, renderer, return_fig, static)


def line(
    tensor: Any,
    renderer: str | None = None,
    *,
    x: Sequence[Any] | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    width: int | None = None,
    height: int | None = None,
    return_fig: bool = False,
    static: bool = False,
    **options: Any,
) -> "go.Figure | None":
    """One line, or several: `[x]`, `[line, x]`, or a list of lines of any lengths.

    Args:
        tensor: The values.
        renderer: Where to show it (plotly's names).
        x: Where they stand.
        names: A name for each line.
        title: A title.
        labels: Names of `x` and `y` (and `color`, over the legend).
        width: In pixels.
        height: In pixels.
        return_fig: Return the figure and do not show it.
        static: Show it without interaction.
        options: Of `plotly.express.line`, or of the layout.

    Raises:
        InvalidInputError: For names, or places on the x axis, whose number does not fit.
        UnknownNameError: For an option neither knows.

    Example:
        >>> len(line([[1.0, 2.0, 3.0], [2.0, 1.0]], names=["a", "b"], return_fig=True).data)
        2
    """
    import plotly.express as px

    rows = _rows(tensor)
    names = _names(names, len(rows))
    places = [list(range(len(row))) if x is None else list(x) for row in rows]
    for row, place in zip(rows, places, strict=True):
        if len(row) != len(place):
            raise InvalidInputError(f"a line has {len(row)} values, and x {len(place)}; the numbers must be equal.")
    drawn, layout = _split(options, px.line)
    columns = {
        "x": [p for place in places for p in place],
        "y": [float(v) for row in rows for v in row],
        "line": [name for name, row in zip(names, rows, strict=True) for _ in row],
    }
    color = "line" if len(rows) > 1 else None
    text = {"line": "", "x": "", "y": "", **_labels(labels, layout)}
    figure = px.line(columns, x="x", y="y", color=color, labels=text, **drawn)
    return _finish(figure, title, width, height, layout, renderer, return_fig, static)


def scatter(
    x: Any,
    y: Any,
    renderer: str | None = None,
    *,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    add_line: str | None = None,
    width: int | None = None,
    height: int | None = None,
    return_fig: bool = False,
    static: bool = False,
    **options: Any,
) -> "go.Figure | None":
    """Points.

    Args:
        x: Their places across, of any shape.
        y: Their heights, as many.
        renderer: Where to show it (plotly's names).
        title: A title.
        labels: Names of `x` and `y`.
        add_line: A line to draw as well: `"y=x"`, `"y=<number>"` or `"x=<number>"`.
        width: In pixels.
        height: In pixels.
        return_fig: Return the figure and do not show it.
        static: Show it without interaction.
        options: Of `plotly.express.scatter`, or of the layout; `color` and `hover_name` are lists.

    Raises:
        InvalidInputError: If there are not as many of one as of the other, or for an unknown line.
        UnknownNameError: For an option neither knows.

    Example:
        >>> scatter([1, 2], [3, 4], labels={"x": "diff", "y": "marginal"}, return_fig=True).layout.xaxis.title.text
        'diff'
    """
    import plotly.express as px

    across, up = to_array(x, "x").ravel(), to_array(y, "y").ravel()
    if len(across) != len(up):
        raise InvalidInputError(f"x has {len(across)} numbers, and y {len(up)}; they must be as many.")
    drawn, layout = _split(options, px.scatter)
    for name in ("color", "size", "text", "hover_name"):
        if name in drawn and not isinstance(drawn[name], (str, list, tuple)):
            drawn[name] = to_array(drawn[name], name).ravel()
    figure = px.scatter(x=across, y=up, labels={"x": "", "y": "", **_labels(labels, layout)}, **drawn)
    if add_line is not None:
        _add_line(figure, add_line, across, up)
    return _finish(figure, title, width, height, layout, renderer, return_fig, static)


def hist(
    tensor: Any,
    renderer: str | None = None,
    *,
    names: Sequence[str] | None = None,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    add_mean_line: bool = False,
    width: int | None = None,
    height: int | None = None,
    return_fig: bool = False,
    static: bool = False,
    **options: Any,
) -> "go.Figure | None":
    """A histogram of one set of numbers, or several: a list of lists.

    Args:
        tensor: The numbers; NaN is left out.
        renderer: Where to show it (plotly's names).
        names: A name for each set.
        title: A title.
        labels: The name of `x`.
        add_mean_line: Mark each set's mean.
        width: In pixels.
        height: In pixels.
        return_fig: Return the figure and do not show it.
        static: Show it without interaction.
        options: Of `plotly.express.histogram`, or of the layout.

    Raises:
        InvalidInputError: If the names do not fit.
        UnknownNameError: For an option neither knows.

    Example:
        >>> len(hist([0.1, 0.2, 0.2], return_fig=True).data)
        1
    """
    import plotly.express as px

    rows = [row[~np.isnan(row)] for row in _rows(tensor, keep=2 if isinstance(tensor, (list, tuple)) else 1)]
    names = _names(names, len(rows))
    drawn, layout = _split(options, px.histogram)
    columns = {
        "x": [float(v) for row in rows for v in row],
        "set": [name for name, row in zip(names, rows, strict=True) for _ in row],
    }
    if len(rows) > 1:
        drawn = {"color": "set", "barmode": "overlay", "opacity": 0.65, **drawn}
    figure = px.histogram(columns, x="x", labels={"set": "", "x": "", **_labels(labels, layout)}, **drawn)
    if add_mean_line:
        for index, row in enumerate(rows):
            figure.add_vline(float(row.mean()), line={"dash": "dash", "color": PALETTE[index % len(PALETTE)]})
    return _finish(figure, title, width, height, layout, renderer, return_fig, static)


def _finish(
    figure: "go.Figure",
    title: str | None,
    width: int | None,
    height: int | None,
    layout: dict[str, Any],
    renderer: str | None,
    return_fig: bool,
    static: bool,
) -> "go.Figure | None":
    figure.update_layout(template=house_template(), title=title, width=width, height=height)
    figure.update_layout(**layout)
    if return_fig:
        return figure
    figure.show(renderer=renderer, config={"displaylogo": False, "staticPlot": static})
    return None


def _split(options: dict[str, Any], draw: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the plotly.express function, and those of the layout."""
    import inspect

    import plotly.graph_objects as go

    known = set(inspect.signature(draw).parameters)
    properties = set(go.Layout()._valid_props)
    drawn = {name: value for name, value in options.items() if name in known}
    layout = {name: value for name, value in options.items() if name not in known}
    for name in layout:
        if name.split("_")[0] not in properties and name not in properties:
            raise unknown_name("option", name, sorted(known | properties))
    return drawn, layout


def _labels(labels: Mapping[str, str] | None, layout: dict[str, Any]) -> dict[str, str]:
    """Axis names from `labels`; older helpers took them as strings `xaxis` and `yaxis`."""
    short = {
        axis: layout.pop(name) for axis, name in (("x", "xaxis"), ("y", "yaxis")) if isinstance(layout.get(name), str)
    }
    return {**short, **(labels or {})}


def _rows(values: Any, keep: int = 2) -> list[np.ndarray]:
    """One array for each line: of a list of lists they may differ in length."""
    if isinstance(values, (list, tuple)) and values and np.ndim(values[0]):
        return [to_array(row).ravel() for row in values]
    array = to_array(values)
    return list(array) if array.ndim == keep == 2 else [array.ravel()]


def _names(names: Sequence[str] | None, n: int) -> list[str]:
    if names is not None and len(names) != n:
        raise InvalidInputError(f"names must be {n}, one for each line; got {len(names)}.")
    return [str(name) for name in (names if names is not None else range(n))]


def _add_line(figure: "go.Figure", text: str, x: np.ndarray, y: np.ndarray) -> None:
    style = {"dash": "dash", "color": "rgb(128,128,128)"}
    name, _, place = text.replace(" ", "").partition("=")
    if (name, place) == ("y", "x"):
        low, high = float(min(np.nanmin(x), np.nanmin(y))), float(max(np.nanmax(x), np.nanmax(y)))
        figure.add_shape(type="line", x0=low, y0=low, x1=high, y1=high, line=style)
        return
    try:
        where = float(place)
    except ValueError:
        where = None
    if where is None or name not in ("x", "y"):
        raise InvalidInputError(f"add_line must be 'y=x', 'y=<number>' or 'x=<number>'; got {text!r}.")
    (figure.add_hline if name == "y" else figure.add_vline)(where, line=style)
