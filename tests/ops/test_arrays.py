"""`to_numpy` on everything a notebook gives it; small helpers on shapes against loops over indices."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headscope import FactoredMatrix
from headscope.errors import InvalidInputError
from headscope.ops.arrays import (
    check_structure,
    get_corner,
    get_cumsum_along_dim,
    get_matrix_corner,
    get_offset_position_ids,
    is_lower_triangular,
    is_square,
    remove_batch_dim,
    repeat_along_head_dimension,
    to_numpy,
    transpose,
)

GRID = torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize("given, wanted", [
    (GRID, GRID.tolist()),
    (GRID.T, GRID.T.tolist()),
    (GRID.long(), GRID.long().tolist()),
    (GRID > 2, (GRID > 2).tolist()),
    (GRID.bfloat16(), GRID.tolist()),
    (GRID.to(torch.float8_e4m3fn), GRID.tolist()),
    (torch.nn.Parameter(GRID), GRID.tolist()),
    (GRID.clone().requires_grad_() * 1, GRID.tolist()),
    (torch.complex(GRID, GRID).conj(), torch.complex(GRID, -GRID).tolist()),
    (GRID.to_sparse(), GRID.tolist()),
    (torch.tensor(2.5), 2.5),
    ([1, 2, 3], [1, 2, 3]),
    ((1.5, 2), [1.5, 2]),
    ([[1, 2], (3, 4)], [[1, 2], [3, 4]]),
    ([torch.tensor(1.0, requires_grad=True), 2], [1.0, 2.0]),
    ([GRID, GRID.bfloat16()], [GRID.tolist()] * 2),
    ([], []),
    (3, 3), (2.5, 2.5), (True, True), ("word", "word"), (np.float32(1.5), 1.5), (1 + 2j, 1 + 2j),
], ids=repr)  # fmt: skip
def test_the_values(given: Any, wanted: Any) -> None:
    found = to_numpy(given)
    assert isinstance(found, np.ndarray)
    assert found.tolist() == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64, torch.bool, torch.uint8])
def test_types_numpy_has_are_kept(dtype: torch.dtype) -> None:
    assert to_numpy(GRID.to(dtype)).dtype == np.dtype(str(dtype).removeprefix("torch."))
    assert to_numpy(GRID.bfloat16()).dtype == np.float32


def test_nothing_is_copied_without_need() -> None:
    array = np.ones(3)
    assert to_numpy(array) is array
    tensor = torch.zeros(3)
    to_numpy(tensor)[1] = 5.0
    assert tensor.tolist() == [0.0, 5.0, 0.0]


@pytest.mark.gpu
def test_a_tensor_on_the_gpu() -> None:
    assert to_numpy(GRID.cuda().requires_grad_()).tolist() == GRID.tolist()


@pytest.mark.parametrize("given, message", [
    (None, "cannot make an array of NoneType"),
    ({"a": 1}, "cannot make an array of dict"),
    (FactoredMatrix(GRID, GRID.T), "cannot make an array of FactoredMatrix"),
    ([1, None], "cannot make an array of NoneType"),
    ([[1, 2], [3]], "these lists do not form an array"),
])  # fmt: skip
def test_anything_else_is_refused(given: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        to_numpy(given)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_corners(n: int) -> None:
    tensor = torch.arange(4 * 5 * 3).view(4, 5, 3)
    assert torch.equal(get_corner(tensor, n), tensor[:n, :n, :n])
    assert torch.equal(get_corner(tensor), tensor[:3, :3, :3])
    assert torch.equal(get_corner(torch.tensor(4)), torch.tensor(4))
    product = FactoredMatrix(torch.randn(4, 5, 2), torch.randn(4, 2, 6))
    for found in (get_corner(product, n), get_matrix_corner(product, n)):
        torch.testing.assert_close(found, product.AB[:n, :n, :n])


@pytest.mark.parametrize("shape, wanted", [
    ((1, 3, 2), (3, 2)), ((2, 3), (2, 3)), ((1,), ()), ((1, 1), (1,)), ((0, 3), (0, 3)), ((), ()),
])  # fmt: skip
def test_removing_the_batch(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    found = remove_batch_dim(tensor)
    assert found.shape == wanted
    assert torch.equal(found.flatten(), tensor.flatten())


def test_transposing() -> None:
    tensor = torch.randn(2, 3, 4)
    assert torch.equal(transpose(tensor), tensor.permute(0, 2, 1))
    product = FactoredMatrix(torch.randn(5, 2), torch.randn(2, 6))
    torch.testing.assert_close(transpose(product).AB, product.AB.T)


@pytest.mark.parametrize("tensor, square, lower", [
    (torch.ones(3, 3).tril(), True, True),
    (torch.ones(3, 3).tril().long(), True, True),
    (torch.ones(3, 3).tril().bool(), True, True),
    (torch.ones(3, 3), True, False),
    (torch.zeros(2, 2), True, True),
    (torch.ones(1, 1), True, True),
    (torch.eye(3).T.flip(0), True, False),
    (torch.ones(2, 3).tril(), False, False),
    (torch.ones(1, 3, 3).tril(), False, False),
    (torch.ones(3), False, False),
    (torch.tensor([[1.0, torch.nan], [1.0, 1.0]]), True, False),
    (torch.tensor([[torch.nan, 0.0], [torch.inf, 1.0]]), True, True),
])  # fmt: skip
def test_squares_and_triangles(tensor: torch.Tensor, square: bool, lower: bool) -> None:
    assert is_square(tensor) is square
    assert is_lower_triangular(tensor) is lower


@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from([0, 1, -1, -2]), st.booleans())
def test_running_sums(rows: int, columns: int, dim: int, reverse: bool) -> None:
    tensor = torch.randint(-5, 5, (rows, columns))
    found = get_cumsum_along_dim(tensor, dim, reverse)
    by_row = (dim % 2) == 1
    for row in range(rows):
        for column in range(columns):
            line, at = (tensor[row], column) if by_row else (tensor[:, column], row)
            assert int(found[row, column]) == int(sum(line[at:] if reverse else line[: at + 1]))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=4), st.integers(0, 3))
def test_positions_of_left_padded_rows(rows: list[tuple[int, int]], cached: int) -> None:
    length = max(padding + real for padding, real in rows)
    rows = [(length - real, real) for _, real in rows]
    mask = torch.tensor([[0] * padding + [1] * real for padding, real in rows])
    wanted = [[*([0] * padding), *range(real)][cached:] for padding, real in rows]
    for given_mask in (mask, mask.bool()):
        assert get_offset_position_ids(cached, given_mask).tolist() == wanted


def test_heads_get_the_same_vectors() -> None:
    tensor = torch.randn(2, 3, 4)
    for clone in (True, False):
        found = repeat_along_head_dimension(tensor, 5, clone_tensor=clone)
        assert found.shape == (2, 3, 5, 4)
        for head in range(5):
            assert torch.equal(found[:, :, head], tensor)
    own = repeat_along_head_dimension(tensor, 5)
    own[:, :, 0] = 0.0
    assert bool((own[:, :, 1] == tensor).all()) and bool((tensor != 0).all())
    shared = repeat_along_head_dimension(tensor, 5, clone_tensor=False)
    assert shared.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("other, said", [
    ([[0.0, 5.0, 1.0], [6.0, 7.0, 2.0]], "PASSED"),
    ([[0.0, 5.0, 1.0], [6.0, 3.0, 1.0]], "row mismatch: [0]"),
    ([[0.0, 5.0, 6.0], [6.0, 7.0, 8.0]], "column mismatch: [1]"),
    ([[9.0, 5.0, 1.0], [6.0, 7.0, 2.0]], "row mismatch: [0]"),
])  # fmt: skip
def test_check_structure(other: list[list[float]], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = torch.tensor([[1.0, 4.0, 2.0], [3.0, 5.0, 4.0]])
    check_structure(matrix, torch.tensor(other))
    assert capsys.readouterr().out == f"{said}\n"
    check_structure(matrix, torch.tensor(other), verbose=True)
    *details, last = capsys.readouterr().out.splitlines()
    assert last == said and bool(details) == (said != "PASSED")
    with pytest.raises(InvalidInputError, match="one shape"):
        check_structure(matrix, matrix[:, :2])
