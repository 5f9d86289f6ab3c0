"""Names of heads and MLPs."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_config

from headscope.analysis.core.components import Component, all_heads, all_mlps, component_sets, components, set_label
from headscope.errors import InvalidInputError


@pytest.mark.parametrize(
    ("named", "labels"),
    [
        ([(1, 2), "0.1", " 1.0 ", "MLP 1", "mlp.0", Component(0, 2)], ["1.2", "0.1", "1.0", "mlp1", "mlp0", "0.2"]),
        (["mlp1", "Mlp 0", "MLP0"], ["mlp1", "mlp0", "mlp0"]),
        ("1.2, 0.1", ["1.2", "0.1"]),
        ([(torch.tensor(0), torch.tensor(1)), np.array([1, 2]), torch.tensor([0, 2])], ["0.1", "1.2", "0.2"]),
        ("1.2+MLP 0", ["1.2", "mlp0"]),
    ],
)
def test_names(named: Any, labels: list[str]) -> None:
    assert [component.label for component in components(tiny_config(), named)] == labels


@pytest.mark.parametrize(
    ("named", "labels"),
    [
        ([(1, 2)], ["1.2"]),
        ([[1, 2], (0, 1)], ["1.2", "0.1"]),
        ([["1.2", "0.1"], "mlp0"], ["0.1+1.2", "mlp0"]),
        (["1.2+0.1+0.1"], ["0.1+1.2"]),
        ([{(0, 0), (1, 0)}], ["0.0+1.0"]),
        (torch.tensor([[1, 2], [0, 1]]), ["1.2", "0.1"]),
        ([(np.int64(1), np.int64(2)), [np.array([0, 1]), "1.0"]], ["1.2", "0.1+1.0"]),
        ([("0.0", "mlp0", (0, 2))], ["0.0+0.2+mlp0"]),
    ],
)
def test_sets(named: Any, labels: list[str]) -> None:
    assert [set_label(each) for each in component_sets(tiny_config(), named)] == labels


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ([(2, 0)], "2.0 does not exist: layers of .* are 0 to 1"),
        (["0.3"], "0.3 does not exist: heads of .* are 0 to 2"),
        (["mlp2"], "mlp2 does not exist: layers"),
        (["-1.0"], "names no component"),
        ([(0, -1)], "does not exist: heads"),
        (["head 3"], "'head 3' names no component. A head is"),
        ([7], "7 names no component"),
        ([(torch.tensor(0.0), torch.tensor(1.0))], "names no component"),
        ([()], "a set of components is empty"),
        ([], "no components are named"),
        (["0.1", (0, 1)], "0.1 is named twice"),
    ],
)
def test_bad_names_are_told(named: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        component_sets(tiny_config(), named)


def test_all_of_a_model() -> None:
    assert [head.label for head in all_heads(tiny_config())] == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
    assert [mlp.label for mlp in all_mlps(tiny_config())] == ["mlp0", "mlp1"]
    assert all_mlps(tiny_config(attn_only=True)) == ()
    with pytest.raises(InvalidInputError, match="has attention only"):
        components(tiny_config(attn_only=True), ["mlp0"])
