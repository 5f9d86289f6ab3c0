"""Results of patching, one array for each patched site; `PatchingResult`, which `activation_patch` returns."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from headscope.analysis.core.named_arrays import Array, Label, NamedArray
from headscope.analysis.core.over_prompts import Controlled, evidence
from headscope.errors import InvalidInputError, unknown_name

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PatchingResult", "SiteResult"]

_PLURALS = {"layer": "layers", "head": "heads"}


@dataclass(frozen=True, repr=False)
class SiteResult(Controlled):
    """Numbers for each patch of some sites; `result["z"]` has a site's, with axes of its own.

    `top` ranks the patches of all sites, those that move the metric most first, either way; `site="z"` those of one.
    Errors and tests are of all patches too, or with `by="z"` of a site's, and corrected for as many.

    Attributes:
        values: Of all patches, one site after the other.
        per_prompt: The same of each prompt, in the same scale: their mean is `values`. `None` for a metric of your own,
            and for more than 256 MB.
        sites: What was patched: `"resid_pre"`, `"z"`, ...
        positions: The positions that were asked for: numbers, or names of words.
        direction: `"denoising"` or `"noising"`.
        control_values: What the control gave, in the same scale as `values`.
        control_per_prompt: The same of each prompt.
    """

    sampled: ClassVar[tuple[str, ...]] = ()
    coords: ClassVar[Mapping[str, str]] = {"pos": "positions", "dest_pos": "positions"}
    either_way: ClassVar[bool] = True
    table: ClassVar[tuple[str, ...]] = ("site", "layer", "head", "pos", "dest_pos", "src_pos", "value")
    values: Float[Tensor, " patch"]
    sites: tuple[str, ...]
    positions: tuple[int | str, ...]
    direction: str
    per_prompt: Float[Tensor, "prompt patch"] | None = field(default=None, kw_only=True)
    control_values: Float[Tensor, " patch"] | None = field(default=None, kw_only=True)
    control_per_prompt: Float[Tensor, "prompt patch"] | None = field(default=None, kw_only=True)

    @property
    def answer_sign(self) -> int:
        return 1 if self.direction == "denoising" else -1

    def axes_of(self, site: str) -> tuple[str, ...]:
        """The axes of a site's values.

        Raises:
            UnknownNameError: If it was not patched.
        """
        raise NotImplementedError

    def shape_of(self, site: str) -> tuple[int, ...]:
        """The sizes of these axes."""
        raise NotImplementedError

    def __getitem__(self, site: str) -> Tensor:
        """A site's values, with the axes that `axes_of` names.

        Raises:
            UnknownNameError: If it was not patched.
        """
        return self.of_site(site, self.values)

    def of_site(self, site: str, each: Shaped[Tensor, "*prompt patch"]) -> Shaped[Tensor, "..."]:
        """A site's part of numbers for all patches, such as `errors`, with the axes that `axes_of` names.

        Raises:
            UnknownNameError: If it was not patched.
        """
        shape = self.shape_of(site)
        start = sum(math.prod(self.shape_of(other)) for other in self.sites[: self.sites.index(site)])
        return each[..., start : start + math.prod(shape)].unflatten(-1, shape)

    def by_prompt(self, by: str | None = None) -> Float[Tensor, "prompt *cell"]:
        """The value of each prompt, for all patches or those of one site.

        Raises:
            InvalidInputError: If there are none, for a metric of your own or one of too many numbers.
            UnknownNameError: If the site was not patched.
        """
        if self.per_prompt is None:
            raise InvalidInputError(
                "nothing is known of single prompts: the metric gives one number for all of them, or there were too "
                "many numbers to keep. See `metric` and PromptMetric.",
                code="HS-METRIC-04",
            )
        return self.per_prompt if by is None else self.of_site(by, self.per_prompt)

    def declared(self) -> Mapping[str, Array]:
        return {site: self._site_array(site) for site in self.sites}

    def _site_array(self, site: str) -> Array:
        axes = " ".join(self.axes_of(site))
        # Grouped keys and values are fewer than heads; an axis has one length.
        axes = axes.replace("head", "key_value_head") if site in ("k", "v") else axes
        return Array(axes, unit=self._unit(), column="value", style="+.4f", of=lambda found: found[site])

    def _unit(self) -> str:
        return ""

    def axis_columns(self, axis: str, labels: Sequence[Label]) -> dict[str, Sequence[Any]]:
        return {"head" if axis == "key_value_head" else axis: labels}

    def cell_label(self, name: str, cell: Mapping[str, Label]) -> str:
        """`z 9.6`, `resid_pre 3 at 10 ' John'`, or `resid_pre 3 at S2`."""
        head = next((f".{label}" for axis, label in cell.items() if axis.endswith("head")), "")
        places = ", ".join(self._place(axis, label) for axis, label in cell.items() if axis.endswith("pos"))
        return f"{name} {cell['layer']}{head}" + (f" at {places}" if places else "")

    def _place(self, axis: str, label: Label) -> str:
        return str(label)

    def _row(self, name: str, array: NamedArray, cell: Mapping[str, Label]) -> dict[str, Any]:
        return dict.fromkeys(self.table) | super()._row(name, array, cell) | {"site": name}

    def _beside(self, name: str, mlps: bool, labels: Mapping[str, Any]) -> dict[str, Tensor]:
        if not self.has_rows:
            return {}
        errors = replace(self, values=self.errors, per_prompt=None)
        return {"error": errors._reduced(name, mlps, labels).values.flatten()}

    def _asked(self, by: str | None, labels: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        # `site="z"` names the array, and what a table calls a position is the axis `pos`.
        renamed = {"pos" if axis == "position" else axis: label for axis, label in labels.items() if axis != "site"}
        site = by or labels.get("site")
        if site is not None:
            self.axes_of(site)
        return site, renamed

    def _default(self) -> tuple[str, ...]:
        return self.sites

    def _heading(self, name: str, labels: Mapping[str, Any]) -> tuple[str, str]:
        return self._unit() or "change", ""

    def to_frame(self, *names: str, means: bool = True) -> "pd.DataFrame":
        """One row per patch: site, layer, head, position, what stands there, and the value; for all sites, or some.

        With values of two prompts or more also the columns of `OverPrompts.to_frame`, for the patches of these sites.
        """
        import pandas as pd

        sites = names or self.sites
        frame = pd.concat(
            [super(SiteResult, self).to_frame(site).assign(site=site) for site in sites], ignore_index=True
        )
        positions = "string" if any(isinstance(position, str) for position in self.positions) else "Int64"
        kinds = {"head": "Int64", "pos": positions, "position": positions, "dest_pos": positions, "src_pos": "Int64"}
        kept = {name: kind for name, kind in {**kinds, "token": "string"}.items() if name in self.table}
        frame = frame.reindex(columns=self.table).astype(kept)
        if self.control_values is not None:
            frame["control"] = torch.cat([self.of_site(site, self.control_values).flatten() for site in sites]).tolist()
        if not self.has_rows:
            return frame
        chosen = torch.cat([self.by_prompt(site).flatten(1) for site in sites], 1)
        return frame.assign(**evidence(chosen, self.clusters))

    def _notes(self) -> Iterator[str]:
        for site in self.sites:
            sizes = zip(self.shape_of(site), self.axes_of(site), strict=True)
            shape = " x ".join(f"{size} {_PLURALS.get(axis, 'positions')}" for size, axis in sizes)
            best = ", ".join(
                f"{score.label.removeprefix(site + ' ')} {score.value:+.3f}" for score in self.top(3, by=site)
            )
            yield f"{site} ({shape}): {best}"
        if note := self._evidence_note():
            yield note
        yield from self._control_notes()


@dataclass(frozen=True, repr=False)
class PatchingResult(SiteResult):
    """The effect of each patch on a metric.

    Denoising puts parts of the clean run into the corrupted one: 0 is what the corrupted run gives, 1 what the clean
    one does. Noising puts parts of the corrupted run into the clean one: 0 is the clean run, -1 the corrupted one.

    Attributes:
        axes: The axes of each site: `"layer pos"`, `"layer head"`, `"layer pos head"`, `"layer head pos"`, `"layer"`.
        position_labels: What stands at each position: a token, or the name of a word.
        n_layers: Layers.
        n_heads: Heads of each.
        n_key_value_heads: Keys and values of each, fewer where heads share them.
        unit: What the numbers are.
        clean: The logit difference (or your metric) of the clean run.
        corrupted: That of the corrupted run.
        info: What was run on what; `n_positions` is the number of prompts.
        runs: How patched runs were made: `"suffix"` (only layers and positions from the patch on), or `"whole, for"`
            what stood in the way of that, such as hooks on the model.
    """

    kind: ClassVar[str] = "patching"
    table: ClassVar[tuple[str, ...]] = ("site", "layer", "head", "position", "token", "value")
    axes: tuple[str, ...]
    position_labels: tuple[str, ...]
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    unit: str
    clean: float
    corrupted: float
    runs: str = ""

    def axes_of(self, site: str) -> tuple[str, ...]:
        if site not in self.sites:
            raise unknown_name("site", site, self.sites, hint="Only these were patched.", code="HS-NAME-06")
        return tuple(self.axes[self.sites.index(site)].split())

    def shape_of(self, site: str) -> tuple[int, ...]:
        heads = self.n_key_value_heads if site in ("k", "v") else self.n_heads
        sizes = {"layer": self.n_layers, "head": heads, "pos": len(self.position_labels)}
        return tuple(sizes[axis] for axis in self.axes_of(site))

    def axis_columns(self, axis: str, labels: Sequence[Label]) -> dict[str, Sequence[Any]]:
        if axis != "pos":
            return super().axis_columns(axis, labels)
        return {"position": labels, "token": [self._token(label) for label in labels]}

    def _token(self, position: Label) -> str:
        return self.position_labels[self.positions.index(position)]

    def _place(self, axis: str, label: Label) -> str:
        return f"{label} {self._token(label)!r}" if isinstance(label, int) else str(label)

    def _unit(self) -> str:
        return self.unit

    def _notes(self) -> Iterator[str]:
        yield f"{self.direction}: clean {self.clean:+.3f}, corrupted {self.corrupted:+.3f}; values are {self.unit}"
        if self.runs:
            yield f"runs: {self.runs}"
        yield from super()._notes()
