"""`stability`: how often a finding comes back on resampled prompts, other seeds of the data, and other templates.

A test over prompts says that a head's effect is not chance on these prompts. It does not say that the same heads are
found on others: prompts that share a template, a list of names or a seed share more than the task. So the finding is
repeated, and each label counted.

Repeats on resampled prompts (drawn with replacement, as many as there are; of clusters of prompts, whole ones) have
prompts in common, and are the mildest question; new seeds draw new prompts; other templates word the task in another
way. They are counted apart. A resample holds some prompts twice, which a test takes for two: its errors are too small,
by a quarter or so, and labels that come from a test are found in resamples more often than they should be. Those that
only resamples find are of that kind.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.bootstrap import proportion_interval
from headscope.analysis.core.progress import each_step
from headscope.analysis.core.result import Array, Result, RunInfo
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError
from headscope.ops.devices import wide

__all__ = ["Findings", "Stability", "stability"]

_SHOWN = 16


@runtime_checkable
class Findings(Protocol):
    """A result that says what it found."""

    def findings(self) -> tuple[str, ...]:
        """Return the labels of what was found: heads, edges, patches."""


Method = Callable[[Task], Findings | Iterable[str]]
# Takes `seed=` and `template=`, those of the two that are asked for.
TaskMaker = Callable[..., Task]


@dataclass(frozen=True, repr=False)
class Stability(Result):
    """Counts of how often each label came back.

    Attributes:
        counts: In how many repeats of each way a label was found.
        runs: How many repeats there were of each way.
        found: 1 for a label that the task itself gives, else 0.
        jaccards: For each repeat, how much its labels and those of the task itself overlap: those in both, over those
            in either; 1 where neither has any.
        pairs: The mean of the same over all pairs of repeats; NaN for a single repeat.
        labels: The labels, most often found first.
        ways: `"resamples"`, `"seeds"`, `"templates"`, as far as there were any.
        repeats: The way of each repeat.
        info: What was run on what: the name of the method stands for the model.
    """

    kind: ClassVar[str] = "stability"
    arrays: ClassVar[Mapping[str, Array]] = {
        "shares": Array("label", title="share of repeats", column="share", style=".0%", of=lambda found: found.shares),
        "low": Array("label", style=".0%", of=lambda found: found.interval()[0]),
        "high": Array("label", style=".0%", of=lambda found: found.interval()[1]),
        "found": Array("label"),
        "by_way": Array("way label", column="", style=".0%", of=lambda found: found.counts / found.runs[:, None]),
        "counts": Array("way label"),
        "runs": Array("way"),
        "jaccards": Array("repeat", title="Jaccard index", column="jaccard", style=".2f"),
    }
    coords: ClassVar[Mapping[str, str]] = {"label": "labels", "way": "ways"}
    columns: ClassVar[tuple[str, ...]] = ("shares", "low", "high", "found", "by_way")
    ranked: ClassVar[tuple[str, ...]] = ("shares",)
    counts: Int[Tensor, "way label"]
    runs: Int[Tensor, " way"]
    found: Int[Tensor, " label"]
    jaccards: Float[Tensor, " repeat"]
    pairs: float
    labels: tuple[str, ...]
    ways: tuple[str, ...]
    repeats: tuple[str, ...]

    @property
    def shares(self) -> Float[Tensor, " label"]:
        """The share of all repeats in which each label was found."""
        return wide(self.counts.sum(0)) / wide(self.runs.sum())

    def interval(self, way: str | None = None) -> tuple[Float[Tensor, " label"], Float[Tensor, " label"]]:
        """Return the ends of the 95 % interval of each label's share (Wilson), of one way or of all.

        It is about further repeats of the same ways: more resamples, seeds or templates like these.

        Raises:
            InvalidInputError: If there were no repeats of that way.
        """
        if way is None:
            return proportion_interval(self.counts.sum(0), int(self.runs.sum()))
        if way not in self.ways:
            raise InvalidInputError(f"way must be one of {', '.join(self.ways)}; got {way!r}.")
        at = self.ways.index(way)
        return proportion_interval(self.counts[at], int(self.runs[at]))

    def jaccard(self, way: str | None = None) -> float:
        """Return the mean overlap of repeats with the task itself, of one way or of all.

        Raises:
            InvalidInputError: If there were no repeats of that way.
        """
        if way is not None and way not in self.ways:
            raise InvalidInputError(f"way must be one of {', '.join(self.ways)}; got {way!r}.")
        chosen = [number for number, each in enumerate(self.repeats) if way in (None, each)]
        return float(self.jaccards[chosen].mean())

    def findings(self) -> tuple[str, ...]:
        """Return the labels that came back in more than half of the repeats."""
        return tuple(label for label, share in zip(self.labels, self.shares.tolist(), strict=True) if share > 0.5)

    def _notes(self) -> Iterator[str]:
        each = ", ".join(f"{way} {self.jaccard(way):.2f}" for way in self.ways)
        overlap = f"{self.jaccard():.2f} ({each}); of pairs: {self.pairs:.2f}"
        yield f"{len(self.repeats)} repeats, overlap with the task itself (Jaccard): {overlap}"
        width = max([8, *map(len, self.labels[:_SHOWN])])
        counted = zip(*(part.tolist() for part in (*self.interval(), self.shares, self.found)), strict=True)
        for at, (low, high, share, found) in enumerate(counted):
            if at == _SHOWN:
                yield f"... and {len(self.labels) - _SHOWN} more"
                return
            ways = ", ".join(
                f"{way} {count}/{runs}"
                for way, count, runs in zip(self.ways, self.counts[:, at].tolist(), self.runs.tolist(), strict=True)
            )
            beside = "" if found else "  (not on the task itself)"
            yield f"{self.labels[at]:<{width}} {share:>4.0%}, {low:.0%} to {high:.0%}: {ways}{beside}"
        if not self.labels:
            yield "nothing was found, in no repeat"


def stability(
    method: Method,
    task: Task | TaskMaker,
    *,
    resamples: int = 20,
    seeds: Sequence[int] = (),
    templates: Sequence[Any] = (),
    seed: int = 0,
    progress: bool = True,
) -> Stability:
    """Repeat a finding on other prompts, and count how often each of its labels comes back.

    It costs the method once, and once more for each repeat.

    Args:
        method: A function of a task, such as `lambda task: find_circuit(model, task)`, that gives a set of labels, or a
            result that has `findings()`: the edges of a circuit, the patches that stand out, the kinds of heads, the
            first ten of another ranking.
        task: The prompts; for `seeds` and `templates` a function that makes them, which is called without arguments
            for the finding itself, and by `seed=` or `template=` for a repeat.
        resamples: How many times the task's prompts (or its clusters of them) are drawn with replacement.
        seeds: Of the generated data.
        templates: Other wordings, in whatever form the function takes them.
        seed: Of the resampling.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: If seeds or templates are given with a `Task`, no repeat is asked for, or the method gives
            anything else.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.analysis import activation_patch
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> def made(seed=0):
        ...     return Task.from_ioi(IOIDataset(N=12, tokenizer=model.tokenizer, prepend_bos=True, seed=seed))
        >>> def method(task):
        ...     return activation_patch(model, task, "z", positions="end", progress=False)
        >>> stability(method, made, resamples=4, seeds=[1, 2, 3, 4], progress=False)
        Stability: method on 12 prompts, such as ...
          weight processing: none...
          8 repeats, overlap with the task itself (Jaccard): 0.74 (resamples 0.64, seeds 0.83); of pairs: 0.61
          z 2.2    100%, 68% to 100%: resamples 4/4, seeds 4/4
          z 3.2    100%, 68% to 100%: resamples 4/4, seeds 4/4
          z 4.1     38%, 14% to 69%: resamples 2/4, seeds 1/4  (not on the task itself)
          ...
    """
    if resamples < 0:
        raise InvalidInputError(f"resamples must be at least 0; got {resamples}.")
    if isinstance(task, Task):
        if seeds or templates:
            raise InvalidInputError(
                "a task has the prompts it has. For other seeds or templates give a function that makes them, such as "
                "lambda seed=0: Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, seed=seed))."
            )
        first = task
    else:
        first = task()
    kinds = {"resamples": range(resamples), "seeds": seeds, "templates": templates}
    repeats = [(way, each) for way, several in kinds.items() for each in several]
    if not repeats:
        raise InvalidInputError("no repeat is asked for: give resamples, seeds or templates.")
    generator = torch.Generator("cpu").manual_seed(seed)

    def again(way: str, each: Any) -> Task:
        if way == "resamples":
            return _resampled(first, generator)
        assert not isinstance(task, Task)
        return task(seed=each) if way == "seeds" else task(template=each)

    own = _labels(method(first))
    sets = [_labels(method(again(*repeat))) for repeat in each_step(repeats, "stability", shown=progress)]
    ways = tuple(way for way, several in kinds.items() if len(several))
    times = Counter(label for one in sets for label in one)
    labels = sorted(own | times.keys(), key=lambda label: (-times[label], label not in own, label))
    per_way = {way: [one for (each, _), one in zip(repeats, sets, strict=True) if each == way] for way in ways}
    pairs = [_jaccard(one, other) for at, one in enumerate(sets) for other in sets[:at]]
    name = getattr(method, "__name__", type(method).__name__)
    options = {"resamples": resamples, "seeds": len(seeds), "templates": len(templates)}
    return Stability(
        info=RunInfo(name, (), first.description, len(first), len(first), options),
        counts=torch.tensor([[sum(label in one for one in per_way[way]) for label in labels] for way in ways]).long(),
        runs=torch.tensor([len(per_way[way]) for way in ways]),
        found=torch.tensor([int(label in own) for label in labels], dtype=torch.long),
        jaccards=torch.tensor([_jaccard(own, one) for one in sets], dtype=torch.float64, device="cpu"),
        pairs=sum(pairs) / len(pairs) if pairs else float("nan"),
        labels=tuple(labels),
        ways=ways,
        repeats=tuple(way for way, _ in repeats),
    )


def _resampled(task: Task, generator: torch.Generator) -> Task:
    """Draw prompts with replacement; those of a cluster together, each draw a cluster of its own."""
    if task.clusters is None:
        return task[torch.randint(len(task), (len(task),), generator=generator, device="cpu")]
    numbers = task.clusters.unique()
    drawn = numbers[torch.randint(len(numbers), (len(numbers),), generator=generator, device="cpu")]
    draw, prompt = (drawn[:, None] == task.clusters).nonzero().unbind(1)
    return replace(task[prompt], clusters=draw)


def _labels(found: Findings | Iterable[str]) -> frozenset[str]:
    if isinstance(found, Findings):
        return frozenset(found.findings())
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise InvalidInputError(
            f"the method must give a set of labels, or a result that has findings(); it gave {type(found).__name__}."
        )
    return frozenset(map(str, found))


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    either = one | other
    return len(one & other) / len(either) if either else 1.0
