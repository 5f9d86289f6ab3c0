"""Evidence for head types by patching: who tells the heads that do the task where to look, and who steps in for them.

Patching is expensive, so it goes in two steps: every head on a few prompts, then those with the largest effects there
on other prompts, by which they are tested. Since these were not chosen by the prompts that test them, they are all that
a level is shared out among. More prompts are taken until a tenth of the logit difference would be told from zero: the
rule looks at errors only, never at effects (Chow and Robbins 1965). An error that is small by chance stops it sooner,
so that effects look a little surer than they are.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.core.components import component_label
from headscope.analysis.core.stats import Estimate, threshold
from headscope.analysis.heads.evidence import Measured
from headscope.analysis.heads.names import name_places, orders_of
from headscope.analysis.patching.base_run import obstacle
from headscope.analysis.patching.engine import Patch, measure_patches
from headscope.analysis.patching.path import path_patch_sweep
from headscope.analysis.prompts.metrics import AnswerMetric
from headscope.analysis.prompts.task import Task
from headscope.analysis.prompts.two_runs import Scorer, TaskRuns
from headscope.analysis.recording.record import record
from headscope.model.hooks import HookPoint
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget

__all__ = [
    "CANDIDATES",
    "MOST",
    "SCREENED",
    "TOLD",
    "changes_when_patched",
    "in_turn",
    "inhibition",
    "replaced",
    "some_prompts",
]

TOLD = 0.1  # of the logit difference: the effect that prompts should suffice to tell from zero
_MOST_RECEIVERS = 4
SCREENED = 4  # prompts of each order
CANDIDATES = 12  # heads
MOST = 96  # prompts
_STEP = 32


def in_turn(orders: Mapping[str, Int[Tensor, " some"]]) -> Int[Tensor, " prompt"]:
    """Return the prompts of all orders of the names, one of each order in turn."""
    place = torch.cat([torch.arange(len(rows), device="cpu") for rows in orders.values()])
    return torch.cat(list(orders.values()))[place.argsort(stable=True)]


def some_prompts(orders: Mapping[str, Int[Tensor, " some"]], most: int = MOST) -> Int[Tensor, " prompt"]:
    """Return as many prompts as expensive measures take, alike of each order, in the order of the task."""
    return in_turn(orders)[:most].sort().values


def inhibition(
    model: HookedTransformer,
    task: Task,
    movers: list[tuple[int, int]],
    orders: Mapping[str, Int[Tensor, " some"]],
    *,
    whole: Estimate,
    among: int,
    level: float,
    progress: bool,
) -> tuple[Measured, Float[Tensor, "layer head"]]:
    """Measure the loss of logit difference when a head is patched along its paths into the queries of others.

    Args:
        model: The model.
        task: The prompts, with corrupted ones.
        movers: The heads whose queries choose a name, the strongest first.
        orders: Prompts of each order of the names.
        whole: The logit difference.
        among: How many kinds the level is shared out among.
        level: The family-wise level.
        progress: Show progress bars.

    Returns:
        The losses of the candidates, NaN for other heads; and the changes of all heads.
    """
    receivers = [f"{layer}.{head}.q" for layer, head in movers[:_MOST_RECEIVERS]]

    def lost(rows: Tensor, senders: str | Iterable[object]) -> Float[Tensor, "prompt *sender"]:
        """The loss of each prompt."""
        found = path_patch_sweep(
            model,
            task[rows],
            receivers=receivers,
            senders=senders,
            direction="noising",
            scale="metric",
            positions="end",
            progress=progress,
        )
        assert found.per_prompt is not None
        return -found.per_prompt.cpu().double().movedim(-1, 0)

    rows = in_turn(orders)
    n_screened = SCREENED * len(orders)
    if len(rows) < 3 * n_screened:
        # Too few to be divided: every head is measured on all of them.
        every = lost(rows, "heads")
        return Measured.beside(every, torch.zeros_like(every), task[rows].clusters), -every.mean(0).float()
    screened = lost(rows[:n_screened], "heads").mean(0)
    likeliest = screened.flatten().nan_to_num(-math.inf).topk(min(CANDIDATES, screened.numel()))
    heads = [divmod(int(place), model.cfg.n_heads) for place in likeliest.indices[likeliest.values > 0]]
    measured, changes = Measured.nothing(*screened.shape), -screened.float()
    if heads:
        some = rows[n_screened:]
        least, among = TOLD * abs(whole.value), among * len(heads)
        tested = _tested(lost, some, task[some].clusters, heads, least, among, level)
        for at, (layer, head) in enumerate(heads):
            for name in ("scores", "controls", "errors", "freedom"):
                getattr(measured, name)[layer, head] = getattr(tested, name)[at, 0]
            changes[layer, head] = -tested.scores[at, 0]
    return measured, changes


def _tested(
    lost: Callable[[Tensor, str | Iterable[object]], Tensor],
    rows: Int[Tensor, " prompt"],
    clusters: Int[Tensor, " prompt"] | None,
    heads: list[tuple[int, int]],
    least: float,
    among: int,
    level: float,
) -> Measured:
    """Measure some senders on ever more prompts, until a loss that is not less could be told from zero."""
    labels = [component_label(*head) for head in heads]
    losses = torch.empty(0, len(heads), 1, dtype=torch.float64, device="cpu")
    while True:
        some = rows[len(losses) : len(losses) + _STEP]
        losses = torch.cat([losses, lost(some, labels)[..., None]])
        known = None if clusters is None else clusters[: len(losses)]
        tested = Measured.beside(losses, torch.zeros_like(losses), known)
        told = threshold(among, tested.freedom, level) * tested.errors
        if float(told.max()) <= least or len(losses) >= min(len(rows), MOST):
            return tested


def changes_when_patched(
    model: HookedTransformer, task: Task, heads: list[tuple[int, int]]
) -> Float[Tensor, "layer head"]:
    """Measure the change of the mean logit difference when a head's output is that of the corrupted prompts.

    Runs of the layers behind each head, on some fifty prompts at most; NaN for the other heads.
    """
    task = task[some_prompts(orders_of(name_places(task)), MOST // 2)]
    found = torch.full((model.cfg.n_layers, model.cfg.n_heads), math.nan, device="cpu")
    if not heads:
        return found
    runs = TaskRuns(model, task, direction="noising", scale="metric")
    names = {place: f"blocks.{place[0]}.attn.hook_z" for place in heads}
    side_by_side = len(heads) if obstacle(model) is None else 1
    changes = torch.zeros(len(heads), dtype=torch.float64, device="cpu")
    for rows in Scorer(model, runs.task).batches(Budget.of(model.W_E.device).batch_tokens, side_by_side):
        some = runs.task[rows]
        other = record(model, runs.other[rows], set(names.values()), attention_mask=some.attention_mask).kept
        # The first changes nothing, which gives the clean logit difference.
        patches = [Patch(name, Tensor.clone) for name in list(names.values())[:1]]
        patches += [Patch(name, partial(_put_head, other[name], head)) for (_, head), name in names.items()]
        clean, *patched = measure_patches(
            model, runs.base[rows], AnswerMetric.of(some), patches, attention_mask=some.attention_mask, progress=False
        )
        changes += (torch.stack(patched) - clean).sum(1) / len(task)
    for place, change in zip(heads, changes.tolist(), strict=True):
        found[place] = change
    return found


def _put_head(source: Tensor, head: int, z: Float[Tensor, "row pos head d_head"]) -> None:
    z[:, :, head] = source[:, :, head]


@contextmanager
def replaced(
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
