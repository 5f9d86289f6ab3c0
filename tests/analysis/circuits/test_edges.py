"""Edge attribution against autograd through a copy of the stream for every reader, and what it must sum to."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from edges_by_hand import SHAPES, EdgesByHand, three_layers
from families_table import VOCABULARY, hf_model
from sizes import SetBudget
from three_passes import random_task
from tiny import tiny_model
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis.circuits import edges_result
from headscope.analysis.circuits.edge_patching import edge_patch
from headscope.analysis.circuits.edge_runs import CircuitRuns
from headscope.analysis.circuits.edges import edge_attribution
from headscope.analysis.circuits.edges_result import EdgeAttributionResult, EdgeResult
from headscope.analysis.circuits.faithfulness import circuit_faithfulness
from headscope.analysis.circuits.graph import Graph
from headscope.analysis.core.bootstrap import bootstrap_interval
from headscope.analysis.core.significance import adjusted, p_values
from headscope.analysis.patching.path import path_patch
from headscope.analysis.prompts.controls import RandomWay, reinitialized, shuffled_answers
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError
from headscope.views.figures.circuit import circuit_picture

OPTIONS: dict[str, Any] = {"scale": "metric", "progress": False}


def each_of(found: EdgeAttributionResult) -> Tensor:
    """Scores `[sender, receiver, prompt]`."""
    assert found.per_prompt is not None
    each = torch.full((*found.values.shape, found.per_prompt.shape[-1]), torch.nan, dtype=found.per_prompt.dtype)
    each[found.allowed] = found.per_prompt
    return each


def labels_of(found: EdgeResult) -> list[Any]:
    return list(found.array(found.ranked[0]).labels["edge"])


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_are_changes_along_gradients_at_inputs_of_readers(shape: str) -> None:
    model = three_layers(shape)
    task = random_task(pad_left=shape == "grouped, rotary")
    by_hand = EdgesByHand(model, task)
    several = (("eap", 1, [0.0]), ("eap_ig", 2, [0.25, 0.75]), ("clean_corrupted", 1, [0.0, 1.0]))
    for method, steps, points in several if shape == "mlps" else several[:1]:
        found = edge_attribution(model, task, method, steps=steps, **OPTIONS)
        expected = by_hand.attribution(points)
        torch.testing.assert_close(each_of(found), expected, atol=1e-11, rtol=1e-8, equal_nan=True)
        torch.testing.assert_close(found.values, expected.mean(-1), atol=1e-11, rtol=1e-8, equal_nan=True)
        error = expected.std(-1) / len(task) ** 0.5
        torch.testing.assert_close(found.errors, error, atol=1e-11, rtol=1e-8, equal_nan=True)
        assert torch.equal(found.allowed, by_hand.graph.allowed)


@pytest.mark.parametrize("shape", ["mlps", "attn_only", "grouped, rotary", "parallel", "norms behind"])
def test_integrated_gradients_sum_to_what_patching_changes(shape: str) -> None:
    """Out of the embedding, to the difference of both runs; out of a layer's heads or its MLP, to that of a patch."""
    model, task = three_layers(shape), random_task()
    runs = CircuitRuns(model, task)
    everything = runs.measure(runs.graph.allowed)
    errors = []
    for steps in (4, 32):
        found = each_of(edge_attribution(model, task, "eap_ig", steps=steps, **OPTIONS))
        change = runs.measure(runs.graph.allowed & False) - everything
        errors.append((found[0].nansum(0) - change).abs())
    # Of one prompt of the grouped model the embeddings' line passes near zero, where a norm bends sharply.
    assert (
        errors[1].median() < (2e-2 if shape == "grouped, rotary" else 5e-3) and errors[1].max() < errors[0].max() / 5
    ), errors
    if shape not in ("mlps", "norms behind"):
        return
    found = each_of(edge_attribution(model, task, "eap_ig_activations", steps=10, **OPTIONS))
    for layer, part in ((0, "attn"), (1, "mlp"), (1, "attn"), (2, "attn")):
        group = runs.graph.writers(layer, part)
        if group.stop > group.start:
            without = runs.graph.allowed.clone()
            without[group] = False
            change = runs.measure(without) - everything
            torch.testing.assert_close(found[group].nansum((0, 1)), change, atol=1e-2, rtol=1e-2)
            assert change.abs().max() > 3e-2


@pytest.mark.parametrize("shape", ["mlps", "bidirectional", "shortformer, clipped"])
def test_positions_before_the_first_change_are_left_out(shape: str) -> None:
    model = three_layers(attention_dir="bidirectional") if shape == "bidirectional" else three_layers(shape)
    task = random_task((6, 6, 6))
    assert task.corrupted_tokens is not None
    same = torch.arange(6) < torch.tensor([3, 4, 4])[:, None]
    task = replace(task, corrupted_tokens=torch.where(same, task.clean_tokens, task.corrupted_tokens))
    for method, points in (("eap", [0.0]), ("eap_ig", [0.25, 0.75])):
        found = edge_attribution(model, task, method, steps=2, **OPTIONS)
        expected = EdgesByHand(model, task).attribution(points)
        torch.testing.assert_close(each_of(found), expected, atol=1e-11, rtol=1e-8, equal_nan=True)
    runs = CircuitRuns(model, task)
    group = runs.graph.writers(1, "attn")
    without = runs.graph.allowed.clone()
    without[group] = False
    change = runs.measure(without) - runs.measure(runs.graph.allowed)
    found = each_of(edge_attribution(model, task, "eap_ig_activations", steps=12, **OPTIONS))
    torch.testing.assert_close(found[group].nansum((0, 1)), change, atol=1e-2, rtol=2e-2)


def test_a_linear_model_is_attributed_exactly() -> None:
    """Without norms, MLPs linear and patterns that depend on nothing, one step is the true effect of every edge."""
    model = three_layers(normalization_type=None, act_fn="leaky_relu")
    for block in model.blocks:
        block.attn.W_Q.data.zero_()
        block.attn.b_Q.data.zero_()
        block.mlp.W_in.data.mul_(0.01)
        block.mlp.b_in.data.fill_(50.0)  # on the linear side of the bend
    task = random_task()
    runs = CircuitRuns(model, task)
    found = each_of(edge_attribution(model, task, "eap", **OPTIONS))
    whole = runs.measure(runs.graph.allowed)
    edges = runs.graph.allowed.nonzero().tolist()[::3]
    for sender, receiver in edges:
        without = runs.graph.allowed.clone()
        without[sender, receiver] = False
        torch.testing.assert_close(found[sender, receiver], runs.measure(without) - whole, atol=1e-10, rtol=1e-8)
    assert found.nan_to_num().abs().max() > 0.1
    for method in ("eap_ig", "eap_ig_activations", "clean_corrupted"):
        again = each_of(edge_attribution(model, task, method, steps=2, **OPTIONS))
        torch.testing.assert_close(again, found, equal_nan=True)


def test_mixers_have_edges() -> None:
    model = HookedTransformer.from_hf(hf_model("falcon_h1"), dtype="float64")
    task = random_task((3, 2), d_vocab=VOCABULARY)
    runs = CircuitRuns(model, task)
    change = runs.measure(runs.graph.allowed & False) - runs.measure(runs.graph.allowed)
    errors = []
    for steps in (2, 10):
        found = each_of(edge_attribution(model, task, "eap_ig", steps=steps, **OPTIONS))
        errors.append(float((found[0].nansum(0) - change).abs().max()))
    assert errors[1] < errors[0] / 5
    at = runs.graph.receiver_labels.index("mixer1")
    assert found[:, at].nan_to_num().abs().sum() > 1e-3


def test_directions_scales_and_batches(set_budget: SetBudget) -> None:
    model, task = three_layers(), random_task((6, 4, 5, 6, 3), pad_left=True)
    noising = edge_attribution(model, task, "eap_ig", **OPTIONS)
    denoising = edge_attribution(model, task, "eap_ig", direction="denoising", **OPTIONS)
    torch.testing.assert_close(denoising.values, -noising.values, equal_nan=True)
    share = edge_attribution(model, task, "eap_ig", progress=False)
    gap = float(share.clean - share.corrupted)
    torch.testing.assert_close(share.values * gap, noising.values, equal_nan=True)
    torch.testing.assert_close(share.errors * abs(gap), noising.errors, equal_nan=True)
    assert share.strongest(9).sum() == 9 and torch.equal(share.strongest(9), noising.strongest(9))
    for_answer = noising.strongest(5, magnitude=False)
    assert float(noising.values[for_answer].max()) <= float(noising.values[noising.allowed].sort().values[4])
    assert torch.equal(denoising.strongest(5, magnitude=False), for_answer)
    set_budget(batch_tokens=12, backward_tokens=12, kept_bytes=100)
    alone = edge_attribution(model, task, "eap_ig", **OPTIONS)
    assert alone.per_prompt is None
    torch.testing.assert_close(alone.values, noising.values, equal_nan=True)
    torch.testing.assert_close(alone.errors, noising.errors, equal_nan=True)


def test_a_metric_of_all_prompts() -> None:
    model, task = three_layers(), random_task((6, 6, 6))
    found = edge_attribution(model, task, "eap", metric=lambda logits: logits[:, -1, 3].square().mean(), **OPTIONS)
    by_hand = EdgesByHand(model, task).attribution([0.0], lambda logits: logits[:, -1, 3].square().mean())
    torch.testing.assert_close(found.values, by_hand.sum(-1), atol=1e-11, rtol=1e-8, equal_nan=True)
    assert found.per_prompt is None and bool(found.errors.isnan().all())
    with pytest.raises(InvalidInputError, match="metric has no gradient"):
        edge_attribution(model, task, "eap", metric=lambda logits: logits.detach().mean(), **OPTIONS)


def test_results_are_printed_saved_and_ranked(tmp_path: Path) -> None:
    model, task = three_layers(), random_task()
    found = edge_attribution(model, task, "eap_ig", progress=False)
    again = EdgeAttributionResult.load(found.save(tmp_path / "edges.safetensors"))
    assert str(again) == str(found) and "eap_ig, 5 steps; noising, share; 172 edges" in str(found)
    frame = found.to_frame()
    assert list(frame.columns) == ["sender", "receiver", "score", "error", "low", "high", "p_value", "significant"]
    assert len(frame) == 172
    strongest = frame.iloc[frame.score.abs().argmax()]
    assert found.top(1)[0].label == f"{strongest.sender} -> {strongest.receiver}"
    assert float(found.sel(edge="embed -> final")) == pytest.approx(float(found.values[0, -1]))
    with pytest.raises(InvalidInputError, match=r"there are 172 edges, and 173"):
        found.strongest(173)
    with pytest.raises(InvalidInputError, match="steps must be at least 1"):
        edge_attribution(model, task, steps=0)
    with model.hooks([("blocks.1.hook_mlp_out", lambda value, hook: 0 * value)]):
        with pytest.raises(InvalidInputError, match="hooks on"):
            edge_attribution(model, task)


@pytest.mark.parametrize("of_edges", [edge_attribution, partial(edge_patch, edges=["embed -> 1.0.q", "0.1 -> final"])])
def test_edges_have_intervals_and_stand_out(of_edges: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = tiny_model(attn_only=True), random_task((5,) * 9)
    found = of_edges(model, task, progress=False)
    rows, values = found.per_prompt.T, found.array(found.ranked[0]).values
    assert torch.equal(found.by_prompt(), rows) and len(labels_of(found)) == rows.shape[1]
    torch.testing.assert_close(found.array(found.declared()[found.ranked[0]].error).values, rows.std(0) / 3)
    torch.testing.assert_close(found.p_values(), p_values(rows))
    low, high = found.interval()
    torch.testing.assert_close(low, bootstrap_interval(rows)[0])
    assert bool((low <= values).all() and (values <= high).all())
    for correction in ("max", "holm", "bh"):
        assert torch.equal(found.significant(correction, level=0.2), adjusted(rows, correction) <= 0.2)
    labels = [label for label, clear in zip(labels_of(found), found.significant(), strict=True) if clear]
    assert list(found.findings()) == labels and f"{len(labels)} of " in str(found)
    frame = found.to_frame()
    assert frame.p_value.tolist() == adjusted(rows).tolist() and frame.low.tolist() == low.tolist()
    assert f"sign flips over 9 prompts; the largest of {rows.shape[1]} cells" in found.rule()
    monkeypatch.setattr(edges_result, "TOLD_NUMBERS", rows.numel() - 1)
    assert list(found.to_frame().columns) == list(frame.columns[: -len(["low", "high", "p_value", "significant"])])
    few = of_edges(model, task, metric=lambda logits: logits[:, -1, 3].mean(), progress=False)
    assert not few.has_rows and "p_value" not in few.to_frame()


@pytest.mark.parametrize("of_edges", [edge_attribution, partial(edge_patch, edges=["embed -> 1.0.q", "0.1 -> final"])])
def test_controls_are_in_the_scale_of_the_finding(of_edges: Callable[..., Any], tmp_path: Path) -> None:
    model, task = tiny_model(attn_only=True), random_task((5,) * 7)
    bare = of_edges(model, task, progress=False)
    gap = float(bare.clean - bare.corrupted)
    for control, asked in (
        ("reinitialized", (reinitialized(model, 3), task)),
        ("shuffled_answers", (model, shuffled_answers(task, 3))),
    ):
        found = of_edges(model, task, control=control, seed=3, progress=False)
        torch.testing.assert_close(found.values, bare.values, atol=0, rtol=0, equal_nan=True)
        alone, beside = of_edges(*asked, scale="metric", progress=False), found.of_control()
        order = [labels_of(beside).index(label) for label in labels_of(alone)]
        torch.testing.assert_close(beside.per_prompt[order], alone.per_prompt / gap)
        error = found.declared()[found.ranked[0]].error
        torch.testing.assert_close(beside.array(error).values[order], alone.array(error).values / abs(gap))
        control_column = torch.tensor(found.to_frame().control.tolist(), dtype=torch.float64)
        torch.testing.assert_close(control_column, beside.per_prompt.mean(1))
        assert f"control, {control.replace('_', ' ')}: {beside.top(3).line(errors=True)}" in str(found)
        again = type(found).load(found.save(tmp_path / "edges.safetensors"))
        assert str(again.of_control()) == str(beside) and not beside.control
    with pytest.raises(InvalidInputError, match="no control was measured"):
        bare.of_control()


def test_changes_of_the_same_length_go_along_the_same_gradients() -> None:
    model, task = three_layers("grouped, rotary"), random_task((6, 4, 5))
    by_hand = EdgesByHand(model, task)
    assert task.corrupted_tokens is not None
    clean, corrupted = by_hand.written(task.clean_tokens), by_hand.written(task.corrupted_tokens)
    changes = torch.stack([corrupted[label] - clean[label] for label in by_hand.graph.sender_labels], dim=1)
    moved = RandomWay(3).instead_of(changes)
    gradients = by_hand.gradients(clean["embed"], lambda logits: by_hand.scored(logits).sum())
    expected = torch.stack(
        [(moved * gradients[label][:, None]).sum((2, 3)).T for label in by_hand.graph.receiver_labels], dim=1
    )
    found = edge_attribution(model, task, "eap", control="norm_matched", seed=3, **OPTIONS)
    torch.testing.assert_close(each_of(found.of_control())[found.allowed], expected[found.allowed])


def test_the_strongest_edges_are_a_circuit() -> None:
    model, task = three_layers(), random_task()
    found = edge_attribution(model, task, "eap_ig", progress=False)
    circuit, graph = found.circuit(25), Graph.of(model.cfg)
    assert len(circuit.effects) == 25 and set(circuit.edge_labels) == set(graph.labels_of(found.strongest(25)))
    gap = float(found.clean - found.corrupted)
    for label, effect, error in zip(circuit.edge_labels, circuit.effects, circuit.errors, strict=True):
        at = graph.of_edges([label])
        assert float(effect) == pytest.approx(-gap * float(found.values[at]))
        assert float(error) == pytest.approx(abs(gap) * float(found.errors[at]))
    again = edge_attribution(model, task, "eap_ig", direction="denoising", scale="metric", progress=False).circuit(25)
    torch.testing.assert_close(again.effects, circuit.effects)
    options: dict[str, Any] = {"controls": 0, "progress": False}
    kept = circuit_faithfulness(model, task, circuit, level="edges", **options)
    torch.testing.assert_close(kept.metrics[0], CircuitRuns(model, task).measure(found.strongest(25)).mean())
    nodes = circuit_faithfulness(model, task, circuit, keep_mlps=False, **options).ranking
    assert len(nodes) == len(circuit.nodes) - 2
    by_score = circuit_faithfulness(model, task, found, sizes=[25], **options)
    torch.testing.assert_close(by_score.metrics, kept.metrics)
    assert circuit.nodes[0] == "embed" and circuit.groups[0] == "embed" and circuit.layers[0] == -1
    assert "embedding" in str(circuit_picture(circuit).layout.yaxis.ticktext)


def test_padding_of_either_run_changes_nothing() -> None:
    model, task = three_layers(), random_task((6, 4, 5))
    shorter = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]]).bool()
    task = replace(task, corrupted_mask=shorter)
    assert isinstance(task, Task)
    runs = CircuitRuns(model, task)
    clean = task.logit_difference(
        model(task.clean_tokens, attention_mask=task.attention_mask), per_prompt=True
    ).detach()
    torch.testing.assert_close(runs.measure(runs.graph.allowed), clean)
    # Nothing but the last token is read, and it is padding in the third prompt's corrupted run.
    kept = runs.graph.allowed.clone()
    kept[:, -1] = False
    assert float((runs.measure(kept) - clean)[2].abs()) < 1e-12 < float((runs.measure(kept) - clean)[0].abs())
    found = each_of(edge_attribution(model, task, "eap", **OPTIONS))
    assert float(found[:, -1, 2].abs().max()) == 0 < float(found[:, -1, 0].abs().max())


@pytest.mark.parametrize("shape", ["mlps", "grouped, rotary", "parallel"])
def test_patched_edges_are_runs_of_all_other_edges(shape: str) -> None:
    model, task = three_layers(shape), random_task()
    runs = CircuitRuns(model, task)
    whole = runs.measure(runs.graph.allowed)
    estimates = edge_attribution(model, task, "eap_ig", **OPTIONS)
    found = edge_patch(model, task, estimates, n=12, progress=False)
    assert found.per_prompt is not None and found.estimates is not None and len(set(found.edges)) == 12
    for edge, change, error, estimate in zip(found.edges, found.per_prompt, found.errors, found.estimates, strict=True):
        alone = runs.graph.of_edges([edge])
        expected = runs.measure(runs.graph.allowed & ~alone) - whole
        torch.testing.assert_close(change, expected, atol=1e-10, rtol=1e-8)
        assert float(error) == pytest.approx(float(expected.std() / 3**0.5))
        assert float(estimate) == float(estimates.values[alone]) and bool(estimates.strongest(12)[alone])
    assert found.compare().pearson == pytest.approx(
        float(torch.corrcoef(torch.stack([found.values, found.estimates]))[0, 1])
    )
    assert f"Pearson {found.compare().pearson:.3f}" in str(found) and found.to_frame().shape == (12, 9)


def test_edges_by_name_are_patched_in_either_direction() -> None:
    model, task = three_layers(), random_task()
    named = ["0.1 -> 1.2.k", "embed -> mlp0", "1.0 -> final"]
    found = edge_patch(model, task, named, direction="denoising", progress=False)
    assert set(found.edges) == set(named) and found.scale == "share" and "Pearson" not in str(found)
    for edge, value in zip(found.edges, found.values, strict=True):
        sender, receiver = edge.split(" -> ")
        assert float(value) == pytest.approx(float(path_patch(model, task, senders=sender, receivers=receiver)))
    with pytest.raises(InvalidInputError, match="named, not estimated first"):
        found.compare()
    with pytest.raises(InvalidInputError, match="no edges are named"):
        edge_patch(model, task, [], progress=False)
    estimates = edge_attribution(model, task, "eap", **OPTIONS)
    with pytest.raises(InvalidInputError, match="the estimates have scale='metric'"):
        edge_patch(model, task, estimates, scale="share", progress=False)
    with pytest.raises(InvalidInputError, match="of a model with other heads"):
        edge_patch(three_layers("attn_only"), task, estimates, progress=False)
