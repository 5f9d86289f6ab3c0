"""`FactoredMatrix`: each name against the full matrix, for tall, wide and stacked products, in float64, within 1e-9."""

from typing import Any

import pytest
import torch
from surface import FACTORED, same
from torch import Tensor

from headscope import FactoredMatrix

# (leading axes, ldim, mdim, rdim): square, with a large and a small inner dimension, and stacks.
SHAPES = [((), 6, 2, 6), ((), 5, 3, 7), ((), 4, 6, 3), ((3,), 6, 2, 6), ((2, 3), 5, 3, 4)]


def factors(shape: tuple[tuple[int, ...], int, int, int]) -> tuple[Tensor, Tensor]:
    lead, ldim, mdim, rdim = shape
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(*lead, ldim, mdim, dtype=torch.float64, generator=generator)
    return left, torch.randn(*lead, mdim, rdim, dtype=torch.float64, generator=generator)


@pytest.fixture(params=SHAPES, ids=str)
def shape(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def product(shape: Any) -> FactoredMatrix:
    return FactoredMatrix(*factors(shape))


@pytest.fixture
def full(shape: Any) -> Tensor:
    left, right = factors(shape)
    return left @ right


@FACTORED.shows("A", "B", "pair", "ldim", "mdim", "rdim", "shape", "ndim", "has_leading_dims", "__init__")
def test_parts(name: str, shape: Any) -> None:
    left, right = factors(shape)
    product = FactoredMatrix(left, right)
    lead, ldim, mdim, rdim = shape
    wanted = {
        "A": left, "B": right, "ldim": ldim, "mdim": mdim, "rdim": rdim, "shape": (*lead, ldim, rdim),
        "ndim": len(lead) + 2, "has_leading_dims": bool(lead),
    }  # fmt: skip
    if name in ("pair", "__init__"):
        assert torch.equal(product.pair[0], left) and torch.equal(product.pair[1], right)
        with pytest.raises(ValueError, match=r"\[\.\.\., mdim, rdim\]"):
            FactoredMatrix(left, right[..., 1:, :])
    elif name in ("A", "B"):
        assert torch.equal(getattr(product, name), wanted[name])
    else:
        assert getattr(product, name) == wanted[name]


def test_leading_axes_broadcast() -> None:
    left, right = factors(((2, 3), 5, 3, 4))
    product = FactoredMatrix(left[:, :1], right[1])
    assert product.shape == (2, 3, 5, 4)
    same(product.AB, left[:, :1] @ right[1])


@FACTORED.shows("AB", "T")
def test_product_and_transpose(name: str, product: FactoredMatrix, full: Tensor) -> None:
    if name == "AB":
        same(product.AB, full)
    else:
        same(product.T.AB, full.transpose(-2, -1))


@FACTORED.shows("BA", "eigenvalues")
def test_of_square_products(name: str, shape: Any) -> None:
    left, right = factors(shape)
    product = FactoredMatrix(left, right)
    if left.shape[-2] != right.shape[-1]:
        with pytest.raises(ValueError, match="square"):
            getattr(product, name)
    elif name == "BA":
        same(product.BA, right @ left)
    else:
        found = product.eigenvalues
        assert found.shape == (*shape[0], shape[2]) and found.is_complex()
        # Every eigenvalue is a root of the full matrix's characteristic polynomial, and they sum to its trace.
        eye = torch.eye(shape[1], dtype=found.dtype)
        matrix = (left @ right).to(found.dtype)
        for each in found.unbind(-1):
            same(torch.linalg.svdvals(matrix - each[..., None, None] * eye)[..., -1], torch.zeros(shape[0]).double())
        same(found.sum(-1).real, (left @ right).diagonal(dim1=-2, dim2=-1).sum(-1))


@FACTORED.shows("svd", "U", "S", "V", "Vh")
def test_singular_vectors(name: str, product: FactoredMatrix, full: Tensor) -> None:
    u, s, v = product.svd()
    rank = min(product.ldim, product.mdim, product.rdim)
    assert s.shape[-1] == rank and bool((s[..., :-1] >= s[..., 1:]).all())
    eye = torch.eye(rank, dtype=torch.float64).expand(*full.shape[:-2], -1, -1)
    if name == "svd":
        same(u * s[..., None, :] @ v.transpose(-2, -1), full)
    elif name == "S":
        same(product.S, torch.linalg.svdvals(full)[..., :rank])
    else:
        vectors = getattr(product, name)
        same(vectors.transpose(-2, -1) @ vectors, eye)
        mapped = full.transpose(-2, -1) @ vectors if name == "U" else full @ vectors
        same(torch.linalg.vector_norm(mapped, dim=-2), s)
        same(vectors, u if name == "U" else v)


@FACTORED.shows("norm")
def test_norm(product: FactoredMatrix, full: Tensor) -> None:
    same(product.norm(), full.square().sum((-2, -1)).sqrt())


@FACTORED.shows("make_even")
def test_make_even(product: FactoredMatrix, full: Tensor) -> None:
    even = product.make_even()
    same(even.AB, full)
    left, right = even.pair
    same(left.transpose(-2, -1) @ left, right @ right.transpose(-2, -1))
    same(left.transpose(-2, -1) @ left, torch.diag_embed(torch.linalg.svdvals(full)[..., : even.mdim]))


@FACTORED.shows("collapse_l", "collapse_r")
def test_collapse(name: str, product: FactoredMatrix, full: Tensor) -> None:
    """The other factor was orthogonal: the same products with itself as the full matrix."""
    found, turned = getattr(product, name)(), full.transpose(-2, -1)
    if name == "collapse_l":
        same(found.transpose(-2, -1) @ found, turned @ full)
    else:
        same(found @ found.transpose(-2, -1), full @ turned)


@FACTORED.shows("get_corner")
def test_get_corner(product: FactoredMatrix, full: Tensor) -> None:
    for found, k in ((product.get_corner(), 3), (product.get_corner(2), 2)):
        same(found, full[tuple(slice(k) for _ in range(full.ndim))])


@FACTORED.shows("unsqueeze")
def test_unsqueeze(product: FactoredMatrix, full: Tensor) -> None:
    for k in range(full.ndim - 1):
        same(product.unsqueeze(k).AB, full.unsqueeze(k))
    assert product.unsqueeze(0).shape == (1, *full.shape)


@FACTORED.shows("__matmul__", "__rmatmul__")
def test_products_on_either_side(name: str, product: FactoredMatrix, full: Tensor) -> None:
    left = name == "__rmatmul__"
    inner = product.ldim if left else product.rdim
    matrix, vector = torch.randn(inner, inner, dtype=torch.float64), torch.randn(inner, dtype=torch.float64)
    for other in (matrix, matrix[:2] if left else matrix[:, :2]):
        found = other @ product if left else product @ other
        assert isinstance(found, FactoredMatrix)
        same(found.AB, other @ full if left else full @ other)
    same(vector @ product if left else product @ vector, vector @ full if left else full @ vector)
    factored = FactoredMatrix(matrix, matrix + 1)
    found = factored @ product if left else product @ factored
    assert isinstance(found, FactoredMatrix)
    same(found.AB, factored.AB @ full if left else full @ factored.AB)


@FACTORED.shows("__mul__", "__rmul__")
def test_scaling(name: str, product: FactoredMatrix, full: Tensor) -> None:
    for number in (2, -0.5, torch.tensor(3.0, dtype=torch.float64)):
        found = product * number if name == "__mul__" else number * product
        assert isinstance(found, FactoredMatrix)
        same(found.AB, number * full)


@FACTORED.shows("__getitem__")
def test_indexing() -> None:
    """As on the full matrix, except that a single row or column keeps its axis."""
    left, right = factors(((2, 3), 5, 3, 4))
    product, full = FactoredMatrix(left, right), left @ right
    same(product[1].AB, full[1])
    same(product[1, 2].AB, full[1, 2])
    same(product[:, -1].AB, full[:, -1])
    same(product[..., 1:3, :].AB, full[..., 1:3, :])
    same(product[1, 2, 4].AB, full[1, 2, 4:5])
    same(product[1, 2, :, 0].AB, full[1, 2, :, 0:1])
    same(product[0, 1, [3, 0]].AB, full[0, 1, [3, 0]])
    same(product[[1, 0], :, :2, :2].AB, full[[1, 0], :, :2, :2])
    same(product[torch.tensor([True, False])].AB, full[:1])
    with pytest.raises(ValueError, match="5 indices"):
        product[0, 0, 0, 0, 0]


def test_every_row_has_a_check() -> None:
    assert FACTORED.unchecked() == []
