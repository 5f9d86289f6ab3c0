"""Activation functions against their formulas in float64."""

import math

import pytest
import torch

from headscope.ops.activations import gelu_fast, gelu_new, gelu_pytorch_tanh, solu


@pytest.mark.parametrize("function", [gelu_new, gelu_fast, gelu_pytorch_tanh])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_the_tanh_gelu(function: object, shape: tuple[int, ...]) -> None:
    assert callable(function)
    x = 3 * torch.randn(shape, dtype=torch.float64)
    wanted = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x.flatten().tolist()]
    torch.testing.assert_close(function(x), torch.tensor(wanted, dtype=torch.float64).view(shape))
    assert function(x.half()).dtype == torch.float16


def test_solu_is_a_softmax_over_neurons() -> None:
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    weights = x.exp() / x.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(solu(x), x * weights)
    assert bool(solu(torch.tensor([1e4, -1e4])).isfinite().all())
