"""Figures of attention scores hold the result's numbers, and sums where parts are left out."""

import pytest
import torch
from three_passes import random_task
from tiny import tiny_model

from headscope.analysis import AttentionAttribution, attribute_attention
from headscope.errors import InvalidInputError
from headscope.views.figures.attention_score import attention_pairs, attention_sides


@pytest.fixture(scope="module")
def why() -> AttentionAttribution:
    model = tiny_model(n_layers=3)
    return attribute_attention(model, random_task(), (2, 1), "end", "S2", against=0, sources=False, progress=False)


def test_cells_sum_to_the_score_however_many_parts_are_shown(why: AttentionAttribution) -> None:
    for k in (2, 5, 100):
        (heatmap,) = attention_pairs(why, k=k).data
        values = torch.as_tensor(heatmap.z)
        assert float(values.sum()) == pytest.approx(float(why.scores.mean()))
        shown = min(k, len(why.part_labels))
        assert len(heatmap.y) == len(values) == shown + (shown < len(why.part_labels))
        for row, query in enumerate(heatmap.y[:shown]):
            for column, key in enumerate(heatmap.x[:shown]):
                cell = float(why.sel(query_part=query, key_part=key))
                error = float(why.sel(by="errors", query_part=query, key_part=key))
                assert float(values[row, column]) == pytest.approx(cell)
                assert heatmap.customdata[row][column] == f" ± {error:.4f}"
    figure = attention_pairs(why, k=2)
    assert figure.data[0].y[-1] == f"{len(why.part_labels) - 2} others"
    assert "2.1, end to S2 less 0" in figure.layout.title.text


def test_bars_are_each_sides_parts_with_their_errors(why: AttentionAttribution) -> None:
    for bars, parts in zip(attention_sides(why, k=3).data, (why.query_parts, why.key_parts), strict=True):
        sizes = parts.mean(0).abs()
        order = sizes.argsort(descending=True)
        assert list(bars.y) == [*(why.part_labels[at] for at in order[:3]), f"{len(order) - 3} others"]
        expected = torch.cat([parts[:, order[:3]], parts[:, order[3:]].sum(1, keepdim=True)], 1)
        torch.testing.assert_close(torch.tensor(bars.x).double(), expected.mean(0))
        torch.testing.assert_close(torch.tensor(bars.error_x.array).double(), expected.std(0) / 3**0.5)


def test_no_parts_are_no_figure(why: AttentionAttribution) -> None:
    for draw in (attention_pairs, attention_sides):
        with pytest.raises(InvalidInputError, match="k must be at least 1"):
            draw(why, k=0)
