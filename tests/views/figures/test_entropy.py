"""Figures of entropy, of head scores and of losses, read back from their traces."""

import inspect
import math

import numpy as np
import pytest
import torch

from headscope.analysis.core.result import RunInfo
from headscope.analysis.heads.scores import HeadScores
from headscope.analysis.lens.entropy import EntropyResult
from headscope.errors import InvalidInputError
from headscope.views import entropy_by_head, entropy_by_layer
from headscope.views.figures.head_scores import head_score_maps
from headscope.views.figures.loss import loss_by_position

INFO = RunInfo("small", (), "a <story>", 2, 10)


def result(*, mlps: bool = True, mid: bool = True, batch: tuple[int, ...] = ()) -> EntropyResult:
    layers, heads = 3, 4
    places = [f"{layer}_{place}" for layer in range(layers) for place in (("pre", "mid") if mid else ("pre",))]
    components = (*map(str, range(heads)), *(["MLP"] if mlps else []))
    shape = (layers, len(components), *batch)
    return EntropyResult(
        INFO,
        torch.rand(len(places) + 1, *batch),
        torch.randn(shape),
        torch.randn(shape),
        (*places, "final"),
        components,
    )


@pytest.mark.parametrize("batch", [(), (2, 5)])
@pytest.mark.parametrize("which", ["all", "heads", "increases"])
def test_diff_stands_beside_marginal(which: str, batch: tuple[int, ...]) -> None:
    measured = result(batch=batch)
    figure = entropy_by_head(measured, which)  # type: ignore[arg-type]
    means = measured.mean()
    columns = 5 if which == "all" else 4
    for trace, values in zip(figure.data, (means.diff, means.marginal), strict=True):
        expected = values[:, :columns].numpy()
        if which == "increases":
            expected = np.maximum(expected, 0)
        np.testing.assert_allclose(trace.z, expected, rtol=1e-6)
        assert list(trace.x) == ["0", "1", "2", "3", "MLP"][:columns] and list(trace.y) == ["0", "1", "2"]
        assert trace.customdata[2][1] == "2.1"
    widest = max(float(np.abs(trace.z).max()) for trace in figure.data)
    assert figure.layout.coloraxis.cmax == pytest.approx(widest)
    assert figure.layout.coloraxis.cmin == pytest.approx(0.0 if which == "increases" else -widest)
    assert [note.text for note in figure.layout.annotations] == ["diff", "marginal"]
    assert figure.layout.title.subtitle.text == "on a &lt;story&gt;"
    assert figure.layout.yaxis.autorange == figure.layout.yaxis2.autorange == "reversed"


def deep(layers: int, heads: int) -> EntropyResult:
    places = [f"{layer}_{place}" for layer in range(layers) for place in ("pre", "mid")]
    shape = (layers, heads + 1)
    return EntropyResult(
        INFO, torch.rand(len(places) + 1), torch.randn(shape), torch.randn(shape), (*places, "final"),
        (*map(str, range(heads)), "MLP"),
    )  # fmt: skip


@pytest.mark.parametrize("layers", [30, 32])
def test_each_of_many_states_has_room_for_its_label(layers: int) -> None:
    figure = entropy_by_layer(deep(layers, 9))
    states, changes = figure.layout.xaxis, figure.layout.xaxis2
    assert states.domain == changes.domain and figure.layout.yaxis.domain[0] > figure.layout.yaxis2.domain[1]
    assert (states.tickangle, states.tickvals) == (-90, None)  # plotly leaves labels out only where they would touch
    assert states.tickfont.size * 1.2 * (2 * layers + 1) < 860, "on a figure of 960 pixels"
    few = entropy_by_layer(result()).layout
    assert few.xaxis.domain[1] < few.xaxis2.domain[0]


@pytest.mark.parametrize(("layers", "heads", "across"), [(12, 12, 2), (30, 9, 2), (32, 32, 2), (48, 64, 1)])
def test_cells_of_large_models_can_be_told_apart(layers: int, heads: int, across: int) -> None:
    figure = entropy_by_head(deep(layers, heads))
    assert len({axis.domain for axis in figure.select_xaxes()}) == across
    area = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    for axis in figure.select_yaxes():
        assert area * (axis.domain[1] - axis.domain[0]) / layers >= 13
    for axis in figure.select_xaxes():
        assert 860 * (axis.domain[1] - axis.domain[0]) / (heads + 1) > 9
    assert figure.layout.height < 1700


def test_an_mlp_is_called_by_its_layer() -> None:
    assert entropy_by_head(result()).data[0].customdata[1][4] == "mlp1"


def test_nothing_raised_is_no_error() -> None:
    measured = result()
    lowered = EntropyResult(
        INFO,
        measured.resid,
        -measured.diff.abs(),
        -measured.marginal.abs(),
        measured.state_labels,
        measured.component_labels,
    )
    figure = entropy_by_head(lowered, "increases")
    assert figure.layout.coloraxis.cmax == 1.0 and not np.any(figure.data[0].z)


def test_an_unknown_figure_is_told() -> None:
    with pytest.raises(InvalidInputError, match="which must be one of 'all', 'heads', 'increases'; got 'mlps'"):
        inspect.unwrap(entropy_by_head)(result(), "mlps")  # type: ignore[arg-type]


def test_attention_and_mlp_changes_add_up_to_the_stream() -> None:
    measured = result()
    curve, attention, mlp = entropy_by_layer(measured).data
    np.testing.assert_allclose(curve.y, measured.resid.numpy(), rtol=1e-6)
    assert (attention.name, mlp.name) == ("attention", "MLP")
    resid = measured.resid.numpy()
    np.testing.assert_allclose(attention.y, resid[1::2] - resid[:-1:2], atol=1e-6)
    np.testing.assert_allclose(mlp.y, resid[2::2] - resid[1::2], atol=1e-6)


@pytest.mark.parametrize(("mlps", "name"), [(False, "attention"), (True, "attention and MLP")])
def test_without_a_middle_state_a_layer_is_one_bar(mlps: bool, name: str) -> None:
    measured = result(mlps=mlps, mid=False)
    _, bars = entropy_by_layer(measured).data
    assert bars.name == name
    np.testing.assert_allclose(bars.y, np.diff(measured.resid.numpy()), atol=1e-6)


def test_head_scores_have_a_map_each() -> None:
    scores = HeadScores(INFO, torch.rand(2, 3), torch.rand(2, 3), torch.rand(2, 3))
    figure = head_score_maps(scores)
    kinds = (scores.previous_token, scores.duplicate_token, scores.induction)
    for trace, values in zip(figure.data, kinds, strict=True):
        np.testing.assert_allclose(trace.z, values.numpy(), rtol=1e-6)
    assert [note.text for note in figure.layout.annotations] == ["previous token", "duplicate token", "induction"]


def test_loss_by_position_leaves_out_nan() -> None:
    loss = torch.tensor([[4.0, 2.0, math.nan], [2.0, math.nan, math.nan]])
    points, running, spread = loss_by_position(loss, data="a & b", window=3).data
    np.testing.assert_array_equal(points.y, [3.0, 2.0, math.nan])
    np.testing.assert_allclose(running.y, [8 / 3, 8 / 3, 2.0])
    assert list(points.x) == [1, 2, 3]
    assert sorted(spread.x) == [2.0, 2.0, 4.0]


def test_a_uniform_guess_is_a_line() -> None:
    (*_, guess) = loss_by_position(torch.rand(2, 4), uniform=5.5).data
    assert (guess.name, list(guess.y), list(guess.x)) == ("uniform guess", [5.5, 5.5], [1, 4])


@pytest.mark.parametrize("loss", [torch.zeros(3), torch.zeros(0, 4)])
def test_losses_of_another_shape_are_told(loss: torch.Tensor) -> None:
    with pytest.raises(InvalidInputError, match=r"loss must be \[batch, pos\]"):
        loss_by_position(loss)
