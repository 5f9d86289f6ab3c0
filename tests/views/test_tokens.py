"""`colored_tokens` and `colored_tokens_multi`."""

import base64
import inspect
from typing import Any

import numpy as np
import pytest
import torch

import headscope.views as cv
from headscope.errors import InvalidInputError
from headscope.views.tokens import colored_tokens, colored_tokens_multi

TOKENS = ["The", " cat", " sat"]


def test_the_page_holds_what_was_given() -> None:
    view = colored_tokens(
        TOKENS,
        torch.tensor([[0.5, -2.0, 1.0]]),
        name="entropy diff",
        unit="nats",
        notes=["a", "b", "c"],
        marked=[2],
        first_position=40,
        title="10.7",
    )
    assert view.title == "10.7"
    assert dict(view.data) == {
        "tokens": TOKENS,
        "values": [0.5, -2.0, 1.0],
        "low": -2.0,
        "high": 2.0,
        "signed": True,
        "name": "entropy diff",
        "unit": "nats",
        "notes": ["a", "b", "c"],
        "marked": [2],
        "first": 40,
        "legend": True,
    }


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([0.0, 0.0, 0.0], {}, (-1.0, 1.0, False)),
        ([float("nan")] * 3, {}, (-1.0, 1.0, False)),
        ([1.0, float("nan"), float("inf")], {}, (-1.0, 1.0, False)),
        ([1.0, 2.0, 3.0], {"max_value": 10.0}, (-10.0, 10.0, False)),
        ([1.0, 2.0, 3.0], {"min_value": -1.0, "max_value": 4.0}, (-1.0, 4.0, True)),
    ],
)
def test_the_scale_is_centered_unless_told_otherwise(
    values: list[float], options: dict[str, float], expected: tuple[float, float, bool]
) -> None:
    data = colored_tokens(TOKENS, values, **options).data  # type: ignore[arg-type]
    assert (data["low"], data["high"], data["signed"]) == expected


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0, 2.0], {}, "3 tokens, but values for 2"),
        (torch.zeros(2, 3), {}, r"\[pos\] or \[1, pos\]; got shape \[2, 3\]"),
        (["a", "b", "c"], {}, "values must be numbers"),
        ([0.0] * 3, {"notes": ["a"]}, "notes must be 3 strings"),
        ([0.0] * 3, {"marked": [3]}, "marked holds 3; it must be indices from 0 to 2"),
        ([0.0] * 3, {"min_value": 1.0, "max_value": 2.0}, "min_value must be at most 0"),
        ([0.0] * 3, {"min_value": 0.0, "max_value": 0.0}, "not both 0"),
    ],
)
def test_what_does_not_fit_is_told(values: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        colored_tokens(TOKENS, values, **options)


def test_no_tokens_are_told() -> None:
    with pytest.raises(InvalidInputError, match="no tokens to show"):
        colored_tokens([], [])


@pytest.mark.parametrize("form", [lambda x: x, lambda x: x.numpy(), lambda x: x.tolist(), lambda x: x[None], list])
def test_several_values_are_one_view_in_every_form(form: Any) -> None:
    values = torch.tensor([[0.5, -2.0], [1.0, torch.nan], [-0.25, 8.0]])
    view = cv.tokens.colored_tokens_multi(
        TOKENS, form(values), labels=["loss", "entropy"], unit="nats", first_position=3
    )
    data = view.data
    found = np.frombuffer(base64.b64decode(data["values"]), dtype="<f2").astype(float) * data["scale"]
    np.testing.assert_allclose(found.reshape(3, 2), values.numpy(), rtol=1 / 2048)
    assert data["labels"] == ["loss", "entropy"] and data["tokens"] == TOKENS
    assert data["limits"] == [1.0, 8.0] and data["signed"] == [True, True]
    assert (data["unit"], data["first"]) == ("nats", 3)


def test_several_values_may_share_a_scale() -> None:
    values = torch.tensor([[0.5, 2.0], [1.0, 8.0], [0.25, -4.0]])
    assert colored_tokens_multi(TOKENS, values, shared_scale=True).data["limits"] == [8.0, 8.0]
    assert colored_tokens_multi(TOKENS, values).data["signed"] == [False, True]
    assert colored_tokens_multi(TOKENS, values, max_value=2.0).data["limits"] == [2.0, 2.0]
    assert colored_tokens_multi(TOKENS, values).data["labels"] == ["0", "1"]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (torch.zeros(3), {}, r"\[pos, kind\] or \[1, pos, kind\]; got shape \[3\]"),
        (torch.zeros(3, 0), {}, r"got shape \[3, 0\]"),
        (torch.zeros(2, 3), {}, "3 tokens, but values for 2"),
        (torch.zeros(3, 2), {"labels": ["a"]}, "labels must be 2 labels"),
        (torch.zeros(3, 2), {"clip": 2.0}, "clip is 2; it must be a quantile"),
    ],
)
def test_several_values_that_do_not_fit_are_told(values: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        inspect.unwrap(colored_tokens_multi)(TOKENS, values, **options)
