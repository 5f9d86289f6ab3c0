"""Attention views: what the page holds is the pattern that was given."""

import base64
import inspect
import json
from typing import Any

import numpy as np
import pytest
import torch

from headscope.errors import InvalidInputError
from headscope.views.attention import attention_heads, attention_pattern, attention_patterns
from headscope.views.html import HtmlView, bundle

TOKENS = ["<|end|>", "When", " Mary", " and", " John"]


def causal(n_heads: int, n: int = 5) -> torch.Tensor:
    scores = torch.randn(n_heads, n, n).masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
    return scores.softmax(-1)


def unpacked(view: HtmlView) -> np.ndarray:
    """The weights as the script reads them: row by row, only up to the diagonal if causal; NaN for 255."""
    data: dict[str, Any] = json.loads(json.dumps(dict(view.data)))
    levels = iter(base64.b64decode(data["weights"]))
    n, n_heads = len(data["tokens"]), len(data["heads"])
    found = np.zeros((n_heads, n, n))
    for head in range(n_heads):
        for query in range(n):
            for key in range(query + 1 if data["causal"] else n):
                level = next(levels)
                found[head, query, key] = (
                    np.nan if level == 255 else data["low"] + (data["high"] - data["low"]) * level / 254
                )
    assert next(levels, None) is None
    return found


@pytest.mark.parametrize("kind", ["tensor", "array", "lists", "list of tensors", "batch of one", "grad"])
def test_every_form_of_weights_is_the_same_view(kind: str) -> None:
    weights = causal(3)
    given = {
        "tensor": weights,
        "array": weights.numpy(),
        "lists": weights.tolist(),
        "list of tensors": list(weights),
        "batch of one": weights[None],
        "grad": weights.clone().requires_grad_(),
    }[kind]
    view = attention_heads(given, TOKENS)
    np.testing.assert_allclose(unpacked(view), weights.numpy(), atol=float(weights.max()) / 254)
    assert view.data["heads"] == ["0", "1", "2"] and view.data["causal"] is True


def test_half_precision_is_taken() -> None:
    weights = causal(1).bfloat16()
    np.testing.assert_allclose(unpacked(attention_heads(weights, TOKENS)), weights.float().numpy(), atol=0.01)


def test_signed_weights_are_centered_on_zero() -> None:
    weights = torch.randn(2, 5, 5)
    view = attention_heads(weights, TOKENS, attention_head_names=["10.7", "11.10"])
    most = float(weights.abs().max())
    assert view.data["low"] == pytest.approx(-most) and view.data["high"] == pytest.approx(most)
    assert view.data["causal"] is False and view.data["heads"] == ["10.7", "11.10"]
    np.testing.assert_allclose(unpacked(view), weights.numpy(), atol=most / 254 + 1e-6)


def test_nan_and_infinite_weights_stay_blank() -> None:
    weights = causal(1)
    weights[0, 3, 1], weights[0, 4, 2] = torch.nan, -torch.inf
    found = unpacked(attention_heads(weights, TOKENS))
    assert np.argwhere(np.isnan(found)).tolist() == [[0, 3, 1], [0, 4, 2]]


@pytest.mark.parametrize("weights", [torch.zeros(1, 5, 5), torch.full((1, 5, 5), torch.nan)])
def test_nothing_to_scale_by_is_no_error(weights: torch.Tensor) -> None:
    view = attention_heads(weights, TOKENS)
    assert (view.data["low"], view.data["high"]) == (0.0, 1.0)


def test_a_given_range_clips() -> None:
    view = attention_heads(causal(1), TOKENS, min_value=0.0, max_value=0.25)
    assert unpacked(view).max() == 0.25


def test_one_pattern_has_no_head_to_choose() -> None:
    pattern = causal(1)
    for given in (pattern[0], pattern, pattern[None]):
        view = attention_pattern(given, TOKENS, title="10.7", focus=2)
        assert (view.data["heads"], view.data["focus"], view.title) == ([""], 2, "10.7")


@pytest.mark.parametrize(
    ("weights", "tokens", "options", "message"),
    [
        (torch.zeros(5, 5), TOKENS, {}, r"shape \[5, 5\]. Allowed: \[head, query_pos, key_pos\]"),
        (torch.zeros(2, 3, 5, 5), TOKENS, {}, r"shape \[2, 3, 5, 5\]. Allowed"),
        (torch.zeros(0, 5, 5), TOKENS, {}, r"empty: its shape is \[0, 5, 5\]"),
        (torch.zeros(1, 4, 5), TOKENS, {}, "as many queries as keys"),
        (torch.zeros(1, 4, 4), TOKENS, {}, "5 tokens, but attention for 4"),
        (TOKENS, TOKENS, {}, "attention must be numbers"),
        ([[[1.0], [1.0, 2.0]]], ["a", "b"], {}, "rows of equal length"),
        (torch.zeros(1, 5, 5), "abcde", {}, "tokens is one string"),
        (torch.zeros(1, 5, 5), torch.arange(5), {}, "give the tokens as strings"),
        (torch.zeros(1, 5, 5), [1, 2, 3, 4, 5], {}, r"tokens\[0\] is int 1"),
        (torch.zeros(2, 5, 5), TOKENS, {"attention_head_names": ["10.7"]}, "attention_head_names must be 2 labels"),
        (torch.zeros(1, 5, 5), TOKENS, {"focus": 5}, "focus is 5; it must be a position from 0 to 4"),
        (torch.zeros(1, 5, 5), TOKENS, {"min_value": 1.0, "max_value": 0.5}, "min_value must be below max_value"),
    ],
)
def test_what_does_not_fit_is_told(weights: Any, tokens: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        # As users run it: without the tests' own type checker.
        inspect.unwrap(attention_heads)(weights, tokens, **options)


def test_several_heads_are_no_pattern() -> None:
    with pytest.raises(InvalidInputError, match="For several heads use attention_heads"):
        attention_pattern(causal(2), TOKENS)


def test_weights_and_tokens_may_come_in_either_order() -> None:
    weights = causal(2)
    wanted = dict(attention_heads(weights, TOKENS, attention_head_names=["0.1", "0.2"]).data)
    for order in ((weights, TOKENS), (TOKENS, weights), (tuple(TOKENS), weights[None])):
        assert dict(attention_patterns(*order, attention_head_names=["0.1", "0.2"]).data) == wanted
    assert attention_patterns(attention=weights[:1], tokens=TOKENS).data["heads"] == ["0"]
    assert dict(attention_pattern(TOKENS, weights[0]).data) == dict(attention_pattern(weights[0], TOKENS).data)


def test_later_positions_are_left_out_or_kept_as_told() -> None:
    weights = torch.rand(1, 5, 5)
    for mask, wanted in ((True, weights.tril()), (False, weights), (None, weights)):
        view = attention_heads(weights, TOKENS, mask_upper_tri=mask)
        assert view.data["causal"] is bool(mask)
        np.testing.assert_allclose(unpacked(view), wanted.numpy(), atol=1 / 254)
    assert attention_heads(causal(1), TOKENS, mask_upper_tri=False).data["causal"] is False


@pytest.mark.parametrize(("mask", "most"), [(True, 2_200_000), (False, 4_300_000)])
def test_twelve_heads_over_512_tokens_stay_small(mask: bool, most: int) -> None:
    weights = np.random.default_rng(0).random((12, 512, 512), dtype=np.float32)
    view = attention_heads(weights, [f" token{at}" for at in range(512)], mask_upper_tri=mask)
    assert len(str(view)) - len(bundle()) < most
