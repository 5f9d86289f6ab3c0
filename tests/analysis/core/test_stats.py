"""Means, their errors, and what is told from chance."""

import math
import statistics

import pytest
import torch
from torch import Tensor

from headscope.analysis.core.stats import (
    LEVEL,
    Estimate,
    difference,
    estimate,
    estimates,
    estimates_of_moments,
    place_moments,
    row_moments,
    row_moments_of_sums,
    threshold,
    with_places,
)


def clustered(rows: list[list[float]]) -> float:
    """The error of a ratio of sums over rows, as the textbook has it."""
    values = [value for row in rows for value in row]
    mean = statistics.fmean(values)
    left = [sum(row) - len(row) * mean for row in rows]
    return math.sqrt(len(rows) / (len(rows) - 1) * sum(each**2 for each in left)) / len(values)


def correlated(n_studies: int, n_rows: int, n_pos: int, rho: float, generator: torch.Generator) -> Tensor:
    """Rows in which each value is `rho` times the one before and noise; the variance of a value is 1."""
    noise = torch.randn(n_studies, n_rows, n_pos, generator=generator, dtype=torch.float64)
    for at in range(1, n_pos):
        noise[..., at] = rho * noise[..., at - 1] + math.sqrt(1 - rho**2) * noise[..., at]
    return noise


# The error


def test_error_is_that_of_a_ratio_of_sums_over_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(9, 1, generator=generator) + 0.1 * torch.randn(9, 50, generator=generator)
    values[1, 30:] = torch.nan
    values[4, :20] = torch.nan
    found = estimate(values)
    rows = [[value for value in row if value == value] for row in values.tolist()]
    assert found.n == 410 and found.freedom == 8
    assert found.value == pytest.approx(statistics.fmean(sum(rows, [])))
    assert found.error == pytest.approx(clustered(rows), rel=1e-9)


@pytest.mark.parametrize("shape", [(30, 1), (5, 1), (2, 1), (1, 8), (1, 5)])
def test_single_positions_have_the_plain_error(shape: tuple[int, int]) -> None:
    """One position in each row, or so few rows that they are cut to single positions."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = estimate(values)
    assert found.error == pytest.approx(statistics.stdev(values.flatten().tolist()) / math.sqrt(found.n), rel=1e-6)
    assert found.freedom == found.n - 1


def test_error_of_independent_positions_is_the_plain_one_on_average() -> None:
    values = torch.randn(2000, 40, 25, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found, plain = estimates(values), values.flatten(1).std(-1) / 1000**0.5
    assert float(found.errors.square().mean() / plain.square().mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("n_rows", [20, 8, 3, 1])
@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_intervals_cover_the_mean_of_correlated_rows(n_rows: int, rho: float) -> None:
    """At 256 positions a row also where rows are cut in pieces, the shortest of which has 32."""
    draws = correlated(1500, n_rows, 256, rho, torch.Generator().manual_seed(n_rows))
    found = estimates(draws)
    covered = found.values.abs() <= threshold(1, found.freedom) * found.errors
    # Two standard errors of 1,500 draws are 0.011; pieces of 64 and 32 positions are a little short at 0.9.
    short = {3: 0.02, 1: 0.03}.get(n_rows, 0.0) if rho else 0.0
    assert -0.014 - short < float(covered.double().mean()) - (1 - LEVEL) < 0.014
    assert float(found.errors.square().mean().sqrt()) == pytest.approx(
        float(found.values.std()), rel=0.16 if rho else 0.05
    )
    plain = draws.flatten(1).std(-1) / (n_rows * 256) ** 0.5
    if rho:
        assert float((found.values.abs() <= 1.96 * plain).double().mean()) < 0.5


def test_error_is_that_of_a_bootstrap_over_rows() -> None:
    generator = torch.Generator().manual_seed(3)
    values = correlated(1, 60, 40, 0.8, generator)[0] + torch.randn(60, 1, generator=generator)
    sizes = torch.randint(5, 41, (60,), generator=generator)
    values[torch.arange(40) >= sizes[:, None]] = torch.nan
    drawn = torch.randint(0, 60, (4000, 60), generator=generator)
    means = values.nansum(1)[drawn].sum(1) / sizes[drawn].sum(1)
    assert estimate(values).error == pytest.approx(float(means.std()), rel=0.05)


def test_few_rows_are_cut_into_pieces() -> None:
    values = torch.randn(3, 80, generator=torch.Generator().manual_seed(4))
    # Three rows of four pieces: eight degrees of freedom about the four means.
    quarters = values.view(3, 4, 20).double().sum(-1)
    wanted = math.sqrt(3 / 2 * float((quarters - quarters.mean(0)).square().sum())) / 240
    assert estimate(values).freedom == 8 and estimate(values).error == pytest.approx(wanted, rel=1e-6)
    # Padding makes rows no longer than they are, and what changes along all rows is no error.
    padded = torch.nn.functional.pad(values, (7, 30), value=math.nan)
    along = values + torch.arange(4.0).repeat_interleave(20)
    for each in (padded, along):
        assert estimate(each).freedom == 8 and estimate(each).error == pytest.approx(wanted, rel=1e-5)
    eighths = values[:1].view(8, 10).tolist()
    assert estimate(values[:1]).freedom == 7
    assert estimate(values[:1]).error == pytest.approx(clustered(eighths), rel=1e-6)


@pytest.mark.parametrize("lengths", [(3, 2), (1, 5), (9, 1, 4), (2, 2, 2)])
def test_rows_shorter_than_their_pieces(lengths: tuple[int, ...]) -> None:
    """Of independent positions the error is right on average, though some pieces have no like in other rows."""
    draws = torch.randn(4000, len(lengths), max(lengths), generator=torch.Generator().manual_seed(8))
    draws[:, torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]] = torch.nan
    found = estimates(draws)
    assert float(found.errors.square().mean()) == pytest.approx(1 / sum(lengths), rel=0.35)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([[5.0, math.nan]], (5.0, math.nan, 1, 0.0)),
        ([[5.0], [math.nan]], (5.0, math.nan, 1, 0.0)),
        ([[math.nan, math.nan]], (math.nan, math.nan, 0, 0.0)),
        ([[3.3] * 7] * 11, (3.3, 0.0, 77, 10.0)),
        ([[0.1] * 9], (0.1, 0.0, 9, 7.0)),
    ],
    ids=["one position", "one row", "nothing", "no spread", "one row, no spread"],
)
def test_degenerate_data(values: list[list[float]], wanted: tuple[float, float, int, float]) -> None:
    data = torch.tensor(values, dtype=torch.float64)
    found = estimate(data)
    kept = estimates_of_moments(row_moments(data[~data.isnan()], (~data.isnan()).nonzero()[:, 0]))[()]
    for each in (found, kept):
        assert (each.value, each.error, each.n, each.freedom) == pytest.approx(wanted, nan_ok=True)
    assert found.clear() is (wanted[1] == 0)
    assert found.interval() == pytest.approx((wanted[0],) * 2 if wanted[1] == 0 else (math.nan,) * 2, nan_ok=True)


@pytest.mark.parametrize("n_rows", [2, 3, 5, 9, 40])
def test_moments_added_over_batches_give_the_same_estimates(n_rows: int) -> None:
    generator = torch.Generator().manual_seed(n_rows)
    values = 1.0 + 0.01 * torch.randn(2, n_rows, 17, generator=generator, dtype=torch.float64)
    values[:, 0, 3:8] = torch.nan
    values[:, -1] = torch.nan
    counted = ~values[0].isnan()
    wanted = estimates(values)
    parts = [row_moments(values[:, at, counted[at]], torch.full((int(counted[at].sum()),), at)) for at in range(n_rows)]
    found = estimates_of_moments(torch.stack(parts).sum(0))
    torch.testing.assert_close(found.values, wanted.values, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.errors, wanted.errors, rtol=1e-8, atol=0, equal_nan=True)
    assert torch.equal(found.freedom, wanted.freedom) and found.n == wanted.n


def test_moments_of_sums_keep_few_rows_few() -> None:
    values = torch.randn(12, 2, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for n_rows in (12, 3):
        rows = values[:n_rows]
        found = estimates_of_moments(row_moments_of_sums(rows.sum(-1), torch.full((n_rows, 2), 6.0)))
        wanted = [clustered(rows[:, thing].tolist()) for thing in (0, 1)]
        assert found.errors.tolist() == pytest.approx(wanted) and found.freedom.tolist() == [n_rows - 1] * 2


def test_positions_that_count_may_differ_between_things() -> None:
    values = torch.randn(2, 10, 6, generator=torch.Generator().manual_seed(6))
    values[0, 2:4] = torch.nan
    values[1, :, 1] = torch.nan
    found = estimates(values)
    for at in (0, 1):
        alone = estimate(values[at])
        assert (found[at].value, found[at].error, found[at].freedom) == (
            pytest.approx(alone.value), pytest.approx(alone.error), alone.freedom,
        )  # fmt: skip


# What is significant


@pytest.mark.parametrize(
    ("among", "freedom", "table"),
    # Two-sided 5 % points of Student's t; among ten, those of 0.5 %; among a thousand, those of 0.005 %.
    [
        (1, math.inf, 1.959964),
        (1, 30.0, 2.042272),
        (1, 5.0, 2.570582),
        (1, 3.0, 3.182446),
        (1, 2.0, 4.302653),
        (1, 1.0, 12.706205),
        (10, math.inf, 2.807034),
        (10, 15.0, 3.286039),
        (10, 4.0, 5.597568),
        (1000, 31.0, 4.704594),
        (1000, 7.0, 8.782507),
        (1000, 2.0, 141.416),
    ],
)
def test_the_threshold_is_that_of_tables(among: int, freedom: float, table: float) -> None:
    assert threshold(among, freedom) == pytest.approx(table, rel=2e-5)
    assert float(threshold(among, torch.tensor([freedom, 9.0]))[0]) == threshold(among, freedom)
    assert threshold(1, freedom, level=LEVEL / among) == threshold(among, freedom)


def test_without_freedom_nothing_is_significant() -> None:
    assert threshold(1, 0.0) == math.inf
    assert not Estimate(1.0, 0.0, 1, freedom=0.0).clear()
    assert torch.equal(threshold(1, torch.tensor([0.0, 0.5])), torch.tensor([math.inf, math.inf], dtype=torch.float64))


@pytest.mark.parametrize("n_rows", [8, 30])
def test_noise_is_seldom_called_clear(n_rows: int) -> None:
    """600 studies of 20 heads that do nothing, on rows whose positions move together, or do not."""
    generator = torch.Generator().manual_seed(n_rows)
    together = torch.tensor([0.0, 1.0]).repeat(300)[:, None, None, None]
    draws = together * torch.randn(600, 20, n_rows, 1, generator=generator)
    draws = draws + torch.randn(600, 20, n_rows, 32, generator=generator)
    wrong = sum(bool(estimates(study).clear().any()) for study in draws) / 600
    assert LEVEL - 0.025 < wrong < LEVEL + 0.022  # two and a half standard errors of 600 draws; heads are independent
    shifted = estimates(draws[0] + 5.0)
    assert bool(shifted.clear(1).all()) and not bool(shifted.clear(-1).any())
    assert not bool(shifted.clear(1, level=1e-60).any())


def test_heads_that_chance_may_have_put_behind_the_first_are_named() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(4, 100, generator=generator)
    noise = 0.1 * torch.randn(4, 4, 100, generator=generator)
    each = common + noise + torch.tensor([0.0, 1.0, 1.0, -1.0])[:, None, None]
    # They go up and down together: half a nat between means is clear though each mean is uncertain.
    found = estimates(each.unflatten(0, (2, 2)))
    best, *close = found.contenders()
    assert {best, *close} == {1, 2}
    assert found.contenders(largest=False) == [3]
    assert estimates(each[:1]).contenders() == [0]


def test_differences_of_different_rows() -> None:
    gap = difference(Estimate(3.0, 0.3, 50, 9.0), Estimate(1.0, 0.4, 40, 12.0))
    # Welch: 0.25^2 / (0.09^2 / 9 + 0.16^2 / 12) = 20.6.
    assert (gap.value, gap.n, gap.freedom) == (2.0, 40, 20.0) and gap.error == pytest.approx(0.5)
    assert difference(Estimate(3.0, 0.3, 9, 9.0), Estimate(1.0, 0.0, 9)).freedom == 9
    assert difference(Estimate(3.0, 0.0, 9, 9.0), Estimate(1.0, 0.0, 5, 4.0)).clear()
    generator = torch.Generator().manual_seed(7)
    first, second = (estimates(torch.randn(3, n, 5, generator=generator)) for n in (12, 20))
    gaps = difference(first, second)
    for at in range(3):
        one = difference(first[at], second[at])
        assert (gaps[at].value, gaps[at].error) == pytest.approx((one.value, one.error)) and gaps.n == one.n == 60
        assert gaps[at].freedom == one.freedom


# Over rows and positions


def test_two_way_errors_are_those_of_rows_and_positions_less_their_cells() -> None:
    """Cameron, Gelbach and Miller 2011, one sum at a time; of two halves added, too."""
    generator = torch.Generator().manual_seed(3)
    n_rows, n_places = 12, 7
    by_place = torch.randn(n_places, generator=generator)
    counts = torch.randint(0, 4, (n_rows, n_places), generator=generator).double()
    sums = counts * (0.3 * torch.randn(n_rows, n_places, generator=generator) + by_place + 1)
    moments = [
        (row_moments_of_sums(s.sum(-1), c.sum(-1)), place_moments(s, c, n_places + 2))
        for s, c in ((sums[:5], counts[:5]), (sums[5:], counts[5:]))
    ]
    of_rows, of_places = (first + second for first, second in zip(*moments, strict=True))
    rows = estimates_of_moments(of_rows)[()]
    found = with_places(estimates_of_moments(of_rows), of_places)[()]
    total = float(counts.sum())
    mean = float(sums.sum()) / total
    left = [[float(sums[r, p] - counts[r, p] * mean) for p in range(n_places)] for r in range(n_rows)]
    among = sum(sum(row[p] for row in left) ** 2 for p in range(n_places)) * n_places / (n_places - 1)
    cells = sum(each**2 for row in left for each in row)
    assert found.value == pytest.approx(mean)
    assert found.error == pytest.approx(math.sqrt(rows.error**2 + (among - cells) / total**2))
    assert found.error > 3 * rows.error and n_places - 1 <= found.freedom < n_places + 1


def test_positions_that_differ_by_chance_add_little() -> None:
    """Of independent values the two-way error is that of rows, and a 5 % test is one."""
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(400, 20, 15, generator=generator, dtype=torch.float64)
    ones = torch.ones_like(values)
    rows = estimates_of_moments(row_moments_of_sums(values.sum(-1).T, ones.sum(-1).T))
    found = with_places(rows, place_moments(values, ones))
    assert bool((found.errors >= rows.errors).all())
    assert float((found.errors / rows.errors).median()) < 1.1
    assert float(found.clear(among=1).double().mean()) < 0.06
