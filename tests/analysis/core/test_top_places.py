"""Top positions against sorting everything."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headscope.analysis.core.top_places import Position, token_means, top_positions
from headscope.errors import InvalidInputError

numbers = st.one_of(st.just(math.nan), st.integers(-5, 5).map(float))
tables = st.integers(1, 6).flatmap(
    lambda width: st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=1, max_size=4)
)


@given(tables, st.integers(1, 8), st.booleans())
def test_they_are_the_first_of_all_in_order(rows: list[list[float]], k: int, largest: bool) -> None:
    places = [(value, row, pos) for row, line in enumerate(rows) for pos, value in enumerate(line) if value == value]
    places.sort(key=lambda place: (-place[0] if largest else place[0], place[1], place[2]))
    found = top_positions(torch.tensor(rows), k, largest=largest)
    assert [(place.value, place.row, place.pos) for place in found] == places[:k]


@given(tables, st.integers(1, 3))
def test_none_stands_beside_a_better_one(rows: list[list[float]], apart: int) -> None:
    found = top_positions(torch.tensor(rows), 100, apart=apart)
    for index, place in enumerate(found):
        assert all(other.row != place.row or abs(other.pos - place.pos) > apart for other in found[:index])
    # Every number that was left out has a better or equal one near it.
    kept = {(place.row, place.pos): place.value for place in found}
    for row, line in enumerate(rows):
        for pos, value in enumerate(line):
            if value == value and (row, pos) not in kept:
                near = [kept[row, p] for p in range(pos - apart, pos + apart + 1) if (row, p) in kept]
                assert near and max(near) >= value


def test_k_below_one_is_told() -> None:
    with pytest.raises(InvalidInputError, match="k must be at least 1; got 0"):
        top_positions(torch.zeros(1, 2), 0)


@pytest.mark.parametrize(("pos", "expected"), [(0, [0]), (3, [1, 2, 3]), (1, [0, 1])])
def test_a_context_is_clipped_at_the_start(pos: int, expected: list[int]) -> None:
    assert list(Position(0, pos, 1.0).context(2)) == expected


def test_token_means_leave_out_nan_and_rare_tokens() -> None:
    values = torch.tensor([[1.0, 2.0, math.nan], [5.0, 6.0, -1.0]])
    tokens = torch.tensor([[3, 4, 4], [3, 9, 4]])
    found = [(mean.token, mean.mean, mean.count) for mean in token_means(values, tokens, min_count=2)]
    assert found == [(3, 3.0, 2), (4, 0.5, 2)]
