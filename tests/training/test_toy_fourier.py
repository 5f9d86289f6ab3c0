"""Waves over the numbers modulo p, against numpy's transform and against a fit of sines and cosines."""

import numpy as np
import pytest
import torch

from headscope.errors import InvalidInputError
from headscope.training.toy_fourier import fourier_basis, fourier_coefficients, fourier_power


@pytest.mark.parametrize("p", [3, 8, 47, 113])
def test_the_basis_is_orthonormal_and_whole(p: int) -> None:
    basis = fourier_basis(p)
    torch.testing.assert_close(basis @ basis.T, torch.eye(p, dtype=torch.float64), rtol=0, atol=1e-13)
    values = torch.randn(p, 4)
    torch.testing.assert_close(basis.T @ fourier_coefficients(values), values.double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", [7, 8, 113])
def test_coefficients_are_those_of_numpys_transform(p: int) -> None:
    values = torch.randn(p, 3, dtype=torch.float64)
    found = fourier_coefficients(values).numpy()
    transformed = np.fft.rfft(values.numpy(), axis=0)
    np.testing.assert_allclose(found[0], transformed[0].real / np.sqrt(p), atol=1e-12)
    for k in range(1, (p + 1) // 2):
        np.testing.assert_allclose(found[2 * k - 1], transformed[k].real * np.sqrt(2 / p), atol=1e-12)
        np.testing.assert_allclose(found[2 * k], -transformed[k].imag * np.sqrt(2 / p), atol=1e-12)
    if p % 2 == 0:
        np.testing.assert_allclose(found[-1], transformed[-1].real / np.sqrt(p), atol=1e-12)
    # Power is that of the transform without the constant; each other frequency of `fft` comes twice.
    power = np.square(np.abs(np.fft.fft(values.numpy(), axis=0))).sum(1)
    power[: p // 2 + 1][1:] += power[::-1][: p // 2] * (np.arange(1, p // 2 + 1) * 2 != p)
    expected = power[1 : p // 2 + 1] / power[1 : p // 2 + 1].sum()
    np.testing.assert_allclose(fourier_power(values).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("p", [7, 8])
def test_fourier_power_is_the_variance_that_waves_explain(p: int) -> None:
    values = torch.randn(p, 3, dtype=torch.float64)
    power = fourier_power(values)
    assert power.shape == (p // 2,) and float(power.sum()) == pytest.approx(1.0)
    centered = values - values.mean(0)
    for frequency, share in enumerate(power.tolist(), start=1):
        angle = 2 * torch.pi * frequency * torch.arange(p, dtype=torch.float64)[:, None] / p
        waves = torch.cat([angle.cos(), angle.sin()], dim=1)
        fitted = waves @ torch.linalg.lstsq(waves, centered, driver="gelsd").solution
        assert share == pytest.approx(float(fitted.square().sum() / centered.square().sum()), abs=1e-9)
    with pytest.raises(InvalidInputError, match="p is 2"):
        fourier_power(values[:2])
    with pytest.raises(InvalidInputError, match="are equal"):
        fourier_power(torch.ones(5, 2))
