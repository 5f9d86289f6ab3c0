"""Figures of `HeadTypes`: the score of every head for every type, and K-composition."""

from typing import TYPE_CHECKING, Any

from headscope.analysis.core.result import component_label
from headscope.analysis.heads.types_result import HeadTypes
from headscope.errors import InvalidInputError
from headscope.views.drawing.maps import component_maps

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from torch import Tensor

__all__ = ["head_type_maps", "k_composition_maps"]

_OUTLINE = "rgb(230,145,20)"


def head_type_maps(found: HeadTypes, *, unit: str = "attention") -> "go.Figure":
    """Draw one map for each type of head, layers down and heads across; labeled heads are outlined.

    Args:
        found: Result of `detect_heads`.
        unit: `attention` for types defined by attention patterns, on one scale from 0 to 1, or `logits` for the
            others, each on its own scale: blue above zero, red below.

    Raises:
        InvalidInputError: If no type of this unit was measured.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.analysis.heads.types import detect_heads
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> figure = head_type_maps(detect_heads(model, n_sequences=4, progress=False))
        >>> [map.text for map in figure.layout.annotations]
        ['previous token', 'duplicate token', 'induction']
    """
    kinds = [
        name
        for at, name in enumerate(found.kinds)
        if found.unit(name) == unit and not bool(found.scores[at].isnan().all())
    ]
    if not kinds:
        units = sorted({found.unit(name) for name in found.kinds})
        raise InvalidInputError(f"no type of head was measured in {unit!r}; there is {' and '.join(units)}.")
    is_attention = unit == "attention"
    figure = component_maps(
        {_words(name): found.scores[found.kinds.index(name)] for name in kinds},
        title="Head types",
        data=found.info.data,
        unit=unit,
        rising=is_attention,
        limit=1.0 if is_attention else None,
        own_scales=not is_attention,
    )
    for panel, name in enumerate(kinds):
        at = found.kinds.index(name)
        _add_hover(figure.data[panel], found, name, found.controls[at], found.errors[at])
        _outline(figure, panel, _labeled(found, name))
    return figure


def k_composition_maps(found: HeadTypes, *, k: int = 4) -> "go.Figure":
    """Draw K-composition of induction heads with every earlier head; previous-token heads are outlined.

    Args:
        found: Result of `detect_heads`.
        k: Maximum number of induction heads.

    Raises:
        InvalidInputError: If there is no induction head, or `k` is below 1.
    """
    if k < 1:
        raise InvalidInputError(f"k must be at least 1; got {k}.")
    readers = _labeled(found, "induction")[:k]
    if not readers:
        raise InvalidInputError("no head is an induction head, so there is no K-composition to show.")
    rows = found.composition_heads.tolist()
    deepest = max(layer for layer, _ in readers)
    figure = component_maps(
        {
            f"keys of {component_label(layer, head)}": found.composition[rows.index([layer, head]), :deepest]
            for layer, head in readers
        },
        title="K-composition of induction heads",
        data="weights",
        unit="score",
        rising=True,
    )
    previous = [(layer, head) for layer, head in _labeled(found, "previous_token") if layer < deepest]
    for panel in range(len(readers)):
        _outline(figure, panel, previous)
    return figure


def _labeled(found: HeadTypes, kind: str) -> list[tuple[int, int]]:
    return [(score.layer, int(score.head or 0)) for score in found.heads(kind)]


def _words(kind: str) -> str:
    return kind.replace("_", " ").replace("s inhibition", "S-inhibition")


def _add_hover(heatmap: Any, found: HeadTypes, kind: str, control: "Tensor", error: "Tensor") -> None:
    """Add control, error and evidence to the hover text of each cell."""
    n_layers, n_heads = found.scores.shape[1:]
    heatmap.customdata = [
        [
            [
                component_label(layer, head),
                f"{float(control[layer, head]):.3f}",
                f"{float(error[layer, head]):.3f}",
                "<br>" + found.reasons(layer, head, kind).replace(", ", "<br>"),
            ]
            for head in range(n_heads)
        ]
        for layer in range(n_layers)
    ]
    heatmap.hovertemplate = (
        f"%{{customdata[0]}}: {_words(kind)} %{{z:+.3f}} {found.unit(kind)}<br>control %{{customdata[1]}}, "
        "standard error %{customdata[2]}%{customdata[3]}<extra></extra>"
    )


def _outline(figure: "go.Figure", panel: int, heads: list[tuple[int, int]]) -> None:
    """Draw frames around cells, which category axes count from 0."""
    trace = figure.data[panel]
    for layer, head in heads:
        figure.add_shape(
            type="rect",
            x0=head - 0.5,
            x1=head + 0.5,
            y0=layer - 0.5,
            y1=layer + 0.5,
            xref=trace.xaxis or "x",
            yref=trace.yaxis or "y",
            line={"color": _OUTLINE, "width": 2},
        )
