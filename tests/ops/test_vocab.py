"""Reductions over the vocabulary against all the logits at once, in float64."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sizes import SetBudget
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.ops.devices import Tile
from headscope.ops.vocab import RunningMoments, summarize


@pytest.fixture(autouse=True, params=[Tile(3, 4), Tile(128, 528)], ids=["small tiles", "one tile"])
def _tiles(request: pytest.FixtureRequest, set_budget: SetBudget) -> None:
    set_budget(core_tile=request.param)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_logits(rows: Tensor, W_U: Tensor, b_U: Tensor | None, soft_cap: float) -> Tensor:
    logits = rows.double() @ W_U.double() + (0.0 if b_U is None else b_U.double())
    return soft_cap * torch.tanh(logits / soft_cap) if soft_cap else logits


def naive_entropy(logits: Tensor) -> Tensor:
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


@pytest.mark.parametrize("soft_cap", [0.0, 1.5])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "n, d_vocab, k", [(1, 1, 1), (7, 10, 3), (7, 13, 13), (3, 4, 4), (6, 8, 0), (2, 9, 5), (131, 70, 3)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_summary_equals_the_plain_one(
    soft_cap: float, bias: bool, n: int, d_vocab: int, k: int, dtype: torch.dtype
) -> None:
    rows, W_U = random(n, 6).to(dtype), random(6, d_vocab, seed=1, scale=2.0).to(dtype)
    b_U = random(d_vocab, seed=2).to(dtype) if bias else None
    targets = torch.randint(0, d_vocab, (n,), generator=torch.Generator().manual_seed(3))
    found = summarize(rows, W_U, b_U, targets=targets, k=k, soft_cap=soft_cap)
    logits = naive_logits(rows, W_U, b_U, soft_cap)
    log_probs = logits.log_softmax(-1)
    at = torch.arange(n)

    def close(value: Tensor | None, wanted: Tensor) -> None:
        assert value is not None and value.dtype == dtype
        torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-5)

    close(found.entropy, naive_entropy(logits))
    close(found.log_partition, logits.logsumexp(-1))
    close(found.target_log_prob, log_probs[at, targets])
    assert found.target_rank is not None
    own = logits[at, targets][:, None]
    # Near a cap, logits differ by less than float32 tells apart.
    near = 1e-6 if dtype == torch.float32 else 0.0
    assert bool(((logits > own + near).sum(-1) <= found.target_rank).all())
    assert bool((found.target_rank < (logits >= own - near).sum(-1)).all())
    values, tokens = log_probs.topk(k, dim=-1)
    close(found.top_log_probs, values)
    close(log_probs.gather(-1, found.top_tokens).to(dtype), values)
    assert dtype == torch.float32 or torch.equal(found.top_tokens, tokens)
    without = summarize(rows, W_U, b_U, soft_cap=soft_cap)
    assert without.target_log_prob is None and without.target_rank is None and without.top_tokens.shape == (n, 0)


def test_ties_do_not_outrank_the_target() -> None:
    W_U = torch.tensor([[2.0, 1.0, 2.0, 0.0, 1.0, 2.0, 1.0, 3.0, 1.0]])
    rows = torch.ones(9, 1)
    found = summarize(rows, W_U, targets=torch.arange(9))
    assert found.target_rank is not None
    assert found.target_rank.tolist() == [1, 4, 1, 8, 4, 1, 4, 0, 4]
    same = summarize(torch.zeros(4, 3), random(3, 9), targets=torch.tensor([0, 3, 5, 8]))
    assert same.target_rank is not None and same.target_rank.tolist() == [0] * 4


def test_a_target_never_outranks_itself_by_a_last_bit() -> None:
    rows, W_U = random(50, 97), random(97, 1, seed=1).expand(97, 11).contiguous()
    found = summarize(rows, W_U, targets=torch.arange(50) % 11)
    logits = rows @ W_U
    assert found.target_rank is not None
    assert int(found.target_rank.max()) <= 10
    assert bool((found.target_rank <= (logits > logits.amin(-1, keepdim=True)).sum(-1) + 10).all())
    torch.testing.assert_close(found.entropy.exp(), torch.full((50,), 11.0))


@pytest.mark.parametrize("scale", [1e4, 1e3, 1e-6])
def test_extreme_logits(scale: float) -> None:
    W_U = scale * torch.eye(9)
    rows = torch.cat([torch.eye(9), -torch.eye(9), torch.zeros(1, 9), torch.ones(1, 9)])
    targets = torch.arange(20) % 9
    found = summarize(rows, W_U, targets=targets, k=2)
    logits = naive_logits(rows, W_U, None, 0.0)
    log_probs = logits.log_softmax(-1)
    assert found.target_log_prob is not None
    for value, wanted in (
        (found.entropy, naive_entropy(logits)),
        (found.target_log_prob, log_probs[torch.arange(20), targets]),
        (found.top_log_probs, log_probs.topk(2, dim=-1).values),
        (found.log_partition, logits.logsumexp(-1)),
    ):
        assert bool(value.isfinite().all())
        torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=1e-6)
    assert bool((found.entropy >= -1e-6).all())


def test_a_log_probability_is_never_positive() -> None:
    rows, W_U = random(40, 64, scale=20.0), random(64, 30, seed=1, scale=4.0)
    likely = (rows @ W_U).argmax(-1)
    found = summarize(rows, W_U, targets=likely)
    assert found.target_log_prob is not None
    assert float(found.target_log_prob.max()) <= 0.0


def test_inputs_are_left_alone_and_empty_rows_give_empty_results() -> None:
    rows, W_U, b_U = random(5, 6), random(6, 10), random(10)
    copies = [tensor.clone() for tensor in (rows, W_U, b_U)]
    summarize(rows, W_U, b_U, targets=torch.arange(5), k=3)
    for tensor, copy in zip((rows, W_U, b_U), copies, strict=True):
        assert torch.equal(tensor, copy)
    nothing = summarize(rows[:0], W_U, b_U, targets=torch.arange(0), k=3)
    assert nothing.entropy.shape == (0,) and nothing.top_tokens.shape == (0, 3)


@pytest.mark.parametrize("options, message", [
    ({"k": 11}, "k must be between 0 and d_vocab = 10; got 11"),
    ({"k": -1}, "k must be"),
    ({"targets": torch.tensor([0, 1, 10])}, "between 0 and d_vocab - 1 = 9"),
    ({"targets": torch.tensor([0, -1, 1])}, "between 0 and d_vocab - 1 = 9"),
])  # fmt: skip
def test_what_is_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        summarize(random(3, 6), random(6, 10), **options)


@given(st.lists(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=5), min_size=1, max_size=5), st.randoms())
def test_moments_do_not_depend_on_tiles_or_their_order(tiles: list[list[float]], random_: Any) -> None:
    whole = torch.tensor([value for tile in tiles for value in tile], dtype=torch.float64)[None]
    for _ in range(2):
        random_.shuffle(tiles)
        moments = RunningMoments((1,))
        for tile in tiles:
            moments.add_logits(torch.tensor([tile], dtype=torch.float64))
        torch.testing.assert_close(moments.log_partition(), whole.logsumexp(-1), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(moments.entropy(), naive_entropy(whole), rtol=1e-9, atol=1e-9)


def test_moments_of_some_rows() -> None:
    moments = RunningMoments((2, 4))
    left, right = random(2, 2, 5).double(), random(2, 2, 5, seed=1).double()
    moments.add_logits(left, slice(0, 2))
    moments.add_logits(right, slice(2, 4))
    moments.add_logits(left[..., :3], slice(2, 4))
    torch.testing.assert_close(moments.entropy()[:, :2], naive_entropy(left))
    torch.testing.assert_close(moments.entropy()[:, 2:], naive_entropy(torch.cat([right, left[..., :3]], -1)))


def test_masked_tokens_in_a_summary() -> None:
    b_U = torch.zeros(10)
    b_U[:6] = -torch.inf  # the first tile and half of the second, where tiles are small
    summary = summarize(random(3, 6), torch.zeros(6, 10), b_U, targets=torch.tensor([7, 8, 9]), k=2)
    torch.testing.assert_close(summary.entropy, torch.full((3,), 4.0).log())
    torch.testing.assert_close(summary.target_log_prob, torch.full((3,), 0.25).log())
    assert bool((summary.top_tokens >= 6).all())
