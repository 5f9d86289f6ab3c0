"""Activation functions against their formulas in float64."""

import math

import pytest
import torch
from tiny import tiny_config

from headscope import HookedTransformer
from headscope.ops.activations import gelu_fast, gelu_new, gelu_pytorch_tanh, solu, xielu


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


def test_xielu() -> None:
    """The integral of a line with slope `beta` at zero and, on the left, of an exponential: with a smooth slope."""
    x = 3 * torch.randn(50, dtype=torch.float64)
    alpha_p, alpha_n, beta = (torch.tensor(value, dtype=torch.float64) for value in ([0.3], [-0.7], 0.5))
    p, n = math.log(1 + math.exp(0.3)), 0.5 + math.log(1 + math.exp(-0.7))
    wanted = [p * v**2 + 0.5 * v if v > 0 else n * (math.exp(v) - 1 - v) + 0.5 * v for v in x.tolist()]
    eps = torch.tensor(-1e-6, dtype=torch.float64)
    torch.testing.assert_close(xielu(x, alpha_p, alpha_n, beta, eps), torch.tensor(wanted, dtype=torch.float64))
    act = HookedTransformer(tiny_config(act_fn="xielu")).blocks[0].mlp.act_fn
    curvatures = torch.cat([each.detach() for each in (act.alpha_p, act.alpha_n)]).exp().log1p()
    torch.testing.assert_close(curvatures, torch.tensor([0.8, 0.3], dtype=torch.float64), rtol=1e-6, atol=0)
