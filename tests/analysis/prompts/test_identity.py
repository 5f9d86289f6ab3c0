"""Runs on one task are not continued as runs on another, whatever the two differ in."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headscope import HookedTransformer
from headscope.analysis import Task, attribute, detect_heads
from headscope.analysis.prompts.identity import identity
from headscope.analysis.prompts.metrics import AnswerMetric, NumberMetric, last_position
from headscope.analysis.prompts.named_metrics import KLMetric, SeveralMetrics
from headscope.data.ioi import IOIDataset
from headscope.errors import InvalidInputError

ROWS = torch.arange(12).view(2, 6)
END = torch.tensor([3, 3])
WHOLE = torch.ones(2, 6, dtype=torch.bool)
SHORT = WHOLE.clone()
SHORT[0, 4:] = False
ANSWERS: dict[str, Any] = {"correct": [1, 2], "incorrect": [3, 4]}


def made(**changes: Any) -> Task:
    options: dict[str, Any] = {"corrupted": ROWS + 1, "positions": END, "attention_mask": WHOLE, "labels": ["a", "b"]}
    options |= {"word_idx": {"IO": torch.tensor([1, 2]), "S1": torch.tensor([2, 1])}, **ANSWERS}
    return Task.from_tokens(ROWS, **options | changes)


def answers(**changes: Any) -> AnswerMetric:
    given = {"correct": torch.tensor([[1], [2]]), "incorrect": torch.tensor([[3], [4]]), "positions": END}
    return AnswerMetric(**given | changes)


def numbers(signs: list[float], output: int = 0) -> NumberMetric:
    return NumberMetric(END, torch.tensor(signs), output)


OTHERS: dict[str, Callable[[], Task]] = {
    "attention mask": lambda: made(attention_mask=SHORT, corrupted_mask=SHORT),
    "corrupted mask": lambda: made(corrupted_mask=SHORT),
    "word_idx": lambda: made(word_idx={"IO": torch.tensor([2, 1]), "S1": torch.tensor([1, 2])}),
    "names of words": lambda: made(word_idx={"S2": torch.tensor([1, 2]), "S1": torch.tensor([2, 1])}),
    "labels": lambda: made(labels=["b", "a"]),
    "clusters": lambda: dataclasses.replace(made(), clusters=torch.tensor([0, 0])),
    "metric": lambda: made(metric=answers()),
    "answers of the metric": lambda: made(metric=answers(correct=torch.tensor([[1], [5]]))),
    "zero of the metric": lambda: made(metric=answers(zero=0.5)),
    "unit of the metric": lambda: made(metric=answers(unit=2.0)),
    "numbers": lambda: made(metric=numbers([1.0, -1.0])),
    "signs of numbers": lambda: made(metric=numbers([1.0, 1.0])),
    "output of numbers": lambda: made(metric=numbers([1.0, 1.0], 1)),
    "divergence": lambda: made(metric=KLMetric(torch.zeros(2, 9), END)),
    "divergence from another": lambda: made(metric=KLMetric(torch.ones(2, 9), END)),
    "several metrics": lambda: made(metric=SeveralMetrics({"one": answers(), "other": numbers([1.0, 1.0])})),
    "one of several metrics": lambda: made(metric=SeveralMetrics({"one": answers(), "other": numbers([1.0, -1.0])})),
}


@pytest.mark.parametrize("what", OTHERS)
def test_tasks_differ_by_all_that_they_hold(what: str) -> None:
    others = [identity(make().tensors()) for name, make in OTHERS.items() if name != what]
    found = identity(OTHERS[what]().tensors())
    assert found == identity(OTHERS[what]().tensors())
    assert found not in {*others, identity(made().tensors())}


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_function_is_known_to_no_other_run(wrapped: bool) -> None:
    def metric(logits: Any) -> Any:
        return logits[:, -1, 3].mean()

    task = made(metric=last_position(metric) if wrapped else metric)
    one, other = identity(task.tensors()), identity(task.tensors())
    assert one != other and one.startswith("metric: a function, known to no other run")


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return HookedTransformer.from_pretrained("headscope-demo")


@pytest.fixture(scope="module")
def task(model: HookedTransformer) -> Task:
    return Task.from_ioi(IOIDataset(N=12, tokenizer=model.tokenizer, prepend_bos=True))


def changed(task: Task, what: str) -> Task:
    words, corrupted = dict(task.word_idx), task.attention_mask.clone()
    words["IO"], words["S1"] = words["S1"], words["IO"]
    corrupted[0, -1] = ~corrupted[0, -1]
    return {
        "word_idx": dataclasses.replace(task, word_idx=words),
        "labels": dataclasses.replace(task, labels=task.labels[1:] + task.labels[:1]),
        "corrupted mask": dataclasses.replace(task, corrupted_mask=corrupted),
        "clusters": dataclasses.replace(task, clusters=torch.zeros(12, dtype=torch.long)),
        "metric": dataclasses.replace(task, metric=AnswerMetric.of(task, zero=1.0)),
    }[what]


@pytest.fixture(scope="module")
def kept(model: HookedTransformer, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two analyses on the task."""
    folder = tmp_path_factory.mktemp("kept")
    detect_heads(model, task=task, n_sequences=4, length=12, out=folder / "heads", progress=False)
    attribute(model, task, out=folder / "attribution", progress=False)
    return folder


@pytest.mark.parametrize("what", ["word_idx", "labels", "corrupted mask", "clusters", "metric"])
def test_no_run_is_resumed_with_another_task(model: HookedTransformer, task: Task, kept: Path, what: str) -> None:
    options: dict[str, Any] = {"resume": True, "progress": False}
    other = changed(task, what)
    with pytest.raises(InvalidInputError, match="holds another run: options.task"):
        detect_heads(model, task=other, n_sequences=4, length=12, out=kept / "heads", **options)
    with pytest.raises(InvalidInputError, match="holds another run: options.asked"):
        attribute(model, other, out=kept / "attribution", **options)
    again = attribute(model, task, out=kept / "attribution", **options)
    assert torch.equal(again.components, attribute(model, task, progress=False).components)
