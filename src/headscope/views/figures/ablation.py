"""Figures of an `AblationResult`: loss differences by component, and by token."""

from typing import TYPE_CHECKING

import torch

from headscope.analysis.ablation.result import AblationResult
from headscope.analysis.core.components import component_of
from headscope.errors import InvalidInputError
from headscope.ops.devices import wide
from headscope.views.activations import text_neuron_activations
from headscope.views.drawing.maps import component_maps
from headscope.views.drawing.theme import PALETTE, styled
from headscope.views.html import HtmlView

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["ablation_bars", "ablation_by_head", "ablation_on_text"]

_WORDS = {"zero": "zero", "mean": "mean", "resample": "resampled"}


def ablation_by_head(result: AblationResult, *, kl: bool = False) -> "go.Figure":
    """Draw the mean loss difference of every head, one map for each way of ablating, layers down and heads across.

    Args:
        result: Result of `ablate_heads`.
        kl: Draw the KL divergence from the clean prediction instead.

    Returns:
        Maps, each on its own color scale. For losses, blue means that ablating costs (the head helps), red that it
        gains; white is no change, or not measured.

    Raises:
        InvalidInputError: If no single head was measured, or KL was not.
    """
    means = result.mean()
    numbers = means.kl if kl else means.loss_diff
    if numbers is None:
        raise InvalidInputError("KL was not measured. Run ablate_heads with kl=True.", code="HS-RESULT-01")
    parts = {at: part for at, label in enumerate(means.component_labels) if (part := component_of(label)) is not None}
    n_heads = 1 + max((part.head for part in parts.values() if part.head is not None), default=-1)
    if not n_heads:
        raise InvalidInputError(
            f"no single head is among {', '.join(means.component_labels)}; ablation_bars draws sets of components."
        )
    kinds = {part.part for part in parts.values()}
    whole: list[str] = [kind for kind in ("mixer", "mlp") if kind in kinds]
    layers = [part.layer for part in parts.values()]
    columns = [n_heads + whole.index(part.part) if part.head is None else part.head for part in parts.values()]
    shape = (*numbers.shape[:2], 1 + max(layers), n_heads + len(whole))
    grid = wide(numbers.new_full(shape, torch.nan))
    grid[:, :, layers, columns] = wide(numbers[:, :, list(parts)])
    ways = [f"{_WORDS[value]}, {effect}" for value in means.values for effect in means.effects]
    return component_maps(
        dict(zip(ways, grid.flatten(0, 1), strict=True)),
        title="KL divergence from the clean prediction" if kl else "Loss difference when ablated",
        data=result.info.data,
        unit="nats",
        whole=[kind.replace("mlp", "MLP") for kind in whole],
        rising=kl,
        own_scales=True,
    )


def ablation_bars(
    result: AblationResult, *, value: str | None = None, effect: str | None = None, k: int = 20
) -> "go.Figure":
    """Draw the components that help most and least, with one standard error.

    Args:
        result: Result of `ablate_heads`.
        value: One of its values; the first by default.
        effect: One of its effects; the first by default.
        k: Number of components, half from each end.

    Raises:
        InvalidInputError: If `k` is below 2, or for a value or effect that was not measured.
    """
    import plotly.graph_objects as go

    if k < 2:
        raise InvalidInputError(f"k must be at least 2; got {k}.")
    ranked = list(result.top(len(result.component_labels), value=value, effect=effect))
    shown = ranked if len(ranked) <= k else [*ranked[: k - k // 2], *ranked[-(k // 2) :]]
    sizes = [score.loss_diff for score in shown]
    bars = go.Bar(
        x=[score.label for score in shown],
        y=sizes,
        error_y={"array": [score.error for score in shown], "thickness": 1, "color": PALETTE[5]},
        marker={"color": [PALETTE[0] if size >= 0 else PALETTE[1] for size in sizes]},
        hovertemplate="%{x}: %{y:+.4f} ± %{error_y.array:.4f} nats<extra></extra>",
    )
    figure = go.Figure(bars)
    figure.update_xaxes(type="category", title_text="component")
    figure.update_yaxes(title_text="loss difference (nats)")
    way = f"{_WORDS[value or result.values[0]]}, {effect or result.effects[0]}"
    return styled(figure, f"Loss difference when ablated ({way})", result.info.data)


def ablation_on_text(result: AblationResult, *, k: int = 12, clip: float = 0.995) -> HtmlView:
    """Color each token by its loss difference when a component is ablated: blue if the component helps, red if not.

    A token's value is the difference of its own loss, predicted from those before it. Menus select the way of ablating,
    the component and the text; all share one color scale, which ends at a quantile of the magnitudes.

    Args:
        result: Result of `ablate_heads(reduce="none")`.
        k: Maximum number of components: those with the largest mean magnitudes over the ways of ablating, in order.
        clip: The quantile of the magnitudes with the full color.

    Raises:
        InvalidInputError: If the result holds means only, or `k` is below 1.
    """
    if result.tokens is None or result.token_ids is None:
        raise InvalidInputError(
            "this result holds only means, not values of single tokens. Run ablate_heads with reduce='none'.",
            code="HS-RESULT-01",
        )
    if k < 1:
        raise InvalidInputError(f"k must be at least 1; got {k}.")
    sizes = result.mean().loss_diff.abs().mean(dim=(0, 1))
    chosen = sorted(sizes.argsort(descending=True)[:k].tolist())
    values = result.loss_diff[:, :, chosen].flatten(0, 1)  # [way, component, batch, pos]
    strings = dict(zip(result.token_ids.tolist(), result.token_strings, strict=True))
    texts, numbers = [], []
    for row, tokens in enumerate(result.tokens.tolist()):
        # Padding, on either side, is left out.
        places = [at for at, token in enumerate(tokens) if token >= 0]
        texts.append([strings[tokens[at]] for at in places])
        unpredicted = torch.full((*values.shape[:2], 1), torch.nan)
        numbers.append(torch.cat([unpredicted, values[:, :, row]], dim=-1)[:, :, places].permute(2, 0, 1))
    return text_neuron_activations(
        texts,
        numbers,
        first_dimension_name="ablation",
        first_dimension_labels=[f"{_WORDS[value]}, {effect}" for value in result.values for effect in result.effects],
        second_dimension_name="component",
        second_dimension_labels=[result.component_labels[at] for at in chosen],
        clip=clip,
        name="loss difference",
        unit="nats",
    )
