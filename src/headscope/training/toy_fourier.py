"""Waves over the numbers modulo `p`: how a network that adds holds its numbers.

A network that adds modulo `p` by turning circles has the few frequencies it turns by in its embedding; one that knows
its table by heart has them all alike (Nanda et al. 2023, "Progress measures for grokking via mechanistic
interpretability").
"""

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.errors import InvalidInputError

__all__ = ["fourier_basis", "fourier_coefficients", "fourier_power"]


def fourier_basis(p: int) -> Float[Tensor, "wave number"]:
    """The waves over the numbers 0 to `p - 1`, orthonormal: the constant, then cosine and sine of 1, 2, ... turns.

    With even `p` the last is the cosine of `p / 2` turns, whose sine is zero everywhere.

    Args:
        p: How many numbers.

    Returns:
        `[p, p]` in float64, whose rows are orthonormal to rounding.

    Raises:
        InvalidInputError: If there are fewer than three numbers.

    Example:
        >>> basis = fourier_basis(5)
        >>> torch.allclose(basis @ basis.T, torch.eye(5, dtype=torch.float64), atol=1e-12)
        True
    """
    if p < 3:
        raise InvalidInputError(f"p is {p}; frequencies are told from three numbers on.")
    # Turns are taken modulo p before they become an angle, which keeps its rounding as small as it can be.
    turns = torch.arange(1, p // 2 + 1)[:, None] * torch.arange(p) % p
    angle = 2 * torch.pi * turns.double() / p
    waves = torch.stack([angle.cos(), angle.sin()], dim=1).flatten(0, 1)[: p - 1]
    both = torch.cat([torch.ones(1, p, dtype=torch.float64), waves])
    return both / both.norm(dim=1, keepdim=True)


@torch.no_grad()
def fourier_coefficients(values: Float[Tensor, "number feature"]) -> Float[Tensor, "wave feature"]:
    """How much of each wave of `fourier_basis` is in each feature, in float64; `basis.T @ coefficients` is `values`.

    Args:
        values: A row for each of the numbers 0 to `p - 1`, such as `model.W_E[:p]`.

    Raises:
        InvalidInputError: If there are fewer than three numbers.
    """
    return fourier_basis(values.shape[0]).to(values.device) @ values.double()


@torch.no_grad()
def fourier_power(values: Float[Tensor, "number feature"]) -> Float[Tensor, " frequency"]:
    """How much of what differs between numbers is a wave of each frequency, as shares that sum to 1.

    Args:
        values: A row for each of the numbers 0 to `p - 1`, such as `model.W_E[:p]`.

    Returns:
        The share of frequency `k + 1` at index `k`, up to half of `p`: `k + 1` turns over all numbers.

    Raises:
        InvalidInputError: If there are fewer than three numbers, or all rows are alike.

    Example:
        >>> turns = 2 * torch.pi * 3 * torch.arange(11)[:, None] / 11
        >>> fourier_power(torch.cat([turns.cos(), turns.sin()], dim=1)).argmax().item() + 1
        3
    """
    waves = fourier_coefficients(values)[1:].square().sum(1)
    if torch.equal(values, values[:1].expand_as(values)):
        raise InvalidInputError("all rows of values are alike; there is no wave in them.")
    power = torch.cat([waves, waves.new_zeros(len(waves) % 2)]).view(-1, 2).sum(1)  # the last sine of an even number
    return power / power.sum()
