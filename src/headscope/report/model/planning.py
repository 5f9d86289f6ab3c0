"""The plan of a report: its parts, and how many tokens they take if they are to end in time."""

from dataclasses import dataclass

from torch import Tensor

from headscope.analysis.core.costs import Work
from headscope.analysis.prompts.task import Task
from headscope.model.transformer import HookedTransformer
from headscope.report.costs import (
    ablation_work,
    circuit_work,
    entropy_work,
    loss_work,
    patching_work,
    ranks_work,
    scores_work,
    suppression_scores_work,
    suppression_work,
    types_work,
)
from headscope.report.model.measuring import IOI_PROMPTS, SUPPRESSORS, rows_to_ablate
from headscope.report.plan import Part, Plan
from headscope.report.task.measuring import RECEIVERS, finds_circuit, with_words
from headscope.report.task.story import SWAPPED_WORDS, WORDS
from headscope.report.tokens import MAX_TOKENS
from headscope.report.words import count

__all__ = ["ABLATION_TOKENS", "Sizes", "fitting_sizes", "report_plan", "task_part"]

ABLATION_TOKENS = 1024
_FEWEST_TOKENS = 512  # fewer tell little, so a report takes longer instead


@dataclass(frozen=True)
class Sizes:
    """Largest numbers of tokens to analyze, and to ablate every head on."""

    tokens: int = MAX_TOKENS
    ablated: int = ABLATION_TOKENS


def report_plan(
    model: HookedTransformer, tokens: Tensor, ablation_tokens: int, rates: Work, *, alone: bool = True
) -> Plan:
    """Return the plan of what `measure` does; `alone` for a page about this model only."""
    cfg = model.cfg
    n_tokens, heads = tokens.numel(), len(cfg.layers_with("attn")) * cfg.n_heads
    parts = [Part("entropy", f"{count(n_tokens, 'token')}", entropy_work(model, n_tokens))]
    n_ablated = rows_to_ablate(tokens, ablation_tokens).numel()
    on_ablated = count(n_ablated, "token")
    if ablation_tokens:
        parts.append(
            Part("ablation", f"{on_ablated}, {count(heads, 'head')}, 2 values", ablation_work(model, n_ablated))
        )
    parts.append(Part("loss", f"{count(n_tokens, 'token')}", loss_work(model, n_tokens)))
    parts.append(Part("types", "repeated random tokens", scores_work(model)))
    if ablation_tokens and alone:
        looked_at = 2 * SUPPRESSORS
        stages = suppression_scores_work(model, IOI_PROMPTS) | suppression_work(model, n_ablated, looked_at)
        parts.append(Part("suppression", f"{on_ablated}, {looked_at} heads", stages | ranks_work(model, looked_at)))
    return Plan(tuple(parts), rates)


def task_part(model: HookedTransformer, task: Task) -> Part:
    """Return what a task of two names takes, if the model does it."""
    stages = types_work(model, task)
    if task.corrupted_tokens is not None:
        task = with_words(task)
        ends = task.positions.float()
        anew = {word: float((ends - task.word_idx[word].float() + 1).mean()) for word in WORDS if word != "end"}
        anew["end"] = 1.0
        stream = [(layer, anew[word]) for layer in range(model.cfg.n_layers) for word in WORDS]
        heads = [(layer, anew[word]) for layer in model.cfg.layers_with("attn") for word in SWAPPED_WORDS]
        stages |= patching_work(model, task, stream, sites="resid_pre")
        stages |= patching_work(model, task, heads * model.cfg.n_heads, sites="z")
        if finds_circuit(model):
            stages |= circuit_work(model, task, RECEIVERS)
    return Part("task", count(len(task), "prompt"), stages)


def fitting_sizes(
    model: HookedTransformer, tokens: Tensor, rates: Work, *, seconds: float, asked: Sizes, fixed: tuple[bool, bool]
) -> Sizes:
    """Halve the numbers of tokens until a report ends in time, or there are few; larger parts first.

    Args:
        model: The model.
        tokens: The most there are, `[batch, pos]`.
        rates: Seconds for each unit of work.
        seconds: The time for all but the task.
        asked: The numbers to begin with.
        fixed: For each of the two, whether it is to stay.
    """
    sizes = asked
    while True:
        rows = rows_to_ablate(tokens, sizes.tokens)
        plan = report_plan(model, rows, sizes.ablated, rates)
        if plan.seconds <= seconds:
            return sizes
        each = {part.name: plan.seconds_of(part) for part in plan.parts}
        smaller = [
            (each.get(name, 0.0), changed)
            for name, keep, now, changed in (
                ("entropy", fixed[0], sizes.tokens, Sizes(sizes.tokens // 2, min(sizes.ablated, sizes.tokens // 2))),
                ("ablation", fixed[1], sizes.ablated, Sizes(sizes.tokens, sizes.ablated // 2)),
            )
            if not keep and now >= 2 * _FEWEST_TOKENS // (1 if name == "entropy" else 2)
        ]
        if not smaller:
            return sizes
        sizes = max(smaller, key=lambda each: each[0])[1]
