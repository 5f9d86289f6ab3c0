"""Arguments of the plotly helpers, sorted: options of functions and layout, values by line, labels by axis."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from headscope.errors import InvalidInputError, unknown_name
from headscope.views.drawing.arrays import to_array
from headscope.views.drawing.theme import plot_text, whole

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "axis_labels",
    "draw_line",
    "label_facets",
    "label_steps",
    "places",
    "rows_of",
    "series_names",
    "split_options",
    "style_axes",
    "texts",
    "ticks",
]

# Names of the same axes in helpers written for data frames.
_ALIASES = {"index": "x", "value": "y", "variable": "color"}


def split_options(options: Mapping[str, Any], draw: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split options into those of a plotly.express function and those of the layout.

    Raises:
        UnknownNameError: For an option of neither.
    """
    import inspect

    import plotly.graph_objects as go

    known = set(inspect.signature(draw).parameters)
    properties = set(go.Layout()._valid_props)
    drawn = {name: value for name, value in options.items() if name in known}
    layout = {name: value for name, value in options.items() if name not in known}
    for name in layout:
        if name not in ("xaxis", "yaxis", "caxis") and name.split("_")[0] not in properties and name not in properties:
            raise unknown_name("option", name, sorted(known | properties))
    if isinstance(layout.get("margin"), (int, float)):
        layout["margin"] = dict.fromkeys("tblr", layout["margin"])
    return drawn, layout


def axis_labels(labels: Mapping[str, str] | None, layout: dict[str, Any]) -> dict[str, str]:
    """Return names of `x`, `y` and `color` from `labels`, or from `xaxis`, `yaxis` and `caxis` as in older helpers."""
    short = {
        axis: layout.pop(name)
        for axis, name in (("x", "xaxis"), ("y", "yaxis"), ("color", "caxis"))
        if isinstance(layout.get(name), str)
    }
    named = {**short, **{_ALIASES.get(name, name): text for name, text in (labels or {}).items()}}
    return {name: whole(str(text)) for name, text in named.items()}


def rows_of(values: Any, keep: int = 2) -> list[np.ndarray]:
    """Return an array for each line; the lines of a list may differ in length."""
    if isinstance(values, (list, tuple)) and values and np.ndim(values[0]):
        return [to_array(row).ravel() for row in values]
    array = to_array(values)
    return list(array) if array.ndim == keep == 2 else [array.ravel()]


def series_names(names: Sequence[Any] | None, n: int) -> list[str]:
    """Return a name for each of `n` lines; 0, 1, ... by default.

    Raises:
        InvalidInputError: If their number is not `n`.
    """
    if names is not None and len(names) != n:
        raise InvalidInputError(f"names must be {n}, one for each line; got {len(names)}.")
    return [plot_text(str(name)) for name in (names if names is not None else range(n))]


def ticks(labels: Any) -> Any:
    r"""Make axis labels unique with invisible characters, since plotly merges equal ones, such as repeated tokens.

    Example:
        >>> [label.encode("ascii", "backslashreplace").decode() for label in ticks(["to", "be", "to"])]
        ['to', 'be', 'to\\u200b']
    """
    if isinstance(labels, (Tensor, np.ndarray)):
        labels = labels.tolist()
    if labels is None or not any(isinstance(label, str) for label in labels):
        return labels
    times_seen: dict[str, int] = {}
    unique = []
    for label in (plot_text(str(label)) for label in labels):
        unique.append(label + "\u200b" * times_seen.get(label, 0))
        times_seen[label] = times_seen.get(label, 0) + 1
    return unique


def texts(values: Any) -> Any:
    """Escape every string in nested values, so that plotly shows it as plain text."""
    if isinstance(values, str):
        return plot_text(values)
    if isinstance(values, (list, tuple)) or (isinstance(values, np.ndarray) and values.dtype == object):
        return [texts(value) for value in values]
    return values


def places(x: Any, rows: Sequence[np.ndarray]) -> list[list[Any]]:
    """Return the x values of each line: 0, 1, ... or `x`, which may be a tensor, an array or a list.

    Raises:
        InvalidInputError: If `x` has another number of values.
    """
    x = ticks(x)
    x_values = [list(range(len(row))) if x is None else list(x) for row in rows]
    for row, across in zip(rows, x_values, strict=True):
        if len(row) != len(across):
            raise InvalidInputError(f"a line has {len(row)} values, and x {len(across)}; the numbers must be equal.")
    return x_values


def label_facets(figure: "go.Figure", labels: Sequence[Any] | None, n: int) -> None:
    """Give each facet its title, by the number plotly puts in its place (their order differs when facets wrap).

    Raises:
        InvalidInputError: If the number of labels is not `n`.
    """
    if labels is not None and len(labels) != n:
        raise InvalidInputError(f"facet_labels must be {n} labels; got {len(labels)}.")
    for note in figure.layout.annotations:
        index = note.text.rpartition("=")[2]
        note.text = plot_text(str(labels[int(index)])) if labels is not None else index


def label_steps(figure: "go.Figure", labels: Sequence[Any] | None, n: int, name: str) -> None:
    """Label the slider of an animation and its steps.

    Raises:
        InvalidInputError: If the number of labels is not `n`.
    """
    if labels is not None and len(labels) != n:
        raise InvalidInputError(f"animation_labels must be {n} labels; got {len(labels)}.")
    if not figure.layout.sliders:  # plotly draws none for a single step
        return
    (slider,) = figure.layout.sliders
    slider.currentvalue.prefix = f"{name}: " if name else ""
    for step, label in zip(slider.steps, labels if labels is not None else range(n), strict=True):
        step.label = plot_text(str(label))


def style_axes(figure: "go.Figure", layout: dict[str, Any]) -> None:
    """Move `xaxis_...` and `yaxis_...` from the layout's options to the axes of every facet."""
    for axis, update in (("xaxis_", figure.update_xaxes), ("yaxis_", figure.update_yaxes)):
        for name in [name for name in layout if name.startswith(axis)]:
            update({name.removeprefix(axis): layout.pop(name)})


def draw_line(figure: "go.Figure", text: str, x: np.ndarray, y: np.ndarray) -> None:
    """Draw a dashed line: `y=x` over the range of both, or one at a value of either axis.

    Raises:
        InvalidInputError: For any other text.
    """
    style = {"dash": "dash", "color": "rgb(128,128,128)"}
    name, _, place = text.replace(" ", "").partition("=")
    if {name, place} == {"x", "y"}:
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
