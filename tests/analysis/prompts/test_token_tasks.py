"""Tasks of token ids: their errors, their masks, and metrics of their own, each against plain runs with hooks."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from headscope.analysis import (
    AnswerMetric,
    NumberMetric,
    Task,
    activation_patch,
    attribute,
    attribution_patch,
    find_circuit,
    path_patch_sweep,
)
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer

CLEAN, CORRUPTED = [[1, 5, 7], [1, 6]], [[1, 8, 7], [1, 9]]
ANSWERS = {"correct": [5, 6], "incorrect": [8, 9]}


def test_lists_become_padded_tokens_with_their_masks_and_texts() -> None:
    task = Task.from_tokens(CLEAN, CORRUPTED, **ANSWERS)
    assert task.clean_tokens.tolist() == [[1, 5, 7], [1, 6, 0]]
    assert task.attention_mask.tolist() == [[True] * 3, [True, True, False]]
    assert task.positions.tolist() == [2, 1] and task.corrupted_mask is None
    assert task.prompts == ("1 5 7", "1 6") and task.answers[0] == ("5", "8")
    assert task.str_tokens[1] == ("1", "6")
    assert isinstance(task.measure, AnswerMetric)


def test_masks_of_the_two_runs_may_differ() -> None:
    task = Task.from_tokens(CLEAN, [[1, 8, 7], [1, 9, 4]], **ANSWERS, positions=[1, 1])
    assert task.corrupted_mask is not None and task.corrupted_mask.all()
    assert [each.sum().item() for each in task.masks] == [5, 6]
    assert task[[1]].corrupted_mask.tolist() == [[True] * 3]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no answers": ({}, "the right and the wrong answer of each prompt"),
    "one kind of answers": ({"correct": [5, 6]}, "the right and the wrong answer"),
    "answers of another number": ({"correct": [5], "incorrect": [8]}, "one or several for each of 2 prompts"),
    "both right and wrong": ({"correct": [[5, 8], [6, 6]], "incorrect": [8, 9]}, "prompt 0 has an answer that is both"),
    "text": ({**ANSWERS, "clean": ["ab", "c"]}, "lists of token ids"),
    "ragged answers": ({"correct": [[5, 8], [6]], "incorrect": [8, 9]}, "as many token ids for each prompt"),
    "fractions": ({**ANSWERS, "clean": torch.ones(2, 3)}, "whole numbers"),
    "negative": ({**ANSWERS, "clean": [[1, -5, 7], [1, 6]]}, "ids from 0 on; got -5"),
    "one axis": ({**ANSWERS, "clean": torch.ones(3, dtype=torch.long)}, "whole numbers"),
    "not aligned": ({**ANSWERS, "corrupted": [[1, 2], [1, 2]]}, "not aligned"),
    "an answer at padding": ({**ANSWERS, "positions": [2, 2]}, "prompt 1 has its answer at position 2"),
    "beyond the end": ({**ANSWERS, "positions": [3, 1]}, "prompt 0 has its answer at position 3"),
    "positions of another number": ({**ANSWERS, "positions": [1]}, "positions must be one for each of 2"),
    "a mask of another shape": ({**ANSWERS, "attention_mask": torch.ones(2, 2)}, "must have their shape"),
    "an empty prompt": ({**ANSWERS, "attention_mask": torch.zeros(2, 3)}, "has no real token"),
    "a mask of nothing": ({**ANSWERS, "corrupted": None, "corrupted_mask": torch.ones(2, 3)}, "there are none"),
    "clusters of another number": ({**ANSWERS, "clusters": [1]}, "2 prompts, and 1 of 'cluster'"),
    "two places": (
        {"metric": NumberMetric(torch.tensor([1, 1]), torch.ones(2)), "positions": [0, 0]},
        "the metric reads other positions",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_task_says_what_is_wrong(case: str) -> None:
    given, said = BAD[case]
    with pytest.raises(InvalidInputError, match=said):
        Task.from_tokens(given.pop("clean", CLEAN), given.pop("corrupted", CORRUPTED), **given)


def test_without_answers_there_is_no_logit_difference() -> None:
    task = Task.from_tokens(CLEAN, CORRUPTED, metric=NumberMetric(torch.tensor([2, 1]), torch.ones(2)))
    assert task.positions.tolist() == [2, 1] and "a metric of its own" in repr(task)
    with pytest.raises(InvalidInputError, match="one of these has none"):
        task.logit_difference(torch.zeros(2, 3, 10))
    with pytest.raises(InvalidInputError, match="no right and wrong answers"):
        AnswerMetric.of(task)


def test_a_metric_of_all_prompts_has_no_parts() -> None:
    task = Task.from_tokens(CLEAN, CORRUPTED, metric=lambda logits: logits.mean())
    assert task[:].metric is task.metric
    with pytest.raises(InvalidInputError, match="of all 2 prompts"):
        task[[0]]


def test_a_number_has_the_sign_of_the_clean_less_the_corrupted_one() -> None:
    at = torch.tensor([2, 1])
    metric = NumberMetric.between(torch.tensor([0.5, 0.0]), torch.tensor([0.0, 1.0]), at)
    logits = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
    assert float(metric(logits)) == (3.0 - 5.0) / 2
    assert metric.of_rows(torch.tensor([1])).signs.tolist() == [-1.0]
    with pytest.raises(InvalidInputError, match="prompt 1 is 1.0 in both runs"):
        NumberMetric.between(torch.tensor([0.5, 1.0]), torch.tensor([0.0, 1.0]), at)


# Against plain runs: a model that looks both ways, whose runs have masks of their own


class Plain:
    """The metric of each prompt, from full runs with hooks."""

    def __init__(self, model: HookedTransformer, task: Task) -> None:
        self.model, self.task = model, task
        self.base = task.corrupted_tokens
        _, self.other = model.run_with_cache(task.clean_tokens, attention_mask=task.masks[0])
        self.clean, self.corrupted = self.scored(task.clean_tokens, 0), self.scored(task.corrupted_tokens, 1)

    @torch.no_grad()
    def scored(self, tokens: Any, mask: int, hooks: Any = ()) -> Tensor:
        logits = self.model.run_with_hooks(tokens, attention_mask=self.task.masks[mask], fwd_hooks=list(hooks))
        read = logits[torch.arange(len(tokens)), self.task.positions]
        metric = self.task.measure
        assert isinstance(metric, AnswerMetric | NumberMetric)
        if isinstance(metric, NumberMetric):
            return read[:, metric.output] * metric.signs
        right = read.gather(1, metric.correct).mean(1)
        return right - read.gather(1, metric.incorrect).mean(1)

    def patched(self, layer: int, head: int) -> Tensor:
        real = self.task.masks[0] & self.task.masks[1]

        def put(z: Tensor, hook: Any) -> Tensor:
            z = z.clone()
            z[:, :, head][real] = self.other[hook.name][:, :, head][real]
            return z

        return self.scored(self.base, 1, [(f"blocks.{layer}.attn.hook_z", put)])


def both_ways(**fields: Any) -> tuple[HookedTransformer, Task]:
    model = tiny_model(attention_dir="bidirectional", **fields)
    clean, corrupted = tiny_tokens(3, 6, seed=1), tiny_tokens(3, 6, seed=2)
    lengths, others = torch.tensor([6, 4, 5]), torch.tensor([5, 6, 3])
    masks = [torch.arange(6) < each[:, None] for each in (lengths, others)]
    metric = NumberMetric(torch.tensor([3, 2, 2]), torch.tensor([1.0, -1.0, 1.0]), output=3)
    return model, Task.from_tokens(
        clean, corrupted, metric=metric, attention_mask=masks[0], corrupted_mask=masks[1]
    )  # fmt: skip


@pytest.mark.parametrize("hooked", [False, True])
def test_runs_of_different_masks_are_patched_where_both_have_tokens(hooked: bool) -> None:
    model, task = both_ways()
    plain = Plain(model, task)
    if hooked:
        model.add_hook("blocks.0.hook_mlp_out", lambda out, hook: out)
    found = activation_patch(model, task, "z", scale="metric", progress=False)
    for layer, head in ((0, 1), (1, 2)):
        wanted = (plain.patched(layer, head) - plain.corrupted).mean()
        torch.testing.assert_close(found["z"][layer, head].double(), wanted, atol=1e-6, rtol=1e-5)
    assert float(found.clean) == pytest.approx(float(plain.clean.mean()), abs=1e-9)
    assert float(found.corrupted) == pytest.approx(float(plain.corrupted.mean()), abs=1e-9)
    # A head of the last layer has no path to the answer but the direct one, when its MLP keeps what it gave.
    straight = path_patch_sweep(
        model, task, receivers="final", senders=["1.2"], scale="metric", freeze_mlps=False, progress=False
    )
    torch.testing.assert_close(
        straight.per_prompt[0], plain.patched(1, 2) - plain.corrupted, atol=1e-9, rtol=1e-9
    )  # fmt: skip


def test_gradients_leave_padding_of_either_run_out() -> None:
    model, task = both_ways()
    plain, head = Plain(model, task), (0, 1)
    found = attribution_patch(model, task, "z", scale="metric", progress=False).over_positions("z")[head]
    base = plain.other
    _, plain.other = model.run_with_cache(task.corrupted_tokens, attention_mask=task.masks[1])
    size = 1e-6
    plain.other = {name: plain.other[name] + size * (base[name] - plain.other[name]) for name in base}
    slope = (plain.patched(*head) - plain.corrupted).mean() / size
    assert float(found) == pytest.approx(float(slope), rel=1e-4)


def test_a_number_is_attributed_and_its_circuit_found() -> None:
    model = tiny_model(normalization_type="LN")
    clean, corrupted = tiny_tokens(4, 6, seed=1), tiny_tokens(4, 6, seed=2)
    metric = NumberMetric(torch.tensor([5, 4, 5, 3]), torch.tensor([1.0, -1.0, 1.0, 1.0]), output=7)
    task = Task.from_tokens(clean, corrupted, metric=metric)
    wanted = model(clean).detach()[torch.arange(4), metric.positions, 7] * metric.signs
    found = attribute(model, task, progress=False)
    torch.testing.assert_close(found.logit_difference, wanted)
    torch.testing.assert_close(found.components.sum(-1), wanted)
    same = attribute(model, clean, metric=metric, progress=False)
    torch.testing.assert_close(same.components, found.components)
    with pytest.raises(InvalidInputError, match="linear in the logits"):
        attribute(model, replace(task, metric=lambda logits: logits.mean()), progress=False)
    with pytest.raises(InvalidInputError, match="either answer_tokens"):
        attribute(model, clean, progress=False)
    circuit = find_circuit(model, task, min_effect=0.001, level=0.9, max_receivers=1, progress=False)
    assert circuit.clean == pytest.approx(float(wanted.mean()))
    with pytest.raises(InvalidInputError, match="a number for each prompt"):
        find_circuit(model, task, metric=lambda logits: logits.mean(), progress=False)


def test_an_answer_metric_may_replace_a_tasks_own() -> None:
    model, task = tiny_model(), Task.from_tokens(tiny_tokens(3, 6), tiny_tokens(3, 6, seed=4), correct=[1, 2, 3],
                                                 incorrect=[4, 5, 6])  # fmt: skip
    other = AnswerMetric(task.incorrect, task.correct, task.positions, zero=1.0, unit=2.0)
    there = path_patch_sweep(model, task, receivers="final", scale="metric", progress=False)
    back = path_patch_sweep(model, task, receivers="final", scale="metric", metric=other, progress=False)
    torch.testing.assert_close(back.per_prompt, -there.per_prompt / 2)
    torch.testing.assert_close(
        attribute(model, task, metric=other, progress=False).logit_difference,
        (-attribute(model, task, progress=False).logit_difference - 1.0) / 2.0,
    )
