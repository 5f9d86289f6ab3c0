"""`to_numpy` on everything a notebook gives it."""

from typing import Any

import numpy as np
import pytest
import torch

from headscope import FactoredMatrix
from headscope.errors import InvalidInputError
from headscope.ops.arrays import to_numpy

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
