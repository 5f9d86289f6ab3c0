"""`Slice` against plain indexing."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headscope.errors import InvalidInputError
from headscope.ops.indexing import Slice

GRID = torch.arange(2 * 5 * 3).view(2, 5, 3)


@pytest.mark.parametrize("selection, index", [
    (None, slice(None)), (2, 2), (-1, -1), (slice(1, 4), slice(1, 4)), ((3,), slice(3)), ((1, 3), slice(1, 3)),
    ((0, 5, 2), slice(0, 5, 2)), ((None, 3), slice(None, 3)), ([0, 3], [0, 3]), ([4], [4]),
    (torch.tensor([1, 1, 0]), [1, 1, 0]), (Slice((1, 3)), slice(1, 3)), (Slice(2), 2),
])  # fmt: skip
def test_what_is_selected(selection: Any, index: Any) -> None:
    chosen = Slice(selection)
    wanted = GRID[:, index]
    assert torch.equal(chosen.apply(GRID, dim=1), wanted)
    assert torch.equal(chosen.apply(GRID, dim=-2), wanted)
    assert torch.equal(chosen.apply(GRID.transpose(0, 1)), GRID.transpose(0, 1)[index])
    assert torch.equal(chosen.indices(5), torch.atleast_1d(torch.arange(5)[index]))
    assert repr(chosen).startswith("Slice(")


@given(st.integers(-5, 4), st.integers(-5, 5), st.integers(1, 3))
def test_ranges(start: int, stop: int, step: int) -> None:
    wanted = torch.arange(5)[start:stop:step]
    assert torch.equal(Slice((start, stop, step)).apply(torch.arange(5)), wanted)
    assert torch.equal(Slice(slice(start, stop, step)).indices(5), wanted)


@pytest.mark.parametrize("selection", ["1", (), (1, 2, 3, 4), 1.5, {1}])
def test_anything_else_is_refused(selection: Any) -> None:
    with pytest.raises((InvalidInputError, TypeError)) as caught:
        Slice(selection)
    assert "slice" in str(caught.value) or "parameter 'selection'" in str(caught.value)
