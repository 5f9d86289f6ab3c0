"""`FactoredMatrix` against the product it stands for."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from headscope import FactoredMatrix
from headscope.errors import InvalidInputError
from headscope.ops.factored import triangular_factor

LEADS = st.sampled_from([(), (1,), (2,), (3, 2), (2, 2)])


@st.composite
def products(draw: Any, square: bool = False) -> tuple[FactoredMatrix, Tensor]:
    lead = draw(LEADS)
    rows, inner, columns = (draw(st.integers(1, 6)) for _ in range(3))
    if square:
        columns = rows
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    left = torch.randn(*lead, rows, inner, generator=generator, dtype=torch.float64)
    right = torch.randn(*lead, inner, columns, generator=generator, dtype=torch.float64)
    return FactoredMatrix(left, right), left @ right


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@given(products())
def test_it_stands_for_its_product(pair: tuple[FactoredMatrix, Tensor]) -> None:
    product, dense = pair
    close(product.AB, dense)
    assert product.shape == dense.shape and product.ndim == dense.ndim
    assert (product.ldim, product.rdim) == dense.shape[-2:]
    assert product.has_leading_dims == (dense.ndim > 2)
    close(product.T.AB, dense.transpose(-2, -1))
    close(product.norm(), dense.norm(dim=(-2, -1)))
    close((3 * product).AB, 3 * dense)
    for half in (0.5, torch.tensor(0.5), torch.tensor([[[0.5]]]), np.float64(0.5), np.float32(0.5)):
        close((product * half).AB, 0.5 * dense)
        close((half * product).AB, 0.5 * dense)
    close(product.get_corner(2), dense[tuple(slice(2) for _ in dense.shape)])
    assert product.pair[0] is product.A and product.pair[1] is product.B
    for k in range(dense.ndim - 1):
        close(product.unsqueeze(k).AB, dense.unsqueeze(k))
        close(product.unsqueeze(k - dense.ndim - 1).AB, dense.unsqueeze(k))
    parts = list(product)
    assert len(parts) == dense.shape[0]
    for part, wanted in zip(parts, dense, strict=True):
        close(part.AB, wanted if dense.ndim > 2 else wanted[None])
    assert str(list(dense.shape)) in repr(product)


@given(products())
def test_its_singular_values_are_the_products(pair: tuple[FactoredMatrix, Tensor]) -> None:
    product, dense = pair
    rank = min(product.ldim, product.mdim, product.rdim)
    u, s, v = product.svd()
    assert s.shape[-1] == rank
    close(s, torch.linalg.svdvals(dense)[..., :rank])
    close(u * s[..., None, :] @ v.transpose(-2, -1), dense)
    eye = torch.eye(rank, dtype=torch.float64).expand(*dense.shape[:-2], rank, rank)
    close(u.transpose(-2, -1) @ u, eye)
    close(v.transpose(-2, -1) @ v, eye)
    close(product.S, s)
    assert product.U is u and product.V is v and product.Vh is v
    close(product.turned_l().transpose(-2, -1) @ product.turned_l(), dense.transpose(-2, -1) @ dense)
    close(product.turned_r() @ product.turned_r().transpose(-2, -1), dense @ dense.transpose(-2, -1))
    close(product.U * product.S[..., None, :] @ product.Vh.transpose(-2, -1), dense)
    even = product.make_even()
    close(even.AB, dense)
    close(even.A.norm(dim=-2), even.B.norm(dim=-1))
    close(product.collapse_l().norm(dim=(-2, -1)), product.norm())
    gram = product.collapse_l()
    close(gram.transpose(-2, -1) @ gram, dense.transpose(-2, -1) @ dense)
    gram = product.collapse_r()
    close(gram @ gram.transpose(-2, -1), dense @ dense.transpose(-2, -1))


@given(products(square=True))
def test_its_eigenvalues_are_the_products(pair: tuple[FactoredMatrix, Tensor]) -> None:
    product, dense = pair
    wanted = torch.linalg.eigvals(dense)
    found = product.eigenvalues
    assert found.shape[-1] == product.mdim and found.is_complex()
    for power in (1, 2, 3):
        close((found**power).sum(-1), (wanted**power).sum(-1))
    close(product.BA, product.B @ product.A)


@given(products(), st.integers(1, 6), st.integers(0, 10**6))
def test_multiplying(pair: tuple[FactoredMatrix, Tensor], size: int, seed: int) -> None:
    product, dense = pair
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def value(found: FactoredMatrix | Tensor) -> Tensor:
        return found.AB if isinstance(found, FactoredMatrix) else found

    right, left = random(product.rdim, size), random(size, product.ldim)
    close(value(product @ right), dense @ right)
    close(value(left @ product), left @ dense)
    stacked = random(*dense.shape[:-2], product.rdim, size)
    close(value(product @ stacked), dense @ stacked)
    other = FactoredMatrix(random(product.rdim, 2), random(2, size))
    both = product @ other
    close(value(both), dense @ other.AB)
    vector, covector = random(product.rdim), random(product.ldim)
    close(value(product @ vector), dense @ vector)
    close(value(covector @ product), covector @ dense)


@pytest.mark.parametrize("lead", [(2,), (3,), (2, 2), (4, 2)])
def test_a_vector_is_multiplied_by_each_of_a_stack(lead: tuple[int, ...]) -> None:
    left, right = torch.randn(*lead, 2, 2).double(), torch.randn(*lead, 2, 2).double()
    vector = torch.randn(2).double()
    close(FactoredMatrix(left, right) @ vector, (left @ right) @ vector)
    close(vector @ FactoredMatrix(left, right), vector @ (left @ right))


def test_the_inner_size_stays_small() -> None:
    thin = FactoredMatrix(torch.randn(50, 3), torch.randn(3, 40))
    for product in (thin @ torch.randn(40, 60), torch.randn(60, 50) @ thin, thin @ thin.T):
        assert isinstance(product, FactoredMatrix) and product.mdim == 3


def test_products_broadcast_over_leading_axes() -> None:
    left, right = (
        FactoredMatrix(torch.randn(3, 1, 4, 2), torch.randn(2, 2, 5)),
        FactoredMatrix(torch.randn(2, 5, 3), torch.randn(1, 3, 6)),
    )
    both = left @ right
    assert isinstance(both, FactoredMatrix) and both.shape == (3, 2, 4, 6)
    torch.testing.assert_close(both.AB, left.AB @ right.AB)
    batch = torch.randn(7, 1, 1, 3, 4)
    found = batch @ left
    assert isinstance(found, FactoredMatrix)
    torch.testing.assert_close(found.AB, batch @ left.AB)


INDICES = [
    0, -1, slice(0, 2), (0,), (0, 1), (slice(None), 1), (0, 1, 2), (0, 1, 2, 3), (0, 1, -1, -1), (),
    (0, 1, slice(1, 3), slice(0, 2)), (0, 1, slice(None, None, 2)), (Ellipsis, 0), (Ellipsis, 1, slice(None)),
    (0, Ellipsis, 2), [0, 2], ([0, 2], 1), (0, 1, [0, 2]), (slice(None), slice(None), slice(None), [1, 0]),
    (1, Ellipsis), Ellipsis, None, (None, 0), (0, None, 1), (0, 1, None, 2), (None, Ellipsis, 2), (Ellipsis, 2, 3),
    (0, 1, 2, 3, Ellipsis), torch.tensor([2, 0]), torch.tensor(1), np.int64(2), np.array([1, 1]),
    (0, 1, np.int64(2), torch.tensor(3)), (0, 1, torch.tensor([3, 1]), np.array([4])), (0, 1, -4, -5),
    torch.tensor([True, False, True]), (0, 1, torch.tensor([True, False, True, True])), ([True, False, True], 1),
    torch.tensor([[True, False], [True, True], [False, False]]),
    (torch.tensor([[True, False], [True, True], [False, False]]), 2), ([0, 2], slice(None), [1, 2], [3, 4, 0]),
    ([], 0), (slice(0, 0),),
]  # fmt: skip


def dense_index(dense: Tensor, index: Any) -> Tensor:
    """What the product's rows, columns and stack would be: the dense tensor indexed one axis at a time."""
    key = list(index) if isinstance(index, tuple) else [index]
    key = [torch.as_tensor(k) if isinstance(k, (list, np.ndarray)) else k for k in key]
    key = [k.long() if isinstance(k, Tensor) and k.numel() == 0 else k for k in key]
    used = sum(k.ndim if isinstance(k, Tensor) and k.dtype == torch.bool else 1
               for k in key if k is not None and k is not Ellipsis)  # fmt: skip
    at = next((i for i, k in enumerate(key) if k is Ellipsis), len(key))
    key[at : at + 1] = [slice(None)] * (dense.ndim - used)
    *lead, rows, columns = key
    for axis, k in ((-1, columns), (-2, rows)):
        picked = torch.arange(dense.shape[axis])[k]
        dense = dense.index_select(axis, torch.atleast_1d(picked))
    return dense[tuple(lead)]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing(index: Any) -> None:
    product = FactoredMatrix(torch.randn(3, 2, 4, 2).double(), torch.randn(3, 2, 2, 5).double())
    found = product[index]
    assert isinstance(found, FactoredMatrix) and found.mdim == 2
    close(found.AB, dense_index(product.AB, index))


def test_indexing_one_matrix() -> None:
    product = FactoredMatrix(torch.randn(4, 2).double(), torch.randn(2, 5).double())
    dense = product.AB
    for index, wanted in (
        (1, dense[1:2]), ((slice(None), -1), dense[:, 4:]), ((2, 3), dense[2:3, 3:4]), ((None, 2), dense[None, 2:3]),
        ([3, 0], dense[[3, 0]]), (Ellipsis, dense),
    ):  # fmt: skip
        close(product[index].AB, wanted)


def test_leading_axes_are_broadcast() -> None:
    product = FactoredMatrix(torch.randn(3, 1, 4, 2), torch.randn(5, 2, 4))
    assert product.shape == (3, 5, 4, 4) and product.A.shape == (3, 5, 4, 2) and product.B.shape == (3, 5, 2, 4)


MATRIX = FactoredMatrix(torch.ones(2, 3), torch.ones(3, 4))
STACK = FactoredMatrix(torch.ones(5, 2, 3), torch.ones(5, 3, 4))


@pytest.mark.parametrize("make, message", [
    (lambda: FactoredMatrix(torch.ones(2, 3), torch.ones(2, 3)), r"A \[2, 3\] and B \[2, 3\]"),
    (lambda: FactoredMatrix(torch.ones(2, 2, 3), torch.ones(3, 3, 4)), r"leading axes .* A \[2, 2, 3\]"),
    (lambda: MATRIX @ torch.ones(5, 2), r"shapes \[2, 4\] and \[5, 2\]"),
    (lambda: MATRIX @ torch.ones(5), r"shapes \[2, 4\] and \[5\]"),
    (lambda: MATRIX @ torch.tensor(1.0), r"shapes \[2, 4\] and \[\]"),
    (lambda: MATRIX @ MATRIX, r"shapes \[2, 4\] and \[2, 3\]"),
    (lambda: torch.ones(5, 4) @ MATRIX, r"shapes \[5, 4\] and \[2, 4\]"),
    (lambda: torch.ones(4) @ MATRIX, r"shapes \[4\] and \[2, 4\]"),
    (lambda: MATRIX.eigenvalues, r"square products; this one is \[2, 4\]"),
    (lambda: MATRIX.BA, r"square products; this one is \[2, 4\]"),
    (lambda: MATRIX * torch.ones(2), r"one number; got shape \[2\]"),
    (lambda: MATRIX[0, 0, 0], "3 indices for a FactoredMatrix of 2 axes"),
    (lambda: MATRIX[..., 0, ...], "3 indices for a FactoredMatrix of 2 axes"),
    (lambda: MATRIX[2], "index 2 is out of range for an axis of size 2"),
    (lambda: STACK[0, :, -5], "index -5 is out of range for an axis of size 4"),
    (lambda: MATRIX[:, None], "no new axis"),
    (lambda: STACK[..., None], "no new axis"),
    (lambda: STACK[torch.ones(5, 2, dtype=torch.bool)], "one index each"),
    (lambda: MATRIX.unsqueeze(1), "k between 0 and 0, or -3 and -3; got 1"),
    (lambda: STACK.unsqueeze(-1), "k between 0 and 1, or -4 and -3; got -1"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make()


def test_factors_are_matrices() -> None:
    with pytest.raises((InvalidInputError, TypeError), match="A must be|parameter A="):
        FactoredMatrix(torch.ones(3), torch.ones(3, 4))


@pytest.mark.parametrize("make", [
    lambda: MATRIX @ "x", lambda: 2 @ MATRIX, lambda: MATRIX * "x", lambda: [1] * MATRIX, lambda: MATRIX @ np.ones(4),
    lambda: np.ones(2) * MATRIX, lambda: MATRIX["x"],
])  # fmt: skip
def test_other_types_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(TypeError):
        make()


def test_the_svd_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    svd = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: calls.append(1) or svd(*a, **k))
    product = FactoredMatrix(torch.randn(5, 2), torch.randn(2, 4))
    first = product.svd()
    assert product.U is first[0] and product.S is first[1] and product.V is first[2]
    product.make_even(), product.collapse_l(), product.collapse_r()
    assert len(calls) == 1


@pytest.mark.parametrize("write", [
    lambda product: product.A.mul_(2.0), lambda product: product.B.mul_(2.0), lambda product: product.S.zero_(),
    lambda product: product.svd()[2].zero_(),
])  # fmt: skip
def test_the_svd_is_found_again_after_a_write(write: Callable[[FactoredMatrix], object]) -> None:
    product = FactoredMatrix(torch.randn(5, 2).double(), torch.randn(2, 4).double())
    product.svd()
    write(product)
    close(product.S, torch.linalg.svdvals(product.AB)[:2])
    close(product.U @ product.S.diag() @ product.V.T, product.AB)


def test_the_svd_follows_a_weight_in_training() -> None:
    weight = torch.nn.Parameter(torch.randn(5, 2).double())
    product = FactoredMatrix(weight, torch.randn(2, 4).double())
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        product.S.sum().backward()
        product.norm().backward()
        assert weight.grad is not None and bool((weight.grad != 0).any())
        optimizer.step()
        with torch.no_grad():
            close(product.S, torch.linalg.svdvals(product.AB)[:2])
            assert not product.S.requires_grad
    assert product.S.requires_grad


def test_the_svd_in_inference_mode() -> None:
    product = FactoredMatrix(torch.randn(5, 2), torch.randn(2, 4))
    with torch.inference_mode():
        assert product.S.is_inference()
        made_inside = FactoredMatrix(torch.randn(5, 2), torch.randn(2, 4))
        torch.testing.assert_close(made_inside.S, torch.linalg.svdvals(made_inside.AB)[:2])
    assert not product.S.is_inference()
    torch.testing.assert_close(made_inside.S, torch.linalg.svdvals(made_inside.AB)[:2])


def test_nothing_outlives_the_matrix() -> None:
    product = FactoredMatrix(torch.randn(5, 2), torch.randn(2, 4))
    kept = [weakref.ref(tensor) for tensor in product.svd()]
    del product
    gc.collect()
    assert [ref() for ref in kept] == [None] * 3


@pytest.mark.parametrize("shape", [(4, 2, 5), (2, 4, 3), (4, 4, 4), (5, 3, 2)])
@pytest.mark.parametrize("name", ["S", "norm", "projection", "eigenvalues", "even", "gram"])
def test_gradients(shape: tuple[int, int, int], name: str) -> None:
    rows, inner, columns = shape
    if name == "eigenvalues":
        columns = rows

    def value(A: Tensor, B: Tensor) -> Tensor:
        product = FactoredMatrix(A, B)
        if name == "projection":  # singular vectors have no sign of their own
            return product.U.square() @ product.V.square().transpose(-2, -1)
        if name == "eigenvalues":
            return (product.eigenvalues**2).sum(-1).real
        if name == "even":
            return product.make_even().AB
        return {"S": lambda: product.S, "norm": product.norm, "gram": lambda: product.collapse_l().square()}[name]()

    generator = torch.Generator().manual_seed(1)
    A = torch.randn(2, rows, inner, generator=generator, dtype=torch.float64, requires_grad=True)
    B = torch.randn(2, inner, columns, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (A, B))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_where_it_must_be(dtype: torch.dtype) -> None:
    product = FactoredMatrix(torch.randn(5, 2).to(dtype), torch.randn(2, 5).to(dtype))
    dense = product.A.double() @ product.B.double()
    torch.testing.assert_close(product.S.double(), torch.linalg.svdvals(dense)[:2], rtol=1e-5, atol=1e-5)
    assert float(product.norm()) == pytest.approx(float(dense.norm()), rel=1e-5)
    assert product.S.dtype == product.norm().dtype == torch.float32
    assert product.eigenvalues.dtype == torch.complex64
    assert product.AB.dtype == product.T.A.dtype == (2 * product).A.dtype == dtype


@pytest.mark.parametrize("rows, columns", [(5, 3), (3, 5), (4, 4), (1, 3)])
def test_the_triangular_factor_keeps_lengths(rows: int, columns: int) -> None:
    matrix = torch.randn(2, rows, columns, dtype=torch.float64)
    found = triangular_factor(matrix)
    assert found.shape == (2, min(rows, columns), columns)
    close(found.mT @ found, matrix.mT @ matrix)
    assert torch.autograd.gradcheck(lambda x: triangular_factor(x).square(), matrix.requires_grad_())


def test_eigenvalues_come_in_the_order_of_a_full_decomposition() -> None:
    left, right = torch.randn(2, 3, 24, 8, generator=torch.Generator().manual_seed(0))
    product = FactoredMatrix(left, right.mT)
    assert torch.equal(product.eigenvalues, torch.linalg.eig(product.BA).eigenvalues)


def test_the_largest_entry_of_each_right_singular_vector_is_positive() -> None:
    left, right = torch.randn(2, 3, 9, 4, generator=torch.Generator().manual_seed(0))
    first, turned = FactoredMatrix(left, right.mT), FactoredMatrix(-left, -right.mT)
    V = first.V
    assert bool((V.gather(-2, V.abs().argmax(-2, keepdim=True)) > 0).all())
    for one, other in zip(first.svd(), turned.svd(), strict=True):
        torch.testing.assert_close(one, other)
    u, s, v = first.svd()
    torch.testing.assert_close(u * s[:, None] @ v.mT, first.AB)
