"""Next-token loss and accuracy, one pair of positions at a time."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sizes import SetBudget

from headscope.errors import InvalidInputError
from headscope.ops.losses import lm_accuracy, lm_cross_entropy_loss


def naive(logits: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> list[list[float | None]]:
    rows: list[list[float | None]] = []
    for row in range(tokens.shape[0]):
        losses: list[float | None] = []
        for at in range(tokens.shape[1] - 1):
            if mask[row, at] and mask[row, at + 1]:
                weights = [math.exp(value) for value in logits[row, at].tolist()]
                losses.append(-math.log(weights[int(tokens[row, at + 1])] / sum(weights)))
            else:
                losses.append(None)
        rows.append(losses)
    return rows


@given(st.integers(1, 3), st.integers(2, 5), st.integers(2, 6), st.integers(0, 10**6), st.booleans())
def test_the_loss(batch: int, length: int, d_vocab: int, seed: int, as_bool: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, length, d_vocab, generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, d_vocab, (batch, length), generator=generator)
    mask = torch.randint(0, 2, (batch, length), generator=generator)
    mask[0, :2] = 1
    for given_mask, used in ((None, torch.ones_like(mask)), (mask.bool() if as_bool else mask, mask)):
        expected = naive(logits, tokens, used)
        counted = [loss for row in expected for loss in row if loss is not None]
        found = lm_cross_entropy_loss(logits, tokens, given_mask)
        torch.testing.assert_close(float(found), sum(counted) / len(counted))
        per_token = lm_cross_entropy_loss(logits, tokens, given_mask, per_token=True)
        torch.testing.assert_close(
            per_token, torch.tensor([[loss or 0.0 for loss in row] for row in expected]).double()
        )
        right = [
            [loss is not None and max(range(d_vocab), key=logits[i, j].tolist().__getitem__) == tokens[i, j + 1]
             for j, loss in enumerate(row)]
            for i, row in enumerate(expected)
        ]  # fmt: skip
        correct = lm_accuracy(logits, tokens, per_token=True, attention_mask=given_mask)
        assert correct.dtype == torch.bool and correct.tolist() == right
        accuracy = float(lm_accuracy(logits, tokens, attention_mask=given_mask))
        assert accuracy == pytest.approx(sum(map(sum, right)) / len(counted))


def test_padding_with_wild_logits_adds_nothing() -> None:
    logits = torch.zeros(1, 4, 3)
    logits[0, 2:] = torch.nan
    mask = torch.tensor([[1, 1, 1, 0]])
    loss = lm_cross_entropy_loss(logits[:, :3], torch.zeros(1, 3).long(), mask[:, :3], per_token=True)
    assert bool(loss.isfinite().all())
    whole = lm_cross_entropy_loss(logits, torch.zeros(1, 4).long(), mask, per_token=True)
    assert whole[0, 2] == 0 and float(whole[0, 0]) == pytest.approx(math.log(3))


@pytest.mark.parametrize("tile", [1, 20, 2**26])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_rows_some_at_a_time_are_all_of_them(tile: int, lead: tuple[int, ...], set_budget: SetBudget) -> None:
    set_budget(loss_logits=tile)
    logits = torch.randn(*lead, 5, 7, dtype=torch.float64)
    tokens = torch.randint(0, 7, (*lead, 5), dtype=torch.int32)
    wanted = -logits.log_softmax(-1)[..., :-1, :].gather(-1, tokens[..., 1:, None].long())[..., 0]
    torch.testing.assert_close(lm_cross_entropy_loss(logits, tokens, per_token=True), wanted)
    torch.testing.assert_close(lm_cross_entropy_loss(logits, tokens), wanted.mean())
    scattered = logits.transpose(-1, -2).contiguous().transpose(-1, -2)
    torch.testing.assert_close(lm_cross_entropy_loss(scattered, tokens, per_token=True), wanted)


def test_gradients() -> None:
    tokens, mask = torch.tensor([[1, 2, 0, 3]]), torch.tensor([[1, 1, 1, 0]])
    logits = torch.randn(1, 4, 5, dtype=torch.float64, requires_grad=True)
    for given_mask in (None, mask):
        assert torch.autograd.gradcheck(lambda x, m=given_mask: lm_cross_entropy_loss(x, tokens, m), logits)
    (gradient,) = torch.autograd.grad(lm_cross_entropy_loss(logits, tokens, mask), logits)
    assert bool((gradient[:, 2:] == 0).all()) and bool((gradient[:, :2] != 0).all())


def test_no_pair_counts() -> None:
    logits, tokens = torch.zeros(1, 2, 3), torch.zeros(1, 2).long()
    mask = torch.tensor([[1, 0]])
    assert bool(lm_cross_entropy_loss(logits, tokens, mask).isnan())
    assert bool(lm_accuracy(logits, tokens, attention_mask=mask).isnan())
    assert lm_cross_entropy_loss(logits[:, :1], tokens[:, :1], per_token=True).shape == (1, 0)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4), (2, 4)), ((2, 4), (2, 4), (2, 3)), ((4,), (2, 4), None)])
def test_shapes_that_do_not_fit_are_told(shapes: tuple[Any, ...]) -> None:
    tokens_shape, logits_shape, mask_shape = shapes
    mask = None if mask_shape is None else torch.ones(mask_shape).long()
    for function in (lm_cross_entropy_loss, lm_accuracy):
        with pytest.raises((InvalidInputError, TypeError), match="logits must be|violates type hint"):
            function(torch.zeros(*logits_shape, 5), torch.zeros(tokens_shape).long(), attention_mask=mask)
