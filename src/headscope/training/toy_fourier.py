"""Fourier analysis over the integers modulo `p`, for networks that learned modular addition.

A network that adds modulo `p` by rotations has a few key frequencies in its embedding; one that memorized the table has
all frequencies alike (Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability").
"""

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.ops.devices import sums_device, wide

__all__ = ["fourier_basis", "fourier_coefficients", "fourier_power"]


def fourier_basis(p: int) -> Float[Tensor, "wave number"]:
    """Return the orthonormal Fourier basis over 0 to `p - 1`: the constant, then cosine and sine of frequency 1, 2, ...

    For even `p` the last is the cosine of frequency `p / 2`, whose sine is zero everywhere.

    Args:
        p: The modulus.

    Returns:
        `[p, p]` in float64, with rows that are orthonormal up to rounding.

    Raises:
        InvalidInputError: If there are fewer than three numbers.

    Example:
        >>> fourier_basis(4).round(decimals=2) + 0.0
        tensor([[ 0.5000,  0.5000,  0.5000,  0.5000],
                [ 0.7100,  0.0000, -0.7100,  0.0000],
                [ 0.0000,  0.7100,  0.0000, -0.7100],
                [ 0.5000, -0.5000,  0.5000, -0.5000]], dtype=torch.float64)
    """
    if p < 3:
        raise InvalidInputError(f"p is {p}; it must be 3 or more for there to be a frequency.")
    # Products are reduced modulo p as integers, before they become angles: small angles have small rounding errors.
    turns = torch.arange(1, p // 2 + 1, device="cpu")[:, None] * torch.arange(p, device="cpu") % p
    angle = 2 * torch.pi * turns.double() / p
    waves = torch.stack([angle.cos(), angle.sin()], dim=1).flatten(0, 1)[: p - 1]
    both = torch.cat([torch.ones(1, p, dtype=torch.float64, device="cpu"), waves])
    return both / both.norm(dim=1, keepdim=True)


@torch.no_grad()
def fourier_coefficients(values: Float[Tensor, "number feature"]) -> Float[Tensor, "wave feature"]:
    """Return the Fourier coefficients of each feature, in float64; `fourier_basis(p).T @ coefficients` is `values`.

    Args:
        values: A row for each of the numbers 0 to `p - 1`, such as `model.W_E[:p]`.

    Raises:
        InvalidInputError: If there are fewer than three numbers.
    """
    return fourier_basis(values.shape[0]).to(sums_device(values.device)) @ wide(values)


@torch.no_grad()
def fourier_power(values: Float[Tensor, "number feature"]) -> Float[Tensor, " frequency"]:
    """Return each frequency's share of the variance between numbers; shares sum to 1.

    Args:
        values: A row for each of the numbers 0 to `p - 1`, such as `model.W_E[:p]`.

    Returns:
        The share of frequency `k + 1` at index `k`, for frequencies up to `p / 2`.

    Raises:
        InvalidInputError: If there are fewer than three numbers, or all rows are equal.

    Example:
        >>> angles = 2 * torch.pi * 3 * torch.arange(11)[:, None] / 11
        >>> fourier_power(torch.cat([angles.cos(), angles.sin()], dim=1)).round(decimals=3) + 0.0
        tensor([0., 0., 1., 0., 0.], dtype=torch.float64)
    """
    waves = fourier_coefficients(values)[1:].square().sum(1)
    if torch.equal(values, values[:1].expand_as(values)):
        raise InvalidInputError("all rows of values are equal; no frequency explains any variance.")
    power = torch.cat([waves, waves.new_zeros(len(waves) % 2)]).view(-1, 2).sum(1)  # the last sine of an even number
    return power / power.sum()
