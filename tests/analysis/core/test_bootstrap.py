"""Bootstrap intervals against their definition and scipy's, and how often they cover the true mean."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from headscope.analysis.core import bootstrap
from headscope.analysis.core.bootstrap import bootstrap_interval, proportion_interval
from headscope.errors import InvalidInputError


def drawn(shape: str, n: int, tables: int, seed: int = 0) -> tuple[Tensor, float]:
    """Values of prompts whose mean is known."""
    rng = np.random.default_rng(seed)
    made, mean = {
        "normal": (rng.normal(size=(n, tables)), 0.0),
        "uniform": (rng.uniform(size=(n, tables)), 0.5),
        "exponential": (rng.exponential(size=(n, tables)), 1.0),
        "heavy": (rng.standard_t(5, size=(n, tables)), 0.0),
    }[shape]
    return torch.from_numpy(made), mean


@pytest.mark.parametrize("n", [8, 20])
@pytest.mark.parametrize("shape", ["normal", "uniform", "exponential", "heavy"])
def test_the_default_covers_the_mean_as_often_as_it_says(shape: str, n: int) -> None:
    rows, mean = drawn(shape, n, 1500, seed=n)
    low, high = bootstrap_interval(rows, draws=999)
    covered = float(((low <= mean) & (mean <= high)).double().mean())
    assert 0.90 <= covered <= 0.98, covered


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_few_prompts_are_covered_as_often(n: int) -> None:
    """Two prompts have no draw with a spread of its own; three had intervals that covered 80 %."""
    rows = drawn("normal", n, 2000, seed=n)[0]
    low, high = bootstrap_interval(rows, draws=999)
    assert 0.93 <= float(((low <= 0) & (0 <= high)).double().mean()) <= 0.97


def test_two_and_three_prompts_have_students_interval() -> None:
    for values in ([1.0, 3.0], [1.0, 3.0, 4.0]):
        wanted = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert [float(end) for end in bootstrap_interval(torch.tensor(values))] == pytest.approx(wanted)


def test_draws_without_spread_count_on_their_side() -> None:
    """Most draws of one value among zeros hold zeros alone: the far end may not come from the few others."""
    rows = torch.zeros(8)
    rows[3] = 1.0
    low, high = (float(end) for end in bootstrap_interval(rows))
    assert low < 0 and high == pytest.approx(0.125 + stats.t.ppf(0.975, 7) * 0.125)


def test_plain_percentiles_do_not_cover_at_eight_prompts() -> None:
    rows, mean = drawn("exponential", 8, 2000)
    low, high = bootstrap_interval(rows, method="percentile")
    assert float(((low <= mean) & (mean <= high)).double().mean()) < 0.88


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_studentized_intervals_equal_their_definition(level: float) -> None:
    rows = drawn("exponential", 9, 3)[0].float()
    low, high = bootstrap_interval(rows, level, draws=300, seed=4)
    picks = torch.randint(9, (300, 9), generator=torch.Generator().manual_seed(4)).numpy()
    for cell, values in enumerate(rows.double().numpy().T):
        mean, error = values.mean(), values.std(ddof=1) / 3
        t = [(values[pick].mean() - mean) / (values[pick].std(ddof=1) / 3) for pick in picks]
        upper, lower = np.quantile(t, [1 - level / 2, level / 2])
        np.testing.assert_allclose([low[cell], high[cell]], [mean - upper * error, mean - lower * error], rtol=1e-9)


@pytest.mark.parametrize("method, of_scipy", [("percentile", "percentile"), ("bca", "BCa")])
def test_other_intervals_agree_with_scipy(method: Any, of_scipy: Any) -> None:
    rows = drawn("exponential", 15, 2, seed=3)[0]
    ours = torch.stack(bootstrap_interval(rows, method=method, draws=100_000)).numpy()
    theirs = stats.bootstrap(
        (rows.numpy(),), np.mean, axis=0, method=of_scipy, n_resamples=100_000, rng=np.random.default_rng(0)
    ).confidence_interval
    np.testing.assert_allclose(ours, np.stack(theirs), atol=0.02)


def test_cells_in_blocks_are_the_cells_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = drawn("normal", 8, 12)[0].view(8, 3, 4)
    whole = bootstrap_interval(rows, draws=100)
    monkeypatch.setattr(bootstrap, "_BLOCK_NUMBERS", 500)
    for one, other in zip(bootstrap_interval(rows, draws=100), whole, strict=True):
        assert one.shape == (3, 4)
        torch.testing.assert_close(one, other)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(-50, 50), min_size=3, max_size=12),
    st.floats(0.1, 100.0),
    st.floats(-5.0, 5.0),
    st.sampled_from(["studentized", "bca", "percentile"]),
)
def test_intervals_move_and_stretch_with_the_values(values: list[int], by: float, to: float, method: Any) -> None:
    rows = torch.tensor(values).double()[:, None]
    low, high = bootstrap_interval(rows, method=method, draws=99)
    moved = bootstrap_interval(by * rows + to, method=method, draws=99)
    for one, end in zip(moved, (low, high), strict=True):
        torch.testing.assert_close(one, by * end + to, atol=1e-6 * by, rtol=1e-6)
    assert bool((low <= high + 1e-9).all())


def test_values_alike_and_numbers_that_are_none() -> None:
    rows = torch.stack([torch.full((6,), 2.0), torch.full((6,), math.nan), torch.arange(6.0)], 1)
    for method in ("studentized", "bca", "percentile"):
        low, high = bootstrap_interval(rows, method=method)  # type: ignore[arg-type]
        assert float(low[0]) == float(high[0]) == 2.0
        assert bool(low[1].isnan()) and bool(high[1].isnan())
        assert float(low[2]) < 2.5 < float(high[2])


@pytest.mark.parametrize(
    "options", [{"method": "normal"}, {"level": 0.0}, {"level": 1.0}, {"draws": 0}, {"rows": torch.zeros(1, 3)}]
)
def test_what_makes_no_interval_is_refused(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(InvalidInputError):
        bootstrap_interval(**{"rows": torch.randn(5, 3), **options})


def test_shares_have_wilsons_interval() -> None:
    low, high = proportion_interval(torch.tensor([0.0, 7.0, 20.0]), 20)
    for at, count in enumerate((0, 7, 20)):
        wanted = stats.binomtest(count, 20).proportion_ci(method="wilson")
        assert (float(low[at]), float(high[at])) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
