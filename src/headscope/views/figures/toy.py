"""Figures of toy tasks: Fourier power of an embedding, and the grokking curve."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.errors import InvalidInputError
from headscope.views.drawing.arrays import to_array
from headscope.views.drawing.theme import PALETTE, plot_text, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["fourier_bars", "grokking_curve"]

_LEAST_LOSS = 1e-9  # nats; what a log scale starts at


def fourier_bars(
    power: Mapping[str, Any] | Any, *, title: str = "Fourier power of the embedding", data: str = ""
) -> "go.Figure":
    """Draw each frequency's share of an embedding's power as bars; of several embeddings, the last is blue.

    Args:
        power: `[frequency]` from `training.fourier_power`, or several by name.
        title: The figure's title.
        data: Subtitle.

    Raises:
        InvalidInputError: If there are none, or their lengths differ.

    Example:
        >>> figure = fourier_bars({"before": [0.5, 0.5], "after": [0.9, 0.1]})
        >>> figure.data[1].name, figure.data[1].x.tolist(), figure.data[1].y.tolist()
        ('after', [1, 2], [0.9, 0.1])
    """
    import plotly.graph_objects as go

    named = power if isinstance(power, Mapping) else {"": power}
    series = {name: to_array(values, "power") for name, values in named.items()}
    if not series or any(
        values.ndim != 1 or values.shape != next(iter(series.values())).shape for values in series.values()
    ):
        raise InvalidInputError(
            f"power must be [frequency], all of equal length; got shapes {[list(v.shape) for v in series.values()]}."
        )
    figure = go.Figure()
    for number, (name, values) in enumerate(series.items()):
        figure.add_bar(
            x=np.arange(1, len(values) + 1),
            y=values,
            name=plot_text(name),
            marker={"color": PALETTE[0 if number == len(series) - 1 else 5]},
            hovertemplate="frequency %{x}: %{y:.1%}<extra>" + plot_text(name) + "</extra>",
        )
    figure.update_xaxes(title_text="frequency", showgrid=False)
    figure.update_yaxes(title_text="share of the power", tickformat=".0%", rangemode="tozero")
    return styled(
        figure,
        title,
        data,
        width=860,
        height=360,
        bargap=0.15,
        bargroupgap=0.0,
        showlegend=len(series) > 1,
        legend={"x": 0.99, "xanchor": "right", "y": 0.98},
        margin={"t": 84},
    )


def grokking_curve(result: Any, *, threshold: float = 0.99) -> "go.Figure":
    """Draw loss on training and held-out data over steps, on a log scale, with the steps at which each was learned.

    Args:
        result: Result of `train` with validation data, a `training.TrainingResult`.
        threshold: Signal accuracy that counts as learned.

    Raises:
        InvalidInputError: If the run had no validation data.
    """
    import plotly.graph_objects as go

    if result.validation is None:
        raise InvalidInputError("the run was not evaluated on validation data; pass train(validation=...).")
    figure = go.Figure()
    parts = (
        ("training", result.train, "memorized", PALETTE[5]),
        ("held out", result.validation, "grokked", PALETTE[0]),
    )
    for number, (name, curve, event, color) in enumerate(parts):
        figure.add_scatter(
            x=to_array(curve.step),
            y=np.maximum(to_array(curve.signal_loss), _LEAST_LOSS),
            name=name,
            mode="lines",
            line={"color": color, "width": 2},
            hovertemplate=f"{name}, step %{{x:,}}<br>%{{y:.3g}} nats<extra></extra>",
        )
        step = curve.reached(threshold)
        if step is not None:
            figure.add_vline(
                step,
                line={"color": color, "dash": "dot", "width": 1.5},
                annotation={"text": f"{event}: step {step:,}", "font": {"color": color}, "yshift": -18 * number},
            )
    figure.update_xaxes(title_text="step", rangemode="tozero")
    figure.update_yaxes(title_text="loss, nats", type="log", exponentformat="power", dtick=1)
    return styled(
        figure,
        f"Training {plot_text(result.model)}: memorization, then grokking",
        result.data,
        width=860,
        height=400,
        legend={"x": 0.01, "y": 0.03},
        margin={"t": 84},
    )
