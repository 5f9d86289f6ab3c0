"""Figures of a `PatchingResult`: effects of patches by layer and position, by head, or by both.

Cells that do not stand out of all patches of the result are hatched, where values of six prompts or more are known: see
`PatchingResult.significant`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from headscope.analysis.core.result import component_label
from headscope.analysis.patching.result import PatchingResult
from headscope.errors import InvalidInputError
from headscope.ops.devices import wide
from headscope.views.drawing.maps import component_maps, position_maps

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["patching_by_head", "patching_by_head_and_position", "patching_by_position"]

# Columns that fit side by side.
_COLUMNS = 48
_TITLE = {"denoising": "Effect restored by each patch", "noising": "Effect destroyed by each patch"}


def patching_by_position(result: PatchingResult, *, sites: Sequence[str] | None = None) -> "go.Figure":
    """Draw a map for each site, layers down and the prompt's tokens across; all on one color scale.

    Args:
        result: Result of `activation_patch`.
        sites: The sites; all that were patched by layer and position by default.

    Raises:
        UnknownNameError: For a site that was not patched.
        InvalidInputError: For a site without these axes.
    """
    chosen = _chosen(result, sites, ("layer", "pos"))
    across = len(chosen) if len(chosen) * len(result.positions) <= _COLUMNS else 1
    rows = [str(layer) for layer in range(result.n_layers)]
    return _maps(result, {site: result[site] for site in chosen}, rows, "layer", across, _idle(result, chosen))


def patching_by_head(result: PatchingResult, *, sites: Sequence[str] | None = None) -> "go.Figure":
    """Draw a map for each site, layers down and heads across; all on one color scale.

    Args:
        result: Result of `activation_patch`.
        sites: The sites; all that were patched by layer and head by default.

    Raises:
        UnknownNameError: For a site that was not patched.
        InvalidInputError: For a site without these axes.
    """
    chosen = _chosen(result, sites, ("layer", "head"))
    # Where heads share keys and values, these sites have fewer columns.
    width = max(result.shape_of(site)[1] for site in chosen)
    maps = {site: _widened(result[site], width, torch.nan) for site in chosen}
    idle = _idle(result, chosen)
    return component_maps(
        maps,
        title=_TITLE[result.direction],
        data=result.info.data,
        unit=_unit(result),
        idle=idle and {site: _widened(each, width, 0.0) for site, each in idle.items()},
        rule=result.rule() if idle else "",
    )


def patching_by_head_and_position(result: PatchingResult, site: str, *, k: int = 12) -> "go.Figure":
    """Draw the heads with the largest effect at any position, with the prompt's tokens across.

    Args:
        result: Result of `activation_patch` with `by_position=True`.
        site: The site.
        k: Number of heads.

    Raises:
        UnknownNameError: If the site was not patched.
        InvalidInputError: If it has no axes of heads and positions, or `k` is below 1.
    """
    if k < 1:
        raise InvalidInputError(f"k must be at least 1; got {k}.")
    axes = result.axes_of(site)
    if len(axes) != 3:
        raise _wrong_axes(site, axes, ("layer", "head", "pos"))

    def by_head(values: Tensor) -> Tensor:
        return (values if axes[1] == "head" else values.transpose(1, 2)).flatten(0, 1)

    heads, idle = by_head(wide(result[site])), _idle(result, [site])
    order = sorted(heads.abs().amax(1).argsort(descending=True, stable=True)[:k].tolist())
    names = [component_label(*divmod(head, result.shape_of(site)[axes.index("head")])) for head in order]
    idle = idle and {site: by_head(idle[site])[order]}
    return _maps(result, {site: heads[order]}, names, "head", idle=idle)


def _chosen(result: PatchingResult, sites: Sequence[str] | None, axes: tuple[str, ...]) -> list[str]:
    if sites is None:
        sites = [site for site in result.sites if result.axes_of(site) == axes]
        if not sites:
            raise InvalidInputError(
                f"nothing was patched by {' and '.join(axes)}: the sites are "
                f"{', '.join(f'{site} ({axes})' for site, axes in zip(result.sites, result.axes, strict=True))}."
            )
    for site in sites:
        if result.axes_of(site) != axes:
            raise _wrong_axes(site, result.axes_of(site), axes)
    return list(sites)


def _wrong_axes(site: str, axes: tuple[str, ...], wanted: tuple[str, ...]) -> InvalidInputError:
    return InvalidInputError(
        f"{site!r} was patched by {', '.join(axes)}, and this figure shows {', '.join(wanted)}. See by_position in "
        "activation_patch."
    )


def _unit(result: PatchingResult) -> str:
    return "share" if result.unit.startswith("the share") else "change"


def _maps(
    result: PatchingResult,
    maps: Mapping[str, Tensor],
    rows: Sequence[str],
    row_title: str,
    across: int = 1,
    idle: Mapping[str, Tensor] | None = None,
) -> "go.Figure":
    return position_maps(
        maps,
        rows=rows,
        row_title=row_title,
        positions=result.positions,
        tokens=result.position_labels,
        title=_TITLE[result.direction],
        data=result.info.data,
        unit=_unit(result),
        across=across,
        idle=idle,
        rule=result.rule() if idle else "",
    )


def _idle(result: PatchingResult, sites: Sequence[str]) -> dict[str, Tensor] | None:
    """The cells that do not stand out; `None` where nothing is known of six prompts or more."""
    if not result.is_judged:
        return None
    idle = ~result.significant()
    return {site: result.of_site(site, idle) for site in sites}


def _widened(values: Tensor, width: int, fill: float | bool) -> Tensor:
    return F.pad(values, (0, width - values.shape[1]), value=fill)
