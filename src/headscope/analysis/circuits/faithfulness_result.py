"""`Faithfulness`, which `circuit_faithfulness` returns: the metric that circuits keep, over their sizes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.result import Array, Result
from headscope.analysis.core.stats import Estimate, standard_errors
from headscope.ops.devices import wide

__all__ = ["SHARES", "Faithfulness"]

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The sizes of circuits in the benchmark MIB, as shares of all parts."""


@dataclass(frozen=True, repr=False)
class Faithfulness(Result):
    """The metric that circuits keep, over their sizes.

    Attributes:
        sizes: The number of parts of each circuit.
        shares: The same as shares of all parts.
        metrics: The metric of each, mean over prompts.
        per_prompt: That of each prompt; `None` for a metric that is one number for all.
        random: The metric of random circuits of these sizes.
        whole: The whole model's metric, for each prompt; or one number.
        nothing: That at which faithfulness is zero: of the corrupted run, or (`ablation` other than `"patch"`) of the
            circuit without any part.
        empty: That of the circuit without any part. With `"patch"` its nodes leave the clean run's embedding, and MLPs
            if these are in every circuit, so that it may differ from the corrupted run.
        ranking: The parts, in the order in which circuits take them.
        n_parts: The number of all parts.
        level: `"nodes"` or `"edges"`.
        ablation: What all else gives: `"patch"`, `"mean"` or `"zero"`.
        has_answers: The metric is a logit difference, so that above zero the answer is right.
        clusters: A number for each prompt, the same for those not drawn independently (see `Task`); errors are over
            clusters.
        info: What was run on what.
    """

    kind: ClassVar[str] = "faithfulness"
    arrays: ClassVar[Mapping[str, Array]] = {
        "faithfulness": Array("size", column="faithfulness", error="errors", style="+.3f"),
        "errors": Array("size", column="error", style=".3f"),
        "metrics": Array("size", column="metric", style="+.3f"),
        "right": Array("size", column="right", style=".0%", absent="the metric is no logit difference."),
        "control": Array("size", column="random", style="+.3f", absent="no random circuits were run."),
        "shares": Array("size", column="share", style=".1%"),
        "per_prompt": Array("size prompt", absent="the metric is one number for all prompts."),
        "random": Array("draw size", absent="no random circuits were run."),
    }
    coords: ClassVar[Mapping[str, str]] = {"size": "sizes"}
    columns: ClassVar[tuple[str, ...]] = ("shares", "faithfulness", "errors", "metrics", "right", "control")
    ranked: ClassVar[tuple[str, ...]] = ("faithfulness",)
    sampled: ClassVar[tuple[str, ...]] = ("prompt",)
    sizes: Int[Tensor, " size"]
    shares: Float[Tensor, " size"]
    metrics: Float[Tensor, " size"]
    per_prompt: Float[Tensor, "size prompt"] | None
    random: Float[Tensor, "draw size"] | None
    whole: Float[Tensor, "*prompt"]
    nothing: Float[Tensor, "*prompt"]
    ranking: tuple[str, ...]
    n_parts: int
    level: str
    ablation: str
    has_answers: bool
    empty: Float[Tensor, "*prompt"] | None = None
    clusters: Int[Tensor, " prompt"] | None = None

    @property
    def parts(self) -> str:
        """The kind of its parts in words: edges, heads, or (where MLPs are not in every circuit) heads and MLPs."""
        if self.level == "edges":
            return "edges"
        return "heads" if self.info.options.get("keep_mlps", True) else "heads and MLPs"

    def counted(self, size: int) -> str:
        """A number of parts in words, such as `1 head`."""
        return f"{size} {self.parts.removesuffix('s') if size == 1 and ' ' not in self.parts else self.parts}"

    @property
    def gap(self) -> float:
        """The whole model's metric less that of nothing, of which faithfulness is the share."""
        return float(self.whole.mean() - self.nothing.mean())

    @property
    def faithfulness(self) -> Float[Tensor, " size"]:
        """The share of the gap that each circuit keeps."""
        return (self.metrics - self.nothing.mean()) / self.gap

    @property
    def errors(self) -> Float[Tensor, " size"]:
        """One standard error of each, over prompts (or clusters): that of a ratio of two means of the same prompts."""
        return self._error_of(self._residuals.T)

    def _error_of(self, rows: Float[Tensor, "prompt *cell"]) -> Float[Tensor, "*cell"]:
        return standard_errors(rows, None if self.per_prompt is None else self.clusters)

    @property
    def _n_independent(self) -> int:
        return self.whole.numel() if self.clusters is None else len(self.clusters.unique())

    @property
    def _residuals(self) -> Float[Tensor, "size prompt"]:
        """The change of each faithfulness by each prompt, to first order."""
        if self.per_prompt is None:
            return torch.full((len(self.sizes), 2), torch.nan)
        kept, gap = self.per_prompt - self.nothing, self.whole - self.nothing
        return (kept - self.faithfulness[:, None] * gap) / self.gap

    @property
    def right(self) -> Float[Tensor, " size"] | None:
        """The share of prompts in which the right answer is ahead, for each circuit."""
        if not self.has_answers or self.per_prompt is None:
            return None
        return (self.per_prompt > 0).to(self.metrics.dtype).mean(1)

    @property
    def whole_right(self) -> float | None:
        """That share for the whole model."""
        return float(wide(self.whole > 0).mean()) if self.has_answers else None

    @property
    def control(self) -> Float[Tensor, " size"] | None:
        """Faithfulness of random circuits of each size, mean over draws."""
        return None if self.random is None else (self.random.mean(0) - self.nothing.mean()) / self.gap

    @property
    def kept_by_none(self) -> float | None:
        """Faithfulness of the circuit without any part, if that is known."""
        return None if self.empty is None else (float(self.empty.mean()) - float(self.nothing.mean())) / self.gap

    @property
    def is_of_benchmark(self) -> bool:
        """True if areas are over the sizes, as shares of all edges, of the benchmark MIB."""
        return self.level == "edges" and self.shares.tolist() == self.shares.new_tensor(SHARES).tolist()

    @property
    def cpr(self) -> Estimate:
        """Area under faithfulness over the shares measured, with its error; NaN for a single size."""
        return self._area(self.faithfulness, torch.ones_like(self.metrics))

    @property
    def cmd(self) -> Estimate:
        """Area between faithfulness and 1, with its error; NaN for a single size."""
        away = 1 - self.faithfulness
        return self._area(away.abs(), away.sign())

    def _area(self, heights: Tensor, slopes: Tensor) -> Estimate:
        if len(self.sizes) < 2:
            return Estimate(torch.nan, torch.nan, self.whole.numel(), 0.0)
        widths = self.shares.diff()
        weights = (torch.nn.functional.pad(widths, (1, 0)) + torch.nn.functional.pad(widths, (0, 1))) / 2
        moved = (weights * slopes) @ self._residuals
        error = float(self._error_of(moved[:, None])[0])
        return Estimate(float(weights @ heights), error, self.whole.numel(), self._n_independent - 1.0)

    def parts_of(self, size: int) -> tuple[str, ...]:
        """The parts of the circuit of a size."""
        return self.ranking[:size]

    def _notes(self) -> Iterator[str]:
        whole, nothing = float(self.whole.mean()), float(self.nothing.mean())
        right = "" if self.whole_right is None else f", right in {self.whole_right:.0%} of prompts"
        measured, unit = ("logit difference", " logits") if self.has_answers else ("metric", "")
        without = f"without any of its {self.n_parts} {self.parts}"
        if self.level == "nodes" and self.ablation == "patch" and self.empty is not None:
            kept = f"{float(self.empty.mean()):+.3f} (keeps {self.kept_by_none:.1%}) {without}"
            without = f"on the corrupted prompts; {kept}"
        yield f"{measured}: {whole:+.3f}{unit} whole model{right}; {nothing:+.3f} {without}"
        for at, size in enumerate(self.sizes.tolist()):
            line = f"{self.counted(size)} ({float(self.shares[at]):.1%}): keeps {float(self.faithfulness[at]):.1%}"
            line += f" ± {float(self.errors[at]):.1%}, {float(self.metrics[at]):+.3f}{unit}"
            if self.right is not None:
                line += f", right in {float(self.right[at]):.0%}"
            if self.control is not None:
                line += f"; random {self.parts} keep {float(self.control[at]):.1%}"
            yield line
        if len(self.sizes) > 1 and int(self.sizes[-1]) == self.n_parts:
            areas = f"CPR {self.cpr.value:.3f} ± {self.cpr.error:.3f}, CMD {self.cmd.value:.3f} ± {self.cmd.error:.3f}"
            yield areas + ("" if self.is_of_benchmark else f", over these shares of {self.parts}")
