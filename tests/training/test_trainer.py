import math

import pytest
import torch

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.errors import InvalidInputError, NotFiniteError
from headscope.training.trainer import LanguageTrainConfig, train_language_model


@pytest.fixture
def model():
    cfg = HookedTransformerConfig(
        n_layers=1, d_model=16, n_ctx=12, d_head=8, d_vocab=7, act_fn="relu", seed=0, device="cpu"
    )
    return HookedTransformer(cfg)


def counting(n):
    """Rows that count upwards modulo 7 from a random start."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(n):
        yield (torch.randint(7, (8, 1), generator=generator) + torch.arange(12)) % 7


def test_a_pattern_is_learned(model):
    history = train_language_model(
        model, counting(120), LanguageTrainConfig(steps=120, lr=1e-2, warmup=10), progress=False
    )
    assert history.loss.shape == history.lr.shape == (120,)
    # The first token is as good as random, so that the loss starts near log 7; all else follows from it.
    assert abs(float(history.loss[0]) - math.log(7)) < 0.5
    assert float(history.loss[-1]) < 0.05
    assert history.n_tokens == 120 * 96 and history.seconds > 0
    assert not model.training


def test_the_same_seed_gives_the_same_weights(model):
    other = HookedTransformer(model.cfg)
    for each in (model, other):
        train_language_model(each, counting(5), LanguageTrainConfig(steps=5), progress=False)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_first_step_is_adamw_by_hand(model):
    """With one step Adam moves each weight by lr * sign(gradient), and decays the matrices alone."""
    batch = next(counting(1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(batch, return_type="loss").backward()
    signs = {name: p.grad.sign() for name, p in model.named_parameters()}
    large = {name: p.grad.abs() > 1e-4 for name, p in model.named_parameters()}
    cfg = LanguageTrainConfig(steps=1, lr=1e-2, warmup=0, weight_decay=0.5, max_grad_norm=1e6)
    train_language_model(model, [batch], cfg, progress=False)
    for name, parameter in model.named_parameters():
        is_matrix = name.rsplit(".", 1)[-1].startswith("W_")
        decayed = before[name] * (1 - 1e-2 * 0.5) if is_matrix else before[name]
        moved = (parameter - (decayed - 1e-2 * signs[name])).detach()[large[name]]
        assert moved.abs().max() < 1e-4 if moved.numel() else True
    assert sum(int(mask.sum()) for mask in large.values()) > 500


def test_frozen_parameters_stay(model):
    model.unembed.b_U.requires_grad_(False)
    train_language_model(model, counting(3), LanguageTrainConfig(steps=3), progress=False)
    assert not model.unembed.b_U.any()


def test_learning_rate_rises_and_falls():
    cfg = LanguageTrainConfig(steps=110, lr=2.0, warmup=10, final_lr=0.1)
    rates = [cfg.lr_at(step) for step in range(110)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[10] == 2.0
    assert rates[60] == pytest.approx(2.0 * 0.55)
    assert rates[-1] == pytest.approx(0.2, abs=1e-2)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_each_step_is_reported(model):
    seen = []
    train_language_model(model, counting(3), LanguageTrainConfig(steps=3), progress=False, on_step=seen.append)
    assert seen == [1, 2, 3]


def test_too_few_batches_are_refused(model):
    with pytest.raises(InvalidInputError, match="after 2 of 3"):
        train_language_model(model, counting(2), LanguageTrainConfig(steps=3), progress=False)
    assert not model.training


def test_a_loss_that_is_not_finite_stops_training(model):
    with torch.no_grad():
        model.embed.W_E[3, 0] = float("nan")
    with pytest.raises(NotFiniteError, match="step 1"):
        train_language_model(model, counting(2), LanguageTrainConfig(steps=2), progress=False)


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("lr", 0.0), ("warmup", -1), ("final_lr", 1.5), ("max_grad_norm", 0.0)]
)
def test_numbers_out_of_range_are_refused(field, value):
    with pytest.raises(InvalidInputError, match=f"{field} (is|must be at least .; got) {value}"):
        LanguageTrainConfig(**{"steps": 5, field: value})
