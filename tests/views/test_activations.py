"""`text_neuron_activations`: the page holds each text's values, in order, on one scale."""

import base64
import inspect
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import headscope.views as cv
from headscope.errors import InvalidInputError
from headscope.views.activations import text_neuron_activations
from headscope.views.html import HtmlView, bundle

TEXTS = [["The", " cat"], ["A", " dog", " ran"]]
HOSTILE = ["</script>", "<!--", '"', "'", "\u2028", "\u202e", "\U0001f381", "\ud83d", "\x00", "\n", "", "x" * 10_000]


def values_of(view: HtmlView) -> list[np.ndarray]:
    """Each text's `[token, first, second]`, read as the script reads them."""
    data: dict[str, Any] = json.loads(json.dumps(dict(view.data)))
    flat = np.frombuffer(base64.b64decode(data["values"]), dtype="<f2").astype(np.float64) * data["scale"]
    sizes = [len(labels) for _, labels in data["dimensions"]]
    found, start = [], 0
    for text in data["texts"]:
        stop = start + len(text) * sizes[0] * sizes[1]
        found.append(flat[start:stop].reshape(len(text), *sizes))
        start = stop
    assert start == len(flat)
    return found


def activations() -> list[torch.Tensor]:
    return [torch.randn(len(text), 4, 2) for text in TEXTS]


@pytest.mark.parametrize("kind", ["tensors", "arrays", "lists", "tuple", "bfloat16", "grad"])
def test_every_form_of_activations_is_the_same_view(kind: str) -> None:
    wanted = activations()
    given: Any = {
        "tensors": wanted,
        "arrays": [values.numpy() for values in wanted],
        "lists": [values.tolist() for values in wanted],
        "tuple": tuple(wanted),
        "bfloat16": [values.bfloat16() for values in wanted],
        "grad": [values.clone().requires_grad_() for values in wanted],
    }[kind]
    view = text_neuron_activations(TEXTS, given)
    for found, values in zip(values_of(view), wanted, strict=True):
        np.testing.assert_allclose(found, values.numpy(), rtol=1 / 128 if kind == "bfloat16" else 1 / 2048, atol=1e-7)
    assert view.data["texts"] == TEXTS
    assert view.data["dimensions"] == [["Layer", ["0", "1", "2", "3"]], ["Neuron", ["0", "1"]]]


def test_the_notebooks_call() -> None:
    wanted = activations()
    view = cv.activations.text_neuron_activations(
        tokens=TEXTS,
        activations=wanted,
        first_dimension_name="loss_type",
        first_dimension_labels=["mean, patched", "zero, patched", "mean, direct", "zero, direct"],
        second_dimension_name="head",
        second_dimension_labels=["10.7", "11.10"],
    )
    assert view.data["dimensions"] == [
        ["loss_type", ["mean, patched", "zero, patched", "mean, direct", "zero, direct"]],
        ["head", ["10.7", "11.10"]],
    ]
    assert str(view).startswith("<!doctype html>")


def test_one_text_needs_no_list() -> None:
    values = torch.randn(2, 4, 2)
    for form in (values, values[None], [values], values.tolist()):
        view = text_neuron_activations(TEXTS[0], form)
        assert view.data["texts"] == [TEXTS[0]]
        np.testing.assert_allclose(values_of(view)[0], values.numpy(), rtol=1 / 2048, atol=1e-7)


def test_texts_of_one_length_may_come_in_one_array() -> None:
    values = torch.randn(2, 3, 4, 2)
    view = text_neuron_activations([["a", "b", "c"], ["d", "e", "f"]], values)
    np.testing.assert_allclose(np.stack(values_of(view)), values.numpy(), rtol=1 / 2048, atol=1e-7)


def test_all_texts_share_one_scale() -> None:
    first, second = torch.full((2, 1, 1), 0.5), torch.full((3, 1, 1), -4.0)
    data = text_neuron_activations(TEXTS, [first, second]).data
    assert (data["limit"], data["beyond"], data["count"], data["signed"]) == (4.0, 0, 5, True)
    data = text_neuron_activations(TEXTS, [first, first.abs()[:1].expand(3, 1, 1)]).data
    assert (data["limit"], data["signed"]) == (0.5, False)


def test_a_clipped_scale_counts_what_lies_beyond() -> None:
    values = torch.arange(101.0)[:, None, None] * torch.tensor([1.0, -1.0])[None, None]
    view = text_neuron_activations(["x"] * 101, values, clip=0.9)
    assert view.data["limit"] == pytest.approx(90) and view.data["beyond"] == 20
    np.testing.assert_allclose(values_of(view)[0], values.numpy(), rtol=1 / 2048)  # the values are not clipped


def test_nan_stays_nan() -> None:
    values = torch.randn(2, 1, 1)
    values[1] = torch.nan
    assert np.isnan(values_of(text_neuron_activations(TEXTS[0], values))[0]).tolist() == [[[False]], [[True]]]


def test_many_texts_stay_small() -> None:
    tokens = [[f" token{at}" for at in range(200)]] * 50
    view = text_neuron_activations(tokens, list(torch.randn(50, 200, 4, 2)))
    assert len(str(view)) - len(bundle()) < 400_000


@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(codec=None), max_size=8)), min_size=1))
def test_any_text_comes_through_as_data(tokens: list[str]) -> None:
    label = tokens[0]
    fragment = text_neuron_activations(
        tokens, np.zeros((len(tokens), 1, 1)), first_dimension_name=label, second_dimension_labels=[label], name=label
    ).fragment()
    found = re.fullmatch(r'<div [^<>]*><script type="application/json">([^<]*)</script></div>', fragment)
    assert found is not None and found[1].isascii()
    data = json.loads(found[1])
    assert data["texts"] == [tokens] and data["dimensions"] == [[label, ["0"]], ["Neuron", [label]]]


@pytest.mark.parametrize(
    ("tokens", "given", "options", "message"),
    [
        (TEXTS, [torch.zeros(2, 4, 2)], {}, "there are 2 texts, but activations for 1"),
        (TEXTS, [torch.zeros(2, 4, 2), torch.zeros(2, 4, 2)], {}, r"3 tokens, but activations\[1\] for 2"),
        (TEXTS, [torch.zeros(2, 4, 2), torch.zeros(3, 4, 3)], {}, r"\[3, 4, 3\], and activations\[0\] has \[2, 4, 2\]"),
        (TEXTS, [torch.zeros(2, 4), torch.zeros(3, 4)], {}, r"axes \[token, first, second\]; got shape \[2, 4\]"),
        (TEXTS[0], torch.zeros(2, 0, 2), {}, r"activations is empty: its shape is \[2, 0, 2\]"),
        (TEXTS[0], [["a"]], {}, "activations must be numbers"),
        ("ab", torch.zeros(2, 1, 1), {}, "tokens is str 'ab'; give a list of strings"),
        (None, torch.zeros(2, 1, 1), {}, "tokens is NoneType"),
        ([1, 2], torch.zeros(2, 1, 1), {}, r"tokens\[0\] is int 1"),
        ([["a"], 2], [torch.zeros(1, 1, 1)] * 2, {}, r"the text of activations\[1\] is int"),
        (TEXTS, 3, {}, "there are 2 texts, but activations for none: int"),
        ([], torch.zeros(0, 1, 1), {}, "is empty"),
        (torch.arange(2), torch.zeros(2, 1, 1), {}, "give the tokens as strings"),
        ([[1, 2]], [torch.zeros(2, 1, 1)], {}, r"tokens\[0\] is int 1"),
        (TEXTS[0], torch.zeros(2, 4, 2), {"first_dimension_labels": ["a"]}, "first_dimension_labels must be 4 labels"),
        (TEXTS[0], torch.zeros(2, 4, 2), {"second_dimension_labels": "ab"}, "got the string 'ab'"),
        (TEXTS[0], torch.zeros(2, 4, 2), {"text_labels": []}, "text_labels must be 1 labels"),
        (TEXTS[0], torch.zeros(2, 4, 2), {"clip": 99.0}, "clip is 99; it must be a quantile"),
    ],
)
def test_what_does_not_fit_is_told(tokens: Any, given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        inspect.unwrap(text_neuron_activations)(tokens, given, **options)
