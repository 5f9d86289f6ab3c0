"""The plan of a long run: its arithmetic, and the bar over it."""

import time
from typing import Any

import pytest
import torch
from small_models import small_model

from headscope import HookedTransformer
from headscope.analysis.core.costs import Work, head_operations, layer_operations, row_operations
from headscope.analysis.core.progress import progress_bar
from headscope.analysis.prompts.task import Task
from headscope.report import plan as planning
from headscope.report.costs import (
    ablation_work,
    entropy_work,
    loss_work,
    patching_work,
    ranks_work,
    scores_work,
    types_work,
)
from headscope.report.model.planning import Sizes, fitting_sizes, parts_of, report_plan
from headscope.report.plan import Part, Plan, measured_rates


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return small_model()


def test_work_is_that_of_the_formulas(model: HookedTransformer) -> None:
    cfg, n = model.cfg, 100
    layer, row, head = layer_operations(model), row_operations(model), head_operations(model)
    assert loss_work(model, n) == {"loss": Work(runs=1.0, layers=n * cfg.n_layers * layer, rows=n * row)}
    entropy = entropy_work(model, n)["entropy"]
    assert entropy.heads == n * cfg.n_layers * (cfg.n_heads + 1) * head
    weights = cfg.n_layers * cfg.n_heads * cfg.d_model * head
    assert entropy.products == n * (cfg.n_layers + 1) * row + weights
    # Twice the tokens, twice the work, but for what a batch makes once.
    assert entropy_work(model, 2 * n)["entropy"].products == 2 * entropy.products - weights
    patched = ablation_work(model, n, values=["mean"], effects=["patched"])["ablation"]
    runs = cfg.n_layers * cfg.n_heads
    assert patched.rows == n * runs * row
    # A head of the first layer runs all layers, one of the last only that.
    assert patched.layers == n * layer * cfg.n_heads * sum(range(1, cfg.n_layers + 1))
    assert ablation_work(model, n, layers=[cfg.n_layers - 1], values=["zero"], effects=["patched"])[
        "ablation"
    ].layers == n * layer * (1 + cfg.n_layers)
    text = n * cfg.n_layers * layer  # heads' scores on a text take one pass over it, their types two
    assert scores_work(model, n)["head scores"].layers - scores_work(model)["head scores"].layers == text
    assert types_work(model, n_text=n)["text"].layers == 2 * text and "text" not in types_work(model)
    assert ranks_work(model, 2, 10)["circuit ranks"].heads == 2 * 10 * head


def test_patches_are_run_from_the_first_difference_on(model: HookedTransformer) -> None:
    """Of two prompts of five tokens, one differs from its corrupted one at the third, one at the last."""
    clean = torch.arange(10, 20).view(2, 5)
    corrupted = clean.clone()
    corrupted[0, 2:], corrupted[1, 4:] = 30, 31
    task = Task.from_tokens(
        clean, corrupted=corrupted, correct=torch.tensor([40, 41]), incorrect=torch.tensor([42, 43])
    )
    cfg, layer = model.cfg, layer_operations(model)
    both = 2 * 2 * 5 * cfg.n_layers * layer  # two plain runs of two prompts
    layers = sum(range(1, cfg.n_layers + 1))
    (by_position,) = patching_work(model, task, ["resid_pre"]).values()
    assert by_position.layers == pytest.approx(both + layers * layer * ((3 + 2 + 1) + 1))
    (by_head,) = patching_work(model, task, ["z"]).values()
    assert by_head.layers == pytest.approx(both + cfg.n_heads * layers * layer * (3 + 1))


def test_a_plan_adds_up_and_says_so() -> None:
    rates = Work(runs=1.0, rows=0.5)
    first = Part("loss", "10 tokens", {"loss": Work(runs=2.0, rows=40.0)})
    second = Part("ablation", "4 heads", {"means": Work(runs=8.0), "ablation": Work(rows=180.0)})
    plan = Plan((first, second), rates)
    assert [plan.seconds_of(part) for part in plan.parts] == [22.0, 98.0] and plan.seconds == 120.0
    assert str(plan).splitlines()[0] == "About 2 min on this machine:"
    assert str(plan).splitlines()[2].split() == ["ablation", "4", "heads", "2", "min"]
    assert str(Plan((first,), rates)) == "loss: 10 tokens; about 20 s on this machine."


def test_one_bar_moves_by_planned_time(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = {"means": Work(runs=1.0), "ablation": Work(runs=3.0)}
    parts = (Part("ablation", "", stages), Part("loss", "", {"loss": Work(runs=6.0)}))
    clock = [0.0]
    monkeypatch.setattr(planning.time, "monotonic", lambda: clock[0])
    with Plan(parts, Work(runs=1.0)).following(shown=False) as following:
        with following.part("ablation"):
            for name, at in (("means", 1.0), ("ablation", 2.5)):
                with progress_bar(2, name) as bar:
                    bar.update()
                    bar.update(0)
                    assert following.position == pytest.approx(at if name == "ablation" else 0.5)
                    bar.update()
            with progress_bar(1, "something that was not planned") as bar:
                bar.update()
            assert following.position == 4
        # Twice as slow as planned, which the rest is taken to be too, as far as it is known by now.
        assert following.left(8.0) == pytest.approx(6 * (8 + 1) / (4 + 1))
        with following.part("loss"):
            pass
        assert following.share == 1 and following.left(20.0) == 0
        with following.part("not in the plan"), progress_bar(1, "loss") as bar:
            bar.update()
        assert following.share == 1


def test_sizes_are_halved_until_they_fit(model: HookedTransformer) -> None:
    tokens = torch.zeros(128, 32, dtype=torch.long)
    rates = Work(rows=1.0, layers=1.0, heads=1.0, products=1.0)
    parts = parts_of(["loss", "entropy", "ablation", "suppression", "types"])

    def seconds(sizes: Sizes) -> float:
        return report_plan(model, tokens[: sizes.tokens // 32], sizes.ablated, rates, parts=parts).seconds

    def fitted(limit: float, asked: Sizes | None = None, fixed: tuple[bool, bool] = (False, False)) -> Sizes:
        sizes = asked or Sizes()
        some = parts if sizes.ablated else parts_of(["loss", "entropy"])
        return fitting_sizes(model, tokens, rates, parts=some, seconds=limit, asked=sizes, fixed=fixed)

    whole = seconds(Sizes())
    assert fitted(whole) == Sizes(4096, 1024)
    cut = fitted(0.6 * whole)
    assert cut != Sizes() and seconds(cut) <= 0.6 * whole
    assert fitted(0.0) == Sizes(512, 256)  # fewer tell too little, however long it takes
    assert fitted(0.0, fixed=(True, False)) == Sizes(4096, 256)
    assert fitted(0.0, fixed=(True, True)) == Sizes()
    assert fitted(0.0, asked=Sizes(96, 0)) == Sizes(96, 0)


def test_every_rate_is_measured(model: HookedTransformer) -> None:
    start = time.perf_counter()
    rates: Any = measured_rates(model, torch.zeros(2, 32, dtype=torch.long))
    took = time.perf_counter() - start
    assert all(0 < getattr(rates, kind) < took for kind in ("runs", "layers", "rows", "heads", "products"))
