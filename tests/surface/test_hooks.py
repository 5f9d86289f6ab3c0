"""Hooks on a point, and on any root of one's own: small numbers, worked out by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from surface import POINT, ROOT
from tiny import tiny_model
from torch import Tensor, nn

from headscope import HookedRootModule, HookPoint


def add(number: float) -> Callable[..., Tensor]:
    return lambda value, hook: value + number


def times(number: float) -> Callable[..., Tensor]:
    return lambda value, hook: value * number


# One point


@pytest.fixture
def point() -> HookPoint:
    return HookPoint()


def through(point: HookPoint, value: float = 1.0) -> tuple[float, float]:
    """What comes out of the point, and the gradient of three times that with respect to what went in."""
    x = torch.tensor(value, requires_grad=True)
    out = point(x * 1)
    (3 * out).backward()
    assert x.grad is not None
    return out.item(), x.grad.item()


@POINT.shows("__init__", "name", "ctx", "fwd_hooks", "bwd_hooks", "forward")
def test_a_new_point(name: str, point: HookPoint) -> None:
    found = {"name": point.name, "ctx": point.ctx, "fwd_hooks": point.fwd_hooks, "bwd_hooks": point.bwd_hooks}
    assert found == {"name": None, "ctx": {}, "fwd_hooks": [], "bwd_hooks": []}
    assert through(point) == (1.0, 3.0)
    anything = object()
    assert point.forward(anything) is anything
    point.add_hook(add(1), level=2)
    point.add_hook(times(2), dir="bwd", is_permanent=True)
    assert [(handle.is_permanent, handle.context_level) for handle in point.fwd_hooks] == [(False, 2)]
    assert [(handle.is_permanent, handle.context_level) for handle in point.bwd_hooks] == [(True, None)]
    point.add_hook(add(1), prepend=True)
    assert [handle.context_level for handle in point.fwd_hooks] == [None, 2]
    for handle in point.fwd_hooks:
        handle.hook.remove()
    assert through(point) == (1.0, 6.0)


@POINT.shows("add_hook", "add_perma_hook")
def test_adding_to_a_point(name: str, point: HookPoint) -> None:
    adding = getattr(point, name)
    adding(add(1))
    adding(times(10), "bwd")
    assert through(point) == (2.0, 30.0)
    if name == "add_hook":
        adding(times(5), prepend=True)
        assert through(point)[0] == 6.0
        adding(times(2), is_permanent=True)
        adding(add(7), level=1)
        assert through(point)[0] == 19.0
        point.remove_hooks("both", level=1)
        assert through(point)[0] == 12.0
        point.remove_hooks("both")
        assert through(point) == (2.0, 6.0)
    else:
        point.remove_hooks("both")
        assert through(point) == (2.0, 30.0)
        point.remove_hooks("both", including_permanent=True)
        assert through(point) == (1.0, 3.0)


@POINT.shows("has_hooks")
def test_has_hooks(point: HookPoint) -> None:
    assert not point.has_hooks()
    point.add_hook(add(1), level=1)
    point.add_perma_hook(add(1), dir="bwd")
    asked = [
        point.has_hooks(), point.has_hooks("fwd"), point.has_hooks("bwd"),
        point.has_hooks("bwd", including_permanent=False),
        point.has_hooks("fwd", level=1), point.has_hooks("fwd", level=2),
    ]  # fmt: skip
    assert asked == [True, True, True, False, True, False]


@POINT.shows("remove_hooks")
def test_remove_hooks(point: HookPoint) -> None:
    def fill() -> None:
        point.remove_hooks("both", including_permanent=True)
        point.add_hook(add(1))
        point.add_hook(add(2), level=1)
        point.add_hook(add(4), is_permanent=True)
        point.add_hook(times(2), dir="bwd")

    for options, wanted in [
        ({}, (5.0, 6.0)),
        ({"dir": "bwd"}, (8.0, 3.0)),
        ({"dir": "both"}, (5.0, 3.0)),
        ({"including_permanent": True}, (1.0, 6.0)),
        ({"level": 1}, (6.0, 6.0)),
        ({"level": 2}, (8.0, 6.0)),
    ]:
        fill()
        assert through(point) == (8.0, 6.0)
        point.remove_hooks(**options)  # type: ignore[arg-type]
        assert through(point) == wanted, options


@POINT.shows("clear_context")
def test_clear_context(point: HookPoint) -> None:
    point.add_hook(lambda value, hook: hook.ctx.update(seen=value.item()))
    through(point, 5.0)
    assert point.ctx == {"seen": 5.0}
    point.clear_context()
    assert point.ctx == {}


@POINT.shows("layer")
def test_layer() -> None:
    model = tiny_model(n_layers=11)
    assert model.blocks[10].attn.hook_z.layer() == 10 and model.blocks[3].hook_resid_pre.layer() == 3
    assert model.blocks[7].ln2.hook_scale.layer() == 7
    with pytest.raises(ValueError, match="hook_embed"):
        model.hook_embed.layer()


# A root of one's own


class Chain(HookedRootModule):
    """`a = x`, `b = 3 a scale`, and the sum of `b**2`, so that the gradients are `2 b` and `6 b scale`."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_a = HookPoint()
        self.inner = nn.Module()
        self.inner.hook_b = HookPoint()
        self.setup()

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.inner.hook_b(3 * self.hook_a(x) * scale).square().sum()


X = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)


def output(chain: Chain) -> float:
    return chain(X).item()


@pytest.fixture
def chain() -> Chain:
    return Chain()


@ROOT.shows("__init__", "setup", "mod_dict", "hook_dict", "hook_points")
def test_a_root_knows_its_points(name: str, chain: Chain) -> None:
    bare = HookedRootModule("anything", 3)
    assert bare.mod_dict == bare.hook_dict == {} and list(bare.hook_points()) == []
    points = {"hook_a": chain.hook_a, "inner.hook_b": chain.inner.hook_b}
    assert chain.hook_dict == points and list(chain.hook_points()) == list(points.values())
    assert chain.mod_dict == {**points, "inner": chain.inner}
    assert [point.name for point in chain.hook_points()] == list(points)
    chain.inner.hook_b = HookPoint()
    chain.late = HookPoint()
    chain.setup()
    assert chain.hook_dict == {"hook_a": chain.hook_a, "inner.hook_b": chain.inner.hook_b, "late": chain.late}
    assert chain.late.name == "late"
    chain.inner.moved = chain.late
    del chain.late
    chain.setup()
    assert chain.hook_dict["inner.moved"].name == "inner.moved" and "late" not in chain.mod_dict


@ROOT.shows("add_hook", "add_perma_hook")
def test_adding_to_a_root(name: str, chain: Chain) -> None:
    adding = getattr(chain, name)
    assert output(chain) == 9 + 36
    adding("inner.hook_b", add(1))
    assert output(chain) == 16 + 49
    adding(lambda each: each.startswith("hook"), add(1))
    assert output(chain) == 49 + 100
    adding("hook_a", times(10), dir="bwd")
    (gradient,) = torch.autograd.grad(chain(X), X)
    assert gradient.tolist() == [[10 * 6 * 7.0, 10 * 6 * 10.0]]
    chain.reset_hooks()
    assert output(chain) == (49 + 100 if name == "add_perma_hook" else 9 + 36)
    if name == "add_hook":
        chain.add_hook("hook_a", add(1))
        chain.add_hook("hook_a", times(2), prepend=True)
        assert output(chain) == 81 + 225
        chain.add_hook("hook_a", add(1), is_permanent=True)
        chain.add_hook("hook_a", add(1), level=5)
        chain.remove_all_hook_fns(level=5)
        assert output(chain) == 144 + 324
    with pytest.raises(KeyError, match=r"'hook_c'.*'hook_a'"):
        adding("hook_c", add(1))


@ROOT.shows("hooks", "run_with_hooks", "context_level")
def test_hooks_for_a_while(name: str, chain: Chain) -> None:
    forward, backward = [("inner.hook_b", add(1))], [("hook_a", times(10))]
    chain.add_hook("hook_a", add(1))
    if name == "run_with_hooks":
        assert chain.run_with_hooks(X, fwd_hooks=forward).item() == 49 + 100
        assert chain.run_with_hooks(X, scale=2.0, fwd_hooks=forward).item() == 169 + 361
        chain.hook_a.ctx["kept"] = 1
        out = chain.run_with_hooks(X, fwd_hooks=forward, bwd_hooks=backward, reset_hooks_end=False)
        (gradient,) = torch.autograd.grad(out, X)
        assert gradient.tolist() == [[10 * 6 * 7.0, 10 * 6 * 10.0]]
        assert output(chain) == 49 + 100 and chain.hook_a.ctx == {"kept": 1}
        chain.run_with_hooks(X, clear_contexts=True)
        assert chain.hook_a.ctx == {}
        return
    with chain.hooks(fwd_hooks=forward, bwd_hooks=backward) as inside:
        assert inside is chain and chain.context_level == 1
        with chain.hooks(forward):
            assert chain.context_level == 2 and output(chain) == 64 + 121
        (gradient,) = torch.autograd.grad(chain(X), X)
        assert gradient.tolist() == [[10 * 6 * 7.0, 10 * 6 * 10.0]]
    assert output(chain) == 36 + 81 and chain.context_level == 0
    with pytest.raises(ZeroDivisionError), chain.hooks(forward):
        raise ZeroDivisionError
    assert output(chain) == 36 + 81 and chain.context_level == 0
    chain.hook_a.ctx["kept"] = 1
    with chain.hooks(forward, reset_hooks_end=False):
        pass
    assert output(chain) == 49 + 100 and chain.hook_a.ctx == {"kept": 1}
    with chain.hooks(clear_contexts=True):
        pass
    assert chain.hook_a.ctx == {}


@ROOT.shows("remove_all_hook_fns", "reset_hooks", "clear_contexts", "is_caching")
def test_taking_hooks_off(name: str, chain: Chain) -> None:
    def fill() -> None:
        chain.reset_hooks(including_permanent=True)
        chain.add_hook("hook_a", add(1))
        chain.add_hook("inner.hook_b", add(3), is_permanent=True)
        chain.add_hook("hook_a", times(2), dir="bwd")
        chain.add_caching_hooks("hook_a")
        for point in chain.hook_points():
            point.ctx["kept"] = 1

    fill()
    assert chain.is_caching and output(chain) == 81 + 144
    removing = chain.remove_all_hook_fns if name == "remove_all_hook_fns" else chain.reset_hooks
    if name == "clear_contexts":
        chain.clear_contexts()
        assert [point.ctx for point in chain.hook_points()] == [{}, {}] and output(chain) == 81 + 144
        return
    for options, first, second, backward in [
        ({}, 6, 9, 1), ({"direction": "fwd"}, 6, 9, 2), ({"direction": "bwd"}, 9, 12, 1),
        ({"including_permanent": True}, 3, 6, 1), ({"level": 1}, 9, 12, 2),
    ]:  # fmt: skip
        fill()
        removing(**options)
        assert output(chain) == first**2 + second**2, options
        (gradient,) = torch.autograd.grad(chain(X), X)
        assert gradient.tolist() == [[backward * 6.0 * first, backward * 6.0 * second]], options
        assert chain.is_caching is (name == "remove_all_hook_fns")
        assert chain.hook_a.ctx == ({"kept": 1} if name == "remove_all_hook_fns" else {})
    if name == "reset_hooks":
        fill()
        chain.reset_hooks(clear_contexts=False)
        assert chain.hook_a.ctx == {"kept": 1}


@ROOT.shows("add_caching_hooks", "get_caching_hooks", "run_with_cache")
def test_caching_on_a_root(name: str, chain: Chain) -> None:
    """Three ways to the same dictionary; the options each of them has."""

    def cached(**options: Any) -> dict[str, Tensor]:
        if name == "run_with_cache":
            out, cache = chain.run_with_cache(X, **options)
            assert out.item() == 9 + 36
        elif name == "get_caching_hooks":
            cache, forward, backward = chain.get_caching_hooks(**options)
            with chain.hooks(forward, backward):
                chain(X).backward()
        else:
            cache = chain.add_caching_hooks(**options)
            assert chain.is_caching
            chain(X).backward()
            chain.reset_hooks()
        assert not any(point.has_hooks() for point in chain.hook_points())
        return cache

    def values(**options: Any) -> dict[str, list[Any]]:
        return {key: value.tolist() for key, value in cached(**options).items()}

    a, b = {"hook_a": [[1.0, 2.0]]}, {"inner.hook_b": [[3.0, 6.0]]}
    assert values() == {**a, **b}
    for names_filter in ("hook_a", ["hook_a"], lambda each: each.endswith("a")):
        assert values(names_filter=names_filter) == a
    gradients = {"hook_a_grad": [[18.0, 36.0]], "inner.hook_b_grad": [[6.0, 12.0]]}
    assert values(incl_bwd=True) == {**a, **b, **gradients}
    assert values(names_filter="hook_a", remove_batch_dim=True) == {"hook_a": [1.0, 2.0]}
    assert all(value.is_meta for value in cached(device="meta").values())
    assert not any(value.requires_grad for value in cached().values())
    if name == "run_with_cache":
        _, cache = chain.run_with_cache(X, reset_hooks_end=False)
        chain.hook_a.ctx["kept"] = 1
        chain(2 * X)
        assert cache["hook_a"].tolist() == [[2.0, 4.0]]
        chain.run_with_cache(X, clear_contexts=True)
        assert chain.hook_a.ctx == {}
        _, cache = chain.run_with_cache(X, scale=2.0)
        assert cache["inner.hook_b"].tolist() == [[6.0, 12.0]]
    else:
        own: dict[str, Tensor] = {}
        assert cached(cache=own) is own and list(own) == ["hook_a", "inner.hook_b"]
    if name != "add_caching_hooks":
        assert values(names_filter="hook_a", pos_slice=1) == {"hook_a": [[2.0]]}
        assert values(names_filter="hook_a", pos_slice=(0, 1)) == {"hook_a": [[1.0]]}


def test_every_row_has_a_check() -> None:
    assert POINT.unchecked() == []
    assert ROOT.unchecked() == []
