"""Fans and draws against torch.nn.init on transposed weights, and against the variances of the papers."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headscope.errors import InvalidInputError
from headscope.ops.initialization import (
    calc_fan_in_and_fan_out,
    init_kaiming_normal_,
    init_kaiming_uniform_,
    init_xavier_normal_,
    init_xavier_uniform_,
)


@pytest.mark.parametrize("shape, fans", [((5,), (1, 5)), ((3, 5), (3, 5)), ((12, 768, 64), (768, 768))])
def test_fans(shape: tuple[int, ...], fans: tuple[int, int]) -> None:
    assert calc_fan_in_and_fan_out(torch.empty(shape)) == fans


@pytest.mark.parametrize("shape", [(), (1, 2, 3, 4)])
def test_other_shapes_have_no_fans(shape: tuple[int, ...]) -> None:
    for function in (calc_fan_in_and_fan_out, init_xavier_normal_, init_kaiming_uniform_):
        with pytest.raises(InvalidInputError, match=r"one, two or three axes; got shape \["):
            function(torch.empty(shape))


CASES: list[tuple[Callable[..., Tensor], Callable[..., Tensor], dict[str, Any]]] = [
    (init_xavier_uniform_, nn.init.xavier_uniform_, {}),
    (init_xavier_uniform_, nn.init.xavier_uniform_, {"gain": 0.3}),
    (init_xavier_normal_, nn.init.xavier_normal_, {"gain": 2.0}),
    (init_kaiming_uniform_, nn.init.kaiming_uniform_, {}),
    (init_kaiming_uniform_, nn.init.kaiming_uniform_, {"mode": "fan_out", "nonlinearity": "tanh"}),
    (init_kaiming_normal_, nn.init.kaiming_normal_, {"a": 0.2, "nonlinearity": "leaky_relu"}),
    (init_kaiming_normal_, nn.init.kaiming_normal_, {"mode": "fan_out", "nonlinearity": "linear"}),
]


@pytest.mark.parametrize("ours, theirs, options", CASES)
def test_draws_are_torchs_on_the_transpose(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], options: dict[str, Any]
) -> None:
    weight = torch.empty(7, 11)
    torch.manual_seed(0)
    found = ours(weight, **options)
    assert found is weight
    torch.manual_seed(0)
    # Draws come in the order of memory, so the transposed weight is viewed, not transposed.
    wanted = theirs(torch.empty(11, 7), **options).view(7, 11)
    torch.testing.assert_close(found, wanted)
    generator = torch.Generator().manual_seed(0)
    state = torch.get_rng_state()
    assert torch.equal(ours(torch.empty(7, 11), **options, generator=generator), found)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("function, options, deviation", [
    (init_xavier_uniform_, {}, math.sqrt(2 / (50 + 80))),
    (init_xavier_normal_, {"gain": 3.0}, 3 * math.sqrt(2 / (50 + 80))),
    (init_kaiming_uniform_, {}, math.sqrt(2 / 50)),
    (init_kaiming_normal_, {"gain": 0.5}, 0.5 * math.sqrt(2 / 50)),
    (init_kaiming_normal_, {"mode": "fan_out", "nonlinearity": "linear"}, math.sqrt(1 / 80)),
])  # fmt: skip
def test_variances_of_heads(function: Callable[..., Tensor], options: dict[str, Any], deviation: float) -> None:
    weight = nn.Parameter(torch.empty(40, 50, 2))
    function(weight, **options)
    values = weight.detach()
    assert float(values.std()) == pytest.approx(deviation, rel=0.05)
    assert abs(float(values.mean())) < deviation / 10
    assert weight.requires_grad


def test_unknown_options_are_told() -> None:
    with pytest.raises(InvalidInputError, match=r"(?i)unsupported nonlinearity gelu9"):
        init_kaiming_normal_(torch.empty(2, 3), nonlinearity="gelu9")
    with pytest.raises((InvalidInputError, TypeError), match="mode"):
        init_kaiming_normal_(torch.empty(2, 3), mode="fan_both")  # type: ignore[arg-type]
