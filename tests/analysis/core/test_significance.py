"""Sign-flip p-values against scipy and by enumeration, and corrections that keep what they promise."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from headscope.analysis.core import significance
from headscope.analysis.core.significance import adjusted, corrected, looked_at, p_values
from headscope.errors import InvalidInputError


def rows_of(n: int, *cells: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *cells, generator=generator, dtype=torch.float64) + shift


@pytest.mark.parametrize("n", [2, 5, 9])
def test_exact_p_values_equal_scipys(n: int) -> None:
    rows = rows_of(n, 3, shift=0.4)
    rows[:, 2] = rows[0, 2]  # ties
    for cell, p in enumerate(p_values(rows).tolist()):
        values = rows[:, cell].numpy()
        wanted = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert p == pytest.approx(wanted.pvalue)


def test_drawn_flips_come_near_the_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(12, 20, shift=0.3)
    for correction in ("none", "max"):
        exact = adjusted(rows, correction)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(significance, "_EXACT", 4)
            drawn = adjusted(rows, correction, flips=20_000)  # type: ignore[arg-type]
            assert torch.equal(drawn, adjusted(rows, correction, flips=20_000))  # type: ignore[arg-type]
        torch.testing.assert_close(drawn, exact, atol=0.015, rtol=0)
        assert not torch.equal(drawn, exact)
    strong = rows_of(30, 1, shift=5.0)
    assert float(p_values(strong, flips=999)) == 1 / 1000


def test_the_largest_of_all_cells_by_enumeration() -> None:
    rows = rows_of(7, 5, seed=3, shift=0.3)

    def sizes(flipped: torch.Tensor) -> torch.Tensor:
        return flipped.mean(0).abs() / (flipped.std(0) / 7**0.5)

    measured = sizes(rows)
    most = torch.stack([sizes(rows * torch.tensor(signs)[:, None]).max() for signs in product((1.0, -1.0), repeat=7)])
    wanted = (most[:, None] >= measured - 1e-9).double().mean(0)
    torch.testing.assert_close(adjusted(rows, "max"), wanted)


def test_student_t_equals_scipys() -> None:
    rows = rows_of(11, 2, 3, shift=0.2)
    torch.testing.assert_close(p_values(rows, "t"), torch.from_numpy(stats.ttest_1samp(rows.numpy(), 0.0).pvalue))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_corrections_equal_their_definitions(numbers: list[float]) -> None:
    p = torch.tensor(numbers, dtype=torch.float64)
    np.testing.assert_allclose(corrected(p, "bh"), stats.false_discovery_control(numbers, method="bh"), atol=1e-12)
    order = sorted(range(len(numbers)), key=lambda at: numbers[at])
    so_far = 0.0
    for passed, at in enumerate(order):
        so_far = max(so_far, min(1.0, numbers[at] * (len(numbers) - passed)))
        assert float(corrected(p, "holm")[at]) == pytest.approx(so_far)
    assert torch.equal(corrected(p, "none"), p)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(1, 6), st.integers(0, 99), st.floats(1e-8, 1e8), st.sampled_from(["max", "holm"]))
def test_scale_sign_and_order_do_not_matter(n: int, cells: int, seed: int, scale: float, correction: Any) -> None:
    rows = rows_of(n, cells, seed=seed, shift=0.5)
    p = adjusted(rows, correction)
    torch.testing.assert_close(adjusted(-scale * rows, correction), p)
    torch.testing.assert_close(adjusted(rows[torch.randperm(n)], correction), p)
    torch.testing.assert_close(adjusted(rows.flip(1), correction), p.flip(0))
    assert bool((p >= p_values(rows) - 1e-12).all())


def test_cells_that_never_move_do_not_count() -> None:
    rows = rows_of(8, 3, shift=1.0)
    more = torch.cat([rows, torch.zeros(8, 50), torch.full((8, 2), torch.nan)], 1)
    assert looked_at(more).tolist() == [True] * 3 + [False] * 52
    for correction in ("max", "holm", "bh"):
        p = adjusted(more, correction)  # type: ignore[arg-type]
        torch.testing.assert_close(p[:3], adjusted(rows, correction))  # type: ignore[arg-type]
        assert bool((p[3:53] == 1).all()) and bool(p[53:].isnan().all())
    nothing = adjusted(torch.zeros(4, 2))
    assert nothing.tolist() == [1.0, 1.0] and adjusted(torch.zeros(4, 2), method="t", correction="bh").tolist() == [
        1,
        1,
    ]


@pytest.mark.parametrize("correction", ["max", "holm"])
def test_idle_cells_seldom_stand_out(correction: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    wrong = 0
    for _ in range(300):
        # Prompts of different scale, and cells that go together, as those of a patch do.
        rows = torch.randn(10, 12, generator=generator).exp() * torch.randn(10, 12, generator=generator)
        rows += torch.randn(10, 1, generator=generator)
        wrong += bool((adjusted(rows, correction) < 0.05).any())
    assert wrong / 300 < 0.08


def test_false_discoveries_are_few() -> None:
    generator = torch.Generator().manual_seed(2)
    shares = []
    for _ in range(200):
        rows = torch.randn(12, 40, generator=generator)
        rows[:, :10] += 2.0
        found = adjusted(rows, "bh", method="t") < 0.1
        assert bool(found[:10].any())
        shares.append(float(found[10:].sum() / found.sum().clamp(min=1)))
    assert 0.02 < np.mean(shares) < 0.1


def test_six_prompts_are_enough_for_the_largest_and_not_for_holm() -> None:
    rows = rows_of(6, 144, seed=5)
    rows[:, 3] = 4 + 0.1 * rows[:, 3]
    assert (adjusted(rows, "max") < 0.05).nonzero().tolist() == [[3]]
    assert not bool((adjusted(rows, "holm") < 0.05).any())
    assert int((adjusted(rows, "holm", method="t") < 0.05).sum()) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"correction": "bonferroni"},
        {"method": "rank", "correction": "holm"},
        {"method": "t"},
        {"rows": torch.zeros(1, 2)},
    ],
)
def test_what_is_no_test_is_refused(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(InvalidInputError):
        adjusted(**{"rows": torch.randn(5, 2), **options})
