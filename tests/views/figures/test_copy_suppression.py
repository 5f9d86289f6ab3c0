"""Figures of copy suppression hold the results' numbers where their labels say."""

import math

import pytest
import torch

from headscope import HookedTransformer
from headscope.analysis import copy_suppression_preserving_ablation, suppression_scores, weights_circuit_ranks
from headscope.analysis.core.result import RunInfo
from headscope.analysis.suppression.scores import SuppressionScores
from headscope.errors import InvalidInputError
from headscope.views.figures.copy_suppression import circuit_rank_maps, copy_suppression_by_head, suppression_scatter

INFO = RunInfo("model", (), "data", 1, 1, {})
HEADS = ["1.3", "3.2", "4.0"]


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return HookedTransformer.from_pretrained("headscope-demo")


def cells(trace) -> dict[tuple[int, int], float]:
    grid = torch.as_tensor(trace.z)
    return {(layer, head): float(grid[layer, head]) for layer in range(len(grid)) for head in range(grid.shape[1])}


def test_shares_stand_at_their_heads(model: HookedTransformer) -> None:
    tokens = model.to_tokens("When Mary and John went to the park, John gave a ball to Mary. Mary and John went home.")
    found = copy_suppression_preserving_ablation(model, tokens, HEADS, progress=False, describe="a text")
    figure = copy_suppression_by_head(found)
    shown = cells(figure.data[0])
    wanted = {(1, 3): 0, (3, 2): 1, (4, 0): 2}
    for place, value in shown.items():
        if place in wanted:
            assert value == pytest.approx(max(0.0, float(found.share()[wanted[place]])))
        else:
            assert math.isnan(value)
    assert figure.layout.coloraxis.cmax == 1.0


def test_ranks_as_two_maps(model: HookedTransformer) -> None:
    ranks = weights_circuit_ranks(model, HEADS, tokens=torch.arange(50), progress=False)
    ov, qk = circuit_rank_maps(ranks).data
    for trace, values in ((ov, ranks.ov_bottom), (qk, ranks.qk_top)):
        shown = cells(trace)
        assert [shown[place] for place in ((1, 3), (3, 2), (4, 0))] == pytest.approx(values.tolist())


def test_every_head_is_a_dot(model: HookedTransformer) -> None:
    scores = suppression_scores(model, n_sequences=2, length=20, n_prompts=4, progress=False)
    assert scores.ioi is not None
    (points,) = suppression_scatter(scores).data
    assert list(points.customdata[:5]) == ["0.0", "0.1", "0.2", "0.3", "1.0"]
    assert list(points.x) == scores.anti_induction.flatten().tolist()
    assert list(points.y) == scores.ioi.flatten().tolist()
    assert sum(bool(label) for label in points.text) == 6
    assert len(points.textposition) == len(points.text)
    without = suppression_scores(model, n_sequences=2, length=20, n_prompts=0, progress=False)
    with pytest.raises(InvalidInputError, match="IOI prompts were not measured"):
        suppression_scatter(without)


@pytest.mark.parametrize("seed", range(4))
def test_labels_touch_neither_each_other_nor_labeled_dots(seed: int) -> None:
    """Six heads far out and three of them close together, on a plot as small as a phone shows it."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(6, 5, generator=generator) for _ in range(2))
    x[0, :3], y[0, :3] = 9.0, 9.0 + 0.3 * torch.rand(3, generator=generator)
    scores = SuppressionScores(INFO, x, y)
    (points,) = suppression_scatter(scores).data
    across, up = ((size * (v - v.min()) / (v.max() - v.min())).flatten().tolist() for v, size in ((x, 260), (y, 230)))
    named = [at for at, label in enumerate(points.text) if label]
    assert len(named) >= 5
    boxes = []
    for at in named:
        upward, sideways = points.textposition[at].split()
        left = {"left": -30.0, "center": -15.0, "right": 0.0}[sideways]
        bottom = {"bottom": -17.0, "middle": -7.0, "top": 4.0}[upward]
        left, bottom = across[at] + left, up[at] + bottom
        boxes.append((left, bottom, left + 28, bottom + 13))
    for one, box in enumerate(boxes):
        for other in boxes[:one]:
            apart = box[0] >= other[2] or other[0] >= box[2] or box[1] >= other[3] or other[1] >= box[3]
            assert apart, (box, other)


def test_heads_of_layers_without_attention_are_no_dots() -> None:
    x = torch.arange(6.0).view(3, 2)
    x[1] = torch.nan
    (points,) = suppression_scatter(SuppressionScores(INFO, x, x)).data
    assert list(points.customdata) == ["0.0", "0.1", "2.0", "2.1"] and sum(map(bool, points.text)) == 4
