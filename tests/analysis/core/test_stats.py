"""Means, their errors, and what is told from chance."""

import math
import statistics

import pytest
import torch

from headscope.analysis.core.stats import Estimate, difference, estimate, estimates, threshold


def test_the_error_is_the_larger_of_positions_and_sequences() -> None:
    # Within a row the values move together, so that the four rows are what was really seen.
    rows = torch.randn(4, 1) + 0.1 * torch.randn(4, 50)
    rows[1, 30:] = torch.nan
    found = estimate(rows)
    values = [value for value in rows.flatten().tolist() if value == value]
    mean = statistics.fmean(values)
    sums = [sum(value - mean for value in row if value == value) for row in rows.tolist()]
    by_row = math.sqrt(sum(total**2 for total in sums) * 4 / 3) / len(values)
    assert found.n == len(values) == 180 and found.freedom == 3
    assert found.value == pytest.approx(mean) and found.error == pytest.approx(by_row)
    # Of independent values, the error is the plain one.
    spread = torch.tensor([[1.0, -1.0], [2.0, -2.0]])
    plain = statistics.stdev(spread.flatten().tolist()) / 2
    assert estimate(spread).error == pytest.approx(plain) and estimate(spread).freedom == 3


def test_one_position_has_no_error_and_shows_nothing() -> None:
    found = estimate(torch.tensor([[5.0, torch.nan]]))
    assert found.value == 5 and math.isnan(found.error) and not found.clear()


@pytest.mark.parametrize(
    ("among", "freedom", "table"),
    # Two-sided 5 % points of Student's t; among ten, those of 0.5 %.
    [
        (1, math.inf, 1.960),
        (1, 30.0, 2.042),
        (1, 5.0, 2.571),
        (1, 3.0, 3.182),
        (10, math.inf, 2.807),
        (10, 15.0, 3.286),
    ],
)
def test_the_threshold_is_that_of_tables(among: int, freedom: float, table: float) -> None:
    # The expansion is 2 % low at three degrees of freedom, and closer above.
    assert threshold(among, freedom) == pytest.approx(table, rel=0.025)


def test_noise_is_seldom_called_clear() -> None:
    # 300 studies of 20 heads that do nothing, on 8 rows of positions that move together, or do not.
    together = torch.tensor([0.0, 1.0]).repeat(150)[:, None, None, None]
    draws = together * torch.randn(300, 20, 8, 1) + torch.randn(300, 20, 8, 32)
    wrong = sum(bool(estimates(study).clear().any()) for study in draws)
    assert 0 < wrong / 300 < 0.08  # 0.05, and two and a half standard errors of 300 draws
    shifted = estimates(draws[0] + 5.0)
    assert bool(shifted.clear(1).all()) and not bool(shifted.clear(-1).any())


def test_heads_that_chance_may_have_put_behind_the_first_are_named() -> None:
    common = torch.randn(4, 100)
    each = torch.stack([common + 0.1 * torch.randn(4, 100) + shift for shift in (0.0, 1.0, 1.0, -1.0)])
    # They go up and down together: half a nat between means is clear though each mean is uncertain.
    found = estimates(each.unflatten(0, (2, 2)))
    best, *close = found.as_good()
    assert {best, *close} == {1, 2}
    assert found.as_good(largest=False) == [3]
    assert estimates(each[:1]).as_good() == [0]


def test_differences_of_different_positions() -> None:
    gap = difference(Estimate(3.0, 0.3, 50, 9.0), Estimate(1.0, 0.4, 40))
    assert (gap.value, gap.n, gap.freedom) == (2.0, 40, 9.0) and gap.error == pytest.approx(0.5)
