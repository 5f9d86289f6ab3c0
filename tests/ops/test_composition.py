"""Composition scores against dense products in float64."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sizes import SetBudget
from torch import Tensor

from headscope import FactoredMatrix
from headscope.errors import InvalidInputError
from headscope.ops.composition import composition_scores

LEADS = [(), (1,), (3,), (2, 3)]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def product(lead: tuple[int, ...], rows: int, inner: int, columns: int, seed: int, **kind: Any) -> FactoredMatrix:
    left = random(*lead, rows, inner, seed=seed, **kind)
    return FactoredMatrix(left, random(*lead, inner, columns, seed=seed + 1, **kind))


def norm(matrix: Tensor) -> Tensor:
    return matrix.square().sum((-2, -1)).sqrt()


def naive(left: Tensor, right: Tensor) -> Tensor:
    """One score for each pair of dense matrices."""
    scores = [norm(a @ b) / norm(a) / norm(b) for a in left.flatten(0, -3) for b in right.flatten(0, -3)]
    return torch.stack(scores).view(*left.shape[:-2], *right.shape[:-2])


@pytest.fixture(autouse=True, params=[1, 40, 2**22], ids=["one at a time", "some at a time", "all at once"])
def _tile(request: pytest.FixtureRequest, set_budget: SetBudget) -> None:
    set_budget(pair_numbers=request.param)


@pytest.mark.parametrize("left_lead", LEADS)
@pytest.mark.parametrize("right_lead", LEADS)
def test_each_of_left_with_each_of_right(left_lead: tuple[int, ...], right_lead: tuple[int, ...]) -> None:
    left, right = product(left_lead, 6, 2, 7, seed=0), product(right_lead, 7, 3, 5, seed=2)
    found = composition_scores(left, right)
    assert found.shape == left_lead + right_lead
    wanted = naive(left.AB.view(-1, 6, 7), right.AB.view(-1, 7, 5)).view(found.shape)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("left_lead, right_lead", [
    ((), ()), ((3,), (3,)), ((3,), ()), ((), (2, 3)), ((2, 1), (3,)), ((2, 3), (2, 3)),
])  # fmt: skip
def test_pairs(left_lead: tuple[int, ...], right_lead: tuple[int, ...]) -> None:
    left, right = product(left_lead, 6, 2, 7, seed=0), product(right_lead, 7, 3, 5, seed=2)
    found = composition_scores(left, right, broadcast_dims=False)
    wanted = norm(left.AB @ right.AB) / norm(left.AB) / norm(right.AB)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert found.shape == torch.broadcast_shapes(left_lead, right_lead)


@given(
    st.integers(1, 6), st.integers(1, 8), st.integers(1, 6), st.integers(1, 8), st.integers(1, 6), st.integers(0, 99)
)
def test_any_ranks(rows: int, inner: int, middle: int, other: int, columns: int, seed: int) -> None:
    left, right = product((2,), rows, inner, middle, seed), product((3,), middle, other, columns, seed + 7)
    found = composition_scores(left, right)
    torch.testing.assert_close(found, naive(left.AB, right.AB), rtol=1e-9, atol=1e-9)
    assert bool((found <= 1 + 1e-9).all())


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-5), (torch.float16, 1e-5)])
def test_low_precision_is_not_lost_on_the_way(dtype: torch.dtype, tolerance: float) -> None:
    """Nearly orthogonal matrices have small scores: from sums of squares they would drown in rounding."""
    left = product((2,), 40, 4, 40, seed=0, dtype=dtype)
    basis = torch.linalg.qr(random(40, 8, seed=5)).Q
    nearly = FactoredMatrix(basis[:, :4].to(dtype), (basis[:, :4].T + 1e-3 * basis[:, 4:].T).to(dtype))
    for right in (product((3,), 40, 4, 40, seed=3, dtype=dtype), nearly, nearly.T):
        found = composition_scores(left, right)
        assert found.dtype == torch.float32
        dense = right.A.double() @ right.B.double()
        wanted = naive(left.A.double() @ left.B.double(), dense.view(-1, 40, 40)).view(found.shape)
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance)


def test_small_scores_keep_their_digits() -> None:
    write, read = torch.zeros(30, 2), torch.zeros(30, 2)
    write[0, 0] = write[1, 1] = read[2, 0] = read[3, 1] = 1.0
    read[0, 0] = 1e-5
    left, right = FactoredMatrix(torch.randn(30, 2), write.T), FactoredMatrix(read, torch.randn(2, 30))
    wanted = naive((left.A.double() @ left.B.double())[None], (right.A.double() @ right.B.double())[None])
    assert float(composition_scores(left, right)) == pytest.approx(float(wanted), rel=1e-4)


def test_nothing_of_d_model_squared_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    d_model, largest = 300, 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            for tensor in found if isinstance(found, (tuple, list)) else [found]:
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes() // 8)
            return found

    left, right = product((), d_model, 2, d_model, seed=0), product((), d_model, 3, d_model, seed=2)
    with Watch():
        composition_scores(left, right)
    assert 0 < largest <= 4 * d_model


def test_gradients() -> None:
    factors = [random(2, 4, 2, seed=0), random(2, 2, 5, seed=1), random(3, 5, 2, seed=2), random(3, 2, 4, seed=3)]
    inputs = [factor.requires_grad_() for factor in factors]

    def score(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return composition_scores(FactoredMatrix(a, b), FactoredMatrix(c, d))

    assert torch.autograd.gradcheck(score, inputs)


def test_a_matrix_of_zeros_has_no_score() -> None:
    left = FactoredMatrix(torch.zeros(2, 4, 1), torch.ones(2, 1, 4))
    left.A[1] = 1.0
    found = composition_scores(left, FactoredMatrix(torch.ones(4, 1), torch.ones(1, 4)))
    assert bool(found[0].isnan()) and float(found[1]) == pytest.approx(1.0)


def test_what_does_not_fit_is_refused() -> None:
    left = product((2,), 4, 2, 5, seed=0)
    with pytest.raises(InvalidInputError, match=r"left.rdim must equal right.ldim; got left \[2, 4, 5\]"):
        composition_scores(left, product((), 4, 2, 5, seed=1))
    with pytest.raises(InvalidInputError, match="leading axes must broadcast"):
        composition_scores(left, product((3,), 5, 2, 4, seed=1), broadcast_dims=False)
