"""Plotly helpers with the keyword arguments that the field's notebooks use: `imshow`, `line`, `bar`, `scatter`, `hist`.

Each takes tensors, arrays or lists and shows the figure. Heat maps are centered on zero: blue above, red below. Further
arguments go to the plotly.express function or the figure's layout.

Arguments that all share: `renderer` is plotly's renderer; `title` may hold plotly's markup (`<br>` and so on); `width`
and `height` are in pixels; `static=True` shows the figure without interaction; with `return_fig=True` or `draw=False`
it is returned instead, with `draw=True, return_fig=True` both shown and returned.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.errors import InvalidInputError
from headscope.views.drawing.arrays import to_array
from headscope.views.drawing.options import (
    axis_labels,
    draw_line,
    label_facets,
    label_steps,
    places,
    rows_of,
    series_names,
    split_options,
    style_axes,
    texts,
    ticks,
)
from headscope.views.drawing.theme import DIVERGING, PALETTE, house_template, whole

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["bar", "hist", "imshow", "line", "scatter"]

# Pixels of a heat map: plotly's own height, what is around the cells, a row whose number can be read, and the most that
# all rows of a map get; and columns that are all numbered.
_PLOTLYS_HEIGHT, _AROUND, _ROW, _TALLEST, _NUMBERED_COLUMNS = 450, 130, 16, 800, 16


def imshow(
    tensor: Any,
    renderer: str | None = None,
    *,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    x: Any = None,
    y: Any = None,
    zmin: float | None = None,
    zmax: float | None = None,
    facet_col: int | None = None,
    facet_labels: Sequence[Any] | None = None,
    animation_frame: int | None = None,
    animation_labels: Sequence[Any] | None = None,
    text: Any = None,
    border: bool = False,
    width: int | None = None,
    height: int | None = None,
    return_fig: bool = False,
    draw: bool | None = None,
    static: bool = False,
    **options: Any,
) -> "go.Figure | None":
    """Draw a heat map, centered on zero: blue above, red below.

    Args:
        tensor: `[y, x]`, and one more axis each for `facet_col` and `animation_frame`.
        labels: Names of `x`, `y`, `color` and, for the slider, `animation_frame`.
        x: Labels of the columns.
        y: Labels of the rows.
        zmin: The value with the lowest color; minus the largest magnitude by default.
        zmax: The value with the highest color.
        facet_col: The axis to lay out side by side.
        facet_labels: A title for each facet.
        animation_frame: The axis of the slider.
        animation_labels: A label for each of its steps.
        text: Text in the cells: strings nested like the tensor (not with an animation).
        border: Draw a frame around each map.
        renderer, title, width, height, return_fig, draw, static: As in all helpers: see the module.
        options: Options of `plotly.express.imshow`, or of the layout.

    Raises:
        InvalidInputError: For a shape that cannot be drawn, or labels or text of another shape.
        UnknownNameError: For an option of neither.

    Example:
        >>> figure = imshow([[1.0, -2.0], [0.5, 0.0]], title="10.7", return_fig=True)
        >>> figure.layout.coloraxis.cmid
        0.0
    """
    import plotly.express as px

    values = to_array(tensor, "tensor")
    more = {"facet_col": facet_col, "animation_frame": animation_frame}
    taken = {name: _axis(name, axis, values) for name, axis in more.items() if axis is not None}
    if values.ndim != 2 + len(set(taken.values())) or len(set(taken.values())) != len(taken):
        raise InvalidInputError(
            f"tensor has shape {list(values.shape)}; imshow takes two axes [y, x], or three with facet_col=0, 1 or 2 "
            "(or animation_frame), or four with both."
        )
    drawn, layout = split_options({"template": house_template(), **options}, px.imshow)
    if "color_continuous_scale" not in drawn:
        drawn["color_continuous_scale"] = DIVERGING
        if zmin is None and zmax is None:
            drawn.setdefault("color_continuous_midpoint", 0.0)
    names = axis_labels(labels, layout)
    slider = names.pop("animation_frame", "")
    figure = px.imshow(
        values,
        labels=names,
        x=ticks(x),
        y=ticks(y),
        zmin=zmin,
        zmax=zmax,
        aspect="auto",
        **taken,
        **drawn,
    )
    if "facet_col" in taken:
        label_facets(figure, facet_labels, values.shape[taken["facet_col"]])
    if "animation_frame" in taken:
        label_steps(figure, animation_labels, values.shape[taken["animation_frame"]], slider)
    if text is not None:
        _write_cells(figure, text, values, taken)
    if border:
        frame = {"showline": True, "linewidth": 1, "linecolor": "rgb(120,120,120)", "mirror": True}
        figure.update_xaxes(frame).update_yaxes(frame)
    rows, columns = (n for axis, n in enumerate(values.shape) if axis not in taken.values())
    across = drawn.get("facet_col_wrap") or 0
    down = -(-values.shape[taken["facet_col"]] // across) if across and "facet_col" in taken else 1
    tall = _AROUND + down * min(_ROW * rows, _TALLEST)
    if height is None and tall > _PLOTLYS_HEIGHT:
        height = tall
    # Numbers of rows and columns, none skipped where there is room, and none between two.
    if x is None and columns <= _NUMBERED_COLUMNS:
        figure.update_xaxes(dtick=1)
    if y is None and down * _ROW * rows <= (height or _PLOTLYS_HEIGHT) - _AROUND:
        figure.update_yaxes(dtick=1)
    style_axes(figure, layout)
    return _finish(figure, title, width, height, layout, renderer, return_fig, draw, static)


def line(
    tensor: Any,
    renderer: str | None = None,
    *,
    x: Any = None,
    names: Sequence[Any] | None = None,
    use_secondary_yaxis: bool = False,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    width: int | None = None,
    height: int | None = None,
    return_fig: bool = False,
    draw: bool | None = None,
    static: bool = False,
    **options: Any,
) -> "go.Figure | None":
    """Draw one line or several: `[x]`, `[line, x]`, or a list of lines of any lengths.

    Args:
        tensor: The values.
        x: Their x values.
        names: A name for each line.
        use_secondary_yaxis: Give the second of two lines its own axis, on the right.
        labels: Names of `x` and `y` (`y1` and `y2` with two axes), and `color`, the legend's title.
        renderer, title, width, height, return_fig, draw, static: As in all helpers: see the module.
        options: Options of `plotly.express.line`, or of the layout.

    Raises:
        InvalidInputError: For a wrong number of names or x values, or a second axis without exactly
            two lines.
        UnknownNameError: For an option of neither.

    Example:
        >>> len(line([[1.0, 2.0, 3.0], [2.0, 1.0]], names=["a", "b"], return_fig=True).data)
        2
    """
    import plotly.express as px

    rows = rows_of(tensor)
    if use_secondary_yaxis and len(rows) != 2:
        raise InvalidInputError(f"use_secondary_yaxis takes two lines, one for each axis; got {len(rows)}.")
    drawn, layout = split_options({"template": house_template(), **options}, px.line)
    text = axis_labels(labels, layout)
    figure = px.line(**_series(rows, x, names, text), **drawn)
    if use_secondary_yaxis:
        first, second = figure.data
        second.yaxis = "y2"
        figure.update_layout(
            yaxis_title=text.get("y1", first.name),
            yaxis2={"title": text.get("y2", second.name), "overlaying": "y", "side": "right", "showgrid": False},
            legend={"x": 1.12},
        )
    return _finish(figure, title, width, height, layout, renderer, return_fig, draw, static)


def bar(
    tensor: Any,
    renderer: str | None = None,
    *,
    x: Any = None,
    names: Sequence[Any] | None = None,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    width: int | None = None,
    height: int | None = None,
    return_fig: bool = False,
    draw: bool | None = None,
    static: bool = False,
    **options: Any,
) -> "go.Figure | None":
    """Draw bars, in one series or several side by side: `[x]`, `[series, x]`, or a list of lists.

    Args:
        tensor: The heights.
        x: Their x values or labels.
        names: A name for each series.
        labels: Names of `x` and `y`, and `color`, the legend's title.
        renderer, title, width, height, return_fig, draw, static: As in all helpers: see the module.
        options: Options of `plotly.express.bar` (`barmode="relative"` stacks them), or of the layout.

    Raises:
        InvalidInputError: For a wrong number of names or x values.
        UnknownNameError: For an option of neither.

    Example:
        >>> list(bar([3.0, -1.0], x=["10.7", "11.10"], return_fig=True).data[0].x)
        ['10.7', '11.10']
    """
    import plotly.express as px

    rows = rows_of(tensor)
    drawn, layout = split_options({"template": house_template(), **options}, px.bar)
    figure = px.bar(**_series(rows, x, names, axis_labels(labels, layout)), **{"barmode": "group", **drawn})
    return _finish(figure, title, width, height, layout, renderer, return_fig, draw, static)


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
    draw: bool | None = None,
    static: bool = False,
    **options: Any,
) -> "go.Figure | None":
    """Draw points.

    Args:
        x: The x values, of any shape.
        y: The y values, as many.
        labels: Names of `x`, `y` and `color`.
        add_line: A line to draw as well: `"y=x"`, `"y=<number>"` or `"x=<number>"`.
        renderer, title, width, height, return_fig, draw, static: As in all helpers: see the module.
        options: Options of `plotly.express.scatter`, or of the layout; `color`, `text` and `hover_name` are lists.

    Raises:
        InvalidInputError: If `x` and `y` differ in number, or for an unknown line.
        UnknownNameError: For an option of neither.

    Example:
        >>> scatter([1, 2], [3, 4], labels={"x": "diff", "y": "marginal"}, return_fig=True).layout.xaxis.title.text
        'diff'
    """
    import plotly.express as px

    across, up = to_array(x, "x").ravel(), to_array(y, "y").ravel()
    if len(across) != len(up):
        raise InvalidInputError(f"x has {len(across)} numbers, and y has {len(up)}; the numbers must be equal.")
    drawn, layout = split_options({"template": house_template(), **options}, px.scatter)
    for name in ("color", "size", "text", "hover_name"):
        if name in drawn and not isinstance(drawn[name], (str, list, tuple)):
            drawn[name] = to_array(drawn[name], name).ravel()
        elif name in drawn:
            drawn[name] = texts(drawn[name])
    figure = px.scatter(x=across, y=up, labels={"x": "", "y": "", **axis_labels(labels, layout)}, **drawn)
    if "text" in drawn:
        figure.update_traces(textposition="top center")  # plotly would write it over the points
    if add_line is not None:
        draw_line(figure, add_line, across, up)
    return _finish(figure, title, width, height, layout, renderer, return_fig, draw, static)


def hist(
    tensor: Any,
    renderer: str | None = None,
    *,
    names: Sequence[Any] | None = None,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    add_mean_line: bool = False,
    width: int | None = None,
    height: int | None = None,
    return_fig: bool = False,
    draw: bool | None = None,
    static: bool = False,
    **options: Any,
) -> "go.Figure | None":
    """Draw a histogram of one set of numbers, or of several (a list of lists).

    Args:
        tensor: The numbers; NaN is ignored.
        names: A name for each set.
        labels: Names of `x`, and `color`, the legend's title.
        add_mean_line: Mark each set's mean.
        renderer, title, width, height, return_fig, draw, static: As in all helpers: see the module.
        options: Options of `plotly.express.histogram`, or of the layout.

    Raises:
        InvalidInputError: For a wrong number of names.
        UnknownNameError: For an option of neither.

    Example:
        >>> len(hist([0.1, 0.2, 0.2], return_fig=True).data)
        1
    """
    import plotly.express as px

    rows = [row[~np.isnan(row)] for row in rows_of(tensor, keep=2 if isinstance(tensor, (list, tuple)) else 1)]
    drawn, layout = split_options({"template": house_template(), **options}, px.histogram)
    text = {"series": "", "x": "", **axis_labels(labels, layout)}
    columns = {
        "x": [float(v) for row in rows for v in row],
        "series": [name for name, row in zip(series_names(names, len(rows)), rows, strict=True) for _ in row],
    }
    if len(rows) > 1:
        text["series"] = text.pop("color", "")
        drawn = {"color": "series", "barmode": "overlay", "opacity": 0.65, **drawn}
    figure = px.histogram(columns, x="x", labels=text, **drawn)
    if add_mean_line:
        for index, row in enumerate(rows):
            figure.add_vline(float(row.mean()), line={"dash": "dash", "color": PALETTE[index % len(PALETTE)]})
    return _finish(figure, title, width, height, layout, renderer, return_fig, draw, static)


def _finish(
    figure: "go.Figure",
    title: str | None,
    width: int | None,
    height: int | None,
    layout: dict[str, Any],
    renderer: str | None,
    return_fig: bool,
    draw: bool | None,
    static: bool,
) -> "go.Figure | None":
    figure.update_layout(title=whole(title) if isinstance(title, str) else title, width=width, height=height)
    if figure.data and _is_text(figure.data[0].x):
        figure.update_xaxes(type="category")  # "10.7" is a head here, not a number
    if figure.data and figure.data[0].type == "heatmap" and _is_text(figure.data[0].y):
        figure.update_yaxes(type="category")
    figure.update_layout(**layout)
    if draw or (draw is None and not return_fig):
        figure.show(renderer=renderer, config={"displaylogo": False, "staticPlot": static})
    return figure if return_fig or draw is False else None


def _is_text(values: Any) -> bool:
    return values is not None and any(isinstance(value, str) for value in values)


def _axis(name: str, axis: int, values: np.ndarray) -> int:
    if not -values.ndim <= axis < values.ndim:
        raise InvalidInputError(
            f"{name} is {axis}, and tensor has shape {list(values.shape)}; it must be one of its axes."
        )
    return axis % values.ndim


def _series(
    rows: Sequence[np.ndarray], x: Any, names: Sequence[Any] | None, labels: Mapping[str, str]
) -> dict[str, Any]:
    """Make a table with a row for each value (its x, its y, and its series), and tell plotly how to read it."""
    table = {
        "x": [place for one in places(x, rows) for place in one],
        "y": [float(value) for row in rows for value in row],
        "series": [name for name, row in zip(series_names(names, len(rows)), rows, strict=True) for _ in row],
    }
    text = {"x": "", "y": "", **labels, "series": labels.get("color", "")}
    return {"data_frame": table, "x": "x", "y": "y", "color": "series" if len(rows) > 1 else None, "labels": text}


def _write_cells(figure: "go.Figure", text: Any, values: np.ndarray, taken: Mapping[str, int]) -> None:
    written = np.asarray(text, dtype=object)
    if written.shape != values.shape or "animation_frame" in taken:
        raise InvalidInputError(
            f"text must be strings nested like the tensor, {list(values.shape)}, without animation_frame; got shape "
            f"{list(written.shape)}."
        )
    facets = np.moveaxis(written, taken["facet_col"], 0) if "facet_col" in taken else written[None]
    for trace, cells in zip(figure.data, facets, strict=True):
        trace.update(text=texts(cells), texttemplate="%{text}")
