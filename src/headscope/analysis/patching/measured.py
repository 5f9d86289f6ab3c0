"""Measurements of a sweep of patches, put together from batches of prompts: means and single prompts, by metric."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.over_prompts import OverPrompts
from headscope.analysis.prompts.named_metrics import SeveralMetrics
from headscope.analysis.prompts.two_runs import Scorer, TaskRuns

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ByMetric", "Measured", "Numbers", "by_metric"]

MOST_BYTES = 2**28  # of the table of single prompts, in float32

R = TypeVar("R", bound=OverPrompts)


@dataclass(frozen=True)
class Numbers:
    """Measurements of a sweep by one metric.

    Attributes:
        name: The metric's name, where several were named; else empty.
        values: What each patch changes, mean over prompts, in the scale that was asked for.
        per_prompt: The same of each prompt; `None` where the metric has none, or they are too many to keep.
        clean: The metric of the clean run.
        corrupted: That of the corrupted run.
    """

    name: str
    values: Float[Tensor, " cell"]
    per_prompt: Float[Tensor, "prompt cell"] | None
    clean: Float[Tensor, ""]
    corrupted: Float[Tensor, ""]


class Measured:
    """Changes of a metric (or of several) by patches, collected from batches of prompts.

    Args:
        runs: The task's two runs.
        scorer: The metric.
        n_cells: Number of patches.
    """

    def __init__(self, runs: TaskRuns, scorer: Scorer, n_cells: int) -> None:
        self.runs, self.scorer, metric = runs, scorer, scorer.metric
        self.names = tuple(metric.metrics) if isinstance(metric, SeveralMetrics) else ()
        size = 4 * n_cells * len(runs.task) * max(1, len(self.names))
        self.keeps_rows = scorer.is_of_prompts and size <= MOST_BYTES
        self._rows: list[Tensor] = []
        self._ends: list[Tensor] = []
        self._changes: list[Tensor] = []

    def add(
        self,
        rows: Int[Tensor, " row"],
        base: Float[Tensor, "..."],
        other: Float[Tensor, "..."],
        changes: Float[Tensor, "..."],
    ) -> None:
        """Take in a batch.

        Args:
            rows: Which prompts.
            base: The metric of the run that is patched: `[row]`, `[row, metric]`, or one number for all prompts.
            other: That of the other run.
            changes: What each patch changes of it: `[cell, row]`, `[cell, row, metric]` or `[cell]`.
        """
        if self.scorer.is_of_prompts and not self.keeps_rows:
            changes = changes.sum(1, keepdim=True)
        self._rows.append(rows.cpu())
        self._ends.append(torch.stack([base, other]))
        self._changes.append(changes)

    def numbers(self, beside: "Measured | None" = None) -> Iterator[Numbers]:
        """Yield each metric's measurements; a control's in the scale of the sweep that it stands beside.

        Of several metrics, one that is the same in both runs has no shares: they are NaN, and a warning says so.
        """
        for at, name in enumerate(self.names or ("",)):
            ends, changes = self._of(at)
            base, other = (beside._of(at)[0] if beside else ends).reshape(2, -1).mean(1)
            if len(self.names) > 1 and self.runs.scale == "share" and float(base) == float(other):
                scaled = torch.full_like(changes, torch.nan)
                if beside is None:
                    warnings.warn(_no_shares(name, float(base)), stacklevel=3)
            else:
                scaled = self.runs.scaled(changes, base, other)
            clean, corrupted = self.runs.clean_and_corrupted(*ends.reshape(2, -1).mean(1))
            if not self.scorer.is_of_prompts:
                yield Numbers(name, scaled, None, clean, corrupted)
            else:
                values = scaled.mean(1) if self.keeps_rows else scaled.sum(1) / len(self.runs.task)
                yield Numbers(name, values, scaled.T if self.keeps_rows else None, clean, corrupted)

    def _of(self, at: int) -> tuple[Float[Tensor, "2 *prompt"], Float[Tensor, "cell ..."]]:
        """One metric of both runs, and what patches change of it, prompts in order."""
        if not self.scorer.is_of_prompts:
            return self._ends[0], self._changes[0]
        order = torch.cat(self._rows).argsort()
        ends, changes = (
            torch.cat([each[..., at] if self.names else each for each in parts], dim=1)
            for parts in (self._ends, self._changes)
        )
        return ends[:, order.to(ends.device)], changes[:, order.to(changes.device)] if self.keeps_rows else changes


def _no_shares(name: str, value: float) -> str:
    return (
        f"metric {name!r} is {value:.4f} in the clean and the corrupted run, so its shares are NaN. Take "
        "scale='metric', or leave it out."
    )


class ByMetric(dict[str, R], Generic[R]):
    """A result for each of several metrics of the same patched runs, by the metric's name."""

    def to_frame(self) -> "pd.DataFrame":
        """The tables of all, one below the other, with a column `metric`."""
        import pandas as pd

        frames = [result.to_frame().assign(metric=name) for name, result in self.items()]
        frame = pd.concat(frames, ignore_index=True)
        return frame[["metric", *(column for column in frame.columns if column != "metric")]]

    def __repr__(self) -> str:
        return "\n\n".join(f"{name}\n{result}" for name, result in self.items())


def by_metric(made: dict[str, R]) -> "R | ByMetric[R]":
    """Return the one result, or those of several metrics by their names."""
    return made[""] if "" in made else ByMetric(made)
