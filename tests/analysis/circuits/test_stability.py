"""`stability` counts what comes back, of sets made up for it and of real findings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from name_moving_model import name_moving_model, name_task
from three_passes import random_task
from tiny import tiny_model

from headscope.analysis import Stability, activation_patch, detect_heads, find_circuit, stability
from headscope.analysis.core.result import Result
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError


def made(seed: int = 0, template: str = "") -> Task:
    task = random_task((6,) * 8, seed=seed + 1)
    return task if not template else task[:4]


class Found:
    """Gives one set after the other."""

    def __init__(self, *sets: str) -> None:
        self.sets, self.tasks = [each.split() for each in sets], []  # type: ignore[var-annotated]

    def __call__(self, task: Task) -> list[str]:
        self.tasks.append(task)
        return self.sets[len(self.tasks) - 1]


def test_counts_intervals_and_overlaps(tmp_path: Path) -> None:
    method = Found("a b", "a b", "a", "", "a b c", "a d", "a b")
    found = stability(method, made, resamples=3, seeds=[4, 5], templates=["other"], progress=False)
    assert found.ways == ("resamples", "seeds", "templates") and found.labels == ("a", "b", "c", "d")
    assert found.runs.tolist() == [3, 2, 1]
    assert found.counts.tolist() == [[2, 1, 0, 0], [2, 1, 1, 1], [1, 1, 0, 0]]
    assert found.shares.tolist() == pytest.approx([5 / 6, 3 / 6, 1 / 6, 1 / 6])
    assert found.found.tolist() == [1, 1, 0, 0] and found.findings() == ("a",)
    jaccards = [1, 1 / 2, 0, 2 / 3, 1 / 3, 1]
    assert found.jaccards.tolist() == pytest.approx(jaccards)
    assert found.jaccard() == pytest.approx(sum(jaccards) / 6) and found.jaccard("seeds") == pytest.approx(1 / 2)
    sets = [set(each) for each in method.sets[1:]]
    pairs = [len(one & other) / len(one | other) for at, one in enumerate(sets) for other in sets[:at]]
    assert found.pairs == pytest.approx(sum(pairs) / len(pairs))
    low, high = found.interval("templates")
    assert float(low[0]) == pytest.approx(0.2065, abs=1e-4) and float(high[0]) == 1.0
    frame = found.to_frame()
    assert frame.label.tolist() == ["a", "b", "c", "d"] and frame.share.tolist() == found.shares.tolist()
    assert frame["seeds"].tolist() == [1.0, 0.5, 0.5, 0.5]
    for said in ("6 repeats", "resamples 2/3, seeds 2/2, templates 1/1", "(not on the task itself)", "(Jaccard): 0.58"):
        assert said in str(found)
    again = Stability.load(found.save(tmp_path / "stability.safetensors"))
    assert str(again) == str(found)
    with pytest.raises(InvalidInputError, match="way must be one of"):
        found.jaccard("words")
    with pytest.raises(InvalidInputError, match="way must be one of"):
        found.interval("words")


def test_repeats_are_on_the_prompts_they_say() -> None:
    method = Found(*["a"] * 6)
    stability(method, made, resamples=2, seeds=[7], templates=["short", "other"], seed=3, progress=False)
    own, *resampled, seeded, _, short = method.tasks
    assert torch.equal(own.clean_tokens, made().clean_tokens)
    drawn = [{tuple(row) for row in each.clean_tokens.tolist()} for each in resampled]
    whole = {tuple(row) for row in own.clean_tokens.tolist()}
    assert all(len(each) == 8 for each in resampled) and all(rows < whole for rows in drawn) and drawn[0] != drawn[1]
    assert torch.equal(seeded.clean_tokens, made(seed=7).clean_tokens) and len(short) == 4
    again = Found(*["a"] * 3)
    stability(again, made(), resamples=2, seed=3, progress=False)
    assert torch.equal(again.tasks[2].clean_tokens, resampled[1].clean_tokens)


def test_nothing_found_is_agreed_on() -> None:
    found = stability(Found("", "", ""), made(), resamples=2, progress=False)
    assert found.jaccard() == found.pairs == 1.0 and "nothing was found" in str(found) and not len(found.to_frame())


@pytest.mark.parametrize(
    "task, options, said",
    [
        (made(), {"seeds": [1]}, "a task has the prompts it has"),
        (made(), {"templates": ["x"]}, "a task has the prompts it has"),
        (made, {"resamples": 0}, "no repeat is asked for"),
        (made(), {"resamples": -1}, "at least 0"),
    ],
)
def test_what_cannot_be_repeated_is_refused(task: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        stability(Found("a"), task, progress=False, **options)


def test_a_method_gives_labels_or_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    for given in ("3.2", 7):
        with pytest.raises(InvalidInputError, match="must give a set of labels"):
            stability(lambda task, given=given: given, made(), resamples=1, progress=False)  # type: ignore[misc]


def test_results_say_what_they_found() -> None:
    model, task = tiny_model(), random_task((6,) * 8)
    patched = activation_patch(model, task, ["z", "k"], progress=False)
    frame = patched.to_frame()
    clear = frame[frame.significant]
    wanted = [
        f"{site} {layer}.{head}" for site, layer, head in zip(clear.site, clear.layer, clear["head"], strict=True)
    ]
    assert list(patched.findings()) == wanted
    assert Result.findings(patched) == tuple(score.label for score in patched.top(10))
    mover, ioi = name_moving_model(), name_task(8)
    circuit = find_circuit(mover, ioi, max_receivers=1, progress=False)
    assert circuit.findings() == circuit.edge_labels
    types = detect_heads(mover, task=ioi, n_sequences=2, progress=False)
    assert len(types.findings()) == int(types.labelled.sum())
    steady = stability(
        lambda each: find_circuit(mover, each, max_receivers=1, progress=False), ioi, resamples=2, progress=False
    )
    assert steady.jaccard() > 0.5 and set(circuit.findings()) <= set(steady.labels)
