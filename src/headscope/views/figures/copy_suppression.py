"""Figures of copy suppression: the share it explains, circuit ranks from weights alone, and scores of every head."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.result import component_label
from headscope.analysis.suppression.circuit_ranks_result import CircuitRanks
from headscope.analysis.suppression.cspa_result import CopySuppression
from headscope.analysis.suppression.scores import SuppressionScores
from headscope.errors import InvalidInputError
from headscope.views.drawing.labels import label_places
from headscope.views.drawing.maps import component_maps
from headscope.views.drawing.theme import PALETTE, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["circuit_rank_maps", "copy_suppression_by_head", "suppression_scatter"]

_NAMED = 6


def copy_suppression_by_head(result: CopySuppression) -> "go.Figure":
    """Draw the share of each head's effect explained by copy suppression, layers down and heads across.

    White is zero, below zero (preserving copy suppression makes it worse), or not measured.
    """
    title = "Copy suppression: share of the mean ablation's KL it explains"
    return _share_maps(result.heads, {"share explained": result.share().clamp(min=0)}, title, result.info.data)


def circuit_rank_maps(ranks: CircuitRanks) -> "go.Figure":
    """Draw two maps: shares of tokens whose own logit a head's OV lowers most, and whose own key its QK ranks top."""
    shares = {
        f"OV: own logit in the bottom {ranks.k}": ranks.ov_bottom,
        f"QK: own key in the top {ranks.k}": ranks.qk_top,
    }
    return _share_maps(ranks.heads, shares, "Weights alone: share of tokens", f"the weights of {ranks.info.model}")


def suppression_scatter(scores: SuppressionScores) -> "go.Figure":
    """Draw every head's anti-induction score against its IOI copy-suppression score; suppressors are at the top right.

    The heads furthest out are named, as far as there is room for their labels; all are where the mouse points.

    Raises:
        InvalidInputError: If IOI prompts were not measured.
    """
    import plotly.graph_objects as go

    if scores.ioi is None:
        raise InvalidInputError("IOI prompts were not measured: give suppression_scores prompts and answers.")
    # NaN stands where a layer has no attention.
    heads = (~scores.ioi.isnan()).nonzero()
    labels = [component_label(*head) for head in heads.tolist()]
    x, y = (values[tuple(heads.T)] for values in (scores.anti_induction, scores.ioi))
    far = set((_far(x) + _far(y)).argsort(descending=True)[:_NAMED].tolist())
    named = [label if at in far else "" for at, label in enumerate(labels)]
    places = label_places(x.tolist(), y.tolist(), named)
    points = go.Scatter(
        x=x.tolist(),
        y=y.tolist(),
        mode="markers+text",
        text=[label if place else "" for label, place in zip(named, places, strict=True)],
        textposition=[place or "top center" for place in places],
        customdata=labels,
        marker={"color": PALETTE[0], "size": 8, "opacity": 0.8},
        hovertemplate="%{customdata}<br>anti-induction %{x:+.3f} logits<br>IOI %{y:+.3f} logits<extra></extra>",
    )
    figure = go.Figure(points)
    figure.update_xaxes(title_text="anti-induction score (logits)")
    figure.update_yaxes(title_text="IOI copy-suppression score (logits)")
    data = f"repeated random tokens and IOI prompts, {scores.info.model}"
    return styled(figure, "Who works against copying", data)


def _far(values: Tensor) -> Tensor:
    """Distance from the median in standard deviations."""
    return (values - values.median()).abs() / values.std().clamp(min=1e-9)


def _share_maps(
    heads: Int[Tensor, "row 2"], shares: Mapping[str, Float[Tensor, " row"]], title: str, data: str
) -> "go.Figure":
    """Draw shares of some heads, each at its place among all; the others are blank."""
    heads, grids = heads.cpu(), {}
    for name, values in shares.items():
        grids[name] = torch.full((heads.amax(0) + 1).tolist(), torch.nan, dtype=torch.float64, device="cpu")
        grids[name][heads[:, 0], heads[:, 1]] = values.cpu().double()
    return component_maps(grids, title=title, data=data, unit="share", rising=True, limit=1.0)
