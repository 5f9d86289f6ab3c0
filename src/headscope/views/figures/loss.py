"""Figures of next-token losses."""

from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.errors import InvalidInputError
from headscope.views.drawing.arrays import to_array
from headscope.views.drawing.theme import PALETTE, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["loss_by_position"]


def loss_by_position(loss: Any, *, data: str = "", uniform: float | None = None, window: int = 9) -> "go.Figure":
    """Draw the mean loss at each position, and the distribution of losses of single tokens.

    Args:
        loss: In nats, `[batch, pos]`; NaN is ignored.
        data: Description of the data, for the title.
        uniform: The loss of a uniform guess, `log(d_vocab)`, drawn as a line.
        window: Positions in the running mean.

    Raises:
        InvalidInputError: For another shape.

    Example:
        >>> len(loss_by_position([[3.0, 2.0], [4.0, float("nan")]]).data)
        3
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    values = to_array(loss, "loss")
    if values.ndim != 2 or values.size == 0:
        raise InvalidInputError(f"loss must be [batch, pos] with at least one entry; got shape {list(values.shape)}.")
    known = ~np.isnan(values)
    counts, sums = known.sum(0), np.where(known, values, 0.0).sum(0)
    means = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    positions = np.arange(1, len(means) + 1)
    smooth = _running(sums, window) / np.maximum(_running(counts, window), 1)
    figure = make_subplots(
        rows=1, cols=2, subplot_titles=("Mean loss by position", "Losses of single tokens"), horizontal_spacing=0.11
    )
    hover = "position %{x}<br>%{y:.3f} nats<extra></extra>"
    points = {"mode": "markers", "marker": {"color": PALETTE[5], "size": 4, "opacity": 0.5}, "name": "one position"}
    lines = {"mode": "lines", "line": {"color": PALETTE[0], "width": 2.5}, "name": f"mean of {window} positions"}
    for y, style in ((means, points), (smooth, lines)):
        figure.add_trace(go.Scatter(x=positions, y=y, hovertemplate=hover, **style), row=1, col=1)
    spread = go.Histogram(
        x=values[known],
        nbinsx=40,
        marker={"color": PALETTE[0]},
        showlegend=False,
        hovertemplate="%{x} nats: %{y} tokens<extra></extra>",
    )
    figure.add_trace(spread, row=1, col=2)
    if uniform is not None:
        style = {"mode": "lines", "line": {"color": PALETTE[1], "dash": "dash"}, "name": "uniform guess"}
        ends, level = positions[[0, -1]], [uniform, uniform]
        figure.add_trace(go.Scatter(x=ends, y=level, hovertemplate=hover, **style), row=1, col=1)
    figure.update_xaxes(title_text="position of the predicted token", row=1, col=1)
    figure.update_xaxes(title_text="loss (nats)", row=1, col=2)
    figure.update_yaxes(title_text="loss (nats)", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="tokens", row=1, col=2)
    return styled(
        figure,
        "Next-token loss",
        data,
        height=400,
        margin={"t": 96, "b": 90},
        legend={"orientation": "h", "x": 0, "y": -0.27, "yanchor": "top"},
    )


def _running(values: np.ndarray, window: int) -> np.ndarray:
    """Sums over a centered window, truncated at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    index = np.arange(len(values))
    half = window // 2
    return total[np.minimum(index + half + 1, len(values))] - total[np.maximum(index - half, 0)]
