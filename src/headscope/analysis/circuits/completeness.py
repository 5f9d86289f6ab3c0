"""Two more questions to a circuit: is all in it that the model does the task with, and is all of it needed?

With m(X) the metric of a run in which only the parts X are at work, C the circuit and M the whole model (Wang et al.
2022, arXiv 2211.00593, section 4; there F):

- **Completeness**: for every set K of the circuit's parts, |m(C without K) - m(M without K)| is small. A circuit that
  leaves out backups does well by itself, and badly here.
- **Minimality**: for every part v there is a set K without v such that |m(C without K and v) - m(C without K)| is
  large. K may hold v's group, since parts that do the same stand in for each other.

Sets are the circuit's groups and random ones; differences are shares of m(M) - m(nothing).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.analysis.circuits.circuit_result import Circuit
from headscope.analysis.circuits.edge_runs import Ablation
from headscope.analysis.circuits.faithfulness import ranked_parts, read_circuit
from headscope.analysis.circuits.node_runs import NodeRuns
from headscope.analysis.core.components import canonical_label
from headscope.analysis.core.named_arrays import Label
from headscope.analysis.core.progress import progress_bar
from headscope.analysis.core.ranking import HeadScore
from headscope.analysis.core.result import Array, Result, RunInfo
from headscope.analysis.core.stats import standard_errors
from headscope.analysis.prompts.metrics import AnswerMetric, Metric, gap_between
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError, check_at_least
from headscope.model.transformer import HookedTransformer

__all__ = ["Completeness", "Minimality", "circuit_completeness", "circuit_minimality"]

_SHOWN = 12


@dataclass(frozen=True, repr=False)
class Completeness(Result):
    """The metric of a circuit and of the model, both without the same parts.

    Attributes:
        circuit: The circuit's metric without each set, mean over prompts.
        model: The whole model's.
        errors: Standard error of the difference of the two, over prompts or their clusters (see `Task`); NaN for a
            metric that is one number.
        sets: The parts that are left out, as `"2.0+2.1"`.
        names: The name of each set: a group, or `random 1`.
        gap: The whole model's metric less that of nothing.
        has_answers: The metric is a logit difference, in logits.
    """

    kind: ClassVar[str] = "completeness"
    arrays: ClassVar[Mapping[str, Array]] = {
        "difference": Array("set", error="errors", share="shares", title="circuit less model"),
        "shares": Array("set", column="share", style="+.1%"),
        "errors": Array("set", column="error"),
        "circuit": Array("set", style="+.3f"),
        "model": Array("set", style="+.3f"),
    }
    coords: ClassVar[Mapping[str, str]] = {"set": "names"}
    columns: ClassVar[tuple[str, ...]] = ("circuit", "model", "difference", "errors", "shares")
    ranked: ClassVar[tuple[str, ...]] = ("difference",)
    either_way: ClassVar[bool] = True
    circuit: Float[Tensor, " set"]
    model: Float[Tensor, " set"]
    errors: Float[Tensor, " set"]
    sets: tuple[str, ...]
    names: tuple[str, ...]
    gap: float
    has_answers: bool = False

    def declared(self) -> Mapping[str, Array]:
        return _in_logits(self.arrays) if self.has_answers else self.arrays

    @property
    def difference(self) -> Float[Tensor, " set"]:
        """The circuit's metric less the model's: far from zero, something is missing from the circuit."""
        return self.circuit - self.model

    @property
    def shares(self) -> Float[Tensor, " set"]:
        """The same as shares of the gap."""
        return self.difference / self.gap

    def axis_columns(self, axis: str, labels: Sequence[Label]) -> dict[str, Sequence[Any]]:
        return {"set": labels, "parts": self.sets} if axis == "set" else super().axis_columns(axis, labels)

    def _notes(self) -> Iterator[str]:
        yield _gap_note(self.gap, self.has_answers)
        for score in self.top(_SHOWN):
            at = self.names.index(score.set)
            parts = self.sets[at]
            yield (
                f"without {score.set} ({parts}): circuit {float(self.circuit[at]):+.3f}, model "
                f"{float(self.model[at]):+.3f}, difference {_with_error(score)}"
            )
        if len(self.sets) > _SHOWN:
            yield f"... and {len(self.sets) - _SHOWN} more"


@dataclass(frozen=True, repr=False)
class Minimality(Result):
    """The most that each part of a circuit changes once some others are left out.

    Attributes:
        effects: The metric that is lost with the part.
        errors: Standard error, over prompts or their clusters; NaN for a metric that is one number.
        parts: The circuit's parts.
        without: The set that was left out before; empty for none.
        gap: The whole model's metric less that of nothing.
        has_answers: The metric is a logit difference, in logits.
    """

    kind: ClassVar[str] = "minimality"
    arrays: ClassVar[Mapping[str, Array]] = {
        "effects": Array("part", column="effect", error="errors", share="shares", title="effect"),
        "shares": Array("part", column="share", style="+.1%"),
        "errors": Array("part", column="error"),
    }
    coords: ClassVar[Mapping[str, str]] = {"part": "parts"}
    columns: ClassVar[tuple[str, ...]] = ("effects", "errors", "shares")
    ranked: ClassVar[tuple[str, ...]] = ("effects",)
    either_way: ClassVar[bool] = True
    effects: Float[Tensor, " part"]
    errors: Float[Tensor, " part"]
    parts: tuple[str, ...]
    without: tuple[str, ...]
    gap: float
    has_answers: bool = False

    def declared(self) -> Mapping[str, Array]:
        return _in_logits(self.arrays) if self.has_answers else self.arrays

    @property
    def shares(self) -> Float[Tensor, " part"]:
        """The effects as shares of the gap."""
        return self.effects / self.gap

    def axis_columns(self, axis: str, labels: Sequence[Label]) -> dict[str, Sequence[Any]]:
        return {"part": labels, "without": self.without} if axis == "part" else super().axis_columns(axis, labels)

    def _notes(self) -> Iterator[str]:
        yield _gap_note(self.gap, self.has_answers)
        for score in self.top(_SHOWN, mlps=True):
            group = self.without[self.parts.index(score.part)]
            yield f"{score.part}: {_with_error(score)}" + (f", once the rest of {group} is left out" if group else "")
        if len(self.parts) > _SHOWN:
            yield f"... and {len(self.parts) - _SHOWN} more"


def _in_logits(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return arrays whose numbers, but for shares, are logits."""
    return {name: array if name == "shares" else replace(array, unit="logits") for name, array in arrays.items()}


def _gap_note(gap: float, has_answers: bool) -> str:
    measured, unit = ("logit difference", " logits") if has_answers else ("metric", "")
    return f"shares are of the whole model's {measured} less that of nothing, {gap:+.3f}{unit}"


def _with_error(score: HeadScore) -> str:
    error = "" if score.error is None or score.error != score.error else f" ± {score.error:.3f}"
    return f"{score.value:+.3f}{error} ({score.share:+.1%})"


def circuit_completeness(
    model: HookedTransformer,
    task: Task,
    circuit: Any,
    *,
    groups: Mapping[str, Sequence[object]] | None = None,
    draws: int = 10,
    ablation: Ablation = "patch",
    keep_mlps: bool = True,
    metric: Metric | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Completeness:
    """Compare a circuit with the whole model, both without the same parts of the circuit.

    Args:
        model: The model.
        task: Prompts with corrupted ones.
        circuit: A `Circuit`, or a list of heads and MLPs.
        groups: Sets of parts to be left out, by name; default: a `Circuit`'s groups.
        draws: Number of random sets, each of about half of the parts: no set twice, nor one without parts. There are
            fewer of them if the circuit does not have as many.
        ablation: See `circuit_faithfulness`.
        keep_mlps: See there.
        metric: What is measured; default: the task's metric.
        seed: Of the random sets.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: As for `circuit_faithfulness`; for no set at all.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True), "ABB->ABA, BAB->BAA")
        >>> heads, groups = ["0.2", "0.3", "2.2", "3.2"], {"early": ["0.2", "0.3"]}
        >>> checks = circuit_completeness(model, task, heads, groups=groups, progress=False)
        >>> checks.top(2)
                  circuit less model (logits), share
        ...
    """
    check_at_least(0, draws=draws)
    runs, inside, named = _of(model, task, circuit, groups, ablation, keep_mlps, metric)
    left_out = named | {f"random {at}": each for at, each in enumerate(_drawn(inside, named.values(), draws, seed), 1)}
    if not left_out:
        raise InvalidInputError("there is no set of parts to leave out: give groups, or draws above 0.")
    sets = torch.stack(list(left_out.values()))
    circuits = torch.cat([inside & ~sets, ~sets])
    with progress_bar(1, "completeness", shown=progress):
        both = runs.values(circuits, progress=progress).cpu()
    own, whole = both.split(len(sets))
    return Completeness(
        info=_info(model, task, ablation=ablation, draws=len(left_out) - len(named), seed=seed),
        circuit=own.view(len(sets), -1).mean(1),
        model=whole.view(len(sets), -1).mean(1),
        errors=_errors(own - whole, task),
        sets=tuple(_names(runs, each) for each in sets),
        names=tuple(left_out),
        gap=_gap(runs),
        has_answers=isinstance(task.measure if metric is None else metric, AnswerMetric),
    )


def circuit_minimality(
    model: HookedTransformer,
    task: Task,
    circuit: Any,
    *,
    groups: Mapping[str, Sequence[object]] | None = None,
    ablation: Ablation = "patch",
    keep_mlps: bool = True,
    metric: Metric | None = None,
    progress: bool = True,
) -> Minimality:
    """Measure the most that each part of a circuit changes, alone or once the rest of its group is left out.

    Args:
        model: The model.
        task: Prompts with corrupted ones.
        circuit: A `Circuit`, or a list of heads and MLPs.
        groups: Sets of parts that may stand in for each other, by name; default: a `Circuit`'s groups.
        ablation: See `circuit_faithfulness`.
        keep_mlps: See there.
        metric: What is measured; default: the task's metric.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: As for `circuit_faithfulness`.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True), "ABB->ABA, BAB->BAA")
        >>> circuit_minimality(model, task, ["0.2", "0.3", "2.2", "3.2"], progress=False).top(2)
                 effect (logits), share
        3.2      +10... ± 1.1...  +60.7%
        2.2      +6.6... ± 0.6...  +36.9%
    """
    runs, inside, named = _of(model, task, circuit, groups, ablation, keep_mlps, metric)
    tried: list[tuple[int, Bool[Tensor, " part"], str]] = []
    for part in inside.nonzero()[:, 0].tolist():
        others = [(torch.zeros_like(inside), "")] + [(group, name) for name, group in named.items() if group[part]]
        for group, name in others:
            before = inside & ~group
            before[part] = True
            tried.append((part, before, name))
    with_it = torch.stack([before for _, before, _ in tried])
    without = with_it.clone()
    without[torch.arange(len(tried), device="cpu"), [part for part, *_ in tried]] = False
    with progress_bar(1, "minimality", shown=progress):
        first, second = runs.values(torch.cat([with_it, without]), progress=progress).cpu().split(len(tried))
    lost = (first - second).view(len(tried), -1)
    best: dict[int, int] = {}
    for at, (part, *_) in enumerate(tried):
        if part not in best or abs(float(lost[at].mean())) > abs(float(lost[best[part]].mean())):
            best[part] = at
    chosen = list(best.values())
    return Minimality(
        info=_info(model, task, ablation=ablation),
        effects=lost[chosen].mean(1),
        errors=_errors((first - second)[chosen], task),
        parts=tuple(runs.parts[part] for part in best),
        without=tuple(tried[at][2] for at in chosen),
        gap=_gap(runs),
        has_answers=isinstance(task.measure if metric is None else metric, AnswerMetric),
    )


def _of(
    model: HookedTransformer,
    task: Task,
    circuit: Any,
    groups: Mapping[str, Sequence[object]] | None,
    ablation: Ablation,
    keep_mlps: bool,
    metric: Metric | None,
) -> tuple[NodeRuns, Bool[Tensor, " part"], dict[str, Bool[Tensor, " part"]]]:
    """Runs of the task, the circuit as a mask of their parts, and its groups of parts."""
    if groups is None:
        groups = _groups(circuit) if isinstance(circuit, Circuit) else {}
    runs = NodeRuns(model, task, ablation, keep_mlps=keep_mlps, metric=metric)
    gap_between(runs.whole.mean(), runs.nothing.mean())
    parts = ranked_parts(runs.parts, read_circuit(model, circuit, "nodes")[0], {}, absolute=True)
    if not parts:
        raise InvalidInputError("the circuit has no part; name at least one head.")
    named = {name: {canonical_label(part) for part in group} for name, group in groups.items()}
    for name, group in named.items():
        beyond = sorted(group - set(parts))
        if beyond:
            raise InvalidInputError(f"{beyond[0]} of group {name!r} is not in the circuit: {', '.join(parts)}.")
    inside = torch.tensor([part in parts for part in runs.parts], device="cpu")
    return (
        runs,
        inside,
        {name: torch.tensor([part in group for part in runs.parts], device="cpu") for name, group in named.items()},
    )


def _drawn(
    inside: Bool[Tensor, " part"], known: Iterable[Bool[Tensor, " part"]], draws: int, seed: int
) -> list[Bool[Tensor, " part"]]:
    """Random sets of some of a circuit's parts, all different from each other and from those known."""
    generator = torch.Generator("cpu").manual_seed(seed)
    seen = {tuple(each.tolist()) for each in known if bool(each.any())}
    n_left = 2 ** int(inside.sum()) - 1 - len(seen)
    drawn: list[Bool[Tensor, " part"]] = []
    while len(drawn) < min(draws, n_left):
        some = inside & (torch.rand(len(inside), generator=generator, device="cpu") < 0.5)
        if bool(some.any()) and tuple(some.tolist()) not in seen:
            seen.add(tuple(some.tolist()))
            drawn.append(some)
    return drawn


def _groups(circuit: Circuit) -> dict[str, list[object]]:
    """The groups of a circuit's heads."""
    groups: dict[str, list[object]] = {}
    for node, group in _heads(circuit):
        groups.setdefault(group, []).append(node)
    return groups


def _heads(circuit: Circuit) -> Iterator[tuple[str, str]]:
    for node, group in zip(circuit.nodes, circuit.groups, strict=True):
        if node in circuit.kept:
            yield node, group


def _names(runs: NodeRuns, kept: Bool[Tensor, " part"]) -> str:
    return "+".join(runs.parts[at] for at in kept.nonzero()[:, 0].tolist())


def _gap(runs: NodeRuns) -> float:
    return float(runs.whole.mean() - runs.nothing.mean())


def _errors(values: Float[Tensor, "thing *prompt"], task: Task) -> Float[Tensor, " thing"]:
    return standard_errors(values.T, task.clusters) if values.ndim > 1 else torch.full_like(values, torch.nan)


def _info(model: HookedTransformer, task: Task, **options: Any) -> RunInfo:
    n_positions = int(task.attention_mask.sum())
    return RunInfo(model.cfg.model_name, model.weight_processing, task.description, len(task), n_positions, options)
