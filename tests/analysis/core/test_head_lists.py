import pytest
import torch
from tiny import tiny_model

from headscope.analysis.core.head_lists import (
    chosen_heads,
    head_columns,
    head_labels,
    heads_tensor,
    one_vocabulary,
    rank_heads,
)
from headscope.errors import InvalidInputError

HEADS = torch.tensor([[0, 1], [1, 2], [1, 0]])


def test_heads_by_name_and_all_of_them():
    model = tiny_model()
    assert [head.label for head in chosen_heads(model, None)] == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
    chosen = chosen_heads(model, [(1, 2), "0.1"])
    assert heads_tensor(chosen).tolist() == [[1, 2], [0, 1]]


@pytest.mark.parametrize("heads, message", [
    ([], "no heads are named"), ([(0, 5)], "0.5 does not exist"), (["MLP 1"], "MLP 1 is no head"),
    ([(0, 1), "0.1"], "0.1 is named twice"),
])  # fmt: skip
def test_heads_that_are_none_are_refused(heads, message):
    with pytest.raises(InvalidInputError, match=message):
        chosen_heads(tiny_model(), heads)


def test_labels_and_columns():
    assert head_labels(HEADS) == ("0.1", "1.2", "1.0")
    assert head_columns(HEADS) == {"layer": [0, 1, 1], "head": [1, 2, 0], "label": ["0.1", "1.2", "1.0"]}


def test_ranking_leaves_out_what_is_not_known():
    values = torch.tensor([0.5, torch.nan, 0.75])
    ranking = rank_heads(HEADS, values, 5, name="share", unit="nats")
    assert [(score.label, score.value) for score in ranking] == [("1.0", 0.75), ("0.1", 0.5)]
    assert ranking.name == "share" and ranking.unit == "nats"
    assert [score.label for score in rank_heads(HEADS, values, 1, name="share", largest=False)] == ["0.1"]
    with pytest.raises(InvalidInputError, match="k must be at least 1"):
        rank_heads(HEADS, values, 0, name="share")


def test_one_vocabulary_is_needed():
    assert one_vocabulary(tiny_model()) == 23
    with pytest.raises(InvalidInputError, match="d_vocab_out = 5"):
        one_vocabulary(tiny_model(d_vocab_out=5))
