"""Top positions against sorting everything."""

import math
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from headscope.analysis.core.top_places import Position, TopPlaces, token_means, top_positions
from headscope.analysis.storage.accumulator import flat_summaries, split_summaries
from headscope.analysis.storage.merging import merge_states
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


edges = st.one_of(numbers, st.sampled_from([math.inf, -math.inf, 0.0, -0.0]))


@st.composite
def corpora(draw: st.DrawFn) -> tuple[Tensor, list[int]]:
    """Values `[series, row, pos]` with many that are equal, and the cuts between parts."""
    n_series, n_rows, n_pos = draw(st.integers(1, 3)), draw(st.integers(1, 8)), draw(st.integers(1, 3))
    size = n_series * n_rows * n_pos
    values = draw(st.lists(edges, min_size=size, max_size=size))
    cuts = draw(st.lists(st.integers(0, n_rows), max_size=4))
    return torch.tensor(values).reshape(n_series, n_rows, n_pos), sorted({0, n_rows, *cuts})


@given(corpora(), st.integers(1, 6), st.randoms(use_true_random=False))
def test_parts_of_a_corpus_are_merged_in_any_order(corpus: tuple[Tensor, list[int]], k: int, chance: Random) -> None:
    values, cuts = corpus
    whole = TopPlaces.of(values, k)
    for series, table in enumerate(values.tolist()):
        places = [(value, row, pos) for row, line in enumerate(table) for pos, value in enumerate(line)]
        known = [place for place in places if place[0] == place[0]]
        assert whole.rows(series) == tuple(sorted(known, key=lambda place: (-place[0], *place[1:]))[:k])
    parts = [TopPlaces.of(values[:, start:end], k, first_row=start) for start, end in zip(cuts, cuts[1:], strict=False)]
    states = [flat_summaries({"a.b": part}) for part in parts]
    while len(parts) > 1:  # any tree, and any order
        chance.shuffle(parts)
        parts.append(parts.pop().merged(parts.pop()))
    for found in (parts[0], split_summaries(merge_states(states))[0]["a.b"]):
        for name, tensor in found.tensors().items():
            assert tensor.shape == (len(values), k)
            # Minus zero is zero, in whatever part it comes first.
            assert torch.equal(tensor.nan_to_num(9.0), whole.tensors()[name].nan_to_num(9.0)), name


def test_places_of_no_values() -> None:
    nothing = TopPlaces.of(torch.full((2, 3, 4), math.nan), 2)
    assert nothing.rows(0) == () and bool((nothing.sequences == -1).all())
    assert nothing.merged(TopPlaces.of(torch.ones(2, 1, 1), 2, first_row=7)).rows(1) == ((1.0, 7, 0),)
    with pytest.raises(InvalidInputError, match="k must be at least 1"):
        TopPlaces.of(torch.ones(1, 1), 0)
