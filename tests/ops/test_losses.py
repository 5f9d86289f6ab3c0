"""Next-token loss and accuracy, one pair of positions at a time."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
    correct = lm_accuracy(logits, tokens, per_token=True)
    assert torch.equal(correct, logits[:, :-1].argmax(-1) == tokens[:, 1:])
    assert float(lm_accuracy(logits, tokens)) == pytest.approx(float(correct.double().mean()))


def test_padding_with_wild_logits_adds_nothing() -> None:
    logits = torch.zeros(1, 4, 3)
    logits[0, 2:] = torch.nan
    mask = torch.tensor([[1, 1, 1, 0]])
    loss = lm_cross_entropy_loss(logits[:, :3], torch.zeros(1, 3).long(), mask[:, :3], per_token=True)
    assert bool(loss.isfinite().all())
    whole = lm_cross_entropy_loss(logits, torch.zeros(1, 4).long(), mask, per_token=True)
    assert whole[0, 2] == 0 and float(whole[0, 0]) == pytest.approx(math.log(3))
