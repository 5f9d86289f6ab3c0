"""Xavier and Kaiming initialization for this library's weight layout.

Weights are `[in, out]` or `[head, in, out]`, where PyTorch has `[out, in]`: its own initializers would mistake fan-in
for fan-out.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope.errors import InvalidInputError

__all__ = [
    "calc_fan_in_and_fan_out",
    "init_kaiming_normal_",
    "init_kaiming_uniform_",
    "init_xavier_normal_",
    "init_xavier_uniform_",
]

FanMode = Literal["fan_in", "fan_out"]


def calc_fan_in_and_fan_out(tensor: Float[Tensor, "*shape"]) -> tuple[int, int]:
    """Return fan-in and fan-out: inputs per output of a weight, and outputs per input.

    Args:
        tensor: A bias or embedding row `[out]` (fan-in 1), a matrix `[in, out]`, or the heads' matrices
            `[head, in, out]`, whose fan-out counts all heads.

    Raises:
        InvalidInputError: For a scalar, or more than three axes.

    Example:
        >>> calc_fan_in_and_fan_out(torch.empty(12, 768, 64))
        (768, 768)
    """
    shape = tensor.shape
    if not 1 <= len(shape) <= 3:
        raise InvalidInputError(f"fans are for weights of one, two or three axes; got shape {list(shape)}.")
    fan_in = 1 if len(shape) == 1 else shape[-2]
    fan_out = shape[-1] * (shape[0] if len(shape) == 3 else 1)
    return fan_in, fan_out


def init_xavier_uniform_(
    param: Float[Tensor, "*shape"], gain: float = 1.0, *, generator: torch.Generator | None = None
) -> Float[Tensor, "*shape"]:
    """Fill with a uniform draw of variance `2 gain^2 / (fan_in + fan_out)` (Glorot & Bengio 2010, eq. 16).

    Example:
        >>> init_xavier_uniform_(torch.empty(100, 200)).abs().max().round(decimals=3)  # at most sqrt(6 / 300)
        tensor(0.1410)
    """
    bound = gain * math.sqrt(6.0 / sum(calc_fan_in_and_fan_out(param)))
    return nn.init.uniform_(param, -bound, bound, generator)


def init_xavier_normal_(
    param: Float[Tensor, "*shape"], gain: float = 1.0, *, generator: torch.Generator | None = None
) -> Float[Tensor, "*shape"]:
    """Fill with a normal draw of variance `2 gain^2 / (fan_in + fan_out)` (Glorot & Bengio 2010, eq. 12).

    Example:
        >>> init_xavier_normal_(torch.empty(100, 200)).shape
        torch.Size([100, 200])
    """
    deviation = gain * math.sqrt(2.0 / sum(calc_fan_in_and_fan_out(param)))
    return nn.init.normal_(param, 0.0, deviation, generator)


def init_kaiming_uniform_(
    param: Float[Tensor, "*shape"],
    a: float = 0.0,
    nonlinearity: str = "relu",
    gain: float = 1.0,
    mode: FanMode = "fan_in",
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*shape"]:
    """Fill with a uniform draw of the same variance as `init_kaiming_normal_`.

    Example:
        >>> init_kaiming_uniform_(torch.empty(100, 200)).abs().max().round(decimals=3)  # at most sqrt(6 / 100)
        tensor(0.2450)
    """
    gain, fan = _kaiming_gain_and_fan(param, a, nonlinearity, gain, mode)
    bound = gain * math.sqrt(3.0 / fan)  # a deviation times sqrt(3) would differ in its last bit
    return nn.init.uniform_(param, -bound, bound, generator)


def init_kaiming_normal_(
    param: Float[Tensor, "*shape"],
    a: float = 0.0,
    nonlinearity: str = "relu",
    gain: float = 1.0,
    mode: FanMode = "fan_in",
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*shape"]:
    """Fill with a normal draw of variance `g^2 gain^2 / fan` (He et al. 2015, arXiv 1502.01852, eq. 10).

    Args:
        param: The weight.
        a: Slope of a leaky ReLU below zero; other nonlinearities have none.
        nonlinearity: The activation that follows, by a name that `torch.nn.init.calculate_gain` knows; it gives `g`.
        gain: One more factor.
        mode: `"fan_in"` keeps the variance of activations in the forward pass, `"fan_out"` that of gradients in the
            backward pass.
        generator: Source of randomness; PyTorch's global generator by default.

    Raises:
        InvalidInputError: For a scalar or more than three axes, an unknown nonlinearity, or another mode.

    Example:
        >>> init_kaiming_normal_(torch.empty(100, 200)).shape
        torch.Size([100, 200])
    """
    gain, fan = _kaiming_gain_and_fan(param, a, nonlinearity, gain, mode)
    return nn.init.normal_(param, 0.0, gain * math.sqrt(1.0 / fan), generator)


def _kaiming_gain_and_fan(param: Tensor, a: float, nonlinearity: str, gain: float, mode: FanMode) -> tuple[float, int]:
    if mode not in ("fan_in", "fan_out"):
        raise InvalidInputError(f"mode must be 'fan_in' or 'fan_out'; got {mode!r}.")
    try:
        gain *= nn.init.calculate_gain(nonlinearity, a)  # type: ignore[arg-type]
    except ValueError as error:
        raise InvalidInputError(f"{error}; torch.nn.init.calculate_gain lists the names.") from None
    fan_in, fan_out = calc_fan_in_and_fan_out(param)
    return gain, fan_in if mode == "fan_in" else fan_out
