"""The prompts that a report finds a circuit on, and what its plan says of them."""

import pytest

from headscope import HookedTransformer
from headscope.report.costs import circuit_work
from headscope.report.model.planning import task_part
from headscope.report.task import measuring
from headscope.report.task.measuring import RECEIVERS, few_prompts, finds_circuit, ioi_task


def test_a_circuit_is_found_on_as_many_prompts_as_the_budget_allows(
    demo: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 of a small model; fewer of a larger one, but not below 16, of which none is found."""
    task = ioi_task(demo, 120)
    of_all = sum(work.operations for work in circuit_work(demo, task, RECEIVERS).values())
    assert len(few_prompts(demo, task)) == 100 and finds_circuit(demo, task)
    for n_affordable, n_patched, found in ((40.5, 40, True), (16.5, 16, True), (15.5, 16, False)):
        monkeypatch.setattr(measuring, "_BUDGET", of_all * n_affordable / 120)
        few = few_prompts(demo, task)
        assert len(few) == n_patched and finds_circuit(demo, task) is found
        assert {few.labels.count(label) for label in few.labels} == {n_patched // 2}
        part = task_part(demo, task)
        assert part.says == f"120 prompts, {n_patched} patched" + (", their circuit" if found else "")
        assert ("circuit" in part.stages) is found
        if found:
            spent = sum(work.operations for name, work in part.stages.items() if name == "circuit")
            assert spent == pytest.approx(of_all * n_patched / 120)
    # Of prompts of one's own there may be fewer.
    assert finds_circuit(demo, task[:15]) and len(few_prompts(demo, task[:15])) == 15
