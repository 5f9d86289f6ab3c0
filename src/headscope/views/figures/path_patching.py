"""Figures of path patching, and of attribution patching against activation patching."""

from typing import TYPE_CHECKING

from headscope.analysis.patching.comparison import PatchingComparison
from headscope.analysis.patching.path_result import PathPatchingResult
from headscope.errors import InvalidInputError
from headscope.views.drawing.maps import component_maps
from headscope.views.drawing.options import draw_line
from headscope.views.drawing.theme import PALETTE, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["attribution_scatter", "path_patching_by_head"]


def path_patching_by_head(*results: PathPatchingResult, normalized: bool = True) -> "go.Figure":
    """Draw each head's effect through the receivers, one map for each sweep, layers down and heads (and MLPs) across.

    Blue raises the metric when patched, red lowers it: with noising, the model relies on red heads. Cells that do not
    stand out are hatched, where values of six prompts or more are known (see `PathPatchingResult.significant`).

    Args:
        results: Results of `path_patch_sweep` for all heads, or all components.
        normalized: As shares of the clean metric minus the corrupted one; otherwise in the metric's unit.

    Raises:
        InvalidInputError: For a sweep over a list of senders, sweeps of several shapes, none at all, or shares of 0.
    """
    shapes = [tuple(result.values.shape) for result in results]
    if len(set(shapes)) != 1 or len(shapes[0]) != 2:
        raise InvalidInputError(
            f"maps need values [layer, head] or [layer, component], of one shape; got {shapes}. Give results of "
            "path_patch_sweep with senders='heads' or senders='components'."
        )
    first = results[0]
    maps = {f"into {_receivers(result)}": result.normalized if normalized else result.change for result in results}
    judged = all(result.is_judged for result in results)
    idle = {f"into {_receivers(result)}": ~result.significant() for result in results} if judged else None
    frozen = "MLPs frozen" if first.freeze_mlps else "MLPs recomputed"
    return component_maps(
        maps,
        title=f"Path patching ({first.direction}, {frozen}, positions: {first.positions})",
        data=first.info.data,
        unit="share" if normalized else "change",
        whole=[kind for kind in ("mixer", "MLP") if f"{kind.lower()}0" in first.sender_labels],
        own_scales=True,
        idle=idle,
        rule=first.rule() if judged else "",
    )


def _receivers(result: PathPatchingResult) -> str:
    labels = result.receiver_labels
    return ", ".join(labels) if len(labels) < 4 else f"{labels[0]}, {labels[1]} and {len(labels) - 2} more"


def attribution_scatter(comparison: PatchingComparison) -> "go.Figure":
    """Draw each estimate against the true effect of the patch; on the dashed line they are equal.

    Args:
        comparison: Result of `AttributionPatchingResult.compare` with patches in the estimates' unit; with shares the
            line is meaningless, but the correlations are the same.
    """
    import plotly.graph_objects as go

    frame = comparison.to_frame()
    labels = comparison.labels
    points = go.Scatter(
        x=frame.true.tolist(),
        y=frame.estimated.tolist(),
        mode="markers",
        customdata=labels,
        marker={"color": PALETTE[0], "size": 7, "opacity": 0.7},
        hovertemplate="%{customdata}<br>patched %{x:+.4f}<br>estimated %{y:+.4f}<extra></extra>",
        showlegend=False,
    )
    figure = go.Figure(points)
    draw_line(figure, "y=x", frame.true.to_numpy(), frame.estimated.to_numpy())
    figure.update_xaxes(title_text="change when patched")
    figure.update_yaxes(title_text="change estimated from gradients")
    title = (
        f"Attribution patching of {comparison.site}: r = {comparison.pearson:.3f}, rank r = {comparison.spearman:.3f}"
    )
    return styled(figure, title, comparison.data)
