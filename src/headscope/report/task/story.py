"""What a report measures of indirect object identification: how well it is done, by which heads, along which paths.

The corrupted prompts name the other one as the subject ("John gave a drink to" becomes "Mary gave a drink to"): all
else stays, so that a patch shows who carries who the subject is, and nothing else.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.circuits.circuit import Circuit, find_circuit
from headscope.analysis.core.stats import Estimate, estimate
from headscope.analysis.heads.name_evidence import attention_between, name_places, orders_of
from headscope.analysis.heads.types import detect_heads
from headscope.analysis.heads.types_result import HeadTypes
from headscope.analysis.patching.activation import activation_patch
from headscope.analysis.patching.result import PatchingResult
from headscope.analysis.prompts.attribution import attribute
from headscope.analysis.prompts.task import Task
from headscope.data.ioi import IOIDataset
from headscope.errors import InvalidInputError, MissingTokenizerError
from headscope.model.transformer import HookedTransformer

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "LOOKED_AT",
    "SWAPPED",
    "SWAPPED_WORDS",
    "Order",
    "TaskStory",
    "ioi_task",
    "measure_task",
    "task_prompts",
    "task_tables",
]

SWAPPED = "ABB->ABA, BAB->BAA"
_MOST_PROMPTS, _FEWEST_PROMPTS = 100, 16
_WORDS = ("IO", "S1", "S1+1", "S2", "end")
# Where heads look from the end, and where their outputs are patched.
LOOKED_AT = ("IO", "S1", "S2")
SWAPPED_WORDS = ("S2", "end")
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
        differences: Their logit differences.
        orders: How well it is done, for each order of the names.
        attention: What each head gives, in each order, from the end to `LOOKED_AT`.
        types: The kinds of heads.
        stream: What noising breaks: the stream at each named word; `None` if the model does not do the task, or there
            are no corrupted prompts.
        heads: The same of each head at `SWAPPED_WORDS`.
        circuit: The paths that carry it; `None` if the model does not do the task, or it would take too long.
    """

    task: Task
    differences: Float[Tensor, " prompt"]
    orders: tuple[Order, ...]
    attention: Float[Tensor, "order word layer head"]
    types: HeadTypes
    stream: PatchingResult | None
    heads: PatchingResult | None
    circuit: Circuit | None

    @cached_property
    def whole(self) -> Estimate:
        """The logit difference of all prompts."""
        return estimate(self.differences[:, None])

    @property
    def can(self) -> bool:
        """Whether the right name is surely ahead."""
        return self.whole.value > 0 and self.whole.clear()

    @property
    def gap(self) -> float:
        """What swapping the subject changes, in logits: below zero if it turns the model round."""
        return 0.0 if self.heads is None else self.heads.corrupted - self.heads.clean

    def stream_changes(self) -> Float[Tensor, "layer word"]:
        """What noising the stream changes, in logits; the result has it as shares, where -1 is all of it."""
        assert self.stream is not None
        return self.stream["resid_pre"] * -self.gap

    def head_changes(self, word: str) -> Float[Tensor, "layer head"]:
        """What noising each head at one of `SWAPPED_WORDS` changes, in logits."""
        assert self.heads is not None
        return self.heads["z"][:, SWAPPED_WORDS.index(word)] * -self.gap

    def attention_to(self, word: str) -> Float[Tensor, "order layer head"]:
        """What each head gives from the end to one of `LOOKED_AT`, in each order."""
        return self.attention[:, LOOKED_AT.index(word)]


def ioi_task(model: HookedTransformer, n: int = _MOST_PROMPTS, *, seed: int = 0) -> Task:
    """IOI prompts of both orders, with the subject swapped.

    Raises:
        MissingTokenizerError: If the model has no tokenizer.
        InvalidInputError: If it cannot read the prompts: it looks ahead, too few names or words are one token each, or
            its context is too short.
    """
    if model.tokenizer is None:
        raise MissingTokenizerError("the model has no tokenizer to write the prompts with.")
    if model.cfg.attention_dir != "causal":
        raise InvalidInputError("the model sees what follows, and the prompts are for models that predict it.")
    prepend = model.cfg.default_prepend_bos
    dataset = IOIDataset("mixed", n, model.tokenizer, prepend_bos=prepend, seed=seed, device=model.W_E.device)
    task = Task.from_ioi(dataset, SWAPPED)
    longest = task.clean_tokens.shape[1]
    if longest > model.cfg.n_ctx:
        raise InvalidInputError(f"the prompts have up to {longest} tokens, and the model reads {model.cfg.n_ctx}.")
    return task


def task_prompts(model: HookedTransformer) -> Task:
    """IOI prompts, fewer of them for a model that takes long.

    Raises:
        MissingTokenizerError: If the model has no tokenizer.
        InvalidInputError: If it cannot read the prompts.
    """
    return ioi_task(model, _MOST_PROMPTS if _affordable(model) else _FEWEST_PROMPTS)


def measure_task(
    model: HookedTransformer, task: Task | None = None, *, thorough: bool = False, progress: bool = True
) -> TaskStory:
    """Measure a task of two names; by default indirect object identification.

    Args:
        model: The model, without hooks.
        task: Prompts of your own, with corrupted ones if patching is to be measured.
        thorough: Find the circuit, however long it takes. Without, it is left out for models where it takes more than
            some ten seconds (GPT-2 small: some minutes).
        progress: Show progress bars.

    Raises:
        MissingTokenizerError: If there is no task, and the model has no tokenizer.
        InvalidInputError: If there is no task and the model cannot read IOI prompts, if the names of a task of your own
            cannot be found in its prompts, or if it has fewer than four of an order of the names.
    """
    task = task_prompts(model) if task is None else task
    task = _with_words(task.to(model.W_E.device))
    types = detect_heads(model, task=task, progress=progress)
    differences, orders, attention = _orders(model, task)
    story = TaskStory(task, differences, orders, attention, types, None, None, None)
    if not story.can or task.corrupted_tokens is None:
        return story
    # With a position given by name, both the stream and heads are patched at it alone.
    stream, heads = (
        activation_patch(model, task, site, direction="noising", by_position=True, positions=words, progress=progress)
        for site, words in (("resid_pre", _WORDS), ("z", SWAPPED_WORDS))
    )
    story = replace(story, stream=stream, heads=heads)
    if thorough or _affordable(model):
        circuit = find_circuit(model, task, types, max_receivers=_RECEIVERS, progress=progress)
        story = replace(story, circuit=circuit)
    return story


def _with_words(task: Task) -> Task:
    """With the places of all `_WORDS`, found from the answers where the task does not name them."""
    if all(word in task.word_idx for word in _WORDS):
        return task
    places = name_places(task)
    return replace(task, word_idx={**places, "S1+1": places["S1"] + 1, **task.word_idx})


def task_tables(story: TaskStory) -> "dict[str, pd.DataFrame]":
    """The numbers of the story, by the name of their file."""
    import pandas as pd

    tables = {"task_prompts": story.task.to_frame(story.differences), "task_heads": story.types.to_frame()}
    parts = [result.to_frame() for result in (story.stream, story.heads) if result is not None]
    if parts:
        tables["task_patching"] = pd.concat(parts, ignore_index=True)
    if story.circuit is not None:
        tables["task_paths"] = story.circuit.to_frame()
    return tables


def _affordable(model: HookedTransformer) -> bool:
    return _circuit_cost(model, _MOST_PROMPTS) < _BUDGET


def _circuit_cost(model: HookedTransformer, n_prompts: int) -> float:
    """Operations, roughly: for each receiver and input, each sender runs on average half of the layers."""
    cfg = model.cfg
    per_token = 2 * cfg.n_layers * (4 * cfg.d_model * cfg.n_heads * cfg.d_head + 2 * cfg.d_model * (cfg.d_mlp or 0))
    senders = cfg.n_layers * (cfg.n_heads + 1)
    return n_prompts * 18 * per_token * senders * 3 * _RECEIVERS / 4


@torch.no_grad()
def _orders(
    model: HookedTransformer, task: Task
) -> tuple[Float[Tensor, " prompt"], tuple[Order, ...], Float[Tensor, "order word layer head"]]:
    def differences(some: Task) -> Tensor:
        return attribute(model, some, sources=False, neurons=False, progress=False).logit_difference.double().cpu()

    clean = differences(task)
    swapped = None
    if task.corrupted_tokens is not None:
        swapped = differences(replace(task, clean_tokens=task.corrupted_tokens, corrupted_tokens=None))
    found, looks = [], []
    for name, rows in orders_of(name_places(task)).items():
        found.append(
            Order(
                name,
                estimate(clean[rows, None]),
                None if swapped is None else estimate(swapped[rows, None]),
                float((clean[rows] > 0).double().mean()),
            )
        )
        paid = attention_between(model, task[rows], [("end", word) for word in LOOKED_AT])
        looks.append(torch.stack(list(paid.values())))
    return clean, tuple(found), torch.stack(looks)
