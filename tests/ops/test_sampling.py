"""Sampling against distributions written out in float64, and against torch.multinomial."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from headscope.errors import InvalidInputError, NotFiniteError
from headscope.ops.sampling import sample_logits


def allowed(logits: list[float], top_k: int | None, top_p: float | None) -> dict[int, float]:
    """Probability of each token that may be drawn, the slow way."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    kept = order if top_k is None else [i for i in order if logits[i] >= logits[order[min(top_k, len(order)) - 1]]]
    weights = {i: math.exp(logits[i] - logits[order[0]]) for i in kept}
    if top_p is not None:
        total, so_far, nucleus = sum(weights.values()), 0.0, []
        for i in kept:
            if so_far >= top_p and nucleus:
                break
            nucleus.append(i)
            so_far += weights[i] / total
        weights = {i: weights[i] for i in nucleus}
    return {i: weight / sum(weights.values()) for i, weight in weights.items()}


def drawn(logits: Tensor, n: int = 20_000, **options: Any) -> Tensor:
    """How often each token was drawn for one row of logits."""
    tokens = options.pop("tokens", None)
    if tokens is not None:
        options["tokens"] = tokens.expand(n, -1)
    found = sample_logits(logits.expand(n, -1), **options, generator=torch.Generator().manual_seed(0))
    return torch.bincount(found, minlength=logits.shape[-1]) / n


@pytest.mark.parametrize("top_k, top_p", [
    (None, None), (1, None), (3, None), (100, None), (None, 0.5), (None, 0.93), (None, 1.0), (None, 1e-6), (4, 0.6),
    (2, 0.99),
])  # fmt: skip
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_distribution(top_k: int | None, top_p: float | None, temperature: float) -> None:
    logits = torch.tensor([0.3, 2.0, -1.0, 1.2, 0.0, 2.4])
    found = drawn(logits, top_k=top_k, top_p=top_p, temperature=temperature)
    wanted = allowed([value / temperature for value in logits.tolist()], top_k, top_p)
    assert set(found.nonzero().flatten().tolist()) <= wanted.keys()
    for token, share in wanted.items():
        # Five standard deviations of a share of 20,000 draws.
        assert float(found[token]) == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 20_000) + 1e-9)


def test_equal_logits_are_kept_together_by_top_k() -> None:
    found = drawn(torch.tensor([1.0, 2.0, 2.0, 0.0]), top_k=1)
    assert found[1] > 0.45 and found[2] > 0.45 and found[0] == found[3] == 0


def test_the_nucleus_is_no_larger_than_needed() -> None:
    """Four equal logits have probabilities of exactly 1/4."""
    for top_p, n_tokens in ((0.2, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.76, 4), (1.0, 4)):
        assert int((drawn(torch.zeros(4), top_p=top_p) > 0).sum()) == n_tokens


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 7), st.integers(0, 10**6), st.floats(0.2, 4.0))
def test_the_likeliest_token_after_penalties(batch: int, d_vocab: int, length: int, seed: int, penalty: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, d_vocab, generator=generator)
    tokens = torch.randint(0, d_vocab, (batch, length), generator=generator)
    before = logits.clone()
    assert torch.equal(sample_logits(logits, temperature=0.0), logits.argmax(-1))
    wanted = logits.double().clone()
    for row in range(batch):
        for token in set(tokens[row].tolist()):
            value = wanted[row, token]
            wanted[row, token] = value / penalty if value > 0 else value * penalty
    found = sample_logits(logits, temperature=0.0, repetition_penalty=penalty, tokens=tokens)
    assert torch.equal(found, wanted.argmax(-1))
    # A draw from one token is that token, so the penalties' order and sizes can be read off `top_k=1`.
    for row in range(batch):
        for token in tokens[row].tolist():
            wanted[row, token] -= 0.7 * 2.0  # divided by the temperature below
    found = sample_logits(logits, 1, temperature=2.0, freq_penalty=0.7, repetition_penalty=penalty, tokens=tokens)
    assert torch.equal(found, wanted.argmax(-1))
    assert torch.equal(logits, before)


def test_the_frequency_penalty_counts_each_time() -> None:
    logits, tokens = torch.tensor([0.5, 0.0, 0.2]), torch.tensor([0, 0, 2])
    wanted = allowed([0.5 - 0.8, 0.0, 0.2 - 0.4], None, None)
    found = drawn(logits, freq_penalty=0.4, tokens=tokens)
    assert found.tolist() == pytest.approx([wanted[i] for i in range(3)], abs=0.02)
    rewarded = drawn(logits, freq_penalty=-5.0, tokens=tokens)
    assert float(rewarded[0]) > 0.98


def test_a_seed_gives_the_draws_of_torch_multinomial() -> None:
    logits = 2 * torch.randn(50, 30)
    torch.manual_seed(3)
    wanted = torch.multinomial(logits.softmax(-1), 1)[:, 0]
    torch.manual_seed(3)
    assert torch.equal(sample_logits(logits), wanted)
    own = torch.Generator().manual_seed(3)
    state = torch.get_rng_state()
    assert torch.equal(sample_logits(logits, generator=own), wanted)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(sample_logits(logits, generator=own), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
def test_any_precision_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape).to(dtype)
    found = sample_logits(logits, top_p=0.9, top_k=5)
    assert found.shape == shape[:-1] and found.dtype == torch.int64
    assert int(found.min()) >= 0 and int(found.max()) < 7
    assert torch.equal(sample_logits(logits, top_k=1), logits.argmax(-1))


def test_what_is_forbidden_is_never_drawn() -> None:
    logits = torch.tensor([0.0, -torch.inf, 0.0])
    assert drawn(logits)[1] == 0
    assert drawn(logits, top_k=3, top_p=0.999)[1] == 0


@pytest.mark.parametrize("options, message", [
    ({"top_k": 0}, "top_k must be at least 1, or None for all tokens; got 0"),
    ({"top_k": -3}, "top_k must be at least 1"),
    ({"top_p": 0.0}, "top_p must be above 0 and at most 1, or None for all tokens; got 0.0"),
    ({"top_p": 1.5}, "top_p must be above 0"),
    ({"temperature": -1.0}, "temperature must be 0 .* or a positive number; got -1.0"),
    ({"temperature": math.inf}, "temperature must be"),
    ({"temperature": math.nan}, "temperature must be"),
    ({"repetition_penalty": 0.0}, "repetition_penalty must be positive, 1 for none; got 0.0"),
    ({"repetition_penalty": 1.2}, "repetition_penalty needs the text so far"),
    ({"freq_penalty": 0.2}, "freq_penalty needs the text so far"),
    ({"freq_penalty": 0.2, "tokens": torch.tensor([[0, 5]])}, "between 0 and d_vocab - 1 = 4; got 0 to 5"),
    ({"repetition_penalty": 2.0, "tokens": torch.tensor([[-1, 2]])}, "between 0 and d_vocab - 1 = 4; got -1 to 2"),
])  # fmt: skip
def test_bad_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        sample_logits(torch.zeros(1, 5), **options)


def test_logits_without_tokens_are_told() -> None:
    with pytest.raises(InvalidInputError, match=r"must be \[batch, d_vocab\]; got shape \[2, 0\]"):
        sample_logits(torch.zeros(2, 0))


def test_one_row_of_tokens_for_each_of_logits() -> None:
    with pytest.raises((InvalidInputError, TypeError), match=r"one row for each|parameter tokens="):
        sample_logits(torch.zeros(2, 5), freq_penalty=0.1, tokens=torch.zeros(3, 4).long())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_told(value: float, temperature: float) -> None:
    logits = torch.zeros(3, 5)
    logits[1, 2] = value
    if temperature == 0.0 and value == torch.inf:
        assert sample_logits(logits, temperature=0.0).tolist() == [0, 2, 0]
        return
    with pytest.raises(NotFiniteError, match="NaN or plus infinity"):
        sample_logits(logits, temperature=temperature)


def test_a_row_with_no_token_left_is_told() -> None:
    with pytest.raises(NotFiniteError, match="only minus infinity"):
        sample_logits(torch.full((1, 4), -torch.inf))
