"""`PatchingResult`: what `activation_patch` returns."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, ClassVar, Self

from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.result import Result
from headscope.errors import InvalidInputError, unknown_name

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PatchRanking", "PatchScore", "PatchingResult"]

_PLURALS = {"layer": "layers", "head": "heads", "pos": "positions"}


@dataclass(frozen=True)
class PatchScore:
    """One patch and its number.

    Attributes:
        site: What was patched.
        layer: In which layer.
        head: Of which head (of which group, for keys and values that heads share); `None` for all.
        position: At which position, by its number or the name of a word; `None` for all that were asked for.
        token: What stands there.
        value: The metric.
    """

    site: str
    layer: int
    head: int | None
    position: int | str | None
    token: str | None
    value: float

    @property
    def label(self) -> str:
        """`z 9.6`, `resid_pre 3 at 10 ' John'`, or `resid_pre 3 at S2`."""
        found = f"{self.site} {self.layer}" if self.head is None else f"{self.site} {self.layer}.{self.head}"
        if self.position is None:
            return found
        return f"{found} at {self.position}" + (f" {self.token!r}" if isinstance(self.position, int) else "")


class PatchRanking(tuple[PatchScore, ...]):
    """Patches in order, printed as a table."""

    unit: str

    def __new__(cls, scores: Iterable[PatchScore], *, unit: str) -> Self:
        ranking = super().__new__(cls, tuple(scores))
        ranking.unit = unit
        return ranking

    def __str__(self) -> str:
        width = max([len(score.label) for score in self], default=0) + 2
        return "\n".join(
            [f"{'':<{width}}{self.unit}", *(f"{score.label:<{width}}{score.value:+.4f}" for score in self)]
        )

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class PatchingResult(Result):
    """What each patch does to a metric.

    Denoising puts parts of the clean run into the corrupted one: 0 is what the corrupted run gives, 1 what the clean
    one does. Noising puts parts of the corrupted run into the clean one: 0 is the clean run, -1 the corrupted one.

    Attributes:
        values: Of all patches, one site after the other; `result[site]` has a site's own, with its axes.
        sites: What was patched: `"resid_pre"`, `"z"`, ...
        axes: The axes of each site: `"layer pos"`, `"layer head"`, `"layer pos head"`, `"layer head pos"`, `"layer"`.
        positions: The positions that were asked for: numbers, or names of words.
        position_labels: What stands at each: a token, or the name of a word.
        n_layers: Layers.
        n_heads: Heads of each.
        n_key_value_heads: Keys and values of each, fewer where heads share them.
        direction: `"denoising"` or `"noising"`.
        unit: What the numbers are.
        clean: The logit difference (or your metric) of the clean run.
        corrupted: That of the corrupted run.
        info: What was run on what; `n_positions` is the number of prompts.
    """

    kind: ClassVar[str] = "patching"
    values: Float[Tensor, " patch"]
    sites: tuple[str, ...]
    axes: tuple[str, ...]
    positions: tuple[int | str, ...]
    position_labels: tuple[str, ...]
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    direction: str
    unit: str
    clean: float
    corrupted: float

    def axes_of(self, site: str) -> tuple[str, ...]:
        """The axes of a site's values.

        Raises:
            UnknownNameError: If it was not patched.
        """
        if site not in self.sites:
            raise unknown_name("site", site, self.sites, hint="Only these were patched.")
        return tuple(self.axes[self.sites.index(site)].split())

    def shape_of(self, site: str) -> tuple[int, ...]:
        """The sizes of these axes."""
        heads = self.n_key_value_heads if site in ("k", "v") else self.n_heads
        sizes = {"layer": self.n_layers, "head": heads, "pos": len(self.position_labels)}
        return tuple(sizes[axis] for axis in self.axes_of(site))

    def __getitem__(self, site: str) -> Tensor:
        """A site's values, with the axes that `axes_of` names.

        Raises:
            UnknownNameError: If it was not patched.
        """
        shape = self.shape_of(site)
        start = sum(_product(self.shape_of(each)) for each in self.sites[: self.sites.index(site)])
        return self.values[start : start + _product(shape)].view(shape)

    def _scores(self, sites: Iterable[str]) -> Iterator[PatchScore]:
        for site in sites:
            axes, values = self.axes_of(site), self[site].flatten().tolist()
            for index, value in zip(product(*map(range, self.shape_of(site))), values, strict=True):
                at = dict(zip(axes, index, strict=True))
                place = at.get("pos")
                position = None if place is None else self.positions[place]
                token = None if place is None else self.position_labels[place]
                yield PatchScore(site, at["layer"], at.get("head"), position, token, value)

    def top(self, k: int = 10, *, site: str | None = None) -> PatchRanking:
        """The patches that move the metric most, either way.

        Args:
            k: How many.
            site: Only of this site.

        Raises:
            InvalidInputError: If `k` is below 1.
            UnknownNameError: If the site was not patched.
        """
        if k < 1:
            raise InvalidInputError(f"k must be at least 1; got {k}.")
        scores = self._scores(self.sites if site is None else (site,))
        return PatchRanking(sorted(scores, key=lambda score: -abs(score.value))[:k], unit=self.unit)

    def to_frame(self) -> "pd.DataFrame":
        """One row per patch: site, layer, head, position, what stands there, and the value."""
        import pandas as pd

        columns = ("site", "layer", "head", "position", "token", "value")
        rows = [[getattr(score, name) for name in columns] for score in self._scores(self.sites)]
        by_name = any(isinstance(position, str) for position in self.positions)
        return pd.DataFrame(rows, columns=list(columns)).astype(
            {"head": "Int64", "position": "string" if by_name else "Int64", "token": "string"}
        )

    def __str__(self) -> str:
        lines = [
            f"Activation patching ({self.direction}): {self.info}",
            f"  clean {self.clean:+.3f}, corrupted {self.corrupted:+.3f}; values are {self.unit}",
        ]
        for site in self.sites:
            sizes = zip(self.shape_of(site), self.axes_of(site), strict=True)
            shape = " x ".join(f"{size} {_PLURALS[axis]}" for size, axis in sizes)
            best = ", ".join(
                f"{score.label.removeprefix(site + ' ')} {score.value:+.3f}" for score in self.top(3, site=site)
            )
            lines.append(f"  {site} ({shape}): {best}")
        return "\n".join(lines)

    __repr__ = __str__


def _product(sizes: Iterable[int]) -> int:
    found = 1
    for size in sizes:
        found *= size
    return found
