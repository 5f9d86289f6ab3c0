"""Figures of `HeadScores`."""

from typing import TYPE_CHECKING

from headscope.analysis.heads.scores import HeadScores
from headscope.views.drawing.maps import component_maps

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["head_score_maps"]

_KINDS = {"previous_token": "previous token", "duplicate_token": "duplicate token", "induction": "induction"}


def head_score_maps(scores: HeadScores) -> "go.Figure":
    """Draw one map for each type of head, layers down and heads across, from 0 (white) to 1 (blue)."""
    return component_maps(
        {title: getattr(scores, kind) for kind, title in _KINDS.items()},
        title="Head types",
        data=scores.info.data,
        unit="score",
        rising=True,
        limit=1.0,
    )
