"""Figures of copy suppression hold the results' numbers where their labels say."""

import math

import pytest
import torch

from headscope import HookedTransformer
from headscope.analysis import copy_suppression_preserving_ablation, suppression_scores, weights_circuit_ranks
from headscope.errors import InvalidInputError
from headscope.views.figures.copy_suppression import circuit_rank_maps, copy_suppression_by_head, suppression_scatter

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
    without = suppression_scores(model, n_sequences=2, length=20, n_prompts=0, progress=False)
    with pytest.raises(InvalidInputError, match="IOI prompts were not measured"):
        suppression_scatter(without)
