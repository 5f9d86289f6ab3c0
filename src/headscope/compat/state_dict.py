"""Parts of a state dict by the beginning of their names."""

from collections.abc import Mapping
from typing import TypeVar

__all__ = ["filter_dict_by_prefix"]

Value = TypeVar("Value")


def filter_dict_by_prefix(dictionary: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """The entries under a dotted prefix, by what is left of their names.

    Args:
        dictionary: Entries by dotted name, e.g. a state dict.
        prefix: Whole parts of a name, with or without a dot at the end.

    Example:
        >>> filter_dict_by_prefix({"h.1.attn.W_Q": 1, "h.1.mlp.W_in": 2, "h.10.attn.W_Q": 3}, "h.1")
        {'attn.W_Q': 1, 'mlp.W_in': 2}
    """
    start = prefix if prefix.endswith(".") else f"{prefix}."
    return {name.removeprefix(start): value for name, value in dictionary.items() if name.startswith(start)}
