"""`colored_tokens`."""

from typing import Any

import pytest
import torch

from headscope.errors import InvalidInputError
from headscope.views.tokens import colored_tokens

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
def test_the_scale_is_centred_unless_told_otherwise(
    values: list[float], options: dict[str, float], expected: tuple[float, float, bool]
) -> None:
    data = colored_tokens(TOKENS, values, **options).data  # type: ignore[arg-type]
    assert (data["low"], data["high"], data["signed"]) == expected


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0, 2.0], {}, "3 tokens, and values for 2"),
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
