"""The search for a circuit: it finds the parts that were set by hand, by gradients, by leaving out, or not at all."""

import pytest
import torch
from name_moving_model import name_moving_model, name_task
from three_passes import random_task
from tiny import tiny_model

from headscope.analysis.circuits import circuit as module
from headscope.analysis.circuits.circuit import find_circuit
from headscope.analysis.circuits.node_runs import NodeRuns
from headscope.analysis.circuits.search import _Search, effects_alone, faithful_parts


def test_parts_set_by_hand_are_found_from_below_and_from_above() -> None:
    runs = NodeRuns(name_moving_model(), name_task(12))
    found = faithful_parts(runs, 0.03)
    assert set(found.parts) == {"0.0", "1.0", "2.0", "2.1"}
    effects = dict(zip(found.parts, found.effects.tolist(), strict=True))
    assert effects["2.0"] == pytest.approx(12, abs=0.1) and effects["2.1"] == pytest.approx(-4, abs=0.1)
    search = _Search(runs, 0.03)
    from_above = search.thinned(torch.ones(8, dtype=torch.bool))
    assert search.is_close(from_above) and {runs.parts[at] for at in from_above.nonzero()[:, 0]} >= {"0.0", "1.0"}


def test_what_gradients_cannot_see_is_found_by_leaving_out(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = NodeRuns(name_moving_model(), name_task(12))
    monkeypatch.setattr(runs, "scores", lambda kept, steps: torch.zeros(8, 12))
    found = faithful_parts(runs, 0.03)
    assert {"0.0", "1.0"} <= set(found.parts) and _Search(runs, 0.03).is_close(
        torch.tensor([part in found.parts for part in runs.parts])
    )


def test_each_effect_is_that_of_one_part_left_out() -> None:
    runs = NodeRuns(tiny_model(n_layers=3), random_task())
    kept = torch.tensor([True, False, True, True, False, True, True, False, True])
    effects = effects_alone(runs, kept)
    whole = runs.values(kept[None])[0].mean()
    for at, part in enumerate(kept.nonzero()[:, 0].tolist()):
        without = kept.clone()
        without[part] = False
        assert float(effects[at]) == pytest.approx(float(whole - runs.values(without[None])[0].mean()), abs=1e-10)


def test_many_components_are_narrowed_to_the_circuit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the model had many: only the heads found send, along the edges that gradients see."""
    model, task = name_moving_model(), name_task(16)
    everything = find_circuit(model, task, progress=False)
    monkeypatch.setattr(module, "FEW", 2)
    narrowed = find_circuit(model, task, progress=False)
    assert set(narrowed.kept) == {"0.0", "1.0", "2.0", "2.1"} == set(everything.kept)
    effects = [dict(zip(each.edge_labels, each.effects.tolist(), strict=True)) for each in (everything, narrowed)]
    assert set(effects[1]) <= set(effects[0]) and "2.0 -> final" in effects[1]
    for path, effect in effects[1].items():
        assert effect == pytest.approx(effects[0][path], abs=1e-4)
