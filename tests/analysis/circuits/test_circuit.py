"""Circuits: a model set by hand has the paths it was given, and every effect is that of one path patched alone."""

from dataclasses import replace

import pytest
import torch
from name_moving_model import name_moving_model, name_task
from tiny import tiny_model

from headscope import HookedTransformer
from headscope.analysis.circuits.circuit import _halves, find_circuit
from headscope.analysis.circuits.circuit_result import Circuit
from headscope.analysis.circuits.edges import edge_attribution
from headscope.analysis.circuits.faithfulness import circuit_faithfulness
from headscope.analysis.circuits.node_runs import NodeRuns
from headscope.analysis.circuits.search import faithful_parts
from headscope.analysis.heads.types import detect_heads
from headscope.analysis.patching.path import path_patch
from headscope.analysis.prompts.named_metrics import ProbabilityMetric
from headscope.analysis.prompts.task import Task
from headscope.data.ioi import IOIDataset
from headscope.errors import InvalidInputError


@pytest.fixture(scope="module")
def by_hand() -> Circuit:
    model, task = name_moving_model(), name_task()
    types = detect_heads(model, task=task, length=10, progress=False)
    return find_circuit(model, task, types, progress=False)


def paths(circuit: Circuit) -> dict[tuple[str, str], float]:
    frame = circuit.to_frame()
    receivers = [f"{name}.{read}" if read else name for name, read in zip(frame.receiver, frame.input, strict=True)]
    return dict(zip(zip(frame.sender, receivers, strict=True), frame.effect.tolist(), strict=True))


def test_a_model_set_by_hand_has_its_paths_and_no_other(by_hand):
    """The mover writes 6 for one name or the other, the negative one 2 against it: 12 and -4 logits of difference."""
    found = paths(by_hand)
    wanted = {
        ("2.0", "final"): 12.0, ("2.1", "final"): -4.0, ("1.0", "2.0.q"): 12.0, ("1.0", "2.1.q"): -4.0,
        ("0.0", "1.0.v"): 8.0,
    }  # fmt: skip
    assert found.keys() == wanted.keys()
    for ends in (("2.0", "final"), ("2.1", "final")):
        assert found[ends] == pytest.approx(wanted[ends], abs=0.05)
    # Behind the movers the backup looks at what they write, so that paths into them change less.
    assert found["1.0", "2.0.q"] > 0 and found["0.0", "1.0.v"] == pytest.approx(8.0, abs=0.05)
    assert by_hand.nodes == ("0.0", "1.0", "2.0", "2.1", "final")
    assert by_hand.groups == ("duplicate_token", "s_inhibition", "name_mover", "negative_name_mover", "final")
    assert (by_hand.clean, by_hand.corrupted) == pytest.approx((4.0, -4.0), abs=0.05)
    assert by_hand.threshold == pytest.approx(0.24, abs=0.01) and by_hand.left_out == ()
    assert by_hand.kept == ("2.0", "0.0", "1.0", "2.1") and by_hand.held_out
    assert by_hand.node_effects is not None
    assert by_hand.node_effects[:4].tolist() == pytest.approx([8.0, 8.0, 12.0, -4.0], abs=0.1)
    found = by_hand.faithfulness
    assert found is not None and len(found.whole) == 20
    assert float(found.faithfulness[-1]) == pytest.approx(1.0, abs=0.01) and found.sizes.tolist() == [1, 2, 3, 4]
    alone = (
        "its 4 heads alone keep 100.0% ± 0.0% of clean less corrupted (+4.000, the whole model +4.000), on 20 prompts"
    )
    assert alone in str(by_hand)


def test_effects_are_those_of_single_paths():
    model = HookedTransformer.from_pretrained("headscope-demo")
    dataset = IOIDataset("mixed", 24, model.tokenizer, prepend_bos=True, seed=3)
    task = Task.from_ioi(dataset, "ABB->ABA, BAB->BAA")
    circuit = find_circuit(model, task, max_receivers=3, progress=False)
    options = {"direction": "noising", "scale": "metric"}
    for (sender, receiver), effect in list(paths(circuit).items())[:6]:
        alone = path_patch(model, task, senders=sender, receivers=receiver, **options)
        assert effect == pytest.approx(-float(alone), abs=1e-4)
        assert abs(effect) >= circuit.threshold
        change = alone.per_prompt.double().flatten()
        row = [at for at, ends in enumerate(paths(circuit)) if ends == (sender, receiver)][0]
        assert float(circuit.errors[row]) == pytest.approx(float(change.std() / 24**0.5), rel=1e-3)
    assert len(circuit.left_out) > 0
    assert set(circuit.groups) <= {"head", "MLP", "final"}
    # The faithfulness is that of its heads, on the half of the prompts that the search did not see.
    found = circuit.faithfulness
    assert found is not None and circuit.held_out and len(found.whole) == 12
    rows = torch.tensor(sorted(range(24), key=lambda row: task.labels[row]))[1::2].sort().values
    heads = [node for node in circuit.nodes if "." in node]
    again = circuit_faithfulness(model, task[rows], heads, controls=0, progress=False)
    torch.testing.assert_close(found.per_prompt[-1], again.per_prompt[0], rtol=0, atol=1e-4)
    assert set(circuit.kept) == set(heads) and 0.9 < float(found.faithfulness[-1]) < 1.1
    assert found.control is not None and abs(float(found.control[-1])) < 0.5
    only_heads = find_circuit(model, task, max_receivers=1, mlps=False, progress=False)
    assert not any(name.startswith("mlp") for name in only_heads.nodes)


def test_held_out_prompts_are_those_that_the_search_did_not_see():
    """Neither are they the other prompts' corrupted runs, nor did a path on them bring a head in."""
    model = HookedTransformer.from_pretrained("headscope-demo")
    names = ("Mary", "John", "Tom", "Sean", "Erin")
    pairs = [(names[at % 5], names[(at + 1 + at // 5) % 5]) for at in range(9)]
    task = Task.from_templates(["Then {} gave a book to"], pairs, model.tokenizer)
    searched, said = _halves(task)
    assert sorted([*searched.tolist(), *said.tolist()]) == list(range(18)) and abs(len(searched) - len(said)) <= 2
    assert task.clusters is not None
    assert not set(task.clusters[searched].tolist()) & set(task.clusters[said].tolist())
    few = replace(task, clusters=torch.arange(18) // 9)
    assert torch.equal(*_halves(few))
    dataset = IOIDataset(N=24, tokenizer=model.tokenizer, prepend_bos=True, seed=1)
    task = Task.from_ioi(dataset, "ABB->ABA, BAB->BAA")
    searched, _ = _halves(task)
    for min_effect, alike in ((0.03, True), (0.005, False)):
        found = faithful_parts(NodeRuns(model, task[searched]), min_effect)
        circuit = find_circuit(model, task, min_effect=min_effect, max_receivers=2, progress=False)
        assert (set(circuit.kept) == set(found.parts)) is alike is circuit.held_out
        assert ("the search did not see" in str(circuit)) is alike


def test_other_metrics_are_not_called_logits():
    model, task = name_moving_model(), name_task(8)
    metric = ProbabilityMetric(task.correct, task.positions)
    found = find_circuit(model, task, metric=metric, max_receivers=0, progress=False)
    assert "logit" not in str(found).replace("logit-", "") and found.array("effects") is not None
    assert found.declared()["effects"].unit == "" and found.table().columns[2].header == "Effect"
    logits = find_circuit(model, task, max_receivers=0, progress=False)
    assert "  logit difference +4.0" in str(logits) and logits.table().columns[2].header == "Effect (logits)"
    edges = edge_attribution(model, task, progress=False).circuit(3)
    others = edge_attribution(model, task, metric=metric, progress=False).circuit(3)
    assert edges.unit == "logits" and others.unit == ""


def test_random_models_may_have_no_paths():
    found = find_circuit(tiny_model(n_ctx=8), name_task(8), min_effect=0.99, progress=False)
    assert found.nodes == ("final",) and found.edges.shape == (0, 2)
    assert "0 paths" in str(found) and len(found.to_frame()) == 0


def test_circuits_are_printed_saved_and_read(by_hand, tmp_path):
    again = Circuit.load(by_hand.save(tmp_path / "circuit.safetensors"))
    assert str(again) == str(by_hand) and again.groups == by_hand.groups
    torch.testing.assert_close(again.effects, by_hand.effects)
    assert "2.0 -> final +12.0" in str(by_hand) and "+75.0%" in str(by_hand) and by_hand.table().row_count == 5
    assert [by_hand.inputs[number] for number in by_hand.into("2.0")] == ["q"]
    with pytest.raises(InvalidInputError, match=r"'3\.1' is not in the circuit"):
        by_hand.into("3.1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_effect": 0.0}, "min_effect is a share"),
        ({"level": 1.0}, "level is a share"),
        ({"max_receivers": -1}, "max_receivers must be at least 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InvalidInputError, match=message):
        find_circuit(name_moving_model(), name_task(4), progress=False, **options)


def test_tasks_without_a_difference():
    model = name_moving_model()
    with pytest.raises(InvalidInputError, match="two prompts or more"):
        find_circuit(model, name_task(1), progress=False)
    with pytest.raises(InvalidInputError, match="corrupted"):
        find_circuit(model, name_task(4, corrupted=False), progress=False)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_O.zero_()
    with pytest.raises(InvalidInputError, match="no path can carry"):
        find_circuit(model, name_task(4), progress=False)
