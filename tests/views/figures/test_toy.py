"""Figures of single toy tasks, and of a model along its training, read back from their traces."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from headscope.analysis.core.result import RunInfo
from headscope.data.tasks import TaskMetrics
from headscope.errors import InvalidInputError
from headscope.training.toy_dynamics import TrainingDynamics
from headscope.training.toy_result import MetricCurve, TrainingResult
from headscope.views.figures.toy import fourier_bars, grokking_curve
from headscope.views.figures.toy_dynamics import dynamics_along_training

STEPS = [0, 10, 1000]


def dynamics(**fields) -> TrainingDynamics:
    """Two layers of two heads, three snapshots, two prompts of three tokens, five tokens."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(3, *shape, generator=generator)

    values = TrainingDynamics(
        info=RunInfo("toy <x>", (), "a task", 4, 4),
        steps=torch.tensor(STEPS),
        loss=draw(),
        accuracy=draw(),
        tokens=torch.tensor([[1, 2, 3], [0, 4, 2]]),
        labels=torch.tensor([4, 1]),
        resid=draw(3),
        diff=draw(2, 3) - 0.5,
        marginal=draw(2, 3),
        previous_token=draw(2, 2),
        duplicate_token=torch.full((3, 2, 2), math.nan),
        induction=draw(2, 2),
        head_logits=draw(2, 2, 2, 5) - 0.5,
        state_labels=("0_pre", "1_pre", "final"),
        component_labels=("0", "1", "MLP"),
    )
    return replace(values, **fields)


def test_a_slider_moves_each_map_and_the_lines_show_all_of_training() -> None:
    along = dynamics()
    figure = dynamics_along_training(along, prompt=1)
    assert [frame.name for frame in figure.frames] == ["0", "10", "1000"]
    lines = {trace.name: trace.y for trace in figure.data if trace.type == "scatter" and trace.name}
    np.testing.assert_allclose(lines["final"], along.resid[:, 2])
    np.testing.assert_allclose(lines["previous"], along.previous_token.amax((1, 2)))
    np.testing.assert_allclose(lines["head 1.0"], along.answer_logits[:, 1, 0])
    assert np.isnan(np.array(lines["duplicate"], dtype=float)).all()
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    # Drawn as it is at the end; each frame puts its own step in the place of what it says it changes.
    np.testing.assert_allclose(maps[0].z, along.diff[-1])
    for index, frame in enumerate(figure.frames):
        assert [figure.data[number].type for number in frame.traces] == ["scatter", "heatmap"] * 3
        cursor, entropy, _, scores, _, logits = frame.data
        assert list(cursor.x) == [index] * 2
        np.testing.assert_allclose(entropy.z, along.diff[index])
        np.testing.assert_allclose(scores.z[2], along.induction[index].flatten())
        np.testing.assert_allclose(logits.z, along.head_logits[index, :, :, 1].flatten(0, 1))
    assert [each.coloraxis for each in maps] == ["coloraxis", "coloraxis2", "coloraxis3"]
    axis = figure.layout.coloraxis
    assert axis.cmax == -axis.cmin == pytest.approx(float(along.diff.abs().max()))
    assert (figure.layout.coloraxis2.cmin, figure.layout.coloraxis2.cmax) == (0.0, 1.0)
    titles = [note.text for note in figure.layout.annotations]
    assert "0 4 2 → 1 (logits)" in titles and "toy &lt;x&gt;" in figure.layout.title.text
    slider = figure.layout.sliders[0]
    assert slider.active == 2 and [stop.args[0][0] for stop in slider.steps] == ["0", "10", "1000"]


def test_what_was_not_measured_has_no_panel_and_tokens_may_have_names() -> None:
    bare = dynamics(resid=None, diff=None, marginal=None, induction=None, previous_token=None, duplicate_token=None)
    figure = dynamics_along_training(bare, vocabulary=["<a>", "b", "c", "d", "e"])
    assert sum(trace.type == "heatmap" for trace in figure.data) == 1
    assert [note.text for note in figure.layout.annotations][1] == "b c d → e (logits)"
    assert figure.layout.xaxis2.ticktext[0] == "&lt;a&gt;"
    for change, message in (({"head_logits": None}, "nothing was measured"),):
        with pytest.raises(InvalidInputError, match=message):
            dynamics_along_training(replace(bare, **change))
    with pytest.raises(InvalidInputError, match="prompt is 2; there are prompts 0 to 1"):
        dynamics_along_training(bare, prompt=2)
    with pytest.raises(InvalidInputError, match="vocabulary has 1 names"):
        dynamics_along_training(bare, vocabulary=["a"])


def test_bars_are_shares_by_frequency() -> None:
    figure = fourier_bars({"before": torch.tensor([0.2, 0.8]), "<after>": torch.tensor([1.0, 0.0])}, data="W_E")
    np.testing.assert_allclose(figure.data[0].y, [0.2, 0.8])
    assert figure.data[1].name == "&lt;after&gt;" and figure.layout.showlegend
    assert not fourier_bars(torch.tensor([1.0])).layout.showlegend
    with pytest.raises(InvalidInputError, match="all of equal length"):
        fourier_bars({"a": [0.5, 0.5], "b": [1.0]})


def curve(steps: range, accuracy: list[float]) -> MetricCurve:
    """Everything 0.5 but what is right of the signal."""
    half = torch.full((len(steps),), 0.5)
    return MetricCurve(torch.tensor(steps), half, half, half.clone(), torch.tensor(accuracy), half, half)


def test_the_grokking_curve_marks_when_each_part_was_learned() -> None:
    learned = curve(range(1, 21), [0.0] * 10 + [0.995] * 10)
    later = curve(range(0, 25, 5), [0.1, 0.2, 0.3, 0.995, 1.0])
    later.signal_loss[-1] = 0.0
    assert learned.reached() == 11 and later.reached() == 15 and later.reached(2.0) is None
    best = TaskMetrics(0.0, 1.0, 0.0, 1.0, math.nan, math.nan)
    run = TrainingResult("add", "a table", learned, learned, later, best, best, torch.ones(20), 1.0)
    figure = grokking_curve(run)
    np.testing.assert_allclose(figure.data[0].y, learned.signal_loss)
    assert min(figure.data[1].y) > 0, "a log scale has no zero"
    assert [shape.x0 for shape in figure.layout.shapes] == [11, 15]
    assert [note.text for note in figure.layout.annotations] == ["memorized: step 11", "grokked: step 15"]
    with pytest.raises(InvalidInputError, match="not evaluated on validation data"):
        grokking_curve(replace(run, validation=None))
