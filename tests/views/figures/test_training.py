"""Figures of training on toy tasks, read back from their traces."""

import math

import numpy as np
import pytest
import torch

from headscope.data.tasks import TaskMetrics
from headscope.errors import InvalidInputError
from headscope.training.toy_result import MetricCurve, TrainingResult
from headscope.views.figures.training import token_maps, token_maps_along_training, training_metrics

BEST = TaskMetrics(1.2, 0.55, 0.0, 1.0, 2.4, 0.09)


def curve(n: int, start: float, noise: bool = True) -> MetricCurve:
    values = [torch.linspace(start, start / 2, n) + 0.01 * number for number in range(6)]
    if not noise:
        values[4:] = [torch.full((n,), math.nan)] * 2
    return MetricCurve(torch.arange(1, n + 1) * 5, *values)


def result(noise: bool = True, validation: bool = True) -> TrainingResult:
    return TrainingResult(
        model="small <model>",
        data="SkipTrigramDataset(size=10)",
        train=curve(20, 0.9, noise),
        train_epochs=curve(4, 0.8, noise),
        validation=curve(5, 0.7, noise) if validation else None,
        bayes=BEST,
        validation_bayes=BEST if validation else None,
        lr=torch.ones(20),
        seconds=1.0,
    )


def test_four_panels_with_each_kind_and_its_limit() -> None:
    run = result()
    figure = training_metrics(run)
    assert [note.text for note in figure.layout.annotations] == [
        "Training loss", "Training accuracy", "Validation loss", "Validation accuracy",
    ]  # fmt: skip
    assert len(figure.data) == 12 and sum(bool(trace.showlegend) for trace in figure.data) == 3
    expected = [
        (curve_, kind + metric)
        for curve_ in (run.train_epochs, run.validation)
        for metric in ("loss", "accuracy")
        for kind in ("", "signal_", "noise_")
    ]
    for trace, (curve_, name) in zip(figure.data, expected, strict=True):
        np.testing.assert_allclose(trace.x, curve_.step)
        np.testing.assert_allclose(trace.y, getattr(curve_, name), rtol=1e-6)
    heights = [shape.y0 for shape in figure.layout.shapes]
    assert heights == [1.2, 0.0, 2.4, 0.55, 1.0, 0.09] * 2
    assert "small &lt;model&gt;" in figure.layout.title.text
    assert figure.layout.title.subtitle.text.startswith("on SkipTrigramDataset")


def test_answers_of_one_kind_have_one_line_and_steps_are_drawn_when_asked() -> None:
    figure = training_metrics(result(noise=False, validation=False), steps=True)
    assert len(figure.data) == 2 and len(figure.data[0].x) == 20
    assert [note.text for note in figure.layout.annotations] == ["Training loss", "Training accuracy"]


def test_maps_have_labels_and_one_scale_centered_on_zero() -> None:
    values = torch.arange(12.0).view(2, 2, 3) - 8
    figure = token_maps(values, title="OV", x=["a", "<b>", "c"], y=["p", "q"], x_title="logit", y_title="source")
    first, second = figure.data
    np.testing.assert_allclose(second.z, values[1])
    axis = figure.layout.coloraxis
    assert (axis.cmin, axis.cmax) == (-8.0, 8.0) and all(trace.coloraxis == "coloraxis" for trace in figure.data)
    assert figure.layout.xaxis2.ticktext == ("a", "&lt;b&gt;", "c") and figure.layout.yaxis.ticktext == ("p", "q")
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("logit", "source")
    assert tuple(first.customdata[1][2]) == ("q", "c")
    assert [note.text for note in figure.layout.annotations] == ["head 0", "head 1"]
    assert token_maps(values, title="OV", limit=3.0).layout.coloraxis.cmax == 3.0
    assert token_maps(torch.zeros(1, 2, 2), title="OV").layout.coloraxis.cmax == 1.0


def test_a_slider_goes_through_training() -> None:
    values = torch.randn(3, 2, 4, 4)
    figure = token_maps_along_training(values, [0, 5, 50], title="QK", names=["x", "y"])
    assert [frame.name for frame in figure.frames] == ["0", "5", "50"]
    for frame, maps in zip(figure.frames, values, strict=True):
        assert list(frame.traces) == [0, 1]
        for trace, one in zip(frame.data, maps, strict=True):
            np.testing.assert_allclose(trace.z, one)
    np.testing.assert_allclose(figure.data[0].z, values[-1, 0])
    (slider,) = figure.layout.sliders
    assert slider.active == 2 and [step.args[0][0] for step in slider.steps] == ["0", "5", "50"]
    assert figure.layout.coloraxis.cmax == pytest.approx(float(values.abs().max()))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: token_maps(torch.zeros(2, 2), title=""), r"\[map, y, x\]"),
        (lambda: token_maps(torch.zeros(1, 2, 2), title="", x=["a"]), "x must be 2 labels; got 1"),
        (lambda: token_maps(torch.zeros(2, 2, 2), title="", names=["a"]), "names must be 2 labels"),
        (lambda: token_maps_along_training(torch.zeros(1, 2, 2), [0], title=""), r"\[step, map, y, x\]"),
        (lambda: token_maps_along_training(torch.zeros(2, 1, 2, 2), [0], title=""), "2 entries of values and 1 steps"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        draw()
