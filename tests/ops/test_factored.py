"""`FactoredMatrix` against the product it stands for."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from headscope import FactoredMatrix
from headscope.errors import InvalidInputError

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
    close((product * torch.tensor(0.5)).AB, 0.5 * dense)
    close(product.get_corner(2), dense[..., :2, :2])
    assert product.pair[0] is product.A and product.pair[1] is product.B
    assert product.unsqueeze(0).shape == (1, *dense.shape)
    close(product.unsqueeze(0).AB, dense[None])
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


INDICES = [
    0, -1, slice(0, 2), (0,), (0, 1), (slice(None), 1), (0, 1, 2), (0, 1, 2, 3), (0, 1, -1, -1),
    (0, 1, slice(1, 3), slice(0, 2)), (Ellipsis, 0), (Ellipsis, 1, slice(None)), (0, Ellipsis, 2), [0, 2], ([0, 2], 1),
    (0, 1, [0, 2]), (slice(None), slice(None), slice(None), [1, 0]), (1, Ellipsis),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing(index: Any) -> None:
    product = FactoredMatrix(torch.randn(3, 2, 4, 2).double(), torch.randn(3, 2, 2, 5).double())
    found = product[index]
    key = index if isinstance(index, tuple) else (index,)
    if Ellipsis in key:
        at = key.index(Ellipsis)
        key = (*key[:at], *[slice(None)] * (5 - len(key)), *key[at + 1 :])
    key = (*key, *[slice(None)] * (4 - len(key)))
    # An integer row or column stays as an axis of one.
    kept = [slice(k % n, k % n + 1) if isinstance(k, int) else k for k, n in zip(key[2:], (4, 5), strict=True)]
    close(found.AB, product.AB[key[:2]][..., kept[0], :][..., kept[1]])


def test_leading_axes_are_broadcast() -> None:
    product = FactoredMatrix(torch.randn(3, 1, 4, 2), torch.randn(5, 2, 4))
    assert product.shape == (3, 5, 4, 4) and product.A.shape == (3, 5, 4, 2) and product.B.shape == (3, 5, 2, 4)


@pytest.mark.parametrize("make", [
    lambda: FactoredMatrix(torch.ones(2, 3), torch.ones(2, 3)),
    lambda: FactoredMatrix(torch.ones(2, 3), torch.ones(3, 4)) @ torch.ones(5, 2),
    lambda: torch.ones(5, 4) @ FactoredMatrix(torch.ones(2, 3), torch.ones(3, 4)),
    lambda: FactoredMatrix(torch.ones(2, 3), torch.ones(3, 4)).eigenvalues,
    lambda: FactoredMatrix(torch.ones(2, 3), torch.ones(3, 4)).BA,
    lambda: FactoredMatrix(torch.ones(2, 3), torch.ones(3, 4)) * torch.ones(2),
    lambda: FactoredMatrix(torch.ones(2, 3), torch.ones(3, 4))[0, 0, 0],
])  # fmt: skip
def test_what_does_not_fit_is_refused(make: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"\[|axes|number"):
        make()
