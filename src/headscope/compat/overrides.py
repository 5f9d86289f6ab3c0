"""Settings and weights by their dotted names, and a model's tokenizing defaults overridden for a while."""

import inspect
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, TypeVar

from headscope.errors import InvalidInputError
from headscope.model.text.tokens import PaddingSide
from headscope.model.transformer import HookedTransformer

__all__ = [
    "LocallyOverridenDefaults",
    "filter_dict_by_prefix",
    "get_nested_attr",
    "override_or_use_default_value",
    "select_compatible_kwargs",
    "set_nested_attr",
]

Value = TypeVar("Value")


def filter_dict_by_prefix(dictionary: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """Return the entries under a dotted prefix (with or without a dot at the end), by the rest of their names.

    Example:
        >>> filter_dict_by_prefix({"h.1.attn.W_Q": 1, "h.1.mlp.W_in": 2, "h.10.attn.W_Q": 3}, "h.1")
        {'attn.W_Q': 1, 'mlp.W_in': 2}
    """
    start = prefix if prefix.endswith(".") else f"{prefix}."
    return {name.removeprefix(start): value for name, value in dictionary.items() if name.startswith(start)}


def get_nested_attr(obj: Any, attr_str: str) -> Any:
    """Return an attribute of an attribute: `get_nested_attr(obj, "a.b.c")` is `obj.a.b.c`.

    Raises:
        AttributeError: If one of them does not exist.

    Example:
        >>> from torch import nn
        >>> get_nested_attr(nn.Sequential(nn.Linear(2, 3)), "0.out_features")
        3
    """
    return attrgetter(attr_str)(obj)


def set_nested_attr(obj: Any, attr_str: str, value: Any) -> None:
    """Set an attribute of an attribute: `set_nested_attr(obj, "a.b.c", value)` is `obj.a.b.c = value`.

    Raises:
        AttributeError: If one of them but the last does not exist.

    Example:
        >>> from torch import nn
        >>> layers = nn.Sequential(nn.Linear(2, 3))
        >>> set_nested_attr(layers, "0", nn.Identity())
        >>> layers
        Sequential(
          (0): Identity()
        )
    """
    parents, _, name = attr_str.rpartition(".")
    setattr(get_nested_attr(obj, parents) if parents else obj, name, value)


def override_or_use_default_value(default_flag: Value, override: Value | None = None) -> Value:
    """Return `override`, or the default where that is None.

    Example:
        >>> override_or_use_default_value(True, False), override_or_use_default_value(True)
        (False, True)
    """
    return default_flag if override is None else override


def select_compatible_kwargs(kwargs_dict: Mapping[str, Value], callable: Callable[..., Any]) -> dict[str, Value]:
    """Return the entries that a function has a parameter for, which can be given by keyword.

    Example:
        >>> select_compatible_kwargs({"reverse": True, "axis": 1}, sorted)
        {'reverse': True}
    """
    parameters = inspect.signature(callable).parameters.values()
    named = {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    return {name: value for name, value in kwargs_dict.items() if name in named}


class LocallyOverridenDefaults:
    """Other tokenizing defaults of a model inside a `with` block; afterwards those from before, error or not.

    The tokenizer itself is not touched. (The spelling is the field's.)

    Args:
        model: The model.
        prepend_bos: Value of `model.cfg.default_prepend_bos` inside; None leaves it.
        padding_side: Value of `model.default_padding_side` inside, `"left"` or `"right"`; None leaves it.

    Raises:
        InvalidInputError: For another value.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> with LocallyOverridenDefaults(model, prepend_bos=False):
        ...     model.to_str_tokens("Mary went home")
        ['M', 'ary', ' went', ' home']
    """

    def __init__(
        self, model: HookedTransformer, *, prepend_bos: bool | None = None, padding_side: PaddingSide | None = None
    ) -> None:
        if prepend_bos not in (None, True, False):
            raise InvalidInputError(f"prepend_bos must be True, False or None; got {prepend_bos!r}.")
        if padding_side not in (None, "left", "right"):
            raise InvalidInputError(f"padding_side must be 'left', 'right' or None; got {padding_side!r}.")
        self.model = model
        self.overrides = {"cfg.default_prepend_bos": prepend_bos, "default_padding_side": padding_side}
        self._before: list[dict[str, Any]] = []

    def __enter__(self) -> None:
        self._before.append({name: get_nested_attr(self.model, name) for name in self.overrides})
        for name, default in self._before[-1].items():
            set_nested_attr(self.model, name, override_or_use_default_value(default, self.overrides[name]))

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.pop().items():
            set_nested_attr(self.model, name, value)
