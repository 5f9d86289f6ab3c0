"""Figures with a slider over the steps of a training run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["JUMP", "animate"]

# Arguments of plotly's `animate` that show a frame at once.
JUMP = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}


def animate(
    figure: "go.Figure", steps: Sequence[Any], frames: Sequence[Sequence[Any]], traces: Sequence[int], **slider: Any
) -> None:
    """Add a frame for each step, with what changes in some traces, and a slider that stands at the last step."""
    import plotly.graph_objects as go

    pairs = zip(steps, frames, strict=True)
    figure.frames = [go.Frame(name=str(step), data=data, traces=list(traces)) for step, data in pairs]
    stops = [{"label": str(step), "method": "animate", "args": [[str(step)], JUMP]} for step in steps]
    slider |= {"active": len(stops) - 1, "currentvalue": {"prefix": "step ", "xanchor": "right"}, "steps": stops}
    figure.update_layout(sliders=[slider])
