from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from tiny import tiny_model

from headscope.analysis.core.head_lists import (
    HeadListResult,
    chosen_heads,
    heads_tensor,
    one_vocabulary,
)
from headscope.analysis.core.result import Array, RunInfo
from headscope.errors import InvalidInputError

HEADS = torch.tensor([[0, 1], [1, 2], [1, 0]])


def test_heads_by_name_and_all_of_them():
    model = tiny_model()
    assert [head.label for head in chosen_heads(model, None)] == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
    chosen = chosen_heads(model, [(1, 2), "0.1"])
    assert heads_tensor(chosen).tolist() == [[1, 2], [0, 1]]


@pytest.mark.parametrize("heads, message", [
    ([], "no heads are named"), ([(0, 5)], "0.5 does not exist"), (["mlp1"], "mlp1 is no head"),
    ([(0, 1), "0.1"], "0.1 is named twice"),
])  # fmt: skip
def test_heads_that_are_none_are_refused(heads, message):
    with pytest.raises(InvalidInputError, match=message):
        chosen_heads(tiny_model(), heads)


@dataclass(frozen=True, repr=False)
class Shares(HeadListResult):
    arrays: ClassVar = {"shares": Array("head")}
    ranked: ClassVar = ("shares",)
    shares: torch.Tensor


def test_a_result_about_some_heads():
    shares = Shares(RunInfo("tiny", (), "x", 1, 1), HEADS, torch.tensor([0.5, torch.nan, 0.75]))
    assert shares.labels == ("0.1", "1.2", "1.0")
    frame = shares.to_frame()
    assert list(frame.columns) == ["layer", "head", "label", "shares"]
    assert (frame.layer.tolist(), frame["head"].tolist()) == ([0, 1, 1], [1, 2, 0])
    assert frame.label.tolist() == list(shares.labels)
    assert [(score.layer, score.head, score.value) for score in shares.top(5)] == [(1, 0, 0.75), (0, 1, 0.5)]
    assert [score.label for score in shares.top(1, largest=False)] == ["0.1"]
    assert float(shares.sel(head=(1, 0))) == float(shares.sel(component="1.0")) == 0.75


def test_one_vocabulary_is_needed():
    assert one_vocabulary(tiny_model()) == 23
    with pytest.raises(InvalidInputError, match="d_vocab_out = 5"):
        one_vocabulary(tiny_model(d_vocab_out=5))
