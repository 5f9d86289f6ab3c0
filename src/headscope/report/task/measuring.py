"""Measuring a task of two names: everything that runs the model."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.attention.score import attribute_attention
from headscope.analysis.attention.score_result import AttentionAttribution
from headscope.analysis.circuits.circuit import find_circuit
from headscope.analysis.circuits.circuit_result import Circuit
from headscope.analysis.core.costs import layer_operations
from headscope.analysis.core.stats import estimates_over_prompts
from headscope.analysis.heads.inhibition import in_turn
from headscope.analysis.heads.names import attention_between, name_places, orders_of
from headscope.analysis.heads.power import prompts_needed
from headscope.analysis.heads.types import detect_heads
from headscope.analysis.patching.activation import activation_patch
from headscope.analysis.patching.result import PatchingResult
from headscope.analysis.prompts.attribution import attribute
from headscope.analysis.prompts.task import Task
from headscope.data.ioi import IOIDataset
from headscope.errors import InvalidInputError, MissingTokenizerError
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import wide
from headscope.report.costs import circuit_work
from headscope.report.kept import Kept
from headscope.report.places import head_of
from headscope.report.task.story import LOOKED_AT, SWAPPED_WORDS, WORDS, Order, TaskStory

__all__ = ["RECEIVERS", "SWAPPED", "few_prompts", "finds_circuit", "ioi_task", "measure_task", "with_words"]

SWAPPED = "ABB->ABA, BAB->BAA"
_PILOT, _MOST_PROMPTS = 32, 200
# Prompts of paths and patched words: fewer for a model that takes long.
_MANY, _FEW = 100, 16
# Operations that a report may spend on a circuit, about a minute of a laptop; and on running the prompts.
_BUDGET, _OF_PROMPTS = 6e12, 2e12
RECEIVERS = 8
_ASKED, _LOOKS = 2, 0.3  # heads of each kind that are asked why they look at a name, and the share from which they do


def ioi_task(model: HookedTransformer, n: int | None = None, *, seed: int = 0) -> Task:
    """Generate IOI prompts of both orders, with the subject swapped.

    By default as many as tell a head with a tenth of the task's effect from zero (`prompts_needed`), but not more than
    200, nor than a large model runs in some twenty seconds.

    Raises:
        MissingTokenizerError: If the model has no tokenizer.
        InvalidInputError: If it cannot read the prompts: it looks ahead, too few names or words are one token each, or
            its context is too short.
    """
    if model.tokenizer is None:
        raise MissingTokenizerError("the model has no tokenizer to write the prompts with.")
    if model.cfg.attention_dir != "causal":
        raise InvalidInputError("the model sees what follows, and the prompts are for models that predict it.")
    task = _ioi_task(model, n or _PILOT, seed)
    longest = task.clean_tokens.shape[1]
    if longest > model.cfg.n_ctx:
        raise InvalidInputError(f"the prompts have up to {longest} tokens, and the model reads {model.cfg.n_ctx}.")
    if n is not None:
        return task
    affordable = int(_OF_PROMPTS / (longest * model.cfg.n_layers * layer_operations(model)))
    fewest = max(_FEW, min(_MANY, _of_circuit(model, task)))
    most = max(fewest, min(_MOST_PROMPTS, affordable))
    needed = prompts_needed(model, task) if most > _PILOT else 0
    return _ioi_task(model, min(most, max(fewest, needed)), seed)


def _ioi_task(model: HookedTransformer, n: int, seed: int) -> Task:
    prepend = model.cfg.default_prepend_bos
    dataset = IOIDataset("mixed", n, model.tokenizer, prepend_bos=prepend, seed=seed, device=model.W_E.device)
    return Task.from_ioi(dataset, SWAPPED)


def few_prompts(model: HookedTransformer, task: Task) -> Task:
    """Return the prompts, alike of each order, on which words are patched and paths are found."""
    rows = in_turn(orders_of(name_places(task)))[: max(_FEW, min(_MANY, _of_circuit(model, task)))]
    return task[rows.sort().values]


def measure_task(model: HookedTransformer, task: Task, *, kept: Kept | None = None, progress: bool = True) -> TaskStory:
    """Measure a task of two names.

    The circuit is left out where `finds_circuit` says that finding it takes long.

    Args:
        model: The model, without hooks.
        task: Prompts, with corrupted ones if patching is to be measured.
        kept: Where what is measured is kept until the page is whole.
        progress: Show progress bars.

    Raises:
        InvalidInputError: If the names cannot be found in the prompts, or fewer than four have an order of the names.
    """
    task = with_words(task.to(model.W_E.device))
    kept = kept or Kept(None)
    types = detect_heads(model, task=task, progress=progress, **kept.run("task/types"))
    differences, orders, attention = _orders(task, kept.tensors("task/orders", lambda: _orders_measured(model, task)))
    story = TaskStory(task, differences, orders, attention, types, None, None, None)
    if not story.can or task.corrupted_tokens is None:
        return story

    few = few_prompts(model, task)
    story = replace(story, why=tuple(_why(model, few, story, kept)))

    # With a position given by name, both the stream and heads are patched at it alone.
    def patched(site: str, words: tuple[str, ...]) -> PatchingResult:
        return activation_patch(
            model, few, site, direction="noising", by_position=True, positions=words, progress=progress
        )

    stream = kept.result("task/stream", PatchingResult, lambda: patched("resid_pre", WORDS))
    heads = kept.result("task/heads", PatchingResult, lambda: patched("z", SWAPPED_WORDS))
    if not finds_circuit(model, task):
        return replace(story, stream=stream, heads=heads)
    circuit = kept.result(
        "task/circuit", Circuit, lambda: find_circuit(model, few, types, max_receivers=RECEIVERS, progress=progress)
    )
    return replace(story, stream=stream, heads=heads, circuit=circuit)


def _why(model: HookedTransformer, few: Task, story: TaskStory, kept: Kept) -> Iterator[AttentionAttribution]:
    """Ask of the heads that do the task, and of those that tell them where to look, why they look at a name."""
    kinds = ("name_mover", "subject_suppressor", "negative_name_mover", "s_inhibition")
    heads = dict.fromkeys(head_of(score) for kind in kinds for score in story.types.heads(kind)[:_ASKED])
    for layer, head in heads:
        shares = story.attention.mean(0)[:, layer, head]
        word = LOOKED_AT[int(shares.argmax())]
        if float(shares.max()) < _LOOKS:
            continue
        against = "S1" if word == "IO" else "IO"
        yield kept.result(
            f"task/why {layer}.{head}",
            AttentionAttribution,
            lambda at=(layer, head), word=word, against=against: attribute_attention(  # type: ignore[misc]
                model, few, at, "end", word, against=against, sources=False, progress=False
            ),
        )


def with_words(task: Task) -> Task:
    """Return the task with the places of all `WORDS`, found from the answers where it does not name them."""
    if all(word in task.word_idx for word in WORDS):
        return task
    places = name_places(task)
    return replace(task, word_idx={**places, "S1+1": places["S1"] + 1, **task.word_idx})


def finds_circuit(model: HookedTransformer, task: Task) -> bool:
    """Tell if `few_prompts` of a task are few enough for their circuit to be found in about a minute."""
    return _of_circuit(model, task) >= min(_FEW, len(task))


def _of_circuit(model: HookedTransformer, task: Task) -> int:
    """The number of prompts like these whose circuit is found within the operations that a report may spend."""
    work = sum(stage.operations for stage in circuit_work(model, task, RECEIVERS).values())
    return int(_BUDGET * len(task) / work)


def _orders(
    task: Task, measured: Mapping[str, Tensor]
) -> tuple[Float[Tensor, " prompt"], tuple[Order, ...], Float[Tensor, "order word layer head"]]:
    """Put together how well the prompts of each order are done, and where heads look in them."""
    clean, swapped = measured["clean"], measured.get("swapped")
    orders = []
    for name, rows in orders_of(name_places(task)).items():
        clusters = task[rows].clusters
        changed = None if swapped is None else estimates_over_prompts(swapped[rows, None], clusters)[0]
        own = estimates_over_prompts(clean[rows, None], clusters)[0]
        orders.append(Order(name, own, changed, float(wide(clean[rows] > 0).mean())))
    return clean, tuple(orders), measured["attention"]


@torch.no_grad()
def _orders_measured(model: HookedTransformer, task: Task) -> dict[str, Tensor]:
    """Measure logit differences, and the attention from the end to each name."""

    def differences(some: Task) -> Tensor:
        return attribute(model, some, sources=False, neurons=False, progress=False).logit_difference.cpu().double()

    measured = {"clean": differences(task)}
    if task.corrupted_tokens is not None:
        measured["swapped"] = differences(replace(task, clean_tokens=task.corrupted_tokens, corrupted_tokens=None))
    looks = [
        torch.stack(list(attention_between(model, task[rows], [("end", word) for word in LOOKED_AT]).values()))
        for rows in orders_of(name_places(task)).values()
    ]
    return {**measured, "attention": torch.stack(looks)}
