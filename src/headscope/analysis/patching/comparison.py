"""`AttributionPatchingResult`, which `attribution_patch` returns, and its comparison with true patches."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.named_arrays import Label
from headscope.analysis.core.over_prompts import SHARE_UNIT
from headscope.analysis.patching.result import PatchingResult, SiteResult
from headscope.analysis.patching.sites import AXES
from headscope.errors import InvalidInputError, unknown_name
from headscope.ops.devices import wide

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AttributionPatchingResult", "PatchingComparison"]


@dataclass(frozen=True, repr=False)
class AttributionPatchingResult(SiteResult):
    """The change of a metric that each patch would make, to first order: `result["z"]` is `[layer, pos, head]`, ...

    Attributes:
        clean: The metric of the clean run.
        corrupted: That of the corrupted run.
        shapes: The axes' lengths of each site.
        scale: `"share"` (of `clean - corrupted`) or `"metric"`.
        steps: In how many runs gradients were taken.
    """

    kind: ClassVar[str] = "attribution patching"
    clean: Float[Tensor, ""]
    corrupted: Float[Tensor, ""]
    shapes: tuple[Any, ...]
    scale: str
    steps: int

    def axes_of(self, site: str) -> tuple[str, ...]:
        if site not in self.sites:
            raise unknown_name(
                "site", site, self.sites, hint="Name it in attribution_patch(sites=...).", code="HS-NAME-06"
            )
        return AXES[site]

    axes = axes_of

    def _unit(self) -> str:
        return SHARE_UNIT if self.scale == "share" else ""

    def shape_of(self, site: str) -> tuple[int, ...]:
        self.axes_of(site)
        return tuple(self.shapes[self.sites.index(site)])

    def over_positions(self, site: str) -> Float[Tensor, "layer *head"]:
        """The estimates for patches of all positions together."""
        at = [number for number, axis in enumerate(self.axes(site)) if axis.endswith("pos")]
        return self[site].sum(at)

    def compare(self, patched: Any, *, site: str | None = None) -> "PatchingComparison":
        """Agreement of estimated with true patches.

        Args:
            patched: What patching changed, by cell: a tensor of the shape of `self[site]` or of `over_positions(site)`
                (for a pattern also summed over what is attended to), or anything that gives one for `patched[site]`,
                such as what `activation_patch` gives. Its unit does not matter to correlations. NaN is left out.
            site: Which; default: the only one.

        Raises:
            InvalidInputError: If the shapes or directions differ, or fewer than two cells are left.
            UnknownNameError: For a site that was not measured.
        """
        if site is None:
            if len(self.sites) > 1:
                raise InvalidInputError(f"say which site to compare: one of {', '.join(self.sites)}.")
            site = self.sites[0]
        if isinstance(patched, PatchingResult) and patched.direction != self.direction:
            raise InvalidInputError(f"the estimates are of {self.direction}, and the patches of {patched.direction}.")
        true = torch.as_tensor(patched if isinstance(patched, Tensor) else patched[site]).detach()
        for left_out in ((), ("src_pos",), ("pos", "dest_pos", "src_pos")):
            summed = [at for at, axis in enumerate(self.axes(site)) if axis in left_out]
            estimate = self[site].sum(summed) if summed else self[site]
            if estimate.shape == true.shape:
                axes = tuple(axis for axis in self.axes(site) if axis not in left_out)
                return PatchingComparison(site, axes, estimate, true.to(estimate), self.positions, self.info.data)
        raise InvalidInputError(
            f"patches of {site!r} have shape {list(true.shape)}; the estimates have {list(self[site].shape)}, or "
            f"{list(self.over_positions(site).shape)} for all positions together."
        )

    def _notes(self) -> Iterator[str]:
        runs = "gradients of the patched run" if self.steps == 1 else f"gradients of {self.steps} runs on the way"
        yield (
            f"{self.direction}, {self.scale}, {runs}: {float(self.clean):+.4f} clean, "
            f"{float(self.corrupted):+.4f} corrupted"
        )
        yield from super()._notes()


@dataclass(frozen=True, repr=False, eq=False)
class PatchingComparison:
    """Attribution patching beside true patching.

    Attributes:
        site: What was patched.
        axes: Of both.
        estimated: The metric's change to first order.
        true: Its change.
        positions: What positions there are: numbers, or names of words.
        data: On which prompts.
        names: The cells by name, where they are not of a layer.
    """

    site: str
    axes: tuple[str, ...]
    estimated: Float[Tensor, "*cell"]
    true: Float[Tensor, "*cell"]
    positions: tuple[int | str, ...] | None = None
    data: str = ""
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if int(self._both()[0].numel()) < 2:
            raise InvalidInputError("a correlation needs at least two cells that are numbers in both.")

    @property
    def pearson(self) -> float:
        """Correlation; NaN where one of the two is the same everywhere."""
        return _correlation(*self._both())

    @property
    def spearman(self) -> float:
        """Correlation of ranks; equal values share their mean rank."""
        return _correlation(*map(_ranks, self._both()))

    @property
    def labels(self) -> tuple[str, ...]:
        """`10.7`, `10.7 at 14`, `layer 3 at 14` or `1.0 -> 2.1.q`, in the order of `true.flatten()`."""
        return self.names or tuple(_label(dict(zip(self.axes, cell, strict=True))) for cell in self._cells())

    def _cells(self) -> list[tuple[Label, ...]]:
        named = {"pos": self.positions, "dest_pos": self.positions} if self.positions else {}
        if self.names:
            return [(name,) for name in self.names]
        sizes = zip(self.axes, self.true.shape, strict=True)
        return list(product(*(named.get(axis, range(size)) for axis, size in sizes)))

    def to_frame(self) -> "pd.DataFrame":
        """One row per cell: where it is, and both numbers."""
        import pandas as pd

        numbers = {"estimated": self.estimated.flatten().tolist(), "true": self.true.flatten().tolist()}
        return pd.DataFrame(self._cells(), columns=list(self.axes)).assign(**numbers)

    def _both(self) -> tuple[Tensor, Tensor]:
        known = self.estimated.isfinite() & self.true.isfinite()
        return wide(self.estimated[known]), wide(self.true[known])

    def __repr__(self) -> str:
        labels, estimated, true = self.labels, self.estimated.flatten(), self.true.flatten()
        order = true.nan_to_num().abs().argsort(descending=True, stable=True)[:8].tolist()
        width = max(len(self.site), *(len(labels[at]) for at in order))
        rows = [f"{labels[at]:<{width}}  {float(estimated[at]):+9.4f}  {float(true[at]):+9.4f}" for at in order]
        heading = (
            f"Attribution patching of {self.site} beside true patches, {self._both()[0].numel()} cells: Pearson "
            f"{self.pearson:.3f}, Spearman {self.spearman:.3f}"
        )
        return "\n".join([heading, f"{self.site:<{width}}  estimated       true", *rows])


def _label(cell: dict[str, Label]) -> str:
    """`10.7` for a head, with its positions: `10.7 at 14`; `layer 3 at S2` without a head."""
    head, layer = cell.pop("head", None), cell.pop("layer")
    places = ", ".join(map(str, cell.values()))
    return (f"layer {layer}" if head is None else f"{layer}.{head}") + (f" at {places}" if places else "")


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


def _ranks(values: Tensor) -> Tensor:
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (wide(counts) - 1) / 2)[which]
