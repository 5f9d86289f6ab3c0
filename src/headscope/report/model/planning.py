"""The plan of a report: its sections and what they take, and how many tokens if it is to end in time."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from headscope.analysis.core.costs import Work, head_operations
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError, unknown_name
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget
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
from headscope.report.model.measuring import IOI_PROMPTS, SUPPRESSION_VARIANT, SUPPRESSORS, rows_to_ablate
from headscope.report.model.model_page import SECTIONS
from headscope.report.plan import Part, Plan
from headscope.report.task.measuring import RECEIVERS, few_prompts, finds_circuit, with_words
from headscope.report.task.story import SWAPPED_WORDS, WORDS
from headscope.report.tokens import MAX_TOKENS
from headscope.report.words import count

__all__ = [
    "ABLATION_TOKENS",
    "Sizes",
    "batch_tokens",
    "chosen_sections",
    "fitting_sizes",
    "parts_of",
    "report_plan",
    "task_part",
]

ABLATION_TOKENS = 1024
_FEWEST_TOKENS = 512  # fewer tell little, so a report takes longer instead
_AT_ONCE = 1e12  # operations that a stop may lose: some ten seconds of a laptop

# Parts that take little and make a section tell more, which it can do without.
_ALONG = {"entropy": ("loss",), "attention": ("types",)}
# Parts in the order in which they are measured: what takes little comes first, and so is there after a stop.
_PARTS = ("loss", "types", "entropy", "attention", "ablation", "suppression", "task")


@dataclass(frozen=True)
class Sizes:
    """Largest numbers of tokens to analyze, and to ablate every head on."""

    tokens: int = MAX_TOKENS
    ablated: int = ABLATION_TOKENS


def chosen_sections(
    sections: str | Sequence[str] | None, *, without: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Return the names of the sections that are wanted, in the order of the page.

    Args:
        sections: Their names; `None` for all.
        without: Those that are left out, and what leaves them out.

    Raises:
        UnknownNameError: For a section there is none of.
        InvalidInputError: If none is named, or one that is left out.

    Example:
        >>> chosen_sections(["ablation", "entropy"])
        ('entropy', 'ablation')
    """
    without = without or {}
    names = [sections] if isinstance(sections, str) else SECTIONS if sections is None else sections
    for name in names:
        if name not in SECTIONS:
            raise unknown_name("section", name, SECTIONS, hint=f"A report has the sections {', '.join(SECTIONS)}.")
        if sections is not None and name in without:
            raise InvalidInputError(
                f"the section {name} is asked for, and {without[name]} leaves it out: give one of them."
            )
    if not names:
        raise InvalidInputError(f"no section is asked for; a report has {', '.join(SECTIONS)}.")
    return tuple(name for name in SECTIONS if name in names and name not in without)


def parts_of(sections: Collection[str], *, without: Collection[str] = ()) -> tuple[str, ...]:
    """Return the parts of the measurement that sections need, in the order in which they are measured."""
    needed = {part for name in sections for part in (*SECTIONS[name], *_ALONG.get(name, ()))}
    return tuple(part for part in _PARTS if part in needed and part not in without)


def batch_tokens(model: HookedTransformer) -> int:
    """Return the number of tokens to run together, so that a stop loses little of a large model's entropies."""
    n_components = model.cfg.n_layers * (model.cfg.n_heads + 1)
    most = Budget.of(model.W_E.device).batch_tokens
    return max(1, min(most, int(_AT_ONCE / (n_components * head_operations(model)))))


def report_plan(
    model: HookedTransformer,
    tokens: Tensor,
    ablation_tokens: int,
    rates: Work,
    *,
    parts: Collection[str],
    task: Task | None = None,
) -> Plan:
    """Return the plan of what `measure` does for some parts."""
    heads = len(model.cfg.layers_with("attn")) * model.cfg.n_heads
    n_tokens, n_ablated = tokens.numel(), rows_to_ablate(tokens, ablation_tokens).numel()
    on_tokens, on_ablated = count(n_tokens, "token"), count(n_ablated, "token")
    looked_at = 2 * SUPPRESSORS

    def planned(name: str) -> Part | None:
        if name == "entropy":
            return Part(name, on_tokens, entropy_work(model, n_tokens))
        if name == "loss":
            return Part(name, on_tokens, loss_work(model, n_tokens))
        if name == "types":
            return Part(name, f"repeated random tokens, and {on_tokens}", scores_work(model, n_tokens))
        if name == "ablation":
            return Part(name, f"{on_ablated}, {count(heads, 'head')}, 2 values", ablation_work(model, n_ablated))
        if name == "suppression":
            explained = suppression_work(model, n_ablated, looked_at, variant=SUPPRESSION_VARIANT)
            stages = suppression_scores_work(model, IOI_PROMPTS) | explained
            return Part(name, f"{on_ablated}, {looked_at} heads", stages | ranks_work(model, looked_at))
        return None if task is None else task_part(model, task)

    each = [planned(name) for name in _PARTS if name in parts and name != "attention"]
    return Plan(tuple(part for part in each if part is not None), rates)


def task_part(model: HookedTransformer, task: Task) -> Part:
    """Return what a task of two names takes, if the model does it."""
    stages, says = types_work(model, task), count(len(task), "prompt")
    if task.corrupted_tokens is not None:
        few = few_prompts(model, with_words(task))
        says += f", {len(few)} patched"
        for site, words in (("resid_pre", WORDS), ("z", SWAPPED_WORDS)):
            stages |= patching_work(model, few, [site], by_position=True, positions=words)
        if finds_circuit(model, task):
            says += ", their circuit"
            stages |= circuit_work(model, few, RECEIVERS)
    return Part("task", says, stages)


def fitting_sizes(
    model: HookedTransformer,
    tokens: Tensor,
    rates: Work,
    *,
    parts: Collection[str],
    seconds: float,
    asked: Sizes,
    fixed: tuple[bool, bool],
) -> Sizes:
    """Halve the numbers of tokens until a report ends in time, or there are few; larger parts first.

    Args:
        model: The model.
        tokens: The most there are, `[batch, pos]`.
        rates: Seconds for each unit of work.
        parts: The parts of the measurement.
        seconds: The time for all but the task.
        asked: The numbers to begin with.
        fixed: For each of the two, whether it is to stay.
    """
    sizes = asked
    while True:
        rows = rows_to_ablate(tokens, sizes.tokens)
        plan = report_plan(model, rows, sizes.ablated, rates, parts=parts)
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
