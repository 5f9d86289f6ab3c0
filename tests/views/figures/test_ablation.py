"""Figures of ablations hold the result's numbers where its labels say."""

import base64
import math

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokens

from headscope.analysis.ablation.ablate import ablate_heads
from headscope.analysis.ablation.result import AblationResult
from headscope.errors import InvalidInputError
from headscope.views.figures.ablation import ablation_bars, ablation_by_head, ablation_on_text


@pytest.fixture(scope="module")
def result() -> AblationResult:
    heads = ["0.0", "0.1", "1.2", "mlp1", "0.2+1.0"]
    return ablate_heads(tiny_model(), tiny_tokens(), heads=heads, kl=True, describe="a text", progress=False)


@pytest.mark.parametrize("kl", [False, True])
def test_a_map_for_each_way(result: AblationResult, kl: bool) -> None:
    figure = ablation_by_head(result, kl=kl)
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["zero, patched", "zero, direct", "mean, patched", "mean, direct"]
    means = result.mean()
    numbers = means.kl if kl else means.loss_diff
    assert numbers is not None
    for number, trace in enumerate(figure.data):
        v, e = divmod(number, 2)
        grid = torch.as_tensor(trace.z)
        assert grid.shape == (2, 4)
        wanted = {(0, 0): 0, (0, 1): 1, (1, 2): 2, (1, 3): 3}
        for layer in range(2):
            for column in range(4):
                shown = float(grid[layer, column])
                if (layer, column) in wanted:
                    assert shown == pytest.approx(float(numbers[v, e, wanted[layer, column]]))
                else:
                    assert math.isnan(shown)
        axis = figure.layout[trace.coloraxis]
        largest = float(grid.nan_to_num().abs().max())
        assert (axis.cmin, axis.cmax) == pytest.approx((0.0 if kl else -largest, largest))
    assert figure.layout.title.subtitle.text == "on a text"


def test_bars_show_both_ends_with_errors(result: AblationResult) -> None:
    (bars,) = ablation_bars(result, value="mean", effect="direct").data
    ranked = result.top(5, value="mean", effect="direct")
    assert list(bars.x) == [score.label for score in ranked]
    assert list(bars.y) == [score.loss_diff for score in ranked]
    assert list(bars.error_y.array) == [score.error for score in ranked]
    (few,) = ablation_bars(result, k=3).data
    every = [score.label for score in result.top(5)]
    assert list(few.x) == [every[0], every[1], every[4]]


def test_texts_hold_each_tokens_own_difference() -> None:
    tokens = tiny_tokens(2, 6)
    mask = torch.ones_like(tokens)
    mask[1, :2] = 0  # left padding
    result = ablate_heads(
        tiny_model(), tokens, heads=["0.0", "0.1", "1.2"], attention_mask=mask, kl=True, progress=False
    )
    view = ablation_on_text(result, k=2, clip=1.0)
    sizes = result.mean().loss_diff.abs().mean(dim=(0, 1))
    kept = sorted(sizes.argsort(descending=True)[:2].tolist())
    assert view.data["dimensions"] == [
        ["ablation", ["zero, patched", "zero, direct", "mean, patched", "mean, direct"]],
        ["component", [result.component_labels[at] for at in kept]],
    ]
    assert view.data["texts"] == [[str(token) for token in row] for row in (tokens[0].tolist(), tokens[1, 2:].tolist())]
    shown = np.frombuffer(base64.b64decode(view.data["values"]), "<f2").astype(float) * view.data["scale"]
    first, second = shown[: 6 * 8].reshape(6, 4, 2), shown[6 * 8 :].reshape(4, 4, 2)
    for number, (text, row, start) in enumerate(((first, 0, 0), (second, 1, 2))):
        assert np.isnan(text[0]).all(), number  # nothing predicts the first token
        for at in range(1, len(text)):
            wanted = result.loss_diff[:, :, kept, row, start + at - 1].flatten(0, 1)
            assert text[at] == pytest.approx(wanted.numpy(), rel=2e-3, abs=1e-5)


def test_what_cannot_be_drawn_is_told(result: AblationResult) -> None:
    sets = ablate_heads(tiny_model(), tiny_tokens(), heads=["0.0+0.1", "mlp0"], progress=False)
    with pytest.raises(InvalidInputError, match="no single head is among 0.0\\+0.1, mlp0"):
        ablation_by_head(sets)
    means = ablate_heads(tiny_model(), tiny_tokens(), heads=["0.0"], reduce="mean", progress=False)
    with pytest.raises(InvalidInputError, match="holds only means"):
        ablation_on_text(means)
    with pytest.raises(InvalidInputError, match="k must be at least 1"):
        ablation_on_text(sets, k=0)
    with pytest.raises(InvalidInputError, match="KL was not measured"):
        ablation_by_head(sets, kl=True)
    with pytest.raises(InvalidInputError, match="k must be at least 2"):
        ablation_bars(result, k=1)
    with pytest.raises(InvalidInputError, match="effect must be one of"):
        ablation_bars(result, effect="indirect")
