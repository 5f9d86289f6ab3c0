"""Faithfulness of circuits: known circuits keep all of it, the formulas are those of the papers, written out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from name_moving_model import name_moving_model, name_task
from three_passes import random_task
from tiny import tiny_model

from headscope import HookedTransformer
from headscope.analysis.circuits.circuit import find_circuit
from headscope.analysis.circuits.edge_runs import CircuitRuns
from headscope.analysis.circuits.edges import edge_attribution
from headscope.analysis.circuits.faithfulness import SHARES, circuit_faithfulness
from headscope.analysis.circuits.faithfulness_result import Faithfulness
from headscope.analysis.circuits.node_runs import NodeRuns
from headscope.analysis.patching.ablation import ablate_components
from headscope.analysis.patching.activation import activation_patch
from headscope.analysis.patching.path import path_patch_sweep
from headscope.analysis.prompts.metrics import NumberMetric
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError, UnknownNameError

COMPILED = Path(__file__).parents[4] / "shared" / "models"
PROGRAMS = ("duplicates", "frac-prevs", "hist", "induction", "previous-token", "sort-unique")
QUIET: dict[str, Any] = {"progress": False}


@pytest.mark.parametrize("program", PROGRAMS)
def test_compiled_circuits_keep_all_and_need_each_part(program: str) -> None:
    folder = COMPILED / f"tracr-{program}"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder.name} beside the checkout")
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    flags = {"fold_ln": False, "center_writing_weights": False, "center_unembed": False, "fold_value_biases": False}
    model = HookedTransformer.from_pretrained(folder, **flags)
    examples = truth["examples"]
    clean, corrupted = (torch.tensor([each[name] for each in examples]) for name in ("clean", "corrupted"))
    at = torch.tensor([each["position"] for each in examples])
    right, wrong = (
        torch.tensor([each[name][each["position"]] for each in examples]) for name in ("output", "corrupted_output")
    )
    if truth["output"] == "numerical":
        task = Task.from_tokens(clean, corrupted, metric=NumberMetric.between(right, wrong, at))
    else:
        task = Task.from_tokens(clean, corrupted, correct=right.long(), incorrect=wrong.long(), positions=at)
    true = [name.replace("MLP ", "mlp") for name in truth["roles"]]
    options: dict[str, Any] = {"keep_mlps": False, "controls": 0, **QUIET}
    found = circuit_faithfulness(model, task, true, **options)
    assert float(found.faithfulness) == pytest.approx(1.0, abs=1e-4)
    for part in true:
        without = circuit_faithfulness(model, task, [each for each in true if each != part], **options)
        assert float(without.faithfulness) < 0.75, part
    idle = [name.replace("MLP ", "mlp") for name in truth["idle"]]
    assert abs(float(circuit_faithfulness(model, task, idle, **options).faithfulness)) < 0.75


def test_a_model_set_by_hand_needs_its_heads() -> None:
    """Mover +12, negative -4 of a gap of 8: without the negative mover half as much again is left."""
    model, task = name_moving_model(), name_task(12)
    true = ["0.0", "1.0", "2.0", "2.1"]
    found = circuit_faithfulness(model, task, true, sizes=[0, 1, 2, 3, 4], **QUIET)
    assert found.faithfulness.tolist() == pytest.approx([0.0, 0.0, 0.0, 1.5, 1.0], abs=0.03)
    assert found.right is not None and found.right.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0] and found.whole_right == 1.0
    circuit = find_circuit(model, task, max_receivers=4, **QUIET)
    for level in ("nodes", "edges"):
        assert float(circuit_faithfulness(model, task, circuit, level=level, controls=0, **QUIET).faithfulness) > 0.9


def test_numbers_are_the_formulas() -> None:
    model, task = tiny_model(n_layers=3), random_task((6, 4, 5, 6, 6, 5, 6))
    scores = torch.linspace(-1, 2, 12).reshape(3, 4)[:, torch.tensor([2, 0, 3, 1])]
    found = circuit_faithfulness(model, task, scores, keep_mlps=False, controls=2, seed=5, **QUIET)
    counts = [int(share * 12) for share in SHARES]
    assert found.sizes.tolist() == counts and found.shares.tolist() == pytest.approx(list(SHARES))
    labels = ["0.0", "0.1", "0.2", "mlp0", "1.0", "1.1", "1.2", "mlp1", "2.0", "2.1", "2.2", "mlp2"]
    values = dict(zip(labels, scores.flatten().tolist(), strict=True))
    order = sorted(labels, key=lambda name: -abs(values[name]))
    assert list(found.ranking) == order
    runs = NodeRuns(model, task, keep_mlps=False)
    kept = torch.tensor([[part in order[:count] for part in runs.parts] for count in counts])
    each = runs.values(kept)
    torch.testing.assert_close(found.per_prompt, each)
    clean, corrupted = (
        task.logit_difference(model(tokens, attention_mask=task.attention_mask), per_prompt=True).detach()
        for tokens in (task.clean_tokens, task.corrupted_tokens)
    )
    wanted = (each.mean(1) - corrupted.mean()) / (clean.mean() - corrupted.mean())
    torch.testing.assert_close(found.faithfulness, wanted)
    assert wanted[-1] == 1 and float(wanted.std()) > 0.1

    def areas(heights: list[float]) -> tuple[float, float]:
        cpr = cmd = 0.0
        for low, high, a, b in zip(SHARES, SHARES[1:], heights, heights[1:], strict=False):
            cpr += (high - low) * (a + b) / 2
            cmd += (high - low) * (abs(1 - a) + abs(1 - b)) / 2
        return cpr, cmd

    assert (found.cpr.value, found.cmd.value) == pytest.approx(areas(wanted.tolist()))
    # Errors to first order are those of leaving out one prompt at a time, but for terms of the next order.
    leave = [[row for row in range(7) if row != out] for out in range(7)]
    without = torch.stack(
        [
            (each[:, rows].mean(1) - corrupted[rows].mean()) / (clean[rows].mean() - corrupted[rows].mean())
            for rows in leave
        ]
    )
    jackknife = ((without - without.mean(0)).square().sum(0) * 6 / 7).sqrt()
    middle = slice(6, 9)
    torch.testing.assert_close(found.errors[middle], jackknife[middle], rtol=0.6, atol=0)
    assert float(found.errors[-1]) < 1e-12
    again = torch.Generator().manual_seed(5)
    random = [torch.randperm(12, generator=again) for _ in range(2)]
    masks = torch.stack([torch.isin(torch.arange(12), random[0][:count]) for count in counts])
    assert found.random is not None
    torch.testing.assert_close(found.random[0], runs.values(masks).mean(1))
    assert found.control is not None and found.control.shape == (10,)
    upwards = circuit_faithfulness(model, task, scores, keep_mlps=False, absolute=False, controls=0, **QUIET)
    assert list(upwards.ranking) == sorted(labels, key=lambda name: -values[name]) and upwards.control is None


def test_results_of_noising_and_ablation_are_ranked_for_the_answer() -> None:
    """Half the edges of a random model work against the answer: by value those that work for it come first."""
    model, task = tiny_model(n_layers=2), random_task((6, 4, 5, 6), seed=3)
    options: dict[str, Any] = {"controls": 0, "sizes": [0, 5], "absolute": False, **QUIET}
    for direction in ("noising", "denoising"):
        found = edge_attribution(model, task, direction=direction, scale="metric", progress=False)
        kept = circuit_faithfulness(model, task, found, **options)
        graph = CircuitRuns(model, task).graph
        assert set(kept.parts_of(5)) == set(graph.labels_of(found.strongest(5, magnitude=False)))
        scores = dict(zip(found.edge_labels, found.values[found.allowed].tolist(), strict=True))
        signs = {scores[part] > 0 for part in kept.parts_of(5)}
        assert signs == {direction == "denoising"}
    for sweep in (
        ablate_components(model, task, values=("zero",), **QUIET),
        path_patch_sweep(model, task, receivers="final", senders="heads", direction="noising", **QUIET),
    ):
        kept = circuit_faithfulness(model, task, sweep, **{**options, "sizes": [1]})
        lowest = sweep.top(1, largest=False)[0]
        assert kept.ranking[0] == lowest.label and lowest.value < 0 and sweep.answer_sign == -1
    assert activation_patch(model, task, "z", positions="end", direction="noising", **QUIET).answer_sign == -1
    reversed_task = random_task((6, 4, 5, 6), seed=1)  # the model does better on its corrupted prompts
    found = edge_attribution(model, reversed_task, progress=False)
    with pytest.raises(InvalidInputError, match="lower on the clean prompts"):
        circuit_faithfulness(model, reversed_task, found, **options)


@pytest.mark.parametrize("ablation", ["patch", "mean"])
def test_edges_among_nodes_are_the_circuit_of_the_nodes(ablation: str) -> None:
    model, task = tiny_model(n_layers=3), random_task()
    nodes = ["0.1", "1.0", "mlp1", "2.2"]
    options: dict[str, Any] = {"ablation": ablation, "controls": 1, **QUIET}
    of_nodes = circuit_faithfulness(model, task, nodes, keep_mlps=False, **options)
    graph = CircuitRuns(model, task).graph
    edges = graph.labels_of(graph.of_nodes(nodes))
    of_edges = circuit_faithfulness(model, task, edges, **options)
    assert of_edges.level == "edges" and of_edges.n_parts == graph.n_edges
    if ablation == "patch":
        torch.testing.assert_close(of_edges.per_prompt, of_nodes.per_prompt, rtol=0, atol=1e-10)
    curve = circuit_faithfulness(model, task, dict.fromkeys(graph.labels_of(graph.allowed), 1.0), **options)
    assert curve.faithfulness[[0, -1]].tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("ablation", ["patch", "mean", "zero"])
def test_nothing_and_the_empty_circuit(ablation: Any) -> None:
    """MLPs see the clean embedding, and answer by it; of means and zeros that is where faithfulness begins."""
    model, task = tiny_model(n_layers=2), random_task((6, 4, 5, 6), seed=3)
    for keep_mlps in (True, False):
        options: dict[str, Any] = {"sizes": [0, 1], "ablation": ablation, "keep_mlps": keep_mlps, **QUIET}
        found = circuit_faithfulness(model, task, ["0.1"], controls=0, **options)
        assert found.kept_by_none == pytest.approx(float(found.faithfulness[0]), abs=1e-9)
        assert found.per_prompt is not None
        torch.testing.assert_close(found.empty, found.per_prompt[0], rtol=0, atol=1e-12)
        if ablation != "patch":
            assert abs(float(found.faithfulness[0])) < 1e-9 and "on the corrupted prompts" not in str(found)
            continue
        corrupted = model(task.corrupted_tokens, attention_mask=task.attention_mask).detach()
        torch.testing.assert_close(found.nothing, task.logit_difference(corrupted, per_prompt=True))
        parts = "6 heads" if keep_mlps else "8 heads and MLPs"
        empty = (
            f"{float(found.empty.mean()):+.3f} (keeps {float(found.faithfulness[0]):.1%}) without any of its {parts}"
        )
        assert "on the corrupted prompts; " + empty in str(found) and abs(float(found.faithfulness[0])) > 0.01


def test_areas_are_named_for_what_they_are() -> None:
    model, task = tiny_model(n_layers=2), random_task()
    graph = CircuitRuns(model, task).graph
    edges = dict.fromkeys(graph.labels_of(graph.allowed), 1.0)
    nodes = dict.fromkeys(["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"], 1.0)
    shown = [
        str(circuit_faithfulness(model, task, scores, controls=0, **sizes, **QUIET)).splitlines()[-1]
        for scores, sizes in ((edges, {}), (edges, {"sizes": [0.5, 1.0]}), (nodes, {}), (nodes, {"sizes": [1, 3]}))
    ]
    assert shown[0].startswith("  CPR") and "over these" not in shown[0]
    assert shown[1].endswith("over these shares of edges") and shown[2].endswith("over these shares of heads")
    assert shown[3].startswith("  3 heads (50.0%): keeps ") and " 1 head (16.7%)" not in shown[3]


def test_results_are_read_saved_and_printed(tmp_path: Path) -> None:
    model, task = name_moving_model(), name_task(8)
    found = circuit_faithfulness(model, task, {"0.0": 3.0, (1, 0): 2.0, "2.0": 1.5}, sizes=[1, 3], **QUIET)
    again = Faithfulness.load(found.save(tmp_path / "faithfulness.safetensors"))
    assert str(again) == str(found) and again.ranking == ("0.0", "1.0", "2.0") == found.parts_of(3)
    assert (
        "\n  3 heads (37.5%): keeps 150.0% ± 0.0%, +8.000 logits" in str(found)
        and "\n  1 head (" in str(found)
        and "right in 100% of prompts" in str(found)
    )
    assert found.to_frame().columns.tolist() == [
        "size", "share", "faithfulness", "error", "metric", "right", "random",
    ]  # fmt: skip
    one = circuit_faithfulness(model, task, ["2.0"], controls=0, **QUIET)
    assert one.sizes.tolist() == [1] and one.cpr.value != one.cpr.value and "CPR" not in str(one)
    own = circuit_faithfulness(
        model, task, ["2.0"], metric=lambda logits: task.logit_difference(logits), controls=0, **QUIET
    )
    assert own.per_prompt is None and own.right is None and bool(own.errors.isnan().all())
    torch.testing.assert_close(own.faithfulness, one.faithfulness, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("circuit", "options", "message"),
    [
        (["9.9"], {}, "9.9"),
        (["0.0", "0.0"], {}, "named twice"),
        ("0.0", {}, "a list of parts"),
        (["0.0"], {"sizes": [2]}, "only 1 of 8 are ranked"),
        (["0.0"], {"sizes": [9]}, "a number of parts up to 8"),
        (["0.0", "1.0"], {"sizes": [2, 1]}, "sizes grow"),
        (["0.0"], {"controls": -1}, "0 or more"),
        (torch.zeros(2, 2), {}, "scores of components are"),
        (["0.0 -> 0.1.q"], {}, "0.0 -> 0.1.q"),
    ],
)
def test_bad_circuits(circuit: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidInputError, UnknownNameError), match=message):
        circuit_faithfulness(name_moving_model(), name_task(4), circuit, **options, **QUIET)


def test_tasks_that_nothing_can_be_kept_of() -> None:
    task = name_task(4)
    alike = Task.from_tokens(task.clean_tokens, task.clean_tokens, correct=task.correct, incorrect=task.incorrect)
    with pytest.raises(InvalidInputError, match="nothing can be broken"):
        circuit_faithfulness(name_moving_model(), alike, ["0.0"], **QUIET)
    with pytest.raises(InvalidInputError, match="corrupted"):
        circuit_faithfulness(name_moving_model(), name_task(4, corrupted=False), ["0.0"], **QUIET)
