"""`Slice` against plain indexing."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headscope.errors import InvalidInputError
from headscope.ops.indexing import Slice

GRID = torch.arange(2 * 5 * 3).view(2, 5, 3)


@pytest.mark.parametrize("selection, index, mode", [
    (None, slice(None), "identity"),
    (2, 2, "int"), (-1, -1, "int"), (np.int64(2), 2, "int"), (torch.tensor(3), 3, "int"), (np.array(1), 1, "int"),
    (slice(1, 4), slice(1, 4), "slice"), ((3,), slice(3), "slice"), ((1, 3), slice(1, 3), "slice"),
    ((0, 5, 2), slice(0, 5, 2), "slice"), ((None, 3), slice(None, 3), "slice"), ((-2, None), slice(-2, None), "slice"),
    ([0, 3], [0, 3], "array"), ([4], [4], "array"), ([-1, 0], [-1, 0], "array"), ([], [], "array"),
    (torch.tensor([1, 1, 0]), [1, 1, 0], "array"), (torch.tensor([2], dtype=torch.int32), [2], "array"),
    (np.array([3, 1]), [3, 1], "array"), (np.array([3, 1], dtype=np.uint8), [3, 1], "array"),
    (np.array([True, False, True, False, False]), [0, 2], "array"),
    (torch.tensor([False, True, True, False, False]), [1, 2], "array"),
    ([True, False, False, False, True], [0, 4], "array"),
    (Slice((1, 3)), slice(1, 3), "slice"), (Slice(2), 2, "int"), (Slice([2]), [2], "array"),
], ids=repr)  # fmt: skip
def test_what_is_selected(selection: Any, index: Any, mode: str) -> None:
    chosen = Slice(selection)
    assert chosen.mode == mode
    wanted = GRID[:, index]
    assert torch.equal(chosen.apply(GRID, dim=1), wanted)
    assert torch.equal(chosen.apply(GRID, dim=-2), wanted)
    assert torch.equal(chosen.apply(GRID.transpose(0, 1)), GRID.transpose(0, 1)[index])
    found = chosen.indices(5)
    assert isinstance(found, np.ndarray) and found.dtype == np.int64
    assert found.tolist() == torch.atleast_1d(torch.arange(5)[index]).tolist()
    assert isinstance(chosen.slice, {"int": int, "array": np.ndarray}.get(mode, slice))
    assert repr(chosen).startswith("Slice(")


def test_a_single_integer_needs_no_size() -> None:
    assert Slice(4).indices().tolist() == [4]
    with pytest.raises(InvalidInputError, match="max_ctx"):
        Slice((1, 2)).indices()


@pytest.mark.parametrize("selection, index", [(2, [2]), (-1, [-1]), (np.int64(0), [0]), (None, slice(None)),
                                              ((1, 3), slice(1, 3)), ([0, 3], [0, 3]), (Slice(2), 2)])  # fmt: skip
def test_unwrapping_keeps_the_axis(selection: Any, index: Any) -> None:
    assert torch.equal(Slice.unwrap(selection).apply(GRID, dim=1), GRID[:, index])
    made = Slice((1, 2))
    assert Slice.unwrap(made) is made


@given(st.integers(-5, 4), st.integers(-5, 5), st.integers(1, 3))
def test_ranges(start: int, stop: int, step: int) -> None:
    wanted = torch.arange(5)[start:stop:step]
    assert torch.equal(Slice((start, stop, step)).apply(torch.arange(5)), wanted)
    assert Slice(slice(start, stop, step)).indices(5).tolist() == wanted.tolist()


@pytest.mark.parametrize("selection", [
    "1", (), (1, 2, 3, 4), 1.5, {1}, ("a", 2), slice("a"), [0.5], torch.tensor([0.5]), torch.tensor([[1, 2]]),
    np.array(["a"]), torch.tensor(1.5), (0, 5, 0), (4, 0, -1), slice(None, None, -1),
], ids=repr)  # fmt: skip
def test_anything_else_is_refused(selection: Any) -> None:
    with pytest.raises((InvalidInputError, TypeError)) as caught:
        Slice(selection)
    assert "slice" in str(caught.value) or "parameter input_slice=" in str(caught.value)


def test_what_does_not_fit_the_axis_is_told() -> None:
    for selection in (5, [0, 5], [True, False], -6):
        with pytest.raises(InvalidInputError, match=r"Slice\(.*\) does not fit an axis of size 5"):
            Slice(selection).apply(GRID, dim=1)
    with pytest.raises(InvalidInputError, match=r"Slice\(\[7\]\) does not fit an axis of size 5"):
        Slice([7]).indices(5)
    with pytest.raises(InvalidInputError, match=r"no axis 3 in a tensor of shape \[2, 5, 3\]"):
        Slice(0).apply(GRID, dim=3)


def test_gradients_pass() -> None:
    tensor = torch.ones(4, requires_grad=True)
    for selection in ([0, 0], (1, 3), 2, None):
        (gradient,) = torch.autograd.grad(Slice(selection).apply(tensor).sum(), tensor)
        assert float(gradient.sum()) == Slice(selection).apply(tensor.detach()).numel()
