"""Chunks on threads of their own run in the mode of the thread that asked for them."""

from collections.abc import Iterator

import pytest
import torch

from headscope.ops.parallel import RowChunks


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_tensors_of_inference_mode_are_written_on_threads(mode: type[torch.no_grad]) -> None:
    with mode():
        inputs, squares = torch.arange(10.0), torch.zeros(10)

        def square(rows: slice, buffer: torch.Tensor) -> None:
            squares[rows] = buffer.copy_(inputs[rows][: len(buffer)]) ** 2

        with RowChunks(10, 5, lambda: torch.empty(5)) as chunks:
            chunks.run(square)
    assert torch.equal(squares, torch.arange(10.0) ** 2)
    assert squares.is_inference() is (mode is torch.inference_mode)
