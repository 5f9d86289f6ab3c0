"""The tables of `support/surface.py` have every public name with its signature, and each row has a check."""

import importlib
import inspect
from functools import cache
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import pytest
import surface
import torch
from tiny import tiny_model, tiny_tokens

import headscope
from headscope import HookedRootModule, HookedTransformerKeyValueCache, HookPoint, SVDInterpreter, differences

ROWS = [(area.owner, name, row) for area in surface.AREAS.values() for name, row in area.rows.items()]


@cache
def owners() -> dict[str, Any]:
    """One of each class, and the modules."""
    model = tiny_model()
    _, activations = model.run_with_cache(tiny_tokens())
    past = HookedTransformerKeyValueCache.init_cache(model.cfg)
    made = [model, HookedRootModule(), HookPoint(), activations, model.OV, past, past[0], SVDInterpreter(model)]
    modules = {name: getattr(headscope, name) for name in ("evals", "head_detector", "patching")}
    return {type(each).__name__: each for each in [*made, model.cfg]} | modules


def public_names(owner: str) -> set[str]:
    """What an owner shows, less what every torch module does."""
    shown = owners()[owner]
    if inspect.ismodule(shown):
        return set(shown.__all__)
    names = {name for name in dir(shown) if not name.startswith("_")}
    return names - set(dir(torch.nn.Module())) if isinstance(shown, torch.nn.Module) else names


@pytest.mark.parametrize("owner", [owner for owner in surface.OWN if owner != "HookedTransformerConfig"])
def test_every_public_name_has_a_row_or_is_our_own(owner: str) -> None:
    rows = {name for each, name, _ in ROWS if each == owner}
    own = surface.OWN[owner]
    assert not rows & own
    assert public_names(owner) <= rows | own
    assert own <= public_names(owner)


@pytest.mark.parametrize(("owner", "name", "row"), ROWS, ids=[f"{owner}.{name}" for owner, name, _ in ROWS])
def test_signature(owner: str, name: str, row: str | None) -> None:
    found = getattr(owners()[owner], name)
    if row is None:
        assert not inspect.isroutine(found)
        return
    wanted = inspect.signature(eval(f"lambda {row}: None")).parameters
    parameters = inspect.signature(found).parameters.values()
    # More may be given by keyword: headscope's own.
    ours = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) and p.name not in wanted]
    assert all(p.default is not p.empty for p in ours if p.kind is p.KEYWORD_ONLY)
    rest = [(p.name, p.kind, p.default) for p in parameters if p not in ours]
    assert rest == [(p.name, p.kind, p.default) for p in wanted.values()]


@pytest.mark.parametrize(
    ("owner", "name"), [(owner, name) for owner, names in surface.LEFT_OUT.items() for name in names]
)
def test_what_is_left_out_is_really_not_there(owner: str, name: str) -> None:
    assert name not in dir(owners()[owner])
    with pytest.raises(AttributeError):
        getattr(owners()[owner], name)


def test_every_row_is_checked_in_some_file() -> None:
    """Each area's file says at its end that no row is unchecked."""
    files = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    for area in surface.AREAS:
        assert sum(f"assert {area}.unchecked() == []" in text for text in files) == 1, area


def test_the_package_shows_its_names() -> None:
    for owner, shown in owners().items():
        found = getattr(headscope, owner)
        assert found is (shown if inspect.ismodule(shown) else type(shown))
        assert owner in headscope.__all__
    assert set(headscope.__all__) == {*owners(), "utils"}


@pytest.mark.parametrize("module", [module.name for module in walk_packages(headscope.__path__, "headscope.")])
def test_what_a_module_names_is_there_and_named_once(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "_aliased", False)  # importing the alias must not make later tests warn
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", [])
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(loaded, name)] == []
