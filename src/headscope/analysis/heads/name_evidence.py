"""Evidence for head types on a task of two names: direct effects by the places they come from, and attention.

A head's direct effect on the logit difference (right name, `IO`, less wrong name, `S`) is taken apart by the places it
comes from: those of `IO`, and those of `S`, each with the position after it, where previous-token heads leave the same
name, and the end, where earlier heads have written for a name. So who does what to which name is told from numbers of
one unit, logits, which are parts of the direct effect:

| from   | above zero                         | below zero                         |
|--------|------------------------------------|------------------------------------|
| `IO`   | raises `IO`                        | lowers `IO`                        |
| `S`    | lowers `S`                         | raises `S`                         |
| `end`  | adds to what is written there      | takes from what is written there   |

A part is not the whole: a head that raises `IO` from its place may raise `S` from its own as much, and choose neither.
So a head that is said to do the task has a direct effect that does it, whole, and the part by which it does it.

Prompts that name `IO` first (ABBA) and those that name `S` first (BABA) are measured apart, and what must hold in
either has the number of the order in which it is lowest: a head that copies the first name, whoever it is, helps in one
and harms in the other. The control is the same number for the answers of other prompts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.stats import estimates_over_prompts
from headscope.analysis.heads.evidence import Condition, HeadKind, Measured
from headscope.analysis.heads.inhibition import inhibition, replaced, some_prompts
from headscope.analysis.heads.names import Looks, name_places, orders_of
from headscope.analysis.prompts.attribution import attribute_each
from headscope.analysis.prompts.attribution_result import Attribution
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import wide

__all__ = ["DOES_THE_TASK", "NAME_KINDS", "TASK_KINDS", "TaskEvidence", "task_evidence"]

# Told by attention, and by logits.
NAME_KINDS = ("duplicate_name",)
TASK_KINDS = (
    "name_mover",
    "negative_name_mover",
    "name_copier",
    "subject_suppressor",
    "amplifier",
    "dampener",
    "s_inhibition",
    "backup_name_mover",
)
DOES_THE_TASK = ("name_mover", "subject_suppressor")
_MOVES = (*DOES_THE_TASK, "name_copier")  # whose queries choose a name
_ATTENTION = (("end", "IO"), ("end", "S1"), ("end", "S2"), ("end", "end"), ("S2", "S1"), ("S2", "IO"), ("S2", "S1+1"))
_FEWEST = 4  # prompts of an order


@dataclass(frozen=True)
class TaskEvidence:
    """Kinds and numbers of every head on a task of two names.

    Attributes:
        kinds: `NAME_KINDS` and `TASK_KINDS`, with the numbers they are told by.
        evidence: Further numbers by name, `[layer, head]`.
        notes: What could not be told, and why.
    """

    kinds: list[HeadKind]
    evidence: dict[str, Float[Tensor, "layer head"]]
    notes: list[str]


def task_evidence(
    model: HookedTransformer,
    task: Task,
    *,
    min_attention: float,
    min_effect: float,
    level: float,
    n_kinds: int,
    progress: bool,
) -> TaskEvidence:
    """Measure every head on a task of two names.

    Args:
        model: The model.
        task: The prompts.
        min_attention: The share of attention that makes a head one of `NAME_KINDS`.
        min_effect: The share of the logit difference that makes a head one of `TASK_KINDS`.
        level: The family-wise level, for all kinds.
        n_kinds: Number of all kinds.
        progress: Show progress bars.

    Raises:
        InvalidInputError: If the names cannot be found, or there are fewer than four prompts of an order.
    """
    task = task.to(model.W_E.device)
    places = name_places(task)
    orders = orders_of(places)
    few = [f"{len(rows)} of {name}" for name, rows in orders.items() if len(rows) < _FEWEST]
    if few:
        raise InvalidInputError(f"errors need at least 4 prompts of each order of the names; there are {few[0]}.")
    looks = Looks(model, {**places, "S1+1": places["S1"] + 1}, _ATTENTION)
    with looks.reading():
        found, others = attribute_each(model, [task, _other_answers(task, orders)], progress=progress)
    whole = estimates_over_prompts(found.logit_difference[:, None], task.clusters)[0]
    notes, least = [], min_effect * whole.value
    if whole.value <= 0 or not whole.clear(level=level):
        shown = f"{whole.value:+.3f} ± {whole.error:.3f}"
        notes.append(f"the model does not clearly do the task: logit difference {shown}.")
        least = math.inf
    if len(orders) == 1:
        notes.append(f"all prompts are {next(iter(orders))}: a head that copies by place looks like a name mover.")
    effects = _Effects(found, others, places, orders, least)
    attention = looks.all()
    kinds = [_duplicates(attention, orders, min_attention, task.clusters), *_direct_kinds(effects)]
    evidence = {f"attention {query} to {key}": values.mean(0) for (query, key), values in attention.items()}
    for part in effects.own:
        called = "direct effect" if part == "whole" else f"from {part}"
        evidence |= {f"{called} ({name})": effects.own[part][rows].mean(0).float() for name, rows in orders.items()}
    workers, movers = (_labelled(kinds, names, n_kinds, level) for names in (DOES_THE_TASK, _MOVES))
    path = after = Measured.nothing(*found.heads.shape[1:])
    raised = [Condition(after, least)]
    if not movers:
        notes.append("no head clearly moves a name, so S-inhibition heads and backup name movers were not looked for.")
    elif task.corrupted_tokens is None:
        notes.append("the task has no corrupted prompts, so S-inhibition heads and backups were not looked for.")
    else:
        path, evidence["path to name movers' queries"] = inhibition(
            model, task, movers, orders, whole=whole, among=n_kinds, level=level, progress=progress
        )
        if workers:
            raised = _raised_without(model, task, workers, effects)
    kinds.append(HeadKind("s_inhibition", path, (Condition(path, least),)))
    kinds.append(HeadKind.by_weakest("backup_name_mover", raised))
    return TaskEvidence(kinds, evidence, notes)


class _Effects:
    """Direct effects of heads on the logit difference, whole and by the places they come from.

    Args:
        found: Of the prompts' own answers.
        others: Of the answers of other prompts.
        places: Of the names.
        orders: Prompts of each order of the names.
        least: What an effect of a kind must reach.

    Attributes:
        own: `[prompt, layer, head]` of each part.
        other: The same for other answers.
    """

    def __init__(
        self,
        found: Attribution,
        others: Attribution,
        places: Mapping[str, Int[Tensor, " prompt"]],
        orders: Mapping[str, Int[Tensor, " some"]],
        least: float,
    ) -> None:
        self.orders, self.least, self.places, self.clusters = orders, least, places, found.clusters
        self.own, self.other = (parts_of(each, places) for each in (found, others))

    def condition(self, part: str, sign: int, rows: Any = slice(None)) -> Condition:
        """That a part, times a sign, is high enough over some prompts."""
        own, other = (sign * each[part][rows] for each in (self.own, self.other))
        return Condition(Measured.beside(own, other, _of_rows(self.clusters, rows)), self.least)

    def in_either(self, part: str, sign: int) -> list[Condition]:
        """That it is so in each order of the names."""
        return [self.condition(part, sign, rows) for rows in self.orders.values()]


def parts_of(
    found: Attribution, places: Mapping[str, Int[Tensor, " prompt"]]
) -> dict[str, Float[Tensor, "prompt layer head"]]:
    """Return the direct effect of each head, and the parts of it that come from the names' places and the end."""
    assert found.sources is not None
    near = {"IO": _and_after(places, "IO"), "S": _and_after(places, "S1") | _and_after(places, "S2")}
    at = torch.arange(near["S"].shape[1], device=near["S"].device)
    # A place that is near both belongs to whom it names.
    near["S"] = near["S"] & ~(at == places["IO"][:, None])
    near["IO"] = near["IO"] & ~near["S"]
    near["end"] = (at == places["end"][:, None]) & ~near["S"] & ~near["IO"]
    parts = {"whole": found.heads.cpu().double()}
    for name, where in near.items():
        sources = wide(found.sources)
        parts[name] = torch.einsum("plhk,pk->plh", sources, where.to(sources)).cpu()
    return parts


def _direct_kinds(effects: _Effects) -> list[HeadKind]:
    """The kinds that are told by direct effects."""
    helps, harms = effects.in_either("whole", 1), effects.in_either("whole", -1)
    lowest = torch.stack([each.measured.scores for each in helps]).amin(0)
    conditions = {
        "name_mover": [*effects.in_either("IO", 1), *helps],
        "negative_name_mover": [*effects.in_either("IO", -1), effects.condition("whole", -1)],
        "name_copier": [effects.condition("IO", 1), effects.condition("S", -1)],
        "subject_suppressor": [*effects.in_either("S", 1), *helps],
        "amplifier": [*effects.in_either("end", 1), *helps],
        "dampener": [*effects.in_either("end", -1), *harms],
    }
    # One that raises both names and helps in either order chooses.
    unless = {"name_copier": lowest >= effects.least}
    return [HeadKind.by_weakest(name, those, unless.get(name)) for name, those in conditions.items()]


def _duplicates(
    attention: Mapping[tuple[str, str], Tensor],
    orders: Mapping[str, Int[Tensor, " some"]],
    least: float,
    clusters: Int[Tensor, " prompt"] | None,
) -> HeadKind:
    """Heads that look from a name's second mention to its first, and not to the other name, in either order."""
    first, other = wide(attention["S2", "S1"]), wide(attention["S2", "IO"])
    pairs = [Measured.beside(first[rows], other[rows], _of_rows(clusters, rows)) for rows in orders.values()]
    return HeadKind.by_weakest(NAME_KINDS[0], [Condition(each, least, of_the_rest=True) for each in pairs])


def _labelled(kinds: Sequence[HeadKind], names: Sequence[str], n_kinds: int, level: float) -> list[tuple[int, int]]:
    """The heads of some kinds, those with the highest score first."""
    scored = [
        (-float(kind.shown.scores[layer, head]), (layer, head))
        for kind in kinds
        if kind.name in names
        for layer, head in kind.labelled(n_kinds, level).nonzero().tolist()
    ]
    return [place for _, place in sorted(scored)]


def _raised_without(
    model: HookedTransformer, task: Task, workers: list[tuple[int, int]], effects: _Effects
) -> list[Condition]:
    """That a head raises the right name from its place once those that do the task are taken out, in each order.

    Where the answer is predicted, these give what they gave in the corrupted prompts. The control is the same head with
    them.
    """
    rows = some_prompts(effects.orders)
    few = task[rows]
    at_end = torch.zeros_like(few.attention_mask).scatter(1, few.positions[:, None], True)
    with replaced(model, few, workers, at_end):
        (found,) = attribute_each(model, [few], progress=False)
    after = parts_of(found, {name: at[rows] for name, at in effects.places.items()})["IO"]
    conditions = []
    for order in effects.orders.values():
        here = torch.isin(rows, order)
        measured = Measured.beside(after[here], effects.own["IO"][rows[here]], _of_rows(few.clusters, here))
        for layer, head in workers:
            measured.scores[layer, head] = math.nan
        conditions.append(Condition(measured, effects.least))
    return conditions


def _of_rows(clusters: Int[Tensor, " prompt"] | None, rows: Any) -> Int[Tensor, " some"] | None:
    return None if clusters is None else clusters.cpu()[rows]


def _and_after(places: Mapping[str, Tensor], name: str) -> Tensor:
    """The place of a name and the one after it, if that is before the end, as a mask."""
    length = int(places["end"].max()) + 1
    at = torch.arange(length, device=places[name].device)
    here = places[name][:, None]
    return (at == here) | ((at == here + 1) & (at < places["end"][:, None]))


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
