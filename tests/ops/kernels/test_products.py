"""Products by oneDNN: where they are taken, that they are right, and that everything else is PyTorch's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from headscope.ops.kernels import products
from headscope.ops.kernels.head_products import HeadProducts

here = pytest.mark.skipif(not products._is_faster(), reason="needs an AMD processor with AVX-512")
dense = [torch.Tensor.contiguous, lambda weight: weight.T.contiguous().T]


def check(found: Tensor, in_double: Tensor) -> None:
    """512 rounded sums of products of normal numbers."""
    torch.testing.assert_close(found.double(), in_double, atol=2e-4, rtol=0.0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what oneDNN was handed; it is taken to be the faster one, and replaced by a plain product."""
    seen: list[tuple[int, ...]] = []

    def onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append((*x.shape, weight.shape[1]))
        return x @ weight if bias is None else x @ weight + bias

    monkeypatch.setattr(products, "_is_faster", lambda: True)
    monkeypatch.setattr(products, "_onednn", onednn)
    return seen


@here
@pytest.mark.parametrize("layout", [*dense, lambda weight: torch.stack([weight, weight], 2)[..., 0]])
@pytest.mark.parametrize("rows", [(4,), (2, 77), (130,)])
@torch.no_grad()
def test_products_are_right_in_every_layout(rows: tuple[int, ...], layout: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(*rows, 512), layout(torch.randn(512, 1030)), torch.randn(1030)
    check(products.linear(x, weight, bias), x.double() @ weight.double() + bias)
    flat, out = x.flatten(0, -2), torch.empty(x.flatten(0, -2).shape[0], 1030)
    assert products.product(flat, weight, out) is out
    check(out, flat.double() @ weight.double())


@here
@torch.no_grad()
def test_each_head_has_its_own_product() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 64, 256), torch.randn(3, 256, 130), torch.randn(3, 130)
    plain = torch.einsum("hri,hio->hro", x.double(), weight.double())
    check(products.linear_each(x, weight, bias), plain + bias[:, None])
    check(products.product_each(x, weight, torch.empty(3, 64, 130)), plain)
    same = torch.einsum("ri,hio->hro", x[0].double(), weight.double())
    check(products.linear_each(x[:1], weight, bias), same + bias[:, None])


@here
@torch.no_grad()
def test_what_is_not_finite_stays_so() -> None:
    x, weight = torch.ones(64, 256), torch.ones(256, 256)
    x[1, 2], x[2, 2] = torch.nan, torch.inf
    found = products.linear(x, weight)
    assert found[1].isnan().all() and (found[2] == torch.inf).all() and (found[0] == 256).all()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's forward mode
def test_only_large_float32_products_without_gradients_are_onednns(
    calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = torch.randn(64, 256), torch.randn(256, 256)
    plain: dict[str, tuple[Any, Any]] = {
        "few rows": (x[:3], torch.randn(256, 8192)),
        "small": (x[:16], weight),
        "float64": (x.double(), weight.double()),
        "a gradient": (x, Parameter(weight)),
        "columns apart": (torch.randn(256, 64).T, weight),
    }
    for case, (left, right) in plain.items():
        torch.testing.assert_close(products.linear(left, right), left @ right)
        assert not calls, case
    bias = Parameter(torch.randn(256))
    products.linear(x, weight, bias).sum().backward()
    products.linear_each(x[None], weight[None], bias[None]).sum().backward()
    assert bias.grad is not None and bool((bias.grad == 128).all()) and not calls
    with forward_ad.dual_level():
        dual = products.linear(forward_ad.make_dual(x, torch.ones_like(x)), weight)
        tangent = forward_ad.unpack_dual(dual).tangent
        torch.testing.assert_close(tangent, torch.ones_like(x) @ weight)
        assert not calls
    with torch.no_grad():
        products.linear(x, Parameter(weight))
        assert calls == [(64, 256, 256)]
        torch.vmap(lambda each: products.linear(each, weight))(torch.stack([x, x]))
        with torch.autocast("cpu"):
            assert products.linear(x, weight).dtype == torch.bfloat16
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
        products.linear(x, weight)
    assert len(calls) == 1


def test_without_the_operation_nothing_is_onednns(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    products._is_faster.cache_clear()
    monkeypatch.setattr(products, "_onednn", missing)
    monkeypatch.setattr(products, "_processor", lambda: "AuthenticAMD")
    assert not products._is_faster()
    monkeypatch.setattr(products, "_processor", lambda: "GenuineIntel")
    products._is_faster.cache_clear()
    assert not products._is_faster()
    products._is_faster.cache_clear()


@pytest.mark.parametrize("rows", [3, 200])
def test_rounded_factors_are_multiplied_in_float32_without_instructions_for_them(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows go through `W_O` and share `W_U`, many through `W_O W_U`: either factor holds numbers of 8 bits."""
    heads, W_O, W_U = torch.randn(2, 3, rows, 4), torch.randn(2, 3, 4, 16), torch.randn(16, 50)
    kept = {}
    for has_bfloat16 in (True, False):
        monkeypatch.setattr(products, "_has_bfloat16", lambda has=has_bfloat16: has)
        factors = HeadProducts(heads, W_O, torch.bfloat16)
        kept[has_bfloat16] = factors.left, factors.right(W_U)
    assert all(each.dtype == torch.bfloat16 for each in kept[True])
    for rounded, widened in zip(kept[True], kept[False], strict=True):
        assert widened.dtype == torch.float32 and torch.equal(widened.bfloat16().float(), widened)
        torch.testing.assert_close(widened, rounded.float(), rtol=2**-7, atol=0)
    monkeypatch.setattr(products, "_has_bfloat16", lambda: False)
    assert HeadProducts(heads.double(), W_O.double()).left.dtype == torch.float64  # as they are
