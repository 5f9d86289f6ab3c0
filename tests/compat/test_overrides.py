"""Settings by dotted names, and defaults overridden for a while."""

from typing import Any

import pytest
from small_models import small_model
from torch import nn

from headscope import HookedTransformer
from headscope.compat.overrides import (
    LocallyOverridenDefaults,
    filter_dict_by_prefix,
    get_nested_attr,
    override_or_use_default_value,
    select_compatible_kwargs,
    set_nested_attr,
)
from headscope.errors import InvalidInputError


def test_dotted_names() -> None:
    layers = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4)))
    assert get_nested_attr(layers, "1.0.weight") is layers[1][0].weight
    assert get_nested_attr(layers, "training") is True
    inner = nn.Identity()
    set_nested_attr(layers, "1.0", inner)
    assert layers[1][0] is inner
    set_nested_attr(layers, "training", False)
    assert layers.training is False
    for function in (lambda: get_nested_attr(layers, "2.weight"), lambda: set_nested_attr(layers, "2.weight", 1)):
        with pytest.raises(AttributeError, match="2"):
            function()


@pytest.mark.parametrize("default, override, wanted", [
    (True, None, True), (True, False, False), (False, True, True), (3, 0, 0), ("left", "", ""), (None, None, None),
])  # fmt: skip
def test_only_none_leaves_the_default(default: Any, override: Any, wanted: Any) -> None:
    assert override_or_use_default_value(default, override) is wanted


def test_defaults_inside_a_block() -> None:
    model = small_model()
    texts = ["Mary went", "Mary went to the store"]
    outside = model.to_tokens(texts)
    with LocallyOverridenDefaults(model, prepend_bos=False, padding_side="left"):
        inside = model.to_tokens(texts)
        assert inside.equal(model.to_tokens(texts, prepend_bos=False, padding_side="left"))
        with LocallyOverridenDefaults(model, prepend_bos=True):
            assert model.to_tokens(texts).equal(model.to_tokens(texts, prepend_bos=True, padding_side="left"))
        assert model.to_tokens(texts).equal(inside)
    assert not inside.equal(outside)
    assert model.to_tokens(texts).equal(outside)


def test_defaults_come_back_after_an_error() -> None:
    model = small_model()
    before = model.cfg.default_prepend_bos, model.default_padding_side
    override = LocallyOverridenDefaults(model, prepend_bos=not before[0], padding_side="left")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), override, override:
            assert model.cfg.default_prepend_bos is not before[0]
            raise ZeroDivisionError
        assert (model.cfg.default_prepend_bos, model.default_padding_side) == before


def test_a_model_without_a_tokenizer() -> None:
    with LocallyOverridenDefaults(model := small_model(tokenizer=False), padding_side="left"):
        assert model.default_padding_side == "left"


@pytest.mark.parametrize("overrides, message", [
    ({"padding_side": "top"}, "padding_side"), ({"prepend_bos": "yes"}, "prepend_bos"), ({"top_k": 3}, "top_k"),
])  # fmt: skip
def test_other_overrides_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidInputError, TypeError), match=message):
        LocallyOverridenDefaults(small_model(), **overrides)


@pytest.mark.parametrize("prefix, wanted", [
    ("1", {"weight", "bias"}), ("1.", {"weight", "bias"}), ("0", {"0.weight", "0.bias"}), ("0.0", {"weight", "bias"}),
    ("2", set()), ("1.weight", set()),
])  # fmt: skip
def test_whole_parts_of_names(prefix: str, wanted: set[str]) -> None:
    state = nn.Sequential(nn.Sequential(nn.Linear(2, 3)), nn.Linear(3, 4)).state_dict()
    state["10.weight"] = state["1.weight"]
    found = filter_dict_by_prefix(state, prefix)
    assert found.keys() == wanted
    start = prefix.removesuffix(".")
    assert all(value is state[f"{start}.{name}"] for name, value in found.items())


def test_only_what_a_function_takes_by_keyword() -> None:
    def takes(a: int, /, b: int, *c: int, d: int = 0, **e: int) -> None:
        """Has one parameter of each kind."""

    options = {name: index for index, name in enumerate("abcdef")}
    assert select_compatible_kwargs(options, takes) == {"b": 1, "d": 3}
    kept = select_compatible_kwargs({"bias": False, "d_model": 4}, nn.Linear)
    assert nn.Linear(2, 3, **kept).bias is None


def test_options_of_from_pretrained_are_kept() -> None:
    options = {"fold_ln": False, "device": "cpu", "hf_model": None, "color": "red"}
    kept = select_compatible_kwargs(options, HookedTransformer.from_pretrained)
    assert kept == {"fold_ln": False, "device": "cpu", "hf_model": None}
