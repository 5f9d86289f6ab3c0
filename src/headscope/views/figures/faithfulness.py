"""Figure of a `Faithfulness`: what circuits keep, over their size."""

from typing import TYPE_CHECKING, Any

from headscope.analysis.circuits.faithfulness_result import Faithfulness
from headscope.ops.arrays import to_numpy
from headscope.views.drawing.theme import PALETTE, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["faithfulness_curve"]

_GRAY = "rgb(120,120,120)"
_SHOWN = 3  # parts named when hovering
_WIDE = 20  # times the smallest circuit, from which on the axis is logarithmic
_NUMBERED = 20  # parts, up to which each, or every other one, is numbered


def faithfulness_curve(found: Faithfulness, *, title: str = "What the circuit keeps by itself") -> "go.Figure":
    """Draw the share of the metric that circuits keep over their number of parts, with errors, and random ones.

    At 1 (dashed) a circuit does what the whole model does. Bars are one standard error over prompts.

    Args:
        found: Result of `circuit_faithfulness`, or the `faithfulness` of a `Circuit`.
        title: The figure's title.

    Example:
        >>> import torch
        >>> from headscope.analysis.core.result import RunInfo
        >>> whole, nothing = torch.tensor([2.0, 4.0]), torch.tensor([0.0, 0.0])
        >>> kept = torch.stack([nothing, whole / 2, whole])
        >>> found = Faithfulness(
        ...     RunInfo("tiny", (), "two prompts", 2, 10), torch.tensor([0, 1, 2]), torch.tensor([0.0, 0.5, 1.0]),
        ...     kept.mean(1), kept, None, whole, nothing, ("0.1", "0.0"), 2, "nodes", "patch", True,
        ... )
        >>> faithfulness_curve(found).data[1].y.tolist()
        [0.0, 0.5, 1.0]
    """
    import plotly.graph_objects as go

    sizes = to_numpy(found.sizes)
    figure = go.Figure()
    ends = [sizes.min(), sizes.max()]
    dashed: dict[str, Any] = {"color": _GRAY, "dash": "dash", "width": 1.5}
    figure.add_trace(go.Scatter(x=ends, y=[1, 1], mode="lines", line=dashed, name="whole model", hoverinfo="skip"))
    figure.add_trace(
        go.Scatter(
            x=sizes,
            y=to_numpy(found.faithfulness),
            mode="lines+markers",
            line={"color": PALETTE[0], "width": 2},
            error_y={"array": to_numpy(found.errors), "thickness": 1},
            text=[_said(found, at) for at in range(len(sizes))],
            hovertemplate="%{text}<extra></extra>",
            name="circuit",
        )
    )
    parts = found.parts
    if found.control is not None:
        figure.add_trace(
            go.Scatter(
                x=sizes,
                y=to_numpy(found.control),
                mode="lines+markers",
                line={"color": PALETTE[5], "width": 1.5, "dash": "dot"},
                hovertemplate=f"%{{x}} {parts} at random: %{{y:.3f}}<extra></extra>",
                name=f"as many {parts} at random",
            )
        )
    kind = "log" if len(sizes) > 2 and min(ends) > 0 and ends[1] >= _WIDE * ends[0] else "linear"
    figure.update_xaxes(title_text=f"{parts} kept, of {found.n_parts}", type=kind)
    figure.update_yaxes(title_text="share of the metric kept")
    if kind == "linear" and ends[1] <= _NUMBERED:
        # No room for numbers of parts that there are not, below zero or above all.
        aside = 0.02 * max(1, ends[1] - ends[0])
        figure.update_xaxes(dtick=1 + (ends[1] > _NUMBERED / 2), range=[ends[0] - aside, ends[1] + aside])
    return styled(
        figure, title, found.info.data, height=400, margin={"t": 96, "b": 90}, legend={"orientation": "h", "y": -0.3}
    )


def _said(found: Faithfulness, at: int) -> str:
    """The numbers of a circuit, and the parts that it has beyond the one before."""
    size = int(found.sizes[at])
    more = found.ranking[int(found.sizes[at - 1]) if at else 0 : size]
    names = ", ".join(more[:_SHOWN]) + (f" and {len(more) - _SHOWN} more" if len(more) > _SHOWN else "")
    text = f"{found.counted(size)}: {float(found.faithfulness[at]):.3f} ± {float(found.errors[at]):.3f}"
    text += f"<br>metric {float(found.metrics[at]):+.3f}"
    if found.right is not None:
        text += f", right in {float(found.right[at]):.0%}"
    return text + (f"<br>with {names}" if names else "")
