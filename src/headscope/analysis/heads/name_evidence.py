"""Evidence for head types on a task of two names: direct effects from the names, attention, effects of patching.

A head's direct effect on the logit difference (right name, `IO`, less wrong name, `S`) is taken apart by the places it
comes from: those of `IO`, and those of `S`, each with the position after it, where previous-token heads leave the same
name. So who raises a name and who lowers it is told from numbers of one unit, logits:

| from   | above zero      | below zero      |
|--------|-----------------|-----------------|
| `IO`   | raises `IO`     | lowers `IO`     |
| `S`    | lowers `S`      | raises `S`      |

Prompts that name `IO` first (ABBA) and those that name `S` first (BABA) are measured apart, and a score is that of the
order in which it is lowest: a head that copies the first name, whoever it is, helps in one and harms in the other.
The control is the same number for the answers of other prompts.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.core.batches import iterate_batches
from headscope.analysis.core.stats import estimate, estimates
from headscope.analysis.heads.evidence import Measured
from headscope.analysis.patching.base_run import obstacle
from headscope.analysis.patching.engine import Patch, measure_patches
from headscope.analysis.patching.path import path_patch_sweep
from headscope.analysis.prompts.attribution import attribute
from headscope.analysis.prompts.attribution_result import Attribution
from headscope.analysis.prompts.metrics import AnswerMetric
from headscope.analysis.prompts.task import Task
from headscope.analysis.prompts.two_runs import Scorer, TaskRuns
from headscope.analysis.recording.record import record, record_patterns
from headscope.errors import InvalidInputError
from headscope.model.hooks import HookPoint
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget

__all__ = [
    "ORDERS",
    "TASK_KINDS",
    "TaskEvidence",
    "attention_between",
    "changes_when_patched",
    "name_places",
    "orders_of",
    "task_evidence",
]

TASK_KINDS = (
    "name_mover",
    "negative_name_mover",
    "name_copier",
    "subject_suppressor",
    "s_inhibition",
    "backup_name_mover",
)
ORDERS = ("ABBA", "BABA")
_ATTENTION = (("end", "IO"), ("end", "S1"), ("end", "S2"), ("S2", "S1"), ("S2", "S1+1"))
_MOST_RECEIVERS = 4


@dataclass(frozen=True)
class TaskEvidence:
    """The numbers of every head for `TASK_KINDS`, and what else was measured on the way.

    Attributes:
        measured: Scores, controls and errors, in logits.
        threshold: For each kind.
        evidence: Further numbers by name, `[layer, head]`.
        notes: What could not be told, and why.
    """

    measured: Measured
    threshold: float
    evidence: dict[str, Float[Tensor, "layer head"]]
    notes: list[str]


def name_places(task: Task) -> dict[str, Int[Tensor, " prompt"]]:
    """Return the positions of `IO`, `S1`, `S2` and `end` in each prompt: the task's own, or found from its answers.

    Raises:
        InvalidInputError: If an answer is not in its prompt, or the wrong one not twice; it says which prompt.
    """
    if {"IO", "S1", "S2"} <= set(task.word_idx):
        return {**{name: task.word_idx[name] for name in ("IO", "S1", "S2")}, "end": task.positions}
    found: dict[str, list[int]] = {"IO": [], "S1": [], "S2": []}
    for row in range(len(task)):
        tokens = task.clean_tokens[row, : int(task.positions[row]) + 1].tolist()
        right, wrong = (
            [at for at, token in enumerate(tokens) if token == int(answers[row, 0])]
            for answers in (task.correct, task.incorrect)
        )
        if not right or len(wrong) < 2:
            raise InvalidInputError(
                f"prompt {row} ({task.prompts[row]!r}) has its right answer {len(right)} times and its wrong one "
                f"{len(wrong)} times; heads that move names are told where the right one is named, and the wrong one "
                "twice. Detect heads without task=, or give other prompts."
            )
        for name, at in (("IO", right[0]), ("S1", wrong[0]), ("S2", wrong[-1])):
            found[name].append(at)
    places = {name: torch.tensor(at, device=task.positions.device) for name, at in found.items()}
    return {**places, "end": task.positions}


def orders_of(places: Mapping[str, Int[Tensor, " prompt"]]) -> dict[str, Int[Tensor, " some"]]:
    """The prompts of each order of the names, in which there are any."""
    first = (places["IO"] < places["S1"]).cpu()
    return {name: at.nonzero()[:, 0] for name, at in zip(ORDERS, (first, ~first), strict=True) if bool(at.any())}


def task_evidence(
    model: HookedTransformer, task: Task, *, min_effect: float, level: float, progress: bool
) -> TaskEvidence:
    """Measure every head on a task of two names.

    Raises:
        InvalidInputError: If the names cannot be found, or there are fewer than four prompts of an order.
    """
    task = task.to(model.W_E.device)
    places = name_places(task)
    orders = orders_of(places)
    few = [f"{len(rows)} of {name}" for name, rows in orders.items() if len(rows) < 4]
    if few:
        raise InvalidInputError(f"errors need at least 4 prompts of each order of the names; there are {few[0]}.")
    found = attribute(model, task, neurons=False, progress=progress)
    others = attribute(model, _other_answers(task, orders), neurons=False, progress=False)
    names = _FromNames(found, places, orders)
    control = _FromNames(others, places, orders)
    whole = estimate(found.logit_difference[:, None])
    notes: list[str] = []
    threshold = min_effect * whole.value
    if whole.value <= 0 or not whole.clear(level=level):
        shown = f"{whole.value:+.3f} ± {whole.error:.3f}"
        notes.append(f"the model does not surely do the task: logit difference {shown}.")
        threshold = math.inf
    kinds = {
        "name_mover": names.lowest("IO", 1.0, control),
        "negative_name_mover": names.lowest("IO", -1.0, control),
        "name_copier": names.copied(control),
        "subject_suppressor": names.lowest("S", 1.0, control),
    }
    looks = attention_between(model, replace(task, word_idx={**task.word_idx, **places}), _ATTENTION)
    evidence = {f"attention {query} to {key}": values for (query, key), values in looks.items()}
    evidence |= {f"direct effect ({name})": found.heads[rows].mean(0).cpu() for name, rows in orders.items()}
    for who in ("IO", "S"):
        evidence |= {f"from {who} ({name})": values.mean(0) for name, values in names.of[who].items()}
    if len(orders) == 1:
        notes.append(f"all prompts are {next(iter(orders))}: a head that copies by place looks like a name mover.")
    moving = kinds["name_mover"]
    labelled = moving.reaches(threshold, len(TASK_KINDS) * moving.scores.numel(), level)[0]
    # The strongest first.
    movers = sorted(map(tuple, labelled.nonzero().tolist()), key=lambda place: -float(moving.scores[0][place]))
    kinds["s_inhibition"] = kinds["backup_name_mover"] = Measured.nothing(*found.heads.shape[1:])
    if not movers:
        notes.append("no head is a name mover, so S-inhibition heads and backup name movers were not looked for.")
    elif task.corrupted_tokens is None:
        notes.append("the task has no corrupted prompts, so S-inhibition heads and backups were not looked for.")
    else:
        kinds["s_inhibition"], evidence["path to name movers' queries"] = _inhibition(model, task, movers, progress)
        # The name movers taken out: where the answer is predicted, they give what they gave in the corrupted prompts.
        at_end = torch.zeros_like(task.attention_mask).scatter(1, task.positions[:, None], True)
        with _replaced(model, task, movers, at_end):
            after = _FromNames(attribute(model, task, neurons=False, progress=False), places, orders)
        kinds["backup_name_mover"] = after.lowest("IO", 1.0, names)
        for layer, head in movers:
            kinds["backup_name_mover"].scores[0, layer, head] = math.nan
    measured = Measured.joined([kinds[name] for name in TASK_KINDS])
    return TaskEvidence(measured, threshold, evidence, notes)


class _FromNames:
    """Direct effects of heads that come from the names' places, for each order: `[prompt, layer, head]`."""

    def __init__(
        self, found: Attribution, places: Mapping[str, Tensor], orders: Mapping[str, Int[Tensor, " some"]]
    ) -> None:
        assert found.sources is not None
        near = {"IO": _and_after(places, "IO"), "S": _and_after(places, "S1") | _and_after(places, "S2")}
        # A place that is near both belongs to whom it names.
        length = near["S"].shape[1]
        near["S"] = near["S"] & ~(torch.arange(length, device=near["S"].device) == places["IO"][:, None])
        near["IO"] = near["IO"] & ~near["S"]
        self.of: dict[str, dict[str, Tensor]] = {}
        for name, where in near.items():
            taken = torch.einsum("plhk,pk->plh", found.sources.double(), where.double().to(found.sources.device)).cpu()
            self.of[name] = {order: taken[rows] for order, rows in orders.items()}

    def lowest(self, who: str, sign: float, control: "_FromNames") -> Measured:
        """The mean effect times a sign, in the order where it is lowest."""
        return _chosen([_beside(sign * each, sign * control.of[who][order]) for order, each in self.of[who].items()])

    def copied(self, control: "_FromNames") -> Measured:
        """Measure how surely a head raises `IO` from its place in one order and `S` from its own in the other."""
        if len(self.of["IO"]) < 2:
            return Measured.nothing(*next(iter(self.of["IO"].values())).shape[1:])
        ways = []
        for right, wrong in (ORDERS, ORDERS[::-1]):
            raises = _beside(self.of["IO"][right], control.of["IO"][right])
            harms = _beside(-self.of["S"][wrong], -control.of["S"][wrong])
            ways.append(_chosen([raises, harms]))
        return _chosen(ways, torch.argmax)


def _and_after(places: Mapping[str, Tensor], name: str) -> Tensor:
    """The place of a name and the one after it, if that is before the end, as a mask."""
    length = int(places["end"].max()) + 1
    at = torch.arange(length, device=places[name].device)
    here = places[name][:, None]
    return (at == here) | ((at == here + 1) & (at < places["end"][:, None]))


def _beside(values: Float[Tensor, "prompt layer head"], control: Float[Tensor, "prompt layer head"]) -> Measured:
    """The means of one kind, one order of the names, and the error of their difference over prompts."""
    margin = estimates((values - control).movedim(0, -1)[..., None])
    parts = (values.mean(0), control.mean(0), margin.errors, margin.freedom)
    return Measured(*(part[None].float() for part in parts))


def _chosen(ways: list[Measured], which: Callable[..., Tensor] = torch.argmin) -> Measured:
    """The lowest of several means, head by head, with its control and error; the highest with `torch.argmax`."""
    at = which(torch.stack([way.scores for way in ways]), dim=0, keepdim=True)
    return Measured(
        *(torch.stack([getattr(way, each.name) for way in ways]).gather(0, at)[0] for each in fields(Measured))
    )


def _other_answers(task: Task, orders: Mapping[str, Int[Tensor, " some"]]) -> Task:
    """The same prompts with the answers of the next prompt of their order that has others."""
    correct, incorrect = task.correct.clone(), task.incorrect.clone()
    answers = [set(row) for row in torch.cat([correct, incorrect], dim=1).tolist()]
    for rows in orders.values():
        numbers = rows.tolist()
        for at, row in enumerate(numbers):
            own, following = answers[row], numbers[at + 1 :] + numbers[:at]
            other = next((other for other in following if not own & answers[other]), following[0])
            correct[row], incorrect[row] = task.correct[other], task.incorrect[other]
    return replace(task, correct=correct, incorrect=incorrect)


def attention_between(
    model: HookedTransformer, task: Task, pairs: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], Float[Tensor, "layer head"]]:
    """Mean attention of every head from one named place to another, for those pairs whose names the task has."""
    known = {**task.word_idx, "end": task.positions}
    taken = [(query, key) for query, key in pairs if query in known and key in known]
    if not taken:
        return {}
    total = torch.zeros(model.cfg.n_layers, len(taken), model.cfg.n_heads, dtype=torch.float64)
    seen = 0
    prompts = {"tokens": task.clean_tokens, "attention_mask": task.attention_mask}
    for batch in iterate_batches(model, prompts, include_bos=True, progress=False):
        rows = torch.arange(len(batch.tokens), device=batch.tokens.device)
        here = {name: at[seen : seen + len(rows)] for name, at in known.items()}
        seen += len(rows)
        # The attention of each row from one position to another, summed over rows, pair by pair.
        total += record_patterns(
            model, batch, partial(_summed, [(rows, slice(None), here[query], here[key]) for query, key in taken])
        )
    return dict(zip(taken, (total / len(task)).float().unbind(1), strict=True))


def _summed(at: list[tuple[Any, ...]], pattern: Tensor) -> Float[Tensor, "pair head"]:
    return torch.stack([pattern[each].double().sum(0) for each in at])


def _inhibition(
    model: HookedTransformer, task: Task, movers: list[tuple[int, int]], progress: bool
) -> tuple[Measured, Float[Tensor, "layer head"]]:
    """Measure the loss of logit difference when a head is patched along its paths into the name movers' queries."""
    receivers = [f"{layer}.{head}.q" for layer, head in movers[:_MOST_RECEIVERS]]
    found = path_patch_sweep(
        model, task, receivers=receivers, direction="noising", scale="metric", positions="end", progress=progress
    )
    assert found.per_prompt is not None
    lost = -found.per_prompt.double().cpu().movedim(-1, 0)
    measured = _beside(lost, torch.zeros_like(lost))
    return measured, -measured.scores[0]


def changes_when_patched(
    model: HookedTransformer, task: Task, heads: list[tuple[int, int]]
) -> Float[Tensor, "layer head"]:
    """Measure the change of the mean logit difference when a head's output is that of the corrupted prompts.

    Runs of the layers behind each head; NaN for the other heads.
    """
    found = torch.full((model.cfg.n_layers, model.cfg.n_heads), math.nan)
    if not heads:
        return found
    runs = TaskRuns(model, task, direction="noising", scale="metric")
    names = {place: f"blocks.{place[0]}.attn.hook_z" for place in heads}
    side_by_side = len(heads) if obstacle(model) is None else 1
    changes = torch.zeros(len(heads), dtype=torch.float64)
    for rows in Scorer(model, runs.task).batches(Budget.of(model.W_E.device).batch_tokens, side_by_side):
        some = runs.task[rows]
        other = record(model, runs.other[rows], set(names.values()), attention_mask=some.attention_mask).kept
        # The first changes nothing, which gives the clean logit difference.
        patches = [Patch(name, Tensor.clone) for name in list(names.values())[:1]]
        patches += [Patch(name, partial(_put_head, other[name], head)) for (_, head), name in names.items()]
        clean, *patched = measure_patches(
            model, runs.base[rows], AnswerMetric.of(some), patches, attention_mask=some.attention_mask, progress=False
        )
        changes += (torch.tensor(patched, dtype=torch.float64) - clean) * (len(rows) / len(task))
    for place, change in zip(heads, changes.tolist(), strict=True):
        found[place] = change
    return found


def _put_head(source: Tensor, head: int, z: Float[Tensor, "row pos head d_head"]) -> None:
    z[:, :, head] = source[:, :, head]


@contextmanager
def _replaced(
    model: HookedTransformer, task: Task, heads: list[tuple[int, int]], where: Bool[Tensor, "prompt pos"]
) -> Iterator[None]:
    """Let some heads give, at some positions, what they gave in the corrupted prompts of a task.

    For analyses that go through the task's prompts in order, once.
    """
    by_name: dict[str, list[int]] = {}
    for layer, head in heads:
        by_name.setdefault(f"blocks.{layer}.attn.hook_z", []).append(head)
    assert task.corrupted_tokens is not None
    readings = dict.fromkeys(by_name, Tensor.detach)
    other = record(model, task.corrupted_tokens, readings, attention_mask=task.attention_mask).kept
    seen = dict.fromkeys(by_name, 0)

    def put(z: Float[Tensor, "row pos head d_head"], hook: HookPoint) -> Tensor:
        name = hook.name or ""
        rows = slice(seen[name], seen[name] + len(z))
        seen[name] = rows.stop
        for head in by_name[name]:
            z[:, :, head] = torch.where(where[rows, :, None], other[name][rows, :, head], z[:, :, head])
        return z

    with model.hooks(fwd_hooks=[(name, put) for name in by_name]):
        yield
