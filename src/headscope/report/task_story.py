"""What a report measures of indirect object identification: how well it is done, by which heads, along which paths.

The corrupted prompts name the other one as the subject ("John gave a drink to" becomes "Mary gave a drink to"): all
else stays, so that a patch shows who carries who the subject is, and nothing else.
"""

from dataclasses import dataclass, replace

import torch

from headscope.analysis.activation_patching import activation_patch
from headscope.analysis.attribution import attribute
from headscope.analysis.circuit import Circuit, find_circuit
from headscope.analysis.head_types import detect_heads
from headscope.analysis.head_types_result import HeadTypes
from headscope.analysis.patching_result import PatchingResult
from headscope.analysis.task import Task
from headscope.analysis.task_evidence import name_places, orders_of
from headscope.data.ioi import IOIDataset
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer
from headscope.report.uncertainty import Estimate, estimate

__all__ = ["SWAPPED", "Order", "TaskStory", "ioi_task", "measure_task"]

SWAPPED = "ABB->ABA, BAB->BAA"
_MOST_PROMPTS, _FEWEST_PROMPTS = 100, 24
_WORDS = ("IO", "S1", "S1+1", "S2", "end")
# Operations that a report may spend on a task: some ten seconds of a laptop.
_BUDGET = 1e12
_RECEIVERS = 8


@dataclass(frozen=True)
class Order:
    """How the model does on the prompts of one order of the names.

    Attributes:
        name: `ABBA` (the right name first) or `BABA`.
        difference: The logit difference.
        swapped: That of the prompts with the other one as subject, with the same answers; `None` without them.
        right: In which share of the prompts the right name is ahead.
    """

    name: str
    difference: Estimate
    swapped: Estimate | None
    right: float


@dataclass(frozen=True)
class TaskStory:
    """All that the section is made from.

    Attributes:
        task: The prompts.
        orders: How well it is done, for each order of the names.
        whole: The logit difference of all prompts.
        types: The kinds of heads.
        patched: What noising breaks: the stream at the named words, and each head there; `None` if the model does not
            do the task.
        circuit: The paths that carry it; `None` if the model does not do the task, or it would take too long.
    """

    task: Task
    orders: tuple[Order, ...]
    whole: Estimate
    types: HeadTypes
    patched: PatchingResult | None
    circuit: Circuit | None

    @property
    def can(self) -> bool:
        """Whether the right name is surely ahead."""
        return self.whole.value > 0 and self.whole.clear()


def ioi_task(model: HookedTransformer, n: int, *, seed: int = 0) -> Task | None:
    """IOI prompts of both orders, with the subject swapped; `None` if the model cannot read them."""
    if model.tokenizer is None or model.cfg.attention_dir != "causal":
        return None
    prepend = model.cfg.default_prepend_bos
    try:
        dataset = IOIDataset("mixed", n, model.tokenizer, prepend_bos=prepend, seed=seed, device=model.W_E.device)
    except InvalidInputError:
        return None  # too few names or words are one token each
    task = Task.from_ioi(dataset, SWAPPED)
    return task if task.clean_tokens.shape[1] <= model.cfg.n_ctx else None


def measure_task(
    model: HookedTransformer, task: Task | None = None, *, thorough: bool = False, progress: bool = True
) -> TaskStory | None:
    """Measure a task of two names; by default indirect object identification.

    Args:
        model: The model, without hooks.
        task: Prompts of your own, in both orders of the names, with corrupted ones.
        thorough: Find the circuit, however long it takes. Without, it is left out for models where it takes more than
            some ten seconds (GPT-2 small: some minutes).
        progress: Show progress bars.

    Returns:
        `None` if there is no task, and IOI prompts cannot be made for the model.

    Raises:
        InvalidInputError: If the names of a task of your own cannot be found in its prompts.
    """
    affordable = _circuit_cost(model, _MOST_PROMPTS) < _BUDGET
    if task is None:
        task = ioi_task(model, _MOST_PROMPTS if affordable else _FEWEST_PROMPTS)
        if task is None:
            return None
    orders, whole = _orders(model, task)
    types = detect_heads(model, task=task, progress=progress)
    story = TaskStory(task, orders, whole, types, None, None)
    if not story.can or task.corrupted_tokens is None:
        return story
    if all(word in task.word_idx for word in _WORDS):
        # With a position given by name, both the stream and heads are patched at it alone.
        patched = activation_patch(
            model, task, ["resid_pre", "z"], direction="noising", by_position=True, positions=_WORDS, progress=progress
        )
        story = replace(story, patched=patched)
    if thorough or affordable:
        circuit = find_circuit(model, task, types, max_receivers=_RECEIVERS, progress=progress)
        story = replace(story, circuit=circuit)
    return story


def _circuit_cost(model: HookedTransformer, n_prompts: int) -> float:
    """Operations, roughly: for each receiver and input, each sender runs on average half of the layers."""
    cfg = model.cfg
    per_token = 2 * cfg.n_layers * (4 * cfg.d_model * cfg.n_heads * cfg.d_head + 2 * cfg.d_model * (cfg.d_mlp or 0))
    senders = cfg.n_layers * (cfg.n_heads + 1)
    return n_prompts * 18 * per_token * senders * 3 * _RECEIVERS / 4


@torch.no_grad()
def _orders(model: HookedTransformer, task: Task) -> tuple[tuple[Order, ...], Estimate]:
    def differences(some: Task) -> torch.Tensor:
        return attribute(model, some, sources=False, neurons=False, progress=False).logit_difference.double().cpu()

    clean = differences(task)
    swapped = None
    if task.corrupted_tokens is not None:
        swapped = differences(replace(task, clean_tokens=task.corrupted_tokens, corrupted_tokens=None))
    found = []
    for name, rows in orders_of(name_places(task)).items():
        found.append(
            Order(
                name,
                estimate(clean[rows, None]),
                None if swapped is None else estimate(swapped[rows, None]),
                float((clean[rows] > 0).double().mean()),
            )
        )
    return tuple(found), estimate(clean[:, None])
