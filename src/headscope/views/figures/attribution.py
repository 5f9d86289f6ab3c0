"""Figures of an `Attribution`: the logit difference by layer, component, head and source position."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from headscope.analysis.core.result import component_label
from headscope.analysis.prompts.attribution_result import Attribution
from headscope.errors import InvalidInputError
from headscope.ops.devices import wide
from headscope.views.drawing.maps import component_maps, position_maps
from headscope.views.drawing.theme import PALETTE, state_axis, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["attribution_by_component", "attribution_by_head", "attribution_by_layer", "attribution_by_source"]

_UNIT = "logits"


def attribution_by_layer(result: Attribution, *, prompt: int | None = None) -> "go.Figure":
    """Draw the logit difference read from each state of the residual stream (logit lens), as a mean over prompts.

    Args:
        result: Result of `attribute`.
        prompt: One prompt instead of the mean, which has a band of one standard deviation either way.

    Raises:
        InvalidInputError: If there is no such prompt.
    """
    import plotly.graph_objects as go

    labels = list(result.state_labels)
    values = _of(result, result.accumulated, prompt)
    figure = go.Figure()
    if prompt is None and len(result.accumulated) > 1:
        spread = wide(result.accumulated).std(0, correction=0).cpu().numpy()
        figure.add_trace(
            go.Scatter(
                x=[*labels, *labels[::-1]],
                y=[*(values + spread), *(values - spread)[::-1]],
                fill="toself",
                fillcolor="rgba(42,111,176,0.15)",
                line={"width": 0},
                hoverinfo="skip",
                name="one standard deviation",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=labels,
            y=values,
            mode="lines+markers",
            line={"color": PALETTE[0]},
            name="mean over prompts" if prompt is None else "this prompt",
            hovertemplate="%{x}<br>%{y:+.3f} " + _UNIT + "<extra></extra>",
        )
    )
    return styled(
        figure,
        "Logit difference along the residual stream",
        _on(result, prompt),
        xaxis=state_axis(labels),
        yaxis={"title": {"text": f"logit difference ({_UNIT})"}, "zeroline": True},
        height=420,
        margin={"t": 96, "b": 90},
        showlegend=False,
    )


def attribution_by_component(result: Attribution, *, k: int | None = 20, prompt: int | None = None) -> "go.Figure":
    """Draw each component's contribution to the logit difference as bars.

    Args:
        result: Result of `attribute`.
        k: Show the `k` of largest magnitude, largest first, and the others summed in one bar; `None` shows all, in
            the model's order.
        prompt: One prompt instead of the mean.

    Raises:
        InvalidInputError: If `k` is below 1, or there is no such prompt.
    """
    import plotly.graph_objects as go

    if k is not None and k < 1:
        raise InvalidInputError(f"k must be at least 1; got {k}.")
    labels = list(result.component_labels)
    values = _of(result, result.components, prompt)
    if k is not None and k < len(labels):
        order = np.argsort(-np.abs(values), kind="stable")
        shown, rest = order[:k], order[k:]
        labels = [*(labels[i] for i in shown), f"{len(rest)} others"]
        values = np.append(values[shown], values[rest].sum())
    figure = go.Figure(
        go.Bar(
            x=labels,
            y=values,
            marker={"color": [PALETTE[0] if value >= 0 else PALETTE[1] for value in values]},
            hovertemplate="%{x}<br>%{y:+.4f} " + _UNIT + "<extra></extra>",
        )
    )
    return styled(
        figure,
        "Logit difference by component",
        _on(result, prompt),
        xaxis={"title": {"text": "component"}, "type": "category", "tickangle": -45},
        yaxis={"title": {"text": f"adds to the logit difference ({_UNIT})"}, "zeroline": True},
        height=440,
        margin={"t": 96, "b": 90},
    )


def attribution_by_head(result: Attribution, *, mlps: bool = False, prompt: int | None = None) -> "go.Figure":
    """Draw each head's contribution to the logit difference, layers down and heads across; blue is for the answer.

    Means over six prompts or more that do not stand out of all heads, mixers and MLPs are hatched (see
    `Attribution.significant`).

    Args:
        result: Result of `attribute`.
        mlps: Add columns for the mixers and MLPs, which may be so large that heads look pale.
        prompt: One prompt instead of the mean.

    Raises:
        InvalidInputError: If there is no such prompt.
    """
    name, width = "adds to the logit difference", len(result.part_labels) if mlps else result.n_heads
    judged = prompt is None and result.is_judged
    return component_maps(
        {name: _chosen(result, result.heads_and_mlps[..., :width], prompt)},
        whole=result.part_labels[result.n_heads :] if mlps else (),
        title="Logit difference by head",
        data=_on(result, prompt),
        unit=_UNIT,
        idle={name: ~result.significant()[:, :width]} if judged else None,
        rule=result.rule() if judged else "",
    )


def attribution_by_source(
    result: Attribution, *, prompt: int = 0, heads: Sequence[tuple[int, int]] | None = None, k: int = 8
) -> "go.Figure":
    """Draw heads' contributions to the logit difference by source token: heads down, one prompt's tokens across.

    Args:
        result: Result of `attribute`, with `sources`.
        prompt: Index of the prompt.
        heads: The heads; those with the largest contributions to this prompt by default.
        k: Number of these.

    Raises:
        InvalidInputError: If the attribution has no sources, or there is no such prompt or head.
    """
    sources = result.sources_of(prompt)
    if heads is None:
        if k < 1:
            raise InvalidInputError(f"k must be at least 1; got {k}.")
        strength = result.heads[prompt].abs().flatten()
        order = strength.argsort(descending=True, stable=True)[:k].tolist()
        heads = [divmod(index, result.n_heads) for index in order]
    for layer, head in heads:
        if not (0 <= layer < result.n_layers and 0 <= head < result.n_heads):
            raise InvalidInputError(
                f"head {component_label(layer, head)} does not exist: layers are 0 to {result.n_layers - 1}, heads "
                f"0 to {result.n_heads - 1}.",
                code="HS-HEADS-01",
            )
    return position_maps(
        {"adds to the logit difference": torch.stack([sources[layer, head] for layer, head in heads])},
        rows=[component_label(layer, head) for layer, head in heads],
        row_title="head",
        positions=range(sources.shape[-1]),
        tokens=result.str_tokens[prompt],
        title="Logit difference by head and source",
        data=_on(result, prompt),
        unit=_UNIT,
    ).update_xaxes(title_text="token attended to")


def _chosen(result: Attribution, values: Tensor, prompt: int | None) -> Tensor:
    if prompt is None:
        return wide(values).mean(0)
    if not -len(values) <= prompt < len(values):
        raise InvalidInputError(f"prompt must be from 0 to {len(values) - 1}; got {prompt}.")
    return wide(values[prompt])


def _of(result: Attribution, values: Tensor, prompt: int | None) -> np.ndarray:
    return _chosen(result, values, prompt).cpu().numpy()


def _on(result: Attribution, prompt: int | None) -> str:
    """Subtitle of the figure: the data, or one prompt."""
    return result.info.data if prompt is None else "".join(result.str_tokens[prompt])
