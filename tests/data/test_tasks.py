"""Toy tasks: what the prompts are, what settles their answers, and the best any predictor can do, by counting."""

import math
import time
from collections import Counter, defaultdict

import pytest
import torch

from headscope.data.tasks import (
    InductionDataset,
    ModularAdditionDataset,
    PalindromeDataset,
    SkipTrigramDataset,
    TaskDataset,
    TaskMetrics,
)
from headscope.errors import InvalidInputError

MAKERS = {
    "skip-trigram": lambda seed: SkipTrigramDataset(500, seed=seed),
    "induction": lambda seed: InductionDataset(50, length=10, d_vocab=9, shortest=2, seed=seed),
    "modular-addition": lambda seed: ModularAdditionDataset(p=11, seed=seed),
    "palindrome": lambda seed: PalindromeDataset(500, half=2, n_symbols=3, seed=seed),
}


def empirical_entropy(data: TaskDataset, answer: int, kept: torch.Tensor) -> tuple[float, float]:
    """Entropy of an answer given the tokens up to its position, and how often the likeliest is right, by counting."""
    seen: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    end = data.answer_positions[answer] + 1
    for tokens, label in zip(data.tokens[kept, :end].tolist(), data.labels[kept, answer].tolist(), strict=True):
        seen[tuple(tokens)][label] += 1
    n = sum(sum(counts.values()) for counts in seen.values())
    entropy = -sum(c * math.log(c / sum(counts.values())) for counts in seen.values() for c in counts.values()) / n
    return entropy, sum(max(counts.values()) for counts in seen.values()) / n


@pytest.mark.parametrize("name", MAKERS)
def test_a_seed_gives_the_same_data_and_the_global_generator_is_left_alone(name: str) -> None:
    before = torch.get_rng_state()
    first, again, other = MAKERS[name](7), MAKERS[name](7), MAKERS[name](8)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.labels, again.labels)
    assert not torch.equal(first.tokens, other.tokens)
    assert first.task == name
    tokens, labels = first[3]
    assert tokens.shape == (first.n_ctx,) and labels.shape == (len(first.answer_positions),)
    assert int(first.tokens.max()) < first.d_vocab and int(first.labels.max()) < first.d_vocab
    assert eval(repr(first), {type(first).__name__: type(first)}).tokens.equal(first.tokens)


@pytest.mark.parametrize("name", MAKERS)
def test_held_out_data_is_of_the_same_task_and_other_draws(name: str) -> None:
    data = MAKERS[name](3)
    other = data.held_out()
    assert type(other) is type(data)
    assert not torch.equal(other.tokens[: len(data)], data.tokens[: len(other)])
    assert torch.equal(other.held_out().tokens, data.tokens)
    own = {key: value for key, value in data.options.items() if key not in ("seed", "rest")}
    assert own.items() <= other.options.items()


def test_skip_trigrams_are_what_they_say() -> None:
    data = SkipTrigramDataset(20_000, prob=3, prompt_length=5, seed=1)
    n_signal = 0
    for tokens, (label,), signal in zip(
        data.tokens.tolist(), data.labels.tolist(), data.is_signal.tolist(), strict=True
    ):
        first, *between, second, query = tokens
        assert all(5 <= token <= 10 for token in between)
        if signal:
            n_signal += 1
            assert query == 0 and label == data.ANSWERS[tuple(sorted((first, second)))]
        else:
            assert all(5 <= token <= 10 for token in tokens) and 0 <= label <= 10
    assert abs(n_signal / 20_000 - 1 / 3) < 0.015
    # Each of 16 ordered pairs, and each noise label, is as frequent as any other.
    pairs = Counter(map(tuple, data.operands[data.is_signal].tolist()))
    assert len(pairs) == 16 and max(abs(16 * n / n_signal - 1) for n in pairs.values()) < 0.2
    noise = torch.bincount(data.labels[~data.is_signal][:, 0], minlength=11)
    assert (noise * 11 / noise.sum() - 1).abs().max() < 0.1
    assert not data.operands[~data.is_signal].any()


def test_repeated_operands_are_half_as_frequent_unless_pairs_are_equal() -> None:
    for equal, expected in ((False, 0.5), (True, 1.0)):
        data = SkipTrigramDataset(40_000, seed=2, equal_pairs=equal)
        counts = torch.bincount(data.labels[data.is_signal][:, 0], minlength=10).float()
        repeated = [0, 4, 7, 9]
        mixed = [label for label in range(10) if label not in repeated]
        assert abs(counts[repeated].mean() / counts[mixed].mean() - expected) < 0.05
        # Both orders of a pair occur equally.
        first, second = data.operands[data.is_signal].T
        assert abs((first < second).float().mean() - (first > second).float().mean()) < 0.02


def test_every_signal_is_every_signal_prompt_once() -> None:
    tokens, labels = SkipTrigramDataset.every_signal(prompt_length=5)
    assert len(tokens.unique(dim=0)) == len(tokens) == 16 * 36
    data = SkipTrigramDataset(3000, prob=1, prompt_length=5)
    known = {tuple(row): label for row, label in zip(tokens.tolist(), labels.tolist(), strict=True)}
    assert all(
        known[tuple(row)] == label for row, (label,) in zip(data.tokens.tolist(), data.labels.tolist(), strict=True)
    )


def test_the_least_loss_of_skip_trigrams_is_counted() -> None:
    # Prompts of three tokens, so that each is drawn often enough to count its labels.
    data = SkipTrigramDataset(200_000, prompt_length=3, seed=5)
    entropy, accuracy = empirical_entropy(data, 0, torch.ones(len(data), dtype=torch.bool))
    assert data.bayes_loss == pytest.approx(entropy, rel=0.01)
    assert data.bayes_accuracy == pytest.approx(accuracy, abs=0.015)  # the likeliest of counts is counted too often
    share = float(data.signal.float().mean())
    assert data.bayes_loss == pytest.approx((1 - share) * math.log(11))
    assert (data.bayes.signal_loss, data.bayes.signal_accuracy) == (0.0, 1.0)
    assert math.isnan(SkipTrigramDataset(10, prob=1).bayes.noise_loss)


def test_induction_rows_repeat_their_block() -> None:
    data = InductionDataset(200, length=11, d_vocab=12, shortest=2, longest=6, seed=3)
    for row, n, signal in zip(data.tokens.tolist(), data.block_lengths.tolist(), data.signal.tolist(), strict=True):
        assert len(set(row[:n])) == n and row == [row[i % n] for i in range(11)]
        assert signal == [t >= n for t in range(10)]
    assert set(data.block_lengths.tolist()) == {2, 3, 4, 5, 6}
    assert torch.equal(data.labels, data.tokens[:, 1:])


def test_the_least_loss_of_induction_is_counted() -> None:
    data = InductionDataset(300_000, length=6, d_vocab=4, shortest=1, longest=4, seed=0)
    for answer in range(5):
        for part in (data.signal[:, answer], ~data.signal[:, answer]):
            if not part.any():
                continue
            entropy, accuracy = empirical_entropy(data, answer, part)
            assert float(data.best_loss[part, answer].mean()) == pytest.approx(entropy, abs=0.005)
            assert float(data.best_accuracy[part, answer].mean()) == pytest.approx(accuracy, abs=0.01)


def test_modular_addition_splits_the_table() -> None:
    data = ModularAdditionDataset(p=13, fraction=0.4, seed=2)
    other = data.held_out()
    sums = torch.cat([data.tokens, other.tokens])
    assert len(data) == round(0.4 * 169) and len(sums.unique(dim=0)) == len(sums) == 169
    labels = torch.cat([data.labels, other.labels])[:, 0]
    assert torch.equal(labels, sums[:, :2].sum(1) % 13) and (sums[:, 2] == 13).all()
    assert (data.bayes_loss, data.bayes_accuracy) == (0.0, 1.0)
    with pytest.raises(InvalidInputError, match="all the other 101 sums"):
        data.held_out(3)


def test_palindromes_are_told_by_their_label() -> None:
    data = PalindromeDataset(4000, half=3, n_symbols=3, seed=4)
    rows = data.tokens[:, :-1]
    agree = rows[:, :3] == rows[:, 3:].flip(1)
    assert torch.equal(agree.all(1).long(), data.labels[:, 0])
    assert 0.45 < float(data.labels.float().mean()) < 0.55
    # Spoiled rows fail at 1, 2 or 3 places, each as often.
    n_spoiled = torch.bincount((~agree).sum(1), minlength=4)[1:]
    assert (n_spoiled * 3 / n_spoiled.sum() - 1).abs().max() < 0.1
    assert (data.tokens[:, -1] == 3).all()


def test_a_hundred_thousand_samples_take_no_time() -> None:
    began = time.process_time()
    SkipTrigramDataset(100_000)
    assert time.process_time() - began < 1.0


def test_metrics_average_each_kind_apart() -> None:
    loss = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    right = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    signal = torch.tensor([[True, False], [True, True]])
    found = TaskMetrics.of(loss, right, signal)
    assert vars(found) == pytest.approx(
        {
            "loss": 3.0, "accuracy": 0.75, "signal_loss": 10 / 3, "signal_accuracy": 1.0,
            "noise_loss": 2.0, "noise_accuracy": 0.0,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SkipTrigramDataset(0), "size must be at least .*; got 0"),
        (lambda: SkipTrigramDataset(5, prob=0), "prob must be at least .*; got 0"),
        (lambda: SkipTrigramDataset(5, prompt_length=2), "prompt_length must be at least .*; got 2"),
        (lambda: SkipTrigramDataset(5, seed=-1), "seed is -1"),
        (lambda: SkipTrigramDataset.every_signal(10), "prompt_length is 10"),
        (lambda: InductionDataset(5, length=8, longest=8), "longest is 8; with length 7"),
        (lambda: InductionDataset(5, length=8, shortest=5), "longest must be at least 5; got 4"),
        (lambda: InductionDataset(5, d_vocab=10), "longest is 16; with d_vocab 10"),
        (lambda: ModularAdditionDataset(p=1), "p must be at least .*; got 1"),
        (lambda: ModularAdditionDataset(p=5, fraction=1.0), "fraction is 1.0"),
        (lambda: PalindromeDataset(5, n_symbols=1), "n_symbols must be at least .*; got 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make()
