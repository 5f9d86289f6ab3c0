"""Heads are compared with patterns as the definition says, one number at a time."""

import inspect
import logging
import math
from itertools import product
from typing import Any

import pytest
import torch
from small_models import small_model
from torch import Tensor

import headscope.head_detector as head_detector
from headscope import HookedTransformer
from headscope.errors import InvalidInputError, MissingTokenizerError, UnknownNameError
from headscope.head_detector import HEAD_NAMES, detect_head

TEXT = "the old dog saw the old dog run, and the cat saw the dog"
OTHER = "Mary said that Mary said so"
OPTIONS = [
    {"exclude_bos": bos, "exclude_current_token": current, "error_measure": measure}
    for bos, current, measure in product((False, True), (False, True), ("mul", "abs"))
]


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return small_model(dtype=torch.float64, seed=1)


def expected_pattern(name: str, tokens: list[int]) -> list[list[float]]:
    """1.0 for each query and key that the table in the module's docstring pairs."""
    rows = []
    for query, token in enumerate(tokens):
        copies = [key for key in range(query) if tokens[key] == token]
        keys = {
            "previous_token_head": [query - 1],
            "duplicate_token_head": copies,
            "induction_head": [key + 1 for key in copies],
        }[name]
        rows.append([1.0 if key in keys else 0.0 for key in range(len(tokens))])
    return rows


def score_by_loops(
    pattern: Tensor,
    expected: list[list[float]],
    *,
    exclude_bos: bool,
    exclude_current_token: bool,
    error_measure: str,
) -> float:
    attended = pattern.tolist()
    length = len(attended)
    matched = paid = difference = 0.0
    for query, key in product(range(length), range(length)):
        if (exclude_bos and key == 0) or (exclude_current_token and key == query):
            continue
        matched += attended[query][key] * expected[query][key]
        paid += attended[query][key]
        difference += abs(attended[query][key] - expected[query][key])
    return matched / paid if error_measure == "mul" else 1 - round(difference / length, 3)


def scores_by_loops(model: HookedTransformer, text: str, expected: list[list[float]] | str, **options: Any) -> Tensor:
    tokens = model.to_tokens(text)
    if isinstance(expected, str):
        expected = expected_pattern(expected, tokens[0].tolist())
    _, cache = model.run_with_cache(tokens)
    return torch.tensor(
        [
            [score_by_loops(pattern, expected, **options) for pattern in cache["pattern", layer][0]]
            for layer in range(model.cfg.n_layers)
        ],
        dtype=model.cfg.dtype,
    )


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("name", HEAD_NAMES)
def test_scores_are_those_of_the_definition(name: str, options: dict[str, Any], model: HookedTransformer) -> None:
    scores = detect_head(model, TEXT, name, **options)
    assert scores.std() > 0.005 and scores.dtype == torch.float64
    torch.testing.assert_close(scores, scores_by_loops(model, TEXT, name, **options))


@pytest.mark.parametrize("options", OPTIONS[:2], ids=["mul", "abs"])
def test_a_pattern_of_ones_own(options: dict[str, Any], model: HookedTransformer) -> None:
    length = model.to_tokens(TEXT).shape[1]
    own = torch.rand(length, length, generator=torch.Generator().manual_seed(0)).tril().round()
    scores = detect_head(model, TEXT, own, **options)
    torch.testing.assert_close(scores, scores_by_loops(model, TEXT, own.tolist(), **options))
    assert torch.equal(scores, detect_head(model, TEXT, own.long(), **options))


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=["plain", "all excluded, abs"])
def test_several_texts_give_their_mean(options: dict[str, Any], model: HookedTransformer) -> None:
    both = [detect_head(model, text, "induction_head", [(1, 0), (1, 2)], **options) for text in (TEXT, OTHER)]
    scores = detect_head(model, [TEXT, OTHER], "induction_head", [(1, 0), (1, 2)], **options)
    torch.testing.assert_close(scores, sum(both) / 2)
    assert scores[1, 1] == -1


def test_heads_not_asked_for_are_minus_one(model: HookedTransformer) -> None:
    every = detect_head(model, TEXT, "duplicate_token_head")
    for heads in ([(0, 1), (1, 0), (1, 2)], ((0, 1), (1, 0), (1, 2)), {0: [1], 1: [0, 2]}):
        some = detect_head(model, TEXT, "duplicate_token_head", heads)
        expected = torch.full_like(every, -1)
        for layer, head in ((0, 1), (1, 0), (1, 2)):
            expected[layer, head] = every[layer, head]
        assert torch.equal(some, expected)
    assert bool((detect_head(model, TEXT, "duplicate_token_head", []) == -1).all())


def test_layers_nobody_asked_for_are_not_run(model: HookedTransformer) -> None:
    ran = []
    handle = model.blocks[1].register_forward_pre_hook(lambda *_: ran.append(1))
    detect_head(model, TEXT, "induction_head", [(0, 2)])
    assert not ran
    detect_head(model, TEXT, "induction_head", [(1, 2)])
    assert ran
    handle.remove()
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_a_cache_is_read_and_left_as_it_is(model: HookedTransformer) -> None:
    fresh = detect_head(model, TEXT, "induction_head", exclude_bos=True, exclude_current_token=True)
    for drop_batch in (False, True):
        _, cache = model.run_with_cache(TEXT, remove_batch_dim=drop_batch)
        before = cache["pattern", 1].clone()
        for given in (cache, dict(cache.items())):
            scores = detect_head(
                model, TEXT, "induction_head", cache=given, exclude_bos=True, exclude_current_token=True
            )
            torch.testing.assert_close(scores, fresh)
        assert torch.equal(cache["pattern", 1], before)
    doubled = {name: value.roll(1, 0) for name, value in cache.items() if name.endswith("pattern")}
    rolled = detect_head(model, TEXT, "induction_head", cache=doubled)
    torch.testing.assert_close(rolled.roll(-1, 1), detect_head(model, TEXT, "induction_head"))


def test_a_perfect_head_scores_one(model: HookedTransformer) -> None:
    tokens = model.to_tokens(TEXT)
    ideal = head_detector.get_previous_token_head_detection_pattern(tokens).double()
    ideal[0, 0] = 1  # the first position has nothing before it
    with model.hooks([("blocks.1.attn.hook_pattern", lambda pattern, hook: ideal.expand_as(pattern))]):
        scores = detect_head(model, TEXT, "previous_token_head", exclude_current_token=True)
        close = detect_head(model, TEXT, ideal, error_measure="abs")
    assert scores[1].tolist() == [1, 1, 1] and scores[0].max() < 1
    assert close[1].tolist() == [1, 1, 1] and close[0].max() < 1


def test_a_head_with_nothing_left_to_compare_is_nan(model: HookedTransformer) -> None:

    def all_on_the_first(pattern: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(pattern).index_fill(-1, torch.tensor(0), 1.0)

    with model.hooks([("blocks.0.attn.hook_pattern", all_on_the_first)]):
        scores = detect_head(model, TEXT, "induction_head", exclude_bos=True)
    assert bool(scores[0].isnan().all()) and bool(scores[1].isfinite().all())


# The patterns


@pytest.mark.parametrize("name", HEAD_NAMES)
def test_named_patterns(name: str) -> None:
    get = getattr(head_detector, f"get_{name}_detection_pattern")
    for tokens in ([3, 1, 2, 1, 1, 1, 3], [1, 2, 3], [4, 4]):
        expected = torch.tensor(expected_pattern(name, tokens))
        assert torch.equal(get(torch.tensor(tokens)), expected)
        assert torch.equal(get(torch.tensor([tokens])), expected)
    with pytest.raises(InvalidInputError, match=r"one sequence, \[pos\] or \[1, pos\]; got shape \[2, 3\]"):
        get(torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_the_score_of_one_head(options: dict[str, Any], model: HookedTransformer) -> None:
    _, cache = model.run_with_cache(TEXT, remove_batch_dim=True)
    pattern = cache["pattern", 0][1]
    before = pattern.clone()
    expected = head_detector.get_induction_head_detection_pattern(model.to_tokens(TEXT))
    score = head_detector.compute_head_attention_similarity_score(pattern, expected, **options)
    assert isinstance(score, float)
    assert math.isclose(score, score_by_loops(pattern, expected.tolist(), **options), abs_tol=1e-9)
    assert torch.equal(pattern, before)


def test_supported_heads_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    head_detector.get_supported_heads()
    printed = capsys.readouterr().out
    assert all(name in printed for name in HEAD_NAMES)


# What is told and what is refused


def test_values_besides_zero_and_one_are_told_of(model: HookedTransformer, caplog: pytest.LogCaptureFixture) -> None:
    length = model.to_tokens(TEXT).shape[1]
    half = torch.eye(length) / 2
    with caplog.at_level(logging.WARNING, logger="headscope"):
        detect_head(model, TEXT, half, error_measure="abs")
        detect_head(model, TEXT, torch.eye(length))
        assert not caplog.records
        scores = detect_head(model, TEXT, half)
    assert "entries other than 0 and 1" in caplog.text
    torch.testing.assert_close(scores, detect_head(model, TEXT, torch.eye(length)) / 2)


def test_wrong_kinds_of_heads_and_measures(model: HookedTransformer) -> None:
    with pytest.raises(UnknownNameError, match="kind of head 'inductoin_head'. Did you mean 'induction_head'"):
        detect_head(model, TEXT, "inductoin_head")
    with pytest.raises(UnknownNameError, match="Allowed: previous_token_head, duplicate_token_head, induction_head"):
        detect_head(model, TEXT, "x")
    # Unwrapped, since the type checker of the tests would refuse it first.
    with pytest.raises(InvalidInputError, match="error_measure must be one of 'abs', 'mul'; got 'sum'"):
        inspect.unwrap(detect_head)(model, TEXT, "induction_head", error_measure="sum")


@pytest.mark.parametrize("head", [(2, 0), (0, 3), (-1, 0)])
def test_heads_that_do_not_exist(head: tuple[int, int], model: HookedTransformer) -> None:
    message = rf"no head {head[0]}\.{head[1]}: this model has layers 0 to 1, each with heads 0 to 2"
    with pytest.raises(InvalidInputError, match=message):
        detect_head(model, TEXT, "induction_head", [head])
    with pytest.raises(InvalidInputError, match=message):
        detect_head(model, TEXT, "induction_head", {head[0]: [head[1]]})


def test_patterns_that_do_not_fit(model: HookedTransformer) -> None:
    length = model.to_tokens(TEXT).shape[1]
    for shape in ((length, length - 1), (length + 1, length + 1), (length,), (1, length, length)):
        shown = ", ".join(map(str, shape))
        with pytest.raises(InvalidInputError, match=rf"which is {length}; got shape \[{shown}\]\."):
            detect_head(model, TEXT, torch.zeros(shape))
    with pytest.raises(InvalidInputError, match="lower triangular .* with entries above the diagonal"):
        detect_head(model, TEXT, torch.ones(length, length))
    with pytest.raises(InvalidInputError, match=f"which is {model.to_tokens(OTHER).shape[1]}; got"):
        detect_head(model, [TEXT, OTHER], torch.eye(length))
    options = {"exclude_bos": False, "exclude_current_token": False, "error_measure": "mul"}
    with pytest.raises(InvalidInputError, match=r"square matrices of one size; got shapes \[3, 3\] and \[2, 2\]"):
        head_detector.compute_head_attention_similarity_score(torch.eye(3), torch.eye(2), **options)
    with pytest.raises(InvalidInputError, match="square matrices"):
        head_detector.compute_head_attention_similarity_score(torch.ones(2, 3), torch.ones(2, 3), **options)


def test_texts_that_do_not_fit(model: HookedTransformer) -> None:
    with pytest.raises(InvalidInputError, match="is 49 tokens; .* 2 to n_ctx = 48 tokens. Cut it."):
        detect_head(model, "#" * 48, "induction_head")
    assert detect_head(model, "#" * 47, "induction_head").isfinite().all()
    with pytest.raises(InvalidInputError, match="'' is 1 tokens; .* Give a longer one."):
        detect_head(model, "", "induction_head")
    with pytest.raises(InvalidInputError, match="seq is empty"):
        detect_head(model, [], "induction_head")
    with pytest.raises(MissingTokenizerError):
        detect_head(small_model(tokenizer=False), TEXT, "induction_head")


def test_caches_that_do_not_fit(model: HookedTransformer) -> None:
    _, cache = model.run_with_cache(OTHER)
    with pytest.raises(InvalidInputError, match=r"blocks\.0\.attn\.hook_pattern has shape .* not that of this text"):
        detect_head(model, TEXT, "induction_head", cache=cache)
    with pytest.raises(InvalidInputError, match="a cache goes with one text; got 2"):
        detect_head(model, [TEXT, OTHER], "induction_head", cache=cache)
    _, cache = model.run_with_cache(TEXT, names_filter="blocks.1.attn.hook_pattern")
    assert detect_head(model, TEXT, "induction_head", [(1, 0)], cache=cache)[1, 0] >= 0
    with pytest.raises(UnknownNameError, match=r"cached activation 'blocks\.0\.attn\.hook_pattern'"):
        detect_head(model, TEXT, "induction_head", cache=cache)
