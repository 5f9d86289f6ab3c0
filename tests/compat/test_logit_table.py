"""The table of one position's predictions."""

import math

import pytest
import torch

from headscope.compat.logit_table import logits_to_df
from headscope.errors import InvalidInputError


class Letters:
    def decode(self, token_ids: list[int]) -> str:
        return "".join("abcdef"[i] for i in token_ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_from_the_likeliest(dtype: torch.dtype) -> None:
    logits = torch.tensor([0.5, 2.0, -1.0, 1.0], dtype=dtype, requires_grad=True)
    table = logits_to_df(logits, Letters())
    assert list(table.columns) == ["token_index", "token_string", "logit", "log_prob", "probability"]
    assert table["token_index"].tolist() == [1, 3, 0, 2]
    assert table["token_string"].tolist() == ["b", "d", "a", "c"]
    assert table["logit"].tolist() == [2.0, 1.0, 0.5, -1.0]
    total = sum(math.exp(value) for value in logits.tolist())
    assert table["probability"].tolist() == pytest.approx([math.exp(v) / total for v in (2.0, 1.0, 0.5, -1.0)])
    assert table["log_prob"].tolist() == pytest.approx([v - math.log(total) for v in (2.0, 1.0, 0.5, -1.0)])
    assert logits_to_df(logits, top_k=2).equals(logits_to_df(logits).head(2))
    assert "token_string" not in logits_to_df(logits).columns
    assert len(logits_to_df(logits, top_k=9)) == 4 and len(logits_to_df(logits, top_k=0)) == 0


def test_bad_input_is_told() -> None:
    with pytest.raises(InvalidInputError, match="top_k must be at least 0, or None"):
        logits_to_df(torch.zeros(3), top_k=-1)
    with pytest.raises((InvalidInputError, TypeError), match="one position|parameter logits="):
        logits_to_df(torch.zeros(2, 3))
