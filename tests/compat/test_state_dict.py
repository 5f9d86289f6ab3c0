"""Entries of a state dict under a prefix."""

import pytest
from torch import nn

from headscope.compat.state_dict import filter_dict_by_prefix


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
