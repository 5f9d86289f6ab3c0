"""`topk_tokens` and `topk_samples` against plain sorting."""

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
from headscope.views.html import HtmlView
from headscope.views.topk_samples import topk_samples
from headscope.views.topk_tokens import topk_tokens

TEXTS = [["The", " cat", " sat"], ["A", " dog"]]
HOSTILE = ["</script>", "<!--", '"', "\u2028", "\u202e", "\U0001f381", "\ud83d", "\x00", "", "x" * 10_000]


def table_of(view: HtmlView) -> tuple[np.ndarray, np.ndarray]:
    """Places and values `[stretch, layer, neuron, end, k]`, read as the script reads them."""
    data: dict[str, Any] = json.loads(json.dumps(dict(view.data)))
    layers, neurons = (len(labels) for _, labels in data["dimensions"])
    shape = (-1, layers, neurons, 2, data["k"])
    places = np.frombuffer(base64.b64decode(data["at"]), dtype="<i4").reshape(shape)
    values = np.frombuffer(base64.b64decode(data["values"]), dtype="<f2").astype(float) * data["scale"]
    return places, values.reshape(shape)


def expected(stretch: np.ndarray, start: int, k: int, end: int) -> tuple[list[int], list[float]]:
    ranked = sorted(
        ((float(value), start + at) for at, value in enumerate(stretch) if not np.isnan(value)), reverse=end == 0
    )[:k]
    pad = k - len(ranked)
    return [at for _, at in ranked] + [-1] * pad, [value for value, _ in ranked] + [np.nan] * pad


@pytest.mark.parametrize("max_k", [1, 3, 50])
def test_tokens_are_those_of_a_sort(max_k: int) -> None:
    arrays = [torch.randn(2, len(text), 4) for text in TEXTS]
    arrays[0][1, 2, 3] = torch.nan
    view = cv.topk_tokens.topk_tokens(TEXTS, arrays, max_k=max_k)
    places, values = table_of(view)
    assert places.shape == (3, 2, 4, 2, min(max_k, 5))
    both = torch.cat(arrays, dim=1).numpy()
    for stretch, (start, stop) in enumerate([(0, 5), (0, 3), (3, 5)]):
        for layer, neuron, end in np.ndindex(2, 4, 2):
            wanted = expected(both[layer, start:stop, neuron], start, places.shape[-1], end)
            assert places[stretch, layer, neuron, end].tolist() == wanted[0]
            np.testing.assert_allclose(values[stretch, layer, neuron, end], wanted[1], rtol=1 / 2048)
    assert view.data["signed"] is True
    assert view.data["limit"] == pytest.approx(np.nanmax(np.abs(both)))
    strings = view.data["strings"]
    assert [[strings[at] for at in text] for text in view.data["texts"]] == TEXTS


@pytest.mark.parametrize("form", [lambda x: x, lambda x: x.numpy(), lambda x: x.tolist(), lambda x: x.requires_grad_()])
def test_one_text_has_no_table_of_all(form: Any) -> None:
    view = topk_tokens(
        TEXTS[0],
        form(torch.arange(6.0).reshape(1, 3, 2)),
        max_k=1,
        first_dimension_name="Block",
        first_dimension_labels=["last"],
        third_dimension_name="Feature",
        third_dimension_labels=["a", "b"],
        sample_labels=["mine"],
    )
    places, values = table_of(view)
    assert places.tolist() == [[[[[2], [0]], [[2], [0]]]]] and values.tolist() == [[[[[4.0], [0.0]], [[5.0], [1.0]]]]]
    assert view.data["dimensions"] == [["Block", ["last"]], ["Feature", ["a", "b"]]]
    assert view.data["labels"] == ["mine"]


@pytest.mark.parametrize(
    ("tokens", "values", "options", "message"),
    [
        (TEXTS, [torch.zeros(2, 3, 4)], {}, "2 texts, but activations for 1"),
        (TEXTS, [torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)], {}, r"2 tokens, but activations\[1\] for 3"),
        (TEXTS, [torch.zeros(2, 3, 4), torch.zeros(1, 2, 4)], {}, "only the number of tokens may differ"),
        (TEXTS[0], torch.zeros(3, 4), {}, r"axes \[layer, token, neuron\]; got shape \[3, 4\]"),
        (TEXTS[0], torch.zeros(2, 3, 4), {"max_k": 0}, "max_k is 0"),
        (TEXTS[0], torch.zeros(2, 3, 4), {"max_k": 2.5}, "max_k is 2.5; it must be a whole number"),
        (TEXTS[0], torch.zeros(2, 3, 4), {"third_dimension_labels": ["a"]}, "third_dimension_labels must be 4 labels"),
    ],
)
def test_tokens_that_do_not_fit_are_told(tokens: Any, values: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        inspect.unwrap(topk_tokens)(tokens, values, **options)


SAMPLES = [
    [[["a", " b"], ["c"], ["d", " e", " f"]], [["g"]]],
    [[["a", " b"]], [["h", " i"], ["j"]]],
]
VALUES: list[list[list[list[float]]]] = [
    [[[0.1, -0.5], [2.0], [0.0, 3.0, float("nan")]], [[-1.0]]],
    [[[0.25, 0.5]], [[float("nan")] * 2, [-7.0]]],
]
SORTED = [
    [[["d", " e", " f"], ["c"], ["a", " b"]], [["g"]]],
    [[["a", " b"]], [["j"], ["h", " i"]]],
]
SORTED_VALUES = [0.0, 3.0, np.nan, 2.0, 0.1, -0.5, -1.0, 0.25, 0.5, -7.0, np.nan, np.nan]


@pytest.mark.parametrize("form", [list, np.array, torch.tensor])
def test_samples_are_sorted_by_their_largest(form: Any) -> None:
    values = [[[form(sample) for sample in samples] for samples in layer] for layer in VALUES]
    view = cv.topk_samples.topk_samples(SAMPLES, values, zeroth_dimension_labels=["x", "y"])
    strings = view.data["strings"]
    found = [[[[strings[at] for at in text] for text in texts] for texts in layer] for layer in view.data["samples"]]
    assert found == SORTED
    packed = np.frombuffer(base64.b64decode(view.data["values"]), dtype="<f2").astype(float) * view.data["scale"]
    np.testing.assert_allclose(packed, SORTED_VALUES, rtol=1 / 2048)
    assert view.data["dimensions"] == [["Layer", ["x", "y"]], ["Neuron", ["0", "1"]]]


def test_samples_may_come_in_one_array() -> None:
    values = torch.tensor([[[[0.0, 1.0], [5.0, 2.0]]]])
    view = topk_samples([[[["a", "b"], ["c", "d"]]]], values.requires_grad_())
    assert view.data["samples"] == [[[[0, 1], [2, 3]]]] and view.data["strings"] == ["c", "d", "a", "b"]


@pytest.mark.parametrize(
    ("tokens", "values", "message"),
    [
        ([], [], "tokens has no layers; give tokens"),
        ([[]], [[]], r"tokens\[0\] has no neurons"),
        (SAMPLES, VALUES[:1], "tokens has 2 layers, and activations has 1"),
        (SAMPLES, [VALUES[0][:1], VALUES[1]], r"tokens\[0\] has 2 neurons, and activations\[0\] has 1"),
        ([SAMPLES[0], SAMPLES[1][:1]], [VALUES[0], VALUES[1][:1]], r"tokens\[1\] has 1 neurons, and tokens\[0\] has 2"),
        ([[[["a"]]]], [[[[1.0], [2.0]]]], r"tokens\[0\]\[0\] has 1 samples"),
        ([[[["a"]]]], [[[[1.0, 2.0]]]], r"1 tokens, but activations\[0\]\[0\]\[0\] for 2"),
        ([[[["a"]]]], [[[[[1.0]]]]], r"one number per token, \[pos\]; got shape \[1, 1\]"),
        ([[[]]], [[[]]], r"tokens\[0\]\[0\] has no samples"),
        ([["ab"]], [[[[1.0], [2.0]]]], r"tokens\[0\]\[0\] is str 'ab'; it must be a list of samples"),
        ([[["a"]]], [[[[1.0]]]], r"tokens\[0\]\[0\]\[0\] is str 'a'; it must be a list of strings"),
        ([[[["a"]]]], 3, "activations is int 3; it must be a list of layers"),
        (None, None, "tokens is NoneType None; it must be a list of layers"),
        ([[[["a"]]]], [[[["x"]]]], r"activations\[0\]\[0\]\[0\] must be numbers"),
    ],
)
def test_samples_that_do_not_fit_are_told(tokens: Any, values: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        inspect.unwrap(topk_samples)(tokens, values)


@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(codec=None), max_size=8)), min_size=1))
def test_any_text_comes_through_as_data(tokens: list[str]) -> None:
    n = len(tokens)
    for view in (
        topk_tokens(tokens, np.zeros((1, n, 1)), first_dimension_name=tokens[0]),
        topk_samples([[[tokens]]], [[[[0.0] * n]]], zeroth_dimension_name=tokens[0]),
    ):
        found = re.fullmatch(r'<div [^<>]*><script type="application/json">([^<]*)</script></div>', view.fragment())
        assert found is not None and found[1].isascii()
        data = json.loads(found[1])
        texts = data["texts"] if "texts" in data else data["samples"][0][0]
        assert [[data["strings"][at] for at in text] for text in texts] == [tokens]
        assert data["dimensions"][0][0] == tokens[0]
