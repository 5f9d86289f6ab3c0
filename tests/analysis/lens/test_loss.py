"""Next-token losses against the plain cross-entropy of all logits."""

import pytest
import torch
from small_models import small_model
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis.lens import loss as loss_module
from headscope.analysis.lens.loss import next_token_loss, predict_next_tokens
from headscope.errors import InvalidInputError, NotFiniteError


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return small_model()


def plain_loss(model: HookedTransformer, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    logits = model(tokens, attention_mask=mask).double().log_softmax(-1)
    return -logits[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


def test_it_is_the_cross_entropy(model: HookedTransformer) -> None:
    tokens = torch.randint(1, model.cfg.d_vocab, (5, 17))
    found = next_token_loss(model, tokens, progress=False)
    torch.testing.assert_close(found.double(), plain_loss(model, tokens), atol=1e-5, rtol=1e-5)


def test_a_soft_cap_counts() -> None:
    model = small_model(output_logits_soft_cap=0.5)
    tokens = torch.randint(1, model.cfg.d_vocab, (2, 9))
    found = next_token_loss(model, tokens, progress=False)
    torch.testing.assert_close(found.double(), plain_loss(model, tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_has_no_loss(model: HookedTransformer, side: str) -> None:
    tokens = torch.randint(1, model.cfg.d_vocab, (2, 8))
    mask = torch.ones_like(tokens)
    mask[0, slice(0, 3) if side == "left" else slice(5, 8)] = 0
    found = next_token_loss(model, tokens, attention_mask=mask, progress=False)
    counted = (mask[:, 1:] * mask[:, :-1]).bool()
    assert torch.equal(found.isnan(), ~counted)
    expected = plain_loss(model, tokens, mask.bool())
    torch.testing.assert_close(found.double()[counted], expected[counted], atol=1e-5, rtol=1e-5)


def test_batches_of_several_lengths_end_in_nan(model: HookedTransformer) -> None:
    batches = [torch.randint(1, model.cfg.d_vocab, (2, 6)), torch.randint(1, model.cfg.d_vocab, (1, 9))]
    found = next_token_loss(model, iter(batches), progress=False)
    assert found.shape == (3, 8)
    assert bool(found[:2, 5:].isnan().all()) and not bool(found[:2, :5].isnan().any())
    torch.testing.assert_close(found[2:].double(), plain_loss(model, batches[1]), atol=1e-5, rtol=1e-5)


def test_predictions_are_those_of_the_logits(model: HookedTransformer) -> None:
    tokens = torch.randint(1, model.cfg.d_vocab, (3, 7))
    found = predict_next_tokens(model, tokens, k=4, progress=False)
    probs = model(tokens).softmax(-1)[:, :-1]
    torch.testing.assert_close(found.top_probs, probs.topk(4).values, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(probs.gather(-1, found.top_tokens), found.top_probs, atol=1e-6, rtol=1e-5)
    own = probs.gather(-1, tokens[:, 1:, None])
    assert torch.equal(found.rank, (probs > own).sum(-1))


def test_logits_of_all_positions_are_never_held(model: HookedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    summarize = loss_module.summarize

    def watched(rows: Tensor, *args: object, **options: object) -> object:
        nonlocal largest
        largest = max(largest, len(rows))
        return summarize(rows, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loss_module, "summarize", watched)
    monkeypatch.setattr(type(model.unembed), "forward", lambda *_: pytest.fail("the unembedding was run whole"))
    next_token_loss(model, torch.randint(1, model.cfg.d_vocab, (200, 40)), progress=False)
    assert largest <= 2048


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(2, 1, dtype=torch.int64), "no position counts"),
        ([], "no position counts"),
        (torch.full((1, 4), 10_000), "tokens must be between 0"),
        ("a text", "Make tokens of text first"),
        (torch.zeros(1, 400, dtype=torch.int64), "context is n_ctx = 48"),
    ],
)
def test_bad_data_is_told(model: HookedTransformer, data: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        next_token_loss(model, data, progress=False)


def test_nan_weights_are_told() -> None:
    model = small_model()
    with torch.no_grad():
        model.blocks[1].mlp.W_out[0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match="NaN"):
        next_token_loss(model, torch.ones(1, 4, dtype=torch.int64), progress=False)
