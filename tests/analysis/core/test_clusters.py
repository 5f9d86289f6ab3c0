"""Prompts that were not drawn independently: errors, intervals and tests are over clusters of them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from name_moving_model import name_moving_model, name_task
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis import (
    Task,
    activation_patch,
    attribute,
    attribute_attention,
    attribution_patch,
    circuit_completeness,
    circuit_faithfulness,
    circuit_minimality,
    edge_attribution,
    edge_patch,
    find_circuit,
    path_patch,
    stability,
)
from headscope.analysis.circuits.circuit import _Paths
from headscope.analysis.core.bootstrap import bootstrap_interval
from headscope.analysis.core.result import RunInfo
from headscope.analysis.core.significance import adjusted, p_values
from headscope.analysis.core.stats import Estimate, by_cluster, standard_errors
from headscope.analysis.heads.inhibition import inhibition
from headscope.analysis.heads.name_evidence import task_evidence
from headscope.analysis.heads.names import name_places, orders_of
from headscope.analysis.heads.power import prompts_needed
from headscope.analysis.patching.path_result import PathPatchingResult
from headscope.analysis.patching.result import PatchingResult
from headscope.analysis.prompts.metrics import AnswerMetric
from headscope.data.ioi import IOIDataset
from headscope.views.figures.attention_score import attention_sides

NAMES = ["Mary", "John", "Tom", "Sean", "Erin"]


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return HookedTransformer.from_pretrained("headscope-demo")


@pytest.fixture(scope="module")
def task(model: HookedTransformer) -> Task:
    pairs = [(one, other) for at, one in enumerate(NAMES) for other in NAMES[at + 1 :]]
    text = "Because {0} and {1} were working at the theater, {{}} told a story about a key to"
    return Task.from_templates([text.format(*pair) for pair in pairs], pairs, model.tokenizer)


@pytest.fixture(scope="module")
def patched(model: HookedTransformer, task: Task) -> PatchingResult:
    return activation_patch(model, task, "z", positions="end", progress=False)


def of_rows(rows: Float[Tensor, "prompt cell"], clusters: Tensor | None) -> PathPatchingResult:
    """A result of these values of prompts."""
    labels = tuple(f"0.{head}" for head in range(rows.shape[1]))
    return PathPatchingResult(
        info=RunInfo("model", (), "prompts", len(rows), len(rows)),
        values=rows.mean(0),
        per_prompt=rows.T,
        clean=torch.tensor(1.0),
        corrupted=torch.tensor(0.0),
        sender_labels=labels,
        receiver_labels=("final",),
        direction="noising",
        scale="metric",
        freeze_mlps=False,
        positions="all",
        clusters=clusters,
    )


def test_values_of_clusters_against_a_loop() -> None:
    rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).double()
    clusters = torch.tensor([5, 2, 5, 5, 9, 2, 0])
    found, mean = by_cluster(rows, clusters), rows.mean(0)
    groups = {int(each): rows[clusters == each] for each in clusters.unique()}
    for at, group in enumerate(groups.values()):
        torch.testing.assert_close(found[at], group.sum(0) * 4 / 7)
    torch.testing.assert_close(found.mean(0), mean)
    assert by_cluster(rows, None) is rows
    # The error of a ratio of sums over clusters (Cochran 1977, chapter 6), by hand.
    squares = sum((group.sum(0) - len(group) * mean).square() for group in groups.values())
    torch.testing.assert_close(standard_errors(rows, clusters), (squares * 4 / 3).sqrt() / 7)
    one = torch.zeros(7, dtype=torch.long)
    assert bool(standard_errors(rows, one).isnan().all())


def test_values_seen_twice_are_no_evidence_of_their_own() -> None:
    rows = torch.randn(8, 1000, generator=torch.Generator().manual_seed(1)).double()
    twice, clusters = rows.repeat_interleave(2, 0), torch.arange(8).repeat_interleave(2)
    found = of_rows(twice, clusters)
    assert found.n_independent == 8 and found.is_judged
    assert float((found.p_values() <= 0.05).double().mean()) <= 0.07
    assert float((of_rows(twice, None).p_values() <= 0.05).double().mean()) > 0.15
    torch.testing.assert_close(found.p_values(), p_values(rows))
    torch.testing.assert_close(found.errors, standard_errors(rows))
    torch.testing.assert_close(found.interval(), bootstrap_interval(rows))
    assert torch.equal(found.significant(), adjusted(rows) <= 0.05)


def test_mirrored_prompts_are_one_cluster(task: Task, patched: PatchingResult, tmp_path: Path) -> None:
    rows = patched.by_prompt().double().numpy()
    assert len(rows) == len(task) == 20 and patched.n_independent == 10
    pairs = (rows[0::2] + rows[1::2]) / 2
    wanted = pairs.std(0, ddof=1) / math.sqrt(10)
    np.testing.assert_allclose(patched.errors.flatten(), wanted, rtol=1e-4, atol=1e-7)
    frame = patched.to_frame()
    np.testing.assert_allclose(frame["error"], wanted, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(torch.tensor(frame["p_value"]), adjusted(torch.from_numpy(pairs)))
    best = np.abs(rows.mean(0)).argsort()[-3:]
    naive = rows.std(0, ddof=1) / math.sqrt(20)
    assert (wanted[best] > 1.2 * naive[best]).all()
    assert "over 10 clusters of prompts" in str(patched)
    again = PatchingResult.load(patched.save(tmp_path / "patched"))
    assert again.clusters is not None and torch.equal(again.clusters, patched.clusters)
    assert torch.equal(again.errors, patched.errors)


def test_four_pairs_are_too_few_for_anything_to_stand_out(model: HookedTransformer, task: Task) -> None:
    found = activation_patch(model, task[:8], "z", positions="end", progress=False)
    assert not found.is_judged and "4 clusters of prompts are too few" in str(found)
    assert not activation_patch(model, task[:2], "z", positions="end", progress=False).has_rows


def test_all_patching_and_attribution_keeps_clusters(model: HookedTransformer, task: Task) -> None:
    some = task[[0, 1, 2, 3, 6]]
    results = [
        attribution_patch(model, some, "z", positions="end", progress=False),
        path_patch(model, some, senders="3.2", receivers="final"),
        attribute(model, some, progress=False),
        edge_attribution(model, some, progress=False),
        edge_patch(model, some, ["3.2 -> final", "embed -> mlp0"], progress=False),
    ]
    for found in results:
        assert found.clusters is not None and found.clusters.tolist() == [0, 0, 1, 1, 3]
        assert found.n_independent == 3 and len(found.by_prompt()) == 5
    path = results[1]
    torch.testing.assert_close(
        path.array("error").values, standard_errors(path.by_prompt("change"), some.clusters)[None]
    )


@pytest.mark.parametrize("error_of", ["score", "change"])
def test_errors_of_edges_are_over_clusters(model: HookedTransformer, task: Task, error_of: str) -> None:
    some = task[:8]
    if error_of == "score":
        found: Any = edge_attribution(model, some, progress=False)
        errors = found.errors[found.allowed]
    else:
        found = edge_patch(model, some, ["3.2 -> final", "embed -> mlp0"], progress=False)
        errors = found.errors
    rows = found.by_prompt().double().numpy()
    wanted = ((rows[0::2] + rows[1::2]) / 2).std(0, ddof=1) / 2
    np.testing.assert_allclose(errors, wanted, rtol=1e-4, atol=1e-7)


def test_resamples_are_of_clusters(task: Task) -> None:
    seen: list[Task] = []

    def method(some: Task) -> list[str]:
        seen.append(some)
        return []

    stability(method, task, resamples=5, progress=False)
    for some in seen[1:]:
        assert len(some) == 20 and some.clusters is not None
        assert some.clusters.tolist() == [number for number in range(10) for _ in range(2)]
        assert some.corrupted_tokens is not None
        assert torch.equal(some.corrupted_tokens[0::2], some.clean_tokens[1::2])
    assert len({some.prompts for some in seen}) == 6


@pytest.fixture(scope="module")
def once(model: HookedTransformer) -> Task:
    return Task.from_ioi(IOIDataset("mixed", N=10, tokenizer=model.tokenizer, prepend_bos=True, seed=1))


@pytest.fixture(scope="module")
def twice(once: Task) -> Task:
    """Every prompt two times, as one cluster: nothing more is known than from each once."""
    return replace(once[[*range(10), *range(10)]], clusters=torch.tensor([*range(10), *range(10)]))


def same_errors(first: Tensor, second: Tensor) -> None:
    assert bool((first[~first.isnan()] > 0).any())
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5, equal_nan=True)


HEADS = ["0.2", "0.3", "2.2", "3.2"]


def test_errors_of_faithfulness_are_over_clusters(model: HookedTransformer, once: Task, twice: Task) -> None:
    of_each, of_both = (
        circuit_faithfulness(model, each, HEADS, sizes=[1, 2, 4], controls=0, progress=False) for each in (once, twice)
    )
    same_errors(of_each.errors, of_both.errors)
    for one, other in ((of_each.cpr, of_both.cpr), (of_each.cmd, of_both.cmd)):
        assert one.error == pytest.approx(other.error, rel=1e-3) and one.freedom == other.freedom == 9


def test_errors_of_completeness_and_minimality_are_over_clusters(
    model: HookedTransformer, once: Task, twice: Task
) -> None:
    complete = [circuit_completeness(model, each, HEADS, draws=3, progress=False) for each in (once, twice)]
    same_errors(complete[0].errors, complete[1].errors)
    minimal = [circuit_minimality(model, each, HEADS, progress=False) for each in (once, twice)]
    same_errors(minimal[0].errors, minimal[1].errors)


def test_paths_of_a_circuit_are_found_from_clusters(model: HookedTransformer, once: Task, twice: Task) -> None:
    found = []
    for each in (once, twice):
        paths = _Paths(model, each, 0.01, 0.05, True, AnswerMetric.of(each), False)
        paths.into_final()
        found.append(paths.found)
    one, other = ({path.sender: path.error for path in paths} for paths in found)
    assert one.keys() == other.keys() and len(one) > 2
    same_errors(torch.tensor(list(one.values())), torch.tensor([other[sender] for sender in one]))


def test_a_circuit_says_its_faithfulness_with_errors_over_clusters() -> None:
    task = replace(name_task(16), clusters=torch.arange(16) // 2)
    circuit = find_circuit(name_moving_model(), task, max_receivers=0, controls=0, progress=False)
    said = circuit.faithfulness
    assert said is not None and said.clusters is not None and len(said.clusters) == len(said.whole) == 8
    assert len(said.clusters.unique()) == 4


@pytest.mark.parametrize("batch_tokens", [10_000, 60])
def test_errors_of_attention_are_over_clusters(
    model: HookedTransformer, once: Task, twice: Task, set_budget: Any, batch_tokens: int
) -> None:
    of_each = attribute_attention(model, once, "3.2", "end", "S2", against="IO", progress=False)
    set_budget(batch_tokens=batch_tokens)  # a few prompts at once: a cluster may be in two batches
    of_both = attribute_attention(model, twice, "3.2", "end", "S2", against="IO", progress=False)
    assert of_each.errors is not None and of_both.errors is not None
    torch.testing.assert_close(of_both.pairs, of_each.pairs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(of_both.scores, of_each.scores.repeat(2), rtol=1e-4, atol=1e-5)
    same_errors(of_each.errors, of_both.errors)
    for name in ("query_errors", "key_errors"):
        same_errors(getattr(of_each, name), getattr(of_both, name))
    assert str(of_each).splitlines()[1:] == str(of_both).splitlines()[1:]
    bars = [attention_sides(each, k=3).data[1].error_x.array for each in (of_each, of_both)]
    np.testing.assert_allclose(*bars, rtol=1e-3)


def test_kinds_of_heads_are_judged_by_clusters(model: HookedTransformer, once: Task, twice: Task) -> None:
    options: dict[str, Any] = {"level": 0.05, "progress": False}
    found = []
    for each in (once, twice):
        told = task_evidence(model, each, min_attention=0.4, min_effect=0.05, n_kinds=12, **options)
        errors = {kind.name: kind.shown for kind in told.kinds}
        whole = Estimate(8.0, 0.1, len(each))
        orders = orders_of(name_places(each))
        errors["s_inhibition"], _ = inhibition(model, each, [(3, 2)], orders, whole=whole, among=12, **options)
        found.append(errors)
    for name in ("duplicate_name", "name_mover", "s_inhibition"):
        one, other = (errors[name] for errors in found)
        same_errors(one.errors, other.errors)
        assert torch.equal(one.freedom.nan_to_num(), other.freedom.nan_to_num())
    needed = [prompts_needed(model, each, share=0.01, progress=False) for each in (once, twice)]
    assert needed[1] == pytest.approx(2 * needed[0], rel=0.1) and needed[0] > 40


def test_twins_of_sentences_are_a_cluster(model: HookedTransformer) -> None:
    dataset = IOIDataset("mixed", N=6, tokenizer=model.tokenizer, prepend_bos=True, symmetric=True)
    assert Task.from_ioi(dataset).clusters.tolist() == [0, 0, 1, 1, 2, 2]
    assert Task.from_ioi(dataset[[4, 0, 2, 5]]).clusters.tolist() == [0, 1, 2, 0]
