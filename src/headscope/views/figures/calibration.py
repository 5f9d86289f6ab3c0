"""Figures of a `CalibrationResult`: the reliability diagram, and each head's effect on overconfidence."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.analysis.core.result import component_label
from headscope.analysis.lens.calibration_result import CalibrationResult
from headscope.errors import InvalidInputError
from headscope.views.drawing.maps import component_maps
from headscope.views.drawing.theme import PALETTE, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["calibration_curve", "overconfidence_by_head"]

_LARGEST_POINT = 26.0
_GRAY = "rgb(128,128,128)"


def calibration_curve(result: CalibrationResult, *, heads: Sequence[tuple[int, int]] = ()) -> "go.Figure":
    """Draw the reliability diagram: how often predictions come true against their probability.

    A calibrated model is on the diagonal, an overconfident one below it. A point stands for a bin, with an area in
    proportion to its number of predictions; the band is Wilson's 95 % interval.

    Args:
        result: Result of `measure_calibration`.
        heads: Heads `(layer, head)` whose removal is drawn as an additional curve.

    Raises:
        InvalidInputError: For a head that does not exist, or heads that were not measured.
    """
    import plotly.graph_objects as go

    filled = np.flatnonzero(result.count.cpu().numpy())
    edges = result.edges.tolist()
    count, predicted, correct, low, high = (
        values.cpu().numpy()[filled] for values in (result.count, result.predicted, result.correct, *result.band())
    )
    figure = go.Figure()
    line: dict[str, Any] = {"color": _GRAY, "dash": "dash", "width": 1.5}
    figure.add_trace(go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=line, name="calibrated", hoverinfo="skip"))
    figure.add_trace(
        go.Scatter(
            x=np.concatenate([predicted, predicted[::-1]]),
            y=np.concatenate([high, low[::-1]]),
            mode="lines",
            fill="toself",
            fillcolor="rgba(42,111,176,0.16)",
            line={"width": 0},
            name="95 % band",
            hoverinfo="skip",
        )
    )
    hover = (
        "probability %{customdata[0]:.2f} to %{customdata[1]:.2f}, %{x:.3f} on average<br>"
        "came next %{y:.3f} (95 %: %{customdata[2]:.3f} to %{customdata[3]:.3f})<br>"
        "%{customdata[4]:,} predictions<extra></extra>"
    )
    about = [
        [edges[bin], edges[bin + 1], float(low[at]), float(high[at]), int(count[at])] for at, bin in enumerate(filled)
    ]
    sizes = {"size": count, "sizemode": "area", "sizeref": float(count.max()) / _LARGEST_POINT**2, "sizemin": 3}
    figure.add_trace(
        go.Scatter(
            x=predicted,
            y=correct,
            mode="lines+markers",
            cliponaxis=False,
            line={"color": PALETTE[0], "width": 2},
            marker={"color": PALETTE[0], "opacity": 1.0, "line": {"color": "white", "width": 1}, **sizes},
            name="model",
            customdata=about,
            hovertemplate=hover,
        )
    )
    for number, (layer, head) in enumerate(heads):
        figure.add_trace(_without(result, layer, head, PALETTE[1 + number % (len(PALETTE) - 1)]))
    square = {"range": [-0.02, 1.02], "constrain": "domain", "dtick": 0.2}
    figure.update_xaxes(title_text="probability of the prediction", constraintoward="left", **square)
    figure.update_yaxes(title_text="share that came next", scaleanchor="x", constraintoward="top", **square)
    value, error = result.overconfidence, result.overconfidence_error
    return styled(
        figure,
        f"Calibration: overconfidence {value:+.3f} ± {error:.3f}",
        result.info.data,
        width=760,
        height=620,
        margin={"t": 96, "r": 190},
        legend={"x": 1.03, "y": 1.0, "itemsizing": "constant"},
    )


def overconfidence_by_head(result: CalibrationResult) -> "go.Figure":
    """Draw the change of overconfidence when a head's direct effect is removed, layers down and heads across.

    Args:
        result: Result of `measure_calibration`.

    Returns:
        A figure on a color scale centered on zero: blue where the model is more confident without the head, red where
        it is less confident.

    Raises:
        InvalidInputError: If heads were not measured.
    """
    change = result.changes()
    assert result.head_change_error is not None
    figure = component_maps(
        {"without the head − the model": change},
        title=f"Change of overconfidence without each head (model: {result.overconfidence:+.3f})",
        data=result.info.data,
        unit="change",
    )
    errors = [[f"{error:.4f}" for error in row] for row in result.head_change_error.tolist()]
    figure.update_traces(text=errors, hovertemplate="without %{customdata}: %{z:+.4f} ± %{text}<extra></extra>")
    return figure


def _without(result: CalibrationResult, layer: int, head: int, color: str) -> "go.Scatter":
    """Curve of the model without a head."""
    import plotly.graph_objects as go

    n_layers, n_heads = result.changes().shape
    assert result.head_count is not None and result.head_predicted is not None and result.head_correct is not None
    assert result.head_overconfidence is not None
    if not (0 <= layer < n_layers and 0 <= head < n_heads):
        raise InvalidInputError(
            f"there is no head ({layer}, {head}): layers go from 0 to {n_layers - 1}, heads from 0 to {n_heads - 1}.",
            code="HS-HEADS-01",
        )
    filled = result.head_count[layer, head].nonzero()[:, 0]
    label = component_label(layer, head)
    return go.Scatter(
        x=result.head_predicted[layer, head, filled].cpu().numpy(),
        y=result.head_correct[layer, head, filled].cpu().numpy(),
        mode="lines+markers",
        line={"color": color, "width": 1.5},
        marker={"size": 5},
        name=f"without {label} ({float(result.head_overconfidence[layer, head]):+.3f})",
        hovertemplate=f"without {label}<br>probability %{{x:.3f}} on average<br>came next %{{y:.3f}}<extra></extra>",
    )
