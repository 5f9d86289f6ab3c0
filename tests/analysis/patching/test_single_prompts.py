"""Values of single prompts, several metrics at once, and controls: each kind of patching against runs of one prompt."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sizes import SetBudget
from tiny import tiny_model, tiny_tokens

from headscope import HookedTransformer
from headscope.analysis import activation_patch, attribute, attribution_patch, path_patch, path_patch_sweep
from headscope.analysis.core.significance import adjusted, p_values
from headscope.analysis.patching import measured
from headscope.analysis.patching.measured import ByMetric
from headscope.analysis.prompts.controls import RandomWay, reinitialized, shuffled_answers
from headscope.analysis.prompts.metrics import AnswerMetric
from headscope.analysis.prompts.named_metrics import KLMetric, ProbabilityMetric, RankMetric, as_metric
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError, UnknownNameError

N, LENGTH = 7, 6
DIFFERENTIABLE = ["logit_difference", "probability", "kl"]
NAMES = [*DIFFERENTIABLE, "rank"]
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "activation": lambda *args, **options: activation_patch(*args, ["z", "mlp_out"], progress=False, **options),
    "attribution": lambda *args, **options: attribution_patch(*args, ["z", "mlp_out"], progress=False, **options),
    "sweep": lambda *args, **options: path_patch_sweep(*args, receivers="1.1.q", progress=False, **options),
    "path": lambda *args, **options: path_patch(*args, senders="0.1", receivers="final", **options),
}
every_function = pytest.mark.parametrize("kind", FUNCTIONS)


def random_task(n: int = N) -> Task:
    clean = tiny_tokens(n, LENGTH)
    corrupted = clean.clone()
    corrupted[:, 2] = (clean[:, 2] + 1 + torch.arange(n) % 5) % 23
    answers = tiny_tokens(n, 3, seed=5)
    answers[:, 2] = (answers[:, 0] + 1) % 23
    return Task.from_tokens(clean, correct=answers[:, :2], incorrect=answers[:, 2:], corrupted=corrupted)


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return tiny_model()


@pytest.fixture(scope="module")
def task() -> Task:
    return random_task()


def names_of(kind: str) -> list[str]:
    return DIFFERENTIABLE if kind == "attribution" else NAMES


@every_function
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_rows_are_what_each_prompt_gives_alone(kind: str, direction: str, model: HookedTransformer, task: Task) -> None:
    options: dict[str, Any] = {"direction": direction, "scale": "metric"}
    options |= {"steps": 2} if kind == "attribution" else {}
    found = FUNCTIONS[kind](model, task, metric=names_of(kind), **options)
    for name, result in found.items():
        rows = result.by_prompt()
        assert rows.shape == (N, *result.values.shape)
        torch.testing.assert_close(rows.mean(0), result.values, atol=1e-6, rtol=1e-6)
        for prompt in (0, N - 1):
            alone = FUNCTIONS[kind](model, task[[prompt]], metric=name, **options)
            torch.testing.assert_close(rows[prompt], alone.values, atol=2e-6, rtol=2e-6)
        assert float(rows.std(0).max()) > 1e-4, name


@every_function
def test_several_metrics_equal_sweeps_of_their_own(kind: str, model: HookedTransformer, task: Task) -> None:
    together = FUNCTIONS[kind](model, task, metric=names_of(kind))
    assert isinstance(together, ByMetric) and list(together) == names_of(kind)
    for name in names_of(kind):
        alone = FUNCTIONS[kind](model, task, metric=name)
        for field in ("values", "per_prompt"):
            torch.testing.assert_close(getattr(together[name], field), getattr(alone, field), atol=1e-6, rtol=1e-6)
        assert float(together[name].clean) == pytest.approx(float(alone.clean), rel=1e-6, abs=1e-9)
    unnamed = FUNCTIONS[kind](model, task)
    torch.testing.assert_close(unnamed.values, together["logit_difference"].values)
    frame = together.to_frame()
    assert frame.columns[0] == "metric" and set(frame.metric) == set(names_of(kind))
    assert all(name in str(together) for name in names_of(kind))
    own = FUNCTIONS[kind](model, task, metric={"a": "kl", "b": AnswerMetric.of(task)})
    torch.testing.assert_close(own["b"].values, unnamed.values)
    torch.testing.assert_close(own["a"].values, together["kl"].values)


@every_function
def test_one_metric_alike_in_both_runs_leaves_the_others(kind: str, model: HookedTransformer, task: Task) -> None:
    """Right and wrong answers the same: a difference of zero, of which nothing is a share."""
    zero, own = AnswerMetric(task.correct[:, :1], task.correct[:, :1], task.positions), AnswerMetric.of(task)
    with pytest.warns(UserWarning, match="metric 'zero' is 0.0000 in the clean and the corrupted run"):
        found = FUNCTIONS[kind](model, task, metric={"zero": zero, "own": own}, control="reinitialized")
    torch.testing.assert_close(found["own"].values, FUNCTIONS[kind](model, task).values)
    of_zero = found["zero"].values  # zero where no path leads
    assert bool(of_zero.isnan().any()) and not of_zero.nan_to_num().any() and "own" in str(found)
    assert not found["zero"].significant().any() and len(found.to_frame()) == 2 * len(found["own"].to_frame())
    changes = FUNCTIONS[kind](model, task, metric={"zero": zero, "own": own}, scale="metric")
    assert float(changes["zero"].values.abs().max()) < 1e-6
    with pytest.raises(InvalidInputError, match="nothing can be broken"):
        FUNCTIONS[kind](model, task, metric=zero)


def test_a_token_that_is_never_given_adds_nothing_to_a_divergence(task: Task) -> None:
    logits = torch.randn(4, N, 23, generator=torch.Generator().manual_seed(0))
    logits[:, :, 3] = -torch.inf
    reference = torch.randn(N, 23, generator=torch.Generator().manual_seed(1))
    reference[:, 3] = -torch.inf
    metric = KLMetric(reference.log_softmax(-1), task.positions)
    others = [token for token in range(23) if token != 3]
    wanted = KLMetric(reference[:, others].log_softmax(-1), task.positions).of_logits(logits[..., others])
    torch.testing.assert_close(metric.of_logits(logits), wanted)
    logits.requires_grad_()
    metric.of_logits(logits).sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
    whole = torch.randn(N, 23, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    assert bool(KLMetric(whole, task.positions).of_logits(logits.detach()).isposinf().all())


def test_divergences_of_a_model_without_some_tokens(task: Task) -> None:
    model = tiny_model()
    model.unembed.b_U.data[3] = -torch.inf
    found = activation_patch(model, task, "z", metric="kl", scale="metric", progress=False)
    assert bool(found.values.isfinite().all()) and float(found.values.abs().max()) > 0


@every_function
def test_batches_and_hooks_do_not_matter(kind: str, model: HookedTransformer, set_budget: SetBudget) -> None:
    task = random_task()
    options = {"metric": names_of(kind), "scale": "metric"}
    whole = FUNCTIONS[kind](model, task, **options)
    set_budget(batch_tokens=2 * LENGTH, backward_tokens=2 * LENGTH, work_bytes=4096)
    parts = FUNCTIONS[kind](model, task, **options)
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda value, hook: value)]):
        hooked = FUNCTIONS[kind](model, task, **options)
    for other in (parts, hooked):
        for name in whole:
            torch.testing.assert_close(other[name].per_prompt, whole[name].per_prompt, atol=1e-6, rtol=1e-6)


def test_metrics_equal_their_definitions(model: HookedTransformer, task: Task) -> None:
    with torch.no_grad():
        clean, other = model(task.clean_tokens)[:, -1], model(task.corrupted_tokens)
        read = other[:, -1]
    probabilities = read.softmax(-1)
    for row in range(N):
        right = set(task.correct[row].tolist())
        wanted = {
            "probability": sum(float(probabilities[row, token]) for token in right),
            "rank": sum(float(read[row, token]) > max(float(read[row, at]) for at in right) for token in range(23)),
            "kl": float((clean[row].softmax(-1) * (clean[row].log_softmax(-1) - read[row].log_softmax(-1))).sum()),
            "logit_difference": float(task.logit_difference(other, per_prompt=True)[row]),
        }
        for name, number in wanted.items():
            metric = as_metric(model, task, name)
            assert float(metric.each(other)[row]) == pytest.approx(number, abs=1e-9), name  # type: ignore[union-attr]
    several: Any = as_metric(model, task, NAMES)
    with torch.no_grad():
        states = torch.stack(
            [model(tokens, stop_at_layer=2)[:, -1] for tokens in (task.clean_tokens, task.corrupted_tokens)]
        )  # type: ignore[arg-type]
        both = several.of_prompts(model, states)
        torch.testing.assert_close(both[1], several.each(other))
        torch.testing.assert_close(both[:, [2, 4]], several.of_rows([2, 4]).of_prompts(model, states[:, [2, 4]]))
        for at, metric in enumerate(several.metrics.values()):
            torch.testing.assert_close(metric.of_states(model, states), both[..., at].mean(1), check_dtype=False)
    assert float(both[0, :, 2].abs().max()) < 1e-9  # the clean run is no way from itself


def test_a_right_answer_that_is_given_twice_counts_once() -> None:
    logits = torch.tensor([[[1.0, 2.0, 0.5, 0.0]]])
    once = ProbabilityMetric(torch.tensor([[1]]), torch.tensor([0]))
    twice = ProbabilityMetric(torch.tensor([[1, 1]]), torch.tensor([0]))
    assert float(once(logits)) == float(twice(logits)) < 1
    assert float(RankMetric(torch.tensor([[2, 0]]), torch.tensor([0]))(logits)) == 1


def test_errors_and_tests_are_those_of_the_rows(model: HookedTransformer, task: Task, tmp_path: Path) -> None:
    found = activation_patch(model, task, ["z", "k"], progress=False)
    assert found.per_prompt is not None
    rows = found.per_prompt.double()
    torch.testing.assert_close(found.errors.double(), rows.std(0) / math.sqrt(N), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.p_values(), p_values(rows), atol=1e-4, rtol=1e-3)
    for correction in ("max", "holm", "bh"):
        assert torch.equal(found.significant(correction, level=0.3), adjusted(rows, correction) <= 0.3)  # type: ignore[arg-type]
    low, high = found.interval()
    assert bool((low <= found.values + 1e-6).all() and (found.values <= high + 1e-6).all())
    torch.testing.assert_close(found.interval(by="k")[0], found.of_site("k", low))
    assert torch.equal(found.by_prompt("k"), found.of_site("k", found.per_prompt))
    assert found.significant(by="k").shape == found["k"].shape
    frame = found.to_frame()
    assert frame.error.tolist() == found.errors.tolist() and frame.significant.tolist() == found.significant().tolist()
    assert frame.low.tolist() == low.tolist()
    best = found.top(1)[0]
    assert best.error == pytest.approx(float(found.errors[found.values.abs().argmax()]))
    assert "±" in str(found.top(3)) and "stand" in str(found)
    again = type(found).load(found.save(tmp_path / "patches.safetensors"))
    assert again.per_prompt is not None and torch.equal(again.per_prompt, found.per_prompt)
    for correction, said in (
        ("max", "largest of 12"),
        ("holm", "Holm over 12"),
        ("bh", "12 cells, 5% false"),
        ("none", "by itself"),
    ):
        assert said in found.rule(correction)  # type: ignore[arg-type]


def test_a_metric_of_ones_own_has_no_rows(model: HookedTransformer, task: Task) -> None:
    for function in FUNCTIONS.values():
        found = function(model, task, metric=lambda logits: logits[:, -1, 3].mean())
        assert found.per_prompt is None and not found.has_rows
        assert "error" not in found.to_frame() and "±" not in str(found.top(1))
        with pytest.raises(InvalidInputError, match="single prompts"):
            found.errors  # noqa: B018
        with pytest.raises(InvalidInputError, match="single prompts"):
            found.significant()


def test_rows_of_too_many_numbers_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, model: HookedTransformer, task: Task
) -> None:
    kept = {kind: function(model, task) for kind, function in FUNCTIONS.items()}
    monkeypatch.setattr(measured, "MOST_BYTES", 27)
    for kind, function in FUNCTIONS.items():
        found = function(model, task)
        assert found.per_prompt is None
        torch.testing.assert_close(found.values, kept[kind].values, atol=1e-6, rtol=1e-6)


def test_too_few_prompts_are_said_to_be(model: HookedTransformer, task: Task) -> None:
    few = path_patch_sweep(model, task[:5], receivers="final", progress=False)
    assert few.has_rows and not few.is_judged and "5 prompts are too few" in str(few)
    single = activation_patch(model, task[:1], "z", progress=False)
    assert not single.has_rows and bool(single.errors.isnan().all()) and "error" not in single.to_frame()


def test_attributions_have_errors() -> None:
    model = tiny_model()
    found = attribute(model, random_task(9), progress=False)
    rows = found.heads_and_mlps.double()
    torch.testing.assert_close(found.errors.double(), rows.std(0) / 3, atol=1e-9, rtol=1e-9)
    assert found.significant().shape == rows.shape[1:]
    torch.testing.assert_close(found.p_values(by="components"), p_values(found.components))
    frame = found.to_frame()
    assert len(frame.error) == len(found.component_labels)
    best = found.top(1)[0]
    assert best.head is not None and best.error == pytest.approx(float(found.errors[best.layer, best.head]))
    with pytest.raises(InvalidInputError, match="no values of single prompts"):
        found.by_prompt("neurons")


@pytest.mark.parametrize(
    "asked, error, said",
    [
        ("accuracy", UnknownNameError, "Unknown metric"),
        ([], InvalidInputError, "no metric is named"),
        ({"mine": lambda logits: logits.mean()}, InvalidInputError, "'mine' has one for all"),
    ],
)
def test_metrics_that_cannot_be_measured_are_refused(
    asked: Any, error: type[Exception], said: str, model: HookedTransformer, task: Task
) -> None:
    with pytest.raises(error, match=said):
        activation_patch(model, task, "z", metric=asked, progress=False)
    elsewhere = AnswerMetric(task.correct, task.incorrect, task.positions - 1)
    with pytest.raises(InvalidInputError, match="read the same positions"):
        as_metric(model, task, {"a": "kl", "b": elsewhere})
    with pytest.raises(InvalidInputError, match="every estimate would be 0"):
        attribution_patch(model, task, "z", metric="kl", direction="noising", progress=False)
    with pytest.raises(InvalidInputError, match="rank has no gradient"):
        attribution_patch(model, task, "z", metric=["kl", "rank"], progress=False)


# Controls


@every_function
def test_controls_stand_beside_an_unchanged_finding(
    kind: str, model: HookedTransformer, task: Task, tmp_path: Path
) -> None:
    bare = FUNCTIONS[kind](model, task)
    for control in ("reinitialized", "shuffled_answers", "norm_matched"):
        found = FUNCTIONS[kind](model, task, control=control, seed=3)
        assert torch.equal(found.values, bare.values) and torch.equal(found.per_prompt, bare.per_prompt)
        assert found.control == control and found.control_values.shape == found.values.shape
        assert float((found.control_values - found.values).nan_to_num().abs().max()) > 1e-4
        torch.testing.assert_close(found.of_control().by_prompt().mean(0), found.control_values, atol=1e-6, rtol=1e-5)
        assert f"control, {control.replace('_', ' ')}" in str(found) and "control" in found.to_frame()
        same = FUNCTIONS[kind](model, task, control=control, seed=3)
        assert torch.equal(same.control_values, found.control_values)
        again = type(found).load(found.save(tmp_path / f"{control}.safetensors"))
        assert torch.equal(again.of_control().values, found.control_values)
    with pytest.raises(InvalidInputError, match="no control was measured"):
        bare.of_control()


@pytest.mark.parametrize("control", ["reinitialized", "shuffled_answers"])
def test_direct_effects_stand_beside_those_of_a_control(
    control: Any, model: HookedTransformer, tmp_path: Path, set_budget: SetBudget
) -> None:
    task = dataclasses.replace(random_task(9), labels=("odd", "even") * 4 + ("odd",))
    bare = attribute(model, task, progress=False)
    measured = (reinitialized(model, 3), task) if control == "reinitialized" else (model, shuffled_answers(task, 3))
    alone = attribute(*measured, sources=False, neurons=False, progress=False)
    set_budget(batch_tokens=2 * LENGTH)
    found = attribute(model, task, control=control, seed=3, progress=False)
    beside = found.of_control()
    for name in ("components", "accumulated", "logit_difference", "sources", "neurons"):
        torch.testing.assert_close(getattr(found, name), getattr(bare, name), check_dtype=True)
    for name in ("components", "accumulated", "logit_difference"):
        torch.testing.assert_close(getattr(beside, name), getattr(alone, name))
    assert beside.sources is None and beside.neurons is None and not beside.control
    assert f"control, {control.replace('_', ' ')}: {alone.top(3).line(errors=True)}" in str(found)
    column = torch.tensor(found.to_frame().control.tolist(), dtype=torch.float64)
    torch.testing.assert_close(column, alone.components.mean(0))
    torch.testing.assert_close(found.only("even").of_control().components, alone.components[1::2])
    again = type(found).load(found.save(tmp_path / "attribution.safetensors"))
    assert str(again) == str(found) and str(again.of_control()) == str(beside)


def test_a_control_goes_on_with_the_run_in_a_folder(model: HookedTransformer, task: Task, tmp_path: Path) -> None:
    out = tmp_path / "run"
    found = attribute(model, task, control="shuffled_answers", out=out, progress=False)
    again = attribute(model, task, control="shuffled_answers", out=out, resume=True, progress=False)
    assert again.control_components is not None and found.control_components is not None
    assert torch.equal(again.control_components, found.control_components)
    for other in ({}, {"control": "reinitialized"}, {"control": "shuffled_answers", "seed": 1}):
        with pytest.raises(InvalidInputError, match="control|seed"):
            attribute(model, task, out=out, resume=True, progress=False, **other)
    with pytest.raises(InvalidInputError, match="attribution patches none"):
        attribute(model, task, control="norm_matched", progress=False)


@pytest.mark.parametrize("kind", ["activation", "attribution", "sweep"])
def test_a_reinitialized_model_is_measured_in_the_findings_scale(
    kind: str, model: HookedTransformer, task: Task
) -> None:
    found = FUNCTIONS[kind](model, task, control="reinitialized", seed=1)
    other = FUNCTIONS[kind](reinitialized(model, 1), task, scale="metric")
    gap = float(found.clean) - float(found.corrupted)
    torch.testing.assert_close(found.control_values, other.values / gap, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["activation", "attribution", "sweep"])
def test_shuffled_answers_are_measured_in_the_findings_scale(kind: str, model: HookedTransformer, task: Task) -> None:
    found = FUNCTIONS[kind](model, task, control="shuffled_answers", metric=["probability", "logit_difference"])
    other = FUNCTIONS[kind](model, shuffled_answers(task), scale="metric", metric="probability")
    result = found["probability"]
    gap = float(result.clean) - float(result.corrupted)
    torch.testing.assert_close(result.control_values, other.values / gap, atol=1e-6, rtol=1e-5)


def test_no_prompt_keeps_its_answers() -> None:
    task = random_task(9)
    shuffled = shuffled_answers(task, 4)
    assert sorted(shuffled.correct[:, 0].tolist()) == sorted(task.correct[:, 0].tolist())
    before, after = (torch.cat([each.correct, each.incorrect], 1) for each in (task, shuffled))
    assert sorted(before.tolist()) == sorted(after.tolist())
    assert not bool((before == after).all(1).any())


def test_random_ways_are_as_long_as_true_ones(model: HookedTransformer, task: Task) -> None:
    way = torch.randn(3, 4, 5)
    way[0, 0] = 0
    found = RandomWay(2).instead_of(way)
    torch.testing.assert_close(found.norm(dim=-1), way.norm(dim=-1))
    assert not torch.allclose(found[1], way[1])
    # A patch of the last layer's stream where it is read moves the state as far as the truth does.
    moved = activation_patch(model, task, "resid_post", positions="end", control="norm_matched", progress=False)
    assert moved.control_values is not None
    assert float(moved.values[-1]) == pytest.approx(1.0, abs=1e-5) and abs(float(moved.control_values[-1])) < 0.9


@pytest.mark.parametrize(
    "options, said",
    [
        ({"control": "norm_matched", "sites": "pattern"}, "no distribution"),
        ({"control": "shuffled_answers", "metric": "kl"}, "read the task's answers"),
        ({"control": "shuffled_answers", "metric": lambda logits: logits.mean()}, "read the task's answers"),
    ],
)
def test_controls_that_make_no_sense_are_refused(
    options: dict[str, Any], said: str, model: HookedTransformer, task: Task
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        activation_patch(model, task, **{"sites": "z", **options}, progress=False)
    alike = dataclasses.replace(
        task, correct=task.correct[:1].expand(N, -1), incorrect=task.incorrect[:1].expand(N, -1)
    )
    with pytest.raises(InvalidInputError, match="are alike"):
        activation_patch(model, alike, "z", control="shuffled_answers", progress=False)


def test_the_clean_run_is_run_in_batches_for_kl(model: HookedTransformer, set_budget: SetBudget) -> None:
    task = random_task()
    whole = KLMetric.of(model, task)
    set_budget(batch_tokens=2 * LENGTH)
    torch.testing.assert_close(KLMetric.of(model, task).reference, whole.reference)
