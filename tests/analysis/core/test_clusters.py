"""Prompts that were not drawn independently: errors, intervals and tests are over clusters of them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis import (
    Task,
    activation_patch,
    attribute,
    attribution_patch,
    edge_attribution,
    edge_patch,
    path_patch,
    stability,
)
from headscope.analysis.core.bootstrap import bootstrap_interval
from headscope.analysis.core.result import RunInfo
from headscope.analysis.core.significance import adjusted, p_values
from headscope.analysis.core.stats import by_cluster, standard_errors
from headscope.analysis.patching.path_result import PathPatchingResult
from headscope.analysis.patching.result import PatchingResult

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
