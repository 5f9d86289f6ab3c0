"""The search for a circuit that keeps a task's metric by itself, judged by what it keeps.

From no part up. Integrated gradients of the gates (`NodeRuns.scores`) split what the circuit lacks over the parts
outside it; the parts that bring it closest to the whole model join, the circuit is run, and what it lacks then is split
anew. So what feeds the parts found comes up as soon as these are at work, and parts that work against the answer join
where the circuit does better than the model. Then each part is taken out by itself, and those that do not matter leave.

A gradient sees nothing of attention that is all or nothing. Where the search ends short of the whole model, and the
parts are few enough to be taken out one by one, they are: from the whole model down, those that matter least first.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.analysis.circuits.node_runs import NodeRuns
from headscope.analysis.core.progress import progress_bar

__all__ = ["FEW", "FaithfulParts", "effects_alone", "faithful_parts"]

FEW = 64
"""Up to so many parts, each is measured by itself."""
_ROUNDS = 12
_FIRST_STEPS, _STEPS = 5, 3
_AT_LEAST = 3  # parts that may join in a round


class FaithfulParts(NamedTuple):
    """A circuit that keeps the metric, and what each of its parts does in it.

    Attributes:
        parts: The labels, the strongest first.
        effects: What the metric loses when a part alone leaves the circuit.
    """

    parts: tuple[str, ...]
    effects: Float[Tensor, " part"]


def faithful_parts(runs: NodeRuns, min_effect: float, *, progress: bool = False) -> FaithfulParts:
    """Find a small circuit with the whole model's metric, of parts that each matter.

    Cost: for each round of growth three runs of the prompts with gradients (the first: five), of which there are some
    five; and for each part that joined a run of the layers from its own on.

    Args:
        runs: Runs of the task, whose metric has a value for each prompt.
        min_effect: The least effect of a part, as a share of the whole model's metric less that of nothing.
        progress: Show a progress bar.
    """
    search = _Search(runs, min_effect)
    with progress_bar(_ROUNDS, "faithful parts", shown=progress) as bar:
        kept = search.grown(bar.update)
        if not search.is_close(kept) and len(runs.parts) <= FEW:
            kept = search.thinned(torch.ones(len(runs.parts), dtype=torch.bool, device="cpu"))
        kept = search.thinned(kept)
        bar.update(_ROUNDS - bar.done)
    effects = effects_alone(runs, kept)
    order = effects.abs().argsort(descending=True, stable=True)
    inside = kept.nonzero()[:, 0][order].tolist()
    return FaithfulParts(tuple(runs.parts[at] for at in inside), effects[order])


def effects_alone(runs: NodeRuns, kept: Bool[Tensor, " part"]) -> Float[Tensor, " inside"]:
    """Return what the metric loses when each part of a circuit, and it alone, leaves it."""
    inside = kept.nonzero()[:, 0]
    without = kept.repeat(len(inside), 1)
    without[torch.arange(len(inside), device="cpu"), inside] = False
    both = runs.values(torch.cat([kept[None], without]), near=kept).mean(1)
    return (both[0] - both[1:]).cpu()


class _Search:
    """Circuits under way.

    Attributes:
        least: The least effect of a part, in the metric's unit.
    """

    def __init__(self, runs: NodeRuns, min_effect: float) -> None:
        self.runs = runs
        self.least = min_effect * abs(float(runs.whole.mean() - runs.nothing.mean()))

    def lacks(self, kept: Bool[Tensor, " part"]) -> float:
        """Return the whole model's metric less the circuit's."""
        return float(self.runs.whole.mean() - self.runs.values(kept[None])[0].mean())

    def is_close(self, kept: Bool[Tensor, " part"]) -> bool:
        """Tell if what a circuit lacks is no more than a few parts that matter would bring."""
        return abs(self.lacks(kept)) <= 3 * self.least

    def grown(self, advance: Callable[[], object]) -> Bool[Tensor, " part"]:
        """Return a circuit grown from nothing until no part outside brings it closer by enough."""
        kept = torch.zeros(len(self.runs.parts), dtype=torch.bool, device="cpu")
        lacks = self.lacks(kept)
        for _ in range(_ROUNDS):
            if abs(lacks) <= self.least:
                break
            steps = _STEPS if bool(kept.any()) else _FIRST_STEPS
            scores = self.runs.scores(kept, steps=steps).mean(1) * (1 if lacks > 0 else -1)
            joining = self._joining(scores, abs(lacks))
            for some in (joining, joining[:1]):
                larger = kept.clone()
                larger[some] = True
                still = self.lacks(larger)
                if abs(still) < abs(lacks) - self.least / 3:
                    break
            else:
                break
            kept, lacks = larger, still
            advance()
        return kept

    def _joining(self, scores: Float[Tensor, " part"], lacks: float) -> list[int]:
        """The parts with the highest scores, until nothing is lacking; at most half of those that matter."""
        candidates = [at for at in scores.argsort(descending=True).tolist() if float(scores[at]) >= self.least]
        joining: list[int] = []
        for at in candidates[: max(_AT_LEAST, len(candidates) // 2)]:
            if lacks <= self.least / 2:
                break
            joining.append(at)
            lacks -= float(scores[at])
        return joining

    def thinned(self, kept: Bool[Tensor, " part"]) -> Bool[Tensor, " part"]:
        """Return a circuit without the parts that matter least, as long as it stays as close to the whole model."""
        while bool(kept.any()):
            inside, effects = kept.nonzero()[:, 0], effects_alone(self.runs, kept)
            weak = inside[effects.abs() < self.least]
            weak = weak[effects.abs()[effects.abs() < self.least].argsort(stable=True)]
            most = max(abs(self.lacks(kept)), self.least) + self.least / 3
            while len(weak):
                smaller = kept.clone()
                smaller[weak] = False
                if abs(self.lacks(smaller)) <= most:
                    break
                weak = weak[: len(weak) // 2]
            if not len(weak):
                break
            kept = smaller
        return kept
