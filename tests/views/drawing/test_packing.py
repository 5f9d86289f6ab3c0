"""Packing of numbers: what the script unpacks is near what was given, whatever the sizes."""

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headscope.errors import InvalidInputError
from headscope.views.drawing.packing import checked_labels, color_limit, packed, string_table

NUMBERS = st.floats(-1e300, 1e300)


def unpacked(data: dict[str, object]) -> np.ndarray:
    assert isinstance(data["values"], str) and isinstance(data["scale"], float)
    return np.frombuffer(base64.b64decode(data["values"]), dtype="<f2").astype(np.float64) * data["scale"]


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_packed_numbers_are_within_what_is_said(numbers: list[float]) -> None:
    values = np.array(numbers)
    found = unpacked(packed(values))
    # Where not even the smallest scale is left, the numbers are as good as 0.
    allowed = np.maximum(np.abs(values) / 2048, max(3e-8 * np.abs(values).max(), 1e-300))
    assert (np.abs(found - values) <= allowed).all()


def test_what_is_not_finite_stays_so() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 3.0, -1e6])
    np.testing.assert_allclose(unpacked(packed(values)), values, rtol=1 / 2048)


def test_nothing_but_nan_is_packed() -> None:
    assert np.isnan(unpacked(packed(np.full(3, np.nan)))).all()


@pytest.mark.parametrize(
    ("values", "options", "limit"),
    [
        ([1.0, -4.0, np.nan, np.inf], {}, 4.0),
        ([0.0, 0.0], {}, 1.0),
        ([np.nan], {}, 1.0),
        (np.arange(101.0), {"clip": 0.9}, 90.0),
        ([0.0] * 99 + [2.0], {"clip": 0.5}, 2.0),  # a quantile of 0 is no scale
        ([1.0], {"max_value": 0.25}, 0.25),
    ],
)
def test_the_color_scale(values: list[float], options: dict[str, float], limit: float) -> None:
    assert color_limit(np.array(values), **options) == pytest.approx(limit)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_value": 0.0}, "max_value is 0; it must be above 0 and finite"),
        ({"max_value": float("inf")}, "max_value is inf"),
        ({"clip": 0.0}, "clip is 0; it must be a quantile above 0 and at most 1"),
        ({"clip": 99.0}, "clip is 99"),
        ({"clip": 0.9, "max_value": 1.0}, "both set the color scale: give one"),
    ],
)
def test_no_color_scale_is_told(options: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        color_limit(np.ones(2), **options)


def test_labels_are_strings() -> None:
    assert checked_labels([10.7, "a"], 2, "labels") == ["10.7", "a"]
    with pytest.raises(InvalidInputError, match="labels must be 2 labels, a list with one for each; got 1"):
        checked_labels(["a"], 2, "labels")
    with pytest.raises(InvalidInputError, match="got the string 'ab'"):
        checked_labels("ab", 2, "labels")


@given(st.lists(st.lists(st.text(max_size=3))))
def test_a_table_of_strings_gives_the_texts_back(texts: list[list[str]]) -> None:
    strings, indices = string_table(texts)
    assert [[strings[at] for at in text] for text in indices] == texts
    assert len(set(strings)) == len(strings)
