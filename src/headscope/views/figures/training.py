"""Figures of training on toy tasks: metrics of a run, and circuits over tokens, with a slider over steps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.errors import InvalidInputError
from headscope.views.drawing.animation import animate
from headscope.views.drawing.arrays import to_array
from headscope.views.drawing.maps import color_scale
from headscope.views.drawing.theme import PALETTE, plot_text, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["token_maps", "token_maps_along_training", "training_metrics"]

_KINDS = (("all answers", "", PALETTE[0]), ("signal", "signal_", PALETTE[2]), ("noise", "noise_", PALETTE[5]))
_CELL = 26  # pixels
_MAP_MARGIN = 70


def training_metrics(result: Any, *, steps: bool = False) -> "go.Figure":
    """Draw loss and accuracy on training and validation data: two rows of two panels.

    All answers, signal and noise have a line each if the data has both kinds; dotted lines show the best predictor.

    Args:
        result: Result of `train`, a `training.TrainingResult`.
        steps: Draw training metrics of each step instead of their means over epochs.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    rows = [("Training", result.train if steps else result.train_epochs, result.bayes)]
    if result.validation is not None and result.validation_bayes is not None:
        rows.append(("Validation", result.validation, result.validation_bayes))
    figure = make_subplots(
        rows=len(rows),
        cols=2,
        subplot_titles=[f"{name} {kind}" for name, _, _ in rows for kind in ("loss", "accuracy")],
        horizontal_spacing=0.09,
        vertical_spacing=0.16,
    )
    for row, (_, curve, best) in enumerate(rows, start=1):
        for column, metric in enumerate(("loss", "accuracy"), start=1):
            for name, kind, color in _drawn(curve):
                values = to_array(getattr(curve, kind + metric))
                line = go.Scatter(
                    x=to_array(curve.step),
                    y=values,
                    name=name,
                    legendgroup=name,
                    showlegend=row == column == 1,
                    mode="lines" if len(values) > 1 else "markers",
                    line={"color": color, "width": 2},
                    hovertemplate=f"{name}, step %{{x:,}}<br>{metric} %{{y:.4f}}<extra></extra>",
                )
                figure.add_trace(line, row=row, col=column)
                figure.add_hline(
                    getattr(best, kind + metric), row=row, col=column, line={"color": color, "dash": "dot", "width": 1}
                )
    figure.update_xaxes(title_text="step", rangemode="tozero")
    figure.update_yaxes(title_text="nats", rangemode="tozero", col=1)
    figure.update_yaxes(title_text="accuracy", range=[-0.02, 1.02], col=2)
    return styled(
        figure,
        f"Training {plot_text(result.model)} (dotted: the best possible)",
        result.data,
        width=960,
        height=60 + 320 * len(rows),
        margin={"t": 96},
    )


def token_maps(
    values: Any,
    *,
    title: str,
    x: Sequence[str] | None = None,
    y: Sequence[str] | None = None,
    x_title: str = "",
    y_title: str = "",
    names: Sequence[str] | None = None,
    unit: str = "logits",
    limit: float | None = None,
) -> "go.Figure":
    """Draw heat maps side by side on one color scale centered on zero: blue above, red below.

    Args:
        values: `[map, y, x]`, such as an OV circuit `[head, source, d_vocab]`.
        title: The figure's title.
        x: Labels of the columns; their indices by default.
        y: Labels of the rows.
        x_title: Name of the columns.
        y_title: Name of the rows.
        names: A title for each map; `head 0`, `head 1`, ... by default.
        unit: Unit of the values.
        limit: Value with the full color; the largest magnitude by default.

    Raises:
        InvalidInputError: For another shape, or a wrong number of labels.

    Example:
        >>> figure = token_maps([[[0.0, 1.0], [2.0, -3.0]]], title="OV circuit", x_title="logit", y_title="source")
        >>> figure.layout.annotations[0].text, figure.layout.coloraxis.cmax
        ('head 0', 3.0)
    """
    maps = to_array(values, "values")
    if maps.ndim != 3 or not maps.size:
        raise InvalidInputError(f"values must be [map, y, x]; got shape {list(maps.shape)}.")
    return _draw_maps(maps, title, _labels(maps, x, y, names), (x_title, y_title), color_scale(maps, unit, limit=limit))


def token_maps_along_training(
    values: Any,
    steps: Sequence[int],
    *,
    title: str,
    x: Sequence[str] | None = None,
    y: Sequence[str] | None = None,
    x_title: str = "",
    y_title: str = "",
    names: Sequence[str] | None = None,
    unit: str = "logits",
    limit: float | None = None,
) -> "go.Figure":
    """Draw `token_maps` with a slider over training steps, all on one color scale.

    Args:
        values: `[step, map, y, x]`.
        steps: Training steps, one for each entry.
        title, x, y, x_title, y_title, names, unit: As in `token_maps`.
        limit: Value with the full color; the largest magnitude at any step by default.

    Raises:
        InvalidInputError: For another shape, or a wrong number of steps or labels.

    Example:
        >>> import torch
        >>> figure = token_maps_along_training(torch.randn(3, 2, 4, 4), [0, 10, 100], title="QK circuit")
        >>> len(figure.frames), figure.layout.sliders[0].steps[2].label
        (3, '100')
    """
    import plotly.graph_objects as go

    series = to_array(values, "values")
    if series.ndim != 4 or not len(series):
        raise InvalidInputError(f"values must be [step, map, y, x]; got shape {list(series.shape)}.")
    if len(series) != len(steps):
        raise InvalidInputError(f"there are {len(series)} entries of values and {len(steps)} steps; give one for each.")
    labels = _labels(series[0], x, y, names)
    scale = color_scale(series, unit, limit=limit)
    figure = _draw_maps(series[-1], title, labels, (x_title, y_title), scale)
    frames = [[go.Heatmap(z=one) for one in maps] for maps in series]
    animate(figure, steps, frames, range(len(series[-1])), pad={"t": 76})
    return figure.update_layout(height=figure.layout.height + 120)


def _drawn(curve: Any) -> list[tuple[str, str, str]]:
    """Choose the lines to draw: one, if all answers are of one kind."""
    kinds = [kind for kind in _KINDS if not np.isnan(to_array(getattr(curve, kind[1] + "loss"))).all()]
    return kinds if len(kinds) == len(_KINDS) else kinds[:1]


def _labels(
    maps: np.ndarray, x: Sequence[str] | None, y: Sequence[str] | None, names: Sequence[str] | None
) -> tuple[list[str], list[str], list[str]]:
    default = [f"head {number}" for number in range(len(maps))]
    checked = []
    for name, given, n in (("names", names or default, len(maps)), ("y", y, maps.shape[1]), ("x", x, maps.shape[2])):
        labels = [str(number) for number in range(n)] if given is None else [plot_text(str(label)) for label in given]
        if len(labels) != n:
            raise InvalidInputError(f"{name} must be {n} labels; got {len(labels)}.")
        checked.append(labels)
    return checked[0], checked[1], checked[2]


def _draw_maps(
    maps: np.ndarray,
    title: str,
    labels: tuple[list[str], list[str], list[str]],
    axes: tuple[str, str],
    scale: dict[str, Any],
) -> "go.Figure":
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    names, rows, columns = labels
    figure = make_subplots(rows=1, cols=len(maps), subplot_titles=names, shared_yaxes=True, horizontal_spacing=0.03)
    for number, one in enumerate(maps):
        trace = go.Heatmap(
            z=one,
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            hovertemplate=f"{names[number]}<br>{axes[1]} %{{customdata[0]}}, {axes[0]} %{{customdata[1]}}"
            f"<br>%{{z:.3f}} {scale['colorbar']['title']['text']}<extra></extra>",
            customdata=[[(row, column) for column in columns] for row in rows],
        )
        figure.add_trace(trace, row=1, col=number + 1)
    plain = {"showgrid": False, "zeroline": False}
    figure.update_xaxes(title_text=axes[0], tickvals=list(range(len(columns))), ticktext=columns, **plain)
    figure.update_yaxes(autorange="reversed", tickvals=list(range(len(rows))), ticktext=rows, **plain)
    figure.update_yaxes(title_text=axes[1], col=1)
    return styled(
        figure,
        title,
        "",
        coloraxis=scale,
        width=max(640, 150 + len(maps) * (_MAP_MARGIN // 2 + _CELL * len(columns))),
        height=110 + _MAP_MARGIN + _CELL * len(rows),
        margin={"t": 84},
    )
