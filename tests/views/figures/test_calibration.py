"""Figures of calibration, read back from their traces."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from headscope.analysis.core.result import RunInfo
from headscope.analysis.lens.calibration_result import CalibrationResult
from headscope.errors import InvalidInputError
from headscope.views import calibration_curve, overconfidence_by_head

INFO = RunInfo("small", (), "a <story>", 2, 10)


def result() -> CalibrationResult:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3)
    return CalibrationResult(
        info=INFO,
        count=torch.tensor([40, 0, 10, 160]),
        predicted=torch.tensor([0.2, math.nan, 0.6, 0.9]),
        correct=torch.tensor([0.1, math.nan, 0.5, 0.95]),
        overconfidence=0.0321,
        overconfidence_error=0.0123,
        head_overconfidence=torch.randn(shape, generator=generator),
        head_change=torch.randn(shape, generator=generator),
        head_change_error=torch.rand(shape, generator=generator),
        head_count=torch.tensor([0, 5, 0, 7]).expand(*shape, 4).clone(),
        head_predicted=torch.tensor([math.nan, 0.3, math.nan, 0.8]).expand(*shape, 4).clone(),
        head_correct=torch.tensor([math.nan, 0.4, math.nan, 0.7]).expand(*shape, 4).clone(),
    )


def test_the_curve_shows_filled_bins_with_their_band() -> None:
    measured = result()
    figure = calibration_curve(measured)
    diagonal, band, curve = figure.data
    assert list(diagonal.x) == list(diagonal.y) == [0, 1]
    np.testing.assert_allclose(curve.x, [0.2, 0.6, 0.9], rtol=1e-6)
    np.testing.assert_allclose(curve.y, [0.1, 0.5, 0.95], rtol=1e-6)
    low, high = (bound.numpy()[[0, 2, 3]] for bound in measured.band())
    np.testing.assert_allclose(band.y, [*high, *low[::-1]])
    np.testing.assert_allclose(band.x, [*curve.x, *curve.x[::-1]])
    assert (low < curve.y).all() and (curve.y < high).all()
    # Areas are as the counts.
    assert list(curve.marker.size) == [40, 10, 160] and curve.marker.sizemode == "area"
    assert [row[4] for row in curve.customdata] == [40, 10, 160]
    assert [row[:2] for row in curve.customdata] == [[0.0, 0.25], [0.5, 0.75], [0.75, 1.0]]
    assert "overconfidence +0.032 ± 0.012" in figure.layout.title.text
    assert figure.layout.title.subtitle.text == "on a &lt;story&gt;"


def test_curves_without_heads_beside_it() -> None:
    measured = result()
    *_, first, second = calibration_curve(measured, heads=[(0, 2), (1, 1)]).data
    assert measured.head_overconfidence is not None
    for trace, label, value in (
        (first, "0.2", measured.head_overconfidence[0, 2]),
        (second, "1.1", measured.head_overconfidence[1, 1]),
    ):
        assert trace.name == f"without {label} ({float(value):+.3f})"
        np.testing.assert_allclose([trace.x, trace.y], [[0.3, 0.8], [0.4, 0.7]], rtol=1e-6)
    assert first.line.color != second.line.color


@pytest.mark.parametrize("head", [(2, 0), (0, 3), (-1, 0)])
def test_a_head_that_does_not_exist_is_told(head: tuple[int, int]) -> None:
    with pytest.raises(InvalidInputError, match="layers go from 0 to 1, heads from 0 to 2"):
        calibration_curve(result(), heads=[head])


def test_the_map_is_centered_on_zero() -> None:
    measured = result()
    figure = overconfidence_by_head(measured)
    (trace,) = figure.data
    assert measured.head_change is not None
    np.testing.assert_allclose(trace.z, measured.head_change.numpy(), rtol=1e-6)
    assert measured.head_change_error is not None
    assert trace.customdata[1][2] == "1.2" and trace.text[1][2] == f"{float(measured.head_change_error[1, 2]):.4f}"
    assert figure.layout.coloraxis.cmax == -figure.layout.coloraxis.cmin == pytest.approx(float(np.abs(trace.z).max()))
    assert "+0.032" in figure.layout.title.text


def test_without_heads_measured_there_is_no_map() -> None:
    alone = dataclasses.replace(result(), head_change=None)
    with pytest.raises(InvalidInputError, match="heads=True"):
        overconfidence_by_head(alone)
    with pytest.raises(InvalidInputError, match="heads=True"):
        calibration_curve(alone, heads=[(0, 0)])
    assert len(calibration_curve(alone).data) == 3
