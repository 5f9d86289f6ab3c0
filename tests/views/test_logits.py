"""`token_log_probs` against a whole sort of the vocabulary."""

import inspect
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import STORY, small_model

import headscope.views as cv
from headscope.errors import InvalidInputError
from headscope.views import logits
from headscope.views.html import HtmlView, bundle
from headscope.views.logits import token_log_probs

VOCABULARY = [f" t{token}" for token in range(30)]


def sample(n: int = 7, d_vocab: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(0, d_vocab, (n,)), torch.randn(n, d_vocab).log_softmax(-1)


def strings_of(view: HtmlView, rows: list[list[int]]) -> list[list[str]]:
    return [[view.data["strings"][at] for at in row] for row in rows]


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("tile", [1, 90, 1 << 22])
def test_ranks_and_lists_are_those_of_a_sort(negative: bool, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "_TILE", tile)
    tokens, log_probs = sample()
    view = token_log_probs(tokens, log_probs, to_string=VOCABULARY, top_k=4, negative=negative)
    rows = log_probs.double().numpy()
    order = np.argsort(rows if negative else -rows, axis=-1)
    assert strings_of(view, view.data["top"]) == [[VOCABULARY[token] for token in row[:4]] for row in order]
    np.testing.assert_allclose(view.data["topValues"], np.take_along_axis(rows, order[:, :4], -1), rtol=1e-4)
    downwards = np.argsort(-rows, axis=-1)
    came = tokens.tolist()[1:]
    assert view.data["ranks"] == [list(row).index(token) + 1 for row, token in zip(downwards, came, strict=False)]
    np.testing.assert_allclose(view.data["values"], [rows[at, token] for at, token in enumerate(came)], rtol=1e-4)
    assert strings_of(view, [view.data["tokens"]])[0] == [VOCABULARY[token] for token in tokens]
    assert view.data["negative"] is negative and view.data["unit"] == "nats" and view.data["vocabulary"] == 30


@pytest.mark.parametrize("kind", ["tensors", "arrays", "lists", "batch of one", "grad", "list of tensors"])
def test_every_form_is_the_same_view(kind: str) -> None:
    tokens, log_probs = sample()
    forms: dict[str, tuple[Any, Any]] = {
        "tensors": (tokens, log_probs),
        "arrays": (tokens.numpy(), log_probs.numpy()),
        "lists": (tokens.tolist(), log_probs.tolist()),
        "batch of one": (tokens[None], log_probs[None]),
        "grad": (tokens, log_probs.clone().requires_grad_()),
        "list of tensors": (list(tokens), list(log_probs)),
    }
    view = token_log_probs(*forms[kind], to_string=VOCABULARY)
    assert dict(view.data) == dict(token_log_probs(tokens, log_probs, to_string=VOCABULARY).data)


def test_half_precision_is_taken() -> None:
    tokens, log_probs = sample()
    view = token_log_probs(tokens, log_probs.bfloat16(), to_string=VOCABULARY)
    came = log_probs[:-1].gather(-1, tokens[1:, None])[:, 0]
    np.testing.assert_allclose(view.data["values"], came.numpy(), rtol=0.01)


def test_equal_numbers_share_the_best_rank() -> None:
    log_probs = torch.tensor([[0.4, 0.2, 0.2, 0.2], [0.25] * 4]).log()
    assert token_log_probs([0, 3], log_probs, to_string=["a", "b", "c", "d"]).data["ranks"] == [2]


def test_nothing_is_sorted_and_no_row_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("sorted")

    for name in ("sort", "argsort", "msort"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
        monkeypatch.setattr(torch, name, refuse)
    tokens, log_probs = torch.randint(0, 50_000, (20,)), torch.randn(20, 50_000).log_softmax(-1)
    view = token_log_probs(tokens, log_probs, to_string=str)
    assert len(str(view)) - len(bundle()) < 20_000


def test_a_whole_small_vocabulary_is_shown() -> None:
    view = token_log_probs([0, 1], torch.full((2, 3), 1 / 3).log(), to_string=["a", "b", "c"], top_k=10)
    assert [sorted(row) for row in strings_of(view, view.data["top"])] == [["a", "b", "c"]] * 2


def test_one_position_predicts_only_what_comes_next() -> None:
    view = token_log_probs([0], torch.tensor([[0.5, 0.5]]).log(), to_string=["a", "b"])
    assert view.data["values"] == [] and view.data["ranks"] == [] and len(view.data["top"]) == 1


def test_impossible_tokens_have_no_number_in_json() -> None:
    log_probs = torch.tensor([[0.5, 0.5, 0.0]] * 2).log()
    view = token_log_probs([0, 2], log_probs, to_string=["a", "b", "c"], top_k=3)
    assert view.data["values"] == [-np.inf] and view.data["ranks"] == [3]
    data = json.loads(view.fragment().split(">")[2].removesuffix("</script"))
    assert data["values"] == [None]


def test_direct_effects_are_named_and_have_no_probability() -> None:
    tokens, effects = torch.tensor([0, 1, 2]), torch.tensor([[0.0, -3.0, 1.0], [2.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    view = token_log_probs(
        tokens, effects, to_string=["a", "b", "c"], name="direct effect", unit="logits", negative=True, top_k=1
    )
    assert strings_of(view, view.data["top"])[:2] == [["b"], ["b"]]
    assert view.data["values"] == [-3.0, 5.0] and view.data["ranks"] == [3, 1]
    assert view.data["probabilities"] is False and view.data["limit"] == 5.0
    assert (view.data["name"], view.data["unit"]) == ("direct effect", "logits")


def test_a_model_serves() -> None:
    model = small_model()
    tokens = model.to_tokens(STORY)[:, :12]
    log_probs = model(tokens).log_softmax(-1)
    by_function = token_log_probs(tokens, log_probs, to_string=model.to_string)
    by_tokenizer = cv.logits.token_log_probs(tokens[0].cpu(), log_probs[0], to_string=model.tokenizer)
    assert dict(by_function.data) == dict(by_tokenizer.data)
    assert strings_of(by_function, [by_function.data["tokens"]])[0] == model.to_str_tokens(tokens)


def test_each_string_is_made_once() -> None:
    asked: list[int] = []

    def to_string(token: int) -> str:
        assert type(token) is int
        asked.append(token)
        return str(token)

    tokens, log_probs = sample(7, 30)
    token_log_probs(tokens, log_probs, to_string=to_string)
    assert len(asked) == len(set(asked))


HOSTILE = ["</script>", "<!--", '"', "\u2028", "\u202e", "\U0001f381", "\ud83d", "\x00", "", "x" * 10_000]


@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(codec=None), max_size=8)), min_size=2))
def test_any_text_comes_through_as_data(strings: list[str]) -> None:
    n = len(strings)
    log_probs = torch.full((n, n), 1 / n).log()
    fragment = token_log_probs(list(range(n)), log_probs, to_string=strings, title=strings[0]).fragment()
    found = re.fullmatch(r'<div [^<>]*><script type="application/json">([^<]*)</script></div>', fragment)
    assert found is not None and found[1].isascii()
    data = json.loads(found[1])
    assert [data["strings"][at] for at in data["tokens"]] == strings


LOG_PROBS = torch.full((2, 4), 0.25).log()


@pytest.mark.parametrize(
    ("tokens", "log_probs", "options", "message"),
    [
        ([0, 1, 2], LOG_PROBS, {}, r"shape \[2, 4\]; .* a row for each of the 3 tokens"),
        ([0, 1], LOG_PROBS[0], {}, r"shape \[4\]; it must be \[pos, d_vocab\]"),
        ([[0, 1], [0, 1]], LOG_PROBS, {}, r"\[pos\] or \[1, pos\]; got shape \[2, 2\]"),
        ([], LOG_PROBS, {}, "one sequence of tokens"),
        (["a", "b"], LOG_PROBS, {}, "token_indices must be numbers"),
        ([0, 4], LOG_PROBS, {}, r"token_indices\[1\] is 4; the tokens of log_probs are 0 to 3"),
        ([0, -1], LOG_PROBS, {}, r"token_indices\[1\] is -1"),
        ([0, 0.5], LOG_PROBS, {}, r"token_indices\[1\] is 0.5"),
        ([0, 1], LOG_PROBS * torch.nan, {}, "NaN or plus infinity at position 0"),
        ([0, 1], torch.full((2, 4), torch.inf), {"name": "effect"}, "plus infinity at position 0"),
        ([0, 1], LOG_PROBS + 1, {}, r"sum to 2.718, not 1. Give logits.log_softmax\(-1\)"),
        ([0, 1], LOG_PROBS, {"top_k": 0}, "top_k is 0; it must be a whole number, at least 1"),
        ([0, 1], LOG_PROBS, {"top_k": 2.0}, "top_k is 2.0; it must be a whole number"),
        ([0, 1], LOG_PROBS, {"to_string": 3}, "to_string is int; give a function"),
        ([0, 1], LOG_PROBS, {"to_string": "abcd"}, "to_string is str; give a function"),
        ([0, 1], LOG_PROBS, {"to_string": ["a", "b"]}, "a list of 2 strings, which has none for token 2"),
        ([0, 1], LOG_PROBS, {"to_string": lambda token: [token]}, r"gave list \[0\] for token 0"),
        ([0, 1], LOG_PROBS, {"max_value": -1.0}, "max_value is -1"),
    ],
)
def test_what_does_not_fit_is_told(tokens: Any, log_probs: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        inspect.unwrap(token_log_probs)(tokens, log_probs, **{"to_string": ["a", "b", "c", "d"], **options})
