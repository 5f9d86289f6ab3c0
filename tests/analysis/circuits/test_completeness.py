"""Completeness and minimality of circuits, on a model that has a backup by hand, and against runs one by one."""

import pytest
import torch
from name_moving_model import name_moving_model, name_task
from three_passes import random_task
from tiny import tiny_model

from headscope.analysis.circuits.completeness import (
    Completeness,
    Minimality,
    circuit_completeness,
    circuit_minimality,
)
from headscope.analysis.circuits.node_runs import NodeRuns
from headscope.errors import InvalidInputError

TRUE = ["0.0", "1.0", "2.0", "2.1"]


def test_a_circuit_without_its_backup_is_not_complete() -> None:
    """Without the movers the backup takes over in the model, which adds 6 for one name or the other."""
    model, task = name_moving_model(), name_task(12)
    movers = {"movers": ["2.0", (2, 1)]}
    without = circuit_completeness(model, task, TRUE, groups=movers, draws=0)
    assert without.names == ("movers",) and without.sets == ("2.0+2.1",)
    assert float(without.shares[0]) < -0.7 and float(without.errors[0]) < 0.1
    with_it = circuit_completeness(model, task, [*TRUE, "3.0"], groups=movers, draws=0)
    assert float(with_it.shares[0]) == pytest.approx(0.0, abs=0.02)


def test_every_part_is_needed_and_idle_ones_are_not() -> None:
    model, task = name_moving_model(), name_task(12)
    found = circuit_minimality(model, task, [*TRUE, "3.1"])
    effects = dict(zip(found.parts, found.shares.tolist(), strict=True))
    assert abs(effects["3.1"]) < 0.02 and min(abs(effects[part]) for part in TRUE) > 0.4
    # A backup changes little by itself, and much once the movers are gone.
    alone = circuit_minimality(model, task, [*TRUE, "3.0"])
    grouped = circuit_minimality(model, task, [*TRUE, "3.0"], groups={"movers": ["2.0", "2.1", "3.0"]})
    first, second = (float(each.sel(part="3.0", by="shares")) for each in (alone, grouped))
    assert abs(first) < 0.1 and second > 0.7 and grouped.without[grouped.parts.index("3.0")] == "movers"


def test_numbers_are_those_of_single_runs(tmp_path) -> None:
    model, task = tiny_model(n_layers=3), random_task()
    circuit, groups = ["0.0", "1.1", "2.0", "mlp1"], {"a": ["0.0", "mlp1"], "b": ["2.0"]}
    runs = NodeRuns(model, task, "mean", keep_mlps=False)

    def metric(parts: set[str]) -> torch.Tensor:
        return runs.values(torch.tensor([[part in parts for part in runs.parts]]))[0]

    found = circuit_completeness(model, task, circuit, groups=groups, draws=2, ablation="mean", keep_mlps=False)
    assert found.names == ("a", "b", "random 1", "random 2")
    for at, left in enumerate(found.sets):
        own, whole = (metric(set(parts) - set(left.split("+"))) for parts in (circuit, runs.parts))
        assert float(found.circuit[at]) == pytest.approx(float(own.mean()), abs=1e-12)
        assert float(found.model[at]) == pytest.approx(float(whole.mean()), abs=1e-12)
        assert float(found.errors[at]) == pytest.approx(float((own - whole).std() / 3**0.5), abs=1e-12)
    needed = circuit_minimality(model, task, circuit, groups=groups, ablation="mean", keep_mlps=False)
    for part, effect in zip(needed.parts, needed.effects.tolist(), strict=True):
        sets = [set()] + [set(group) for group in groups.values() if part in group]
        left = [set(circuit) - group - {part} for group in sets]
        lost = [float((metric(rest | {part}) - metric(rest)).mean()) for rest in left]
        assert effect == pytest.approx(max(lost, key=abs), abs=1e-12)
    first = found.top(1)[0]
    at = found.names.index(first.set)
    assert (
        f"without {first.set} ({found.sets[at]}): circuit {float(found.circuit[at]):+.3f}, model "
        f"{float(found.model[at]):+.3f}, difference {first.value:+.3f} ± {first.error:.3f} ({first.share:+.1%})"
    ) in str(found)
    assert f"logit difference less that of nothing, {found.gap:+.3f} logits" in str(found)
    for part, effect, error in zip(needed.parts, needed.effects.tolist(), needed.errors.tolist(), strict=True):
        assert f"{part}: {effect:+.3f} ± {error:.3f} (" in str(needed)
    assert "logits" in str(needed.top()) and "(logits)" in str(found.top())
    for kind, result in ((Completeness, found), (Minimality, needed)):
        assert str(kind.load(result.save(tmp_path / "checks.safetensors"))) == str(result)
        assert len(result.to_frame()) == 4


def test_random_sets_differ_and_are_not_empty() -> None:
    model, task = name_moving_model(), name_task(4)
    for circuit, groups, wanted in (
        (TRUE, None, 15), (TRUE[:2], None, 3), (TRUE[:2], {"a": TRUE[:1]}, 3), (TRUE[:1], None, 1)
    ):  # fmt: skip
        found = circuit_completeness(model, task, circuit, groups=groups, draws=20)
        assert len(found.sets) == len(set(found.sets)) == wanted and all(found.sets)
        assert found.info.options["draws"] == wanted - len(groups or {})
    assert len(circuit_completeness(model, task, TRUE, draws=3).sets) == 3


def test_bad_sets() -> None:
    model, task = name_moving_model(), name_task(4)
    with pytest.raises(InvalidInputError, match=r"3\.1 of group 'x' is not in the circuit"):
        circuit_completeness(model, task, TRUE, groups={"x": ["3.1"]})
    with pytest.raises(InvalidInputError, match="no set of parts"):
        circuit_completeness(model, task, TRUE, draws=0)
    with pytest.raises(InvalidInputError, match="has no part"):
        circuit_minimality(model, task, [])
