"""Toy models taken apart: parts that sum to the logits, circuits that make them, operands, and causal masking."""

import pytest
import torch
from tiny import randomize
from torch.nn import functional as F

from headscope import HookedTransformer
from headscope.data.tasks import PalindromeDataset, SkipTrigramDataset
from headscope.errors import InvalidInputError
from headscope.training import toy_configs
from headscope.training.toy_study import head_logits, heads_needed, operand_study, token_circuits

PAIRS = SkipTrigramDataset.ANSWERS


def random_model(**fields) -> HookedTransformer:
    """Every parameter random, biases and embeddings too."""
    model = HookedTransformer(
        toy_configs.skip_trigram(n_heads=2, d_head=3, device="cpu", dtype=torch.float64, **fields)
    )
    randomize(model, spread=0.8)
    return model


def test_the_parts_sum_to_the_logits() -> None:
    model = random_model(n_layers=2, positional_embedding_type="standard")
    tokens = SkipTrigramDataset(20, seed=1).tokens
    for position in (-1, 1):
        parts = head_logits(model, tokens, position=position)
        torch.testing.assert_close(parts.total, model(tokens)[:, position], rtol=0, atol=1e-12)
    # Biases of the output belong to no head.
    with torch.no_grad():
        model.blocks[1].attn.b_O.add_(1.0)
    again = head_logits(model, tokens, position=1)
    assert torch.equal(again.heads, parts.heads)
    torch.testing.assert_close(again.bias[1] - parts.bias[1], model.W_U.sum(0), rtol=0, atol=1e-12)


def test_a_heads_part_is_what_goes_without_it() -> None:
    model = random_model()
    tokens = SkipTrigramDataset(20, seed=1).tokens
    parts = head_logits(model, tokens)
    for head in range(2):

        def silence(z, hook, head=head):
            z[:, :, head] = 0.0
            return z

        without = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_z", silence)])[:, -1]
        torch.testing.assert_close(model(tokens)[:, -1] - without, parts.heads[:, 0, head], rtol=0, atol=1e-12)


def test_circuits_give_attention_and_logits() -> None:
    model = random_model()
    tokens = SkipTrigramDataset(20, seed=1).tokens
    circuits = token_circuits(model)
    last = tokens[:, -1]
    scores = circuits.qk[:, last[:, None], tokens].transpose(0, 1)  # [sample, head, key_pos]
    _, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(scores, cache["attn_scores", 0][:, :, -1], rtol=0, atol=1e-12)
    written = torch.einsum("shk,hskv->shv", scores.softmax(-1), circuits.ov[:, tokens]) + circuits.ov_bias
    torch.testing.assert_close(written, head_logits(model, tokens).heads[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("prompt_length", [3, 5])
def test_the_operand_study_is_the_mean_over_fillers(prompt_length: int) -> None:
    model = random_model(n_ctx=5)
    study = operand_study(model, prompt_length)
    tokens, labels = SkipTrigramDataset.every_signal(prompt_length)
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    parts = head_logits(model, tokens).heads[:, 0]
    for a in range(4):
        for b in range(4):
            chosen = (tokens[:, 0] == a + 1) & (tokens[:, -2] == b + 1)
            label = PAIRS[min(a, b) + 1, max(a, b) + 1]
            assert (labels[chosen] == label).all()
            final = logits[chosen, -1]
            loss = F.cross_entropy(final, labels[chosen])
            others = torch.cat([final[:, :label], final[:, label + 1 :]], dim=1).amax(1)
            margin = final[:, label] - others
            assert float(study.loss[a, b]) == pytest.approx(float(loss))
            assert float(study.margin[a, b]) == pytest.approx(float(margin.mean()))
            assert float(study.smallest_margin[a, b]) == pytest.approx(float(margin.min()))
            assert float(study.accuracy[a, b]) == pytest.approx(float((margin > 0).double().mean()))
            pattern = cache["pattern", 0][chosen][:, :, -1].mean(0)
            expected = torch.stack([pattern[:, 0], pattern[:, -2], pattern[:, 1:-2].sum(1), pattern[:, -1]], dim=1)
            torch.testing.assert_close(study.attention[0, :, :, a, b], expected, rtol=0, atol=1e-12)
            torch.testing.assert_close(
                study.logits[0, :, a, b], (parts[chosen] - parts.mean(0)).mean(0), rtol=0, atol=1e-12
            )
            flat = final - (parts[chosen, 1] - parts[:, 1].mean(0))
            without = flat[:, label] - torch.cat([flat[:, :label], flat[:, label + 1 :]], dim=1).amax(1)
            assert float(study.margin_without[0, 1, a, b]) == pytest.approx(float(without.mean()))
    same = [study.margin[i, i] for i in range(4)]
    assert study.repeated.margin == pytest.approx(float(sum(same)) / 4)
    assert study.mixed.loss == pytest.approx(float(study.loss.sum() - study.loss.trace()) / 12)
    assert study.repeated.smallest_margin == pytest.approx(float(study.smallest_margin.diagonal().min()))


def test_without_positions_operands_cannot_be_told_apart() -> None:
    study = operand_study(random_model())
    torch.testing.assert_close(study.logits, study.logits.transpose(2, 3), rtol=0, atol=1e-12)
    with_positions = operand_study(random_model(positional_embedding_type="standard"))
    assert (with_positions.logits - with_positions.logits.transpose(2, 3)).abs().max() > 1e-3


def test_additive_heads_and_what_they_carry() -> None:
    """With scores that are all zero, a head's output is a mean over tokens: a sum over operands."""
    model = random_model()
    with torch.no_grad():
        model.blocks[0].attn.W_Q.zero_()
        model.blocks[0].attn.b_Q.zero_()
        model.blocks[0].attn.W_V[1, :, :] = 0.0
        model.blocks[0].attn.W_V[0, :, :] = 0.0
        model.embed.W_E.copy_(torch.eye(11))
        model.blocks[0].attn.W_V[0, 3, 0] = 1.0  # head 0 reads nothing but token 3
        model.blocks[0].attn.W_V[1, 1:5, 0] = 1.0  # head 1 cannot tell operands apart
    study = operand_study(model)
    assert float(study.additive[0, 0]) == pytest.approx(1.0)
    carried = study.carried[0]
    assert int(carried[0].argmax()) == 2 and float(carried[0, 2]) > 2.5 * float(carried[0, [0, 1, 3]].max())
    assert float(carried[1].max()) < 1e-12
    # Attending as well makes it more than a sum.
    assert 0 < float(operand_study(random_model()).additive.min()) < 0.999


def test_causal_masking_is_by_position_where_scores_are_exactly_zero() -> None:
    model = toy_configs.one_hot(HookedTransformer(toy_configs.skip_trigram(device="cpu")))
    with torch.no_grad():
        model.blocks[0].attn.W_Q.zero_()
    tokens = SkipTrigramDataset(8, seed=1).tokens
    logits, cache = model.run_with_cache(tokens)
    visible = torch.ones(4, 4).tril()
    assert (cache["attn_scores", 0][:, :, visible.bool()] == 0).all()
    expected = (visible / visible.sum(1, keepdim=True)).expand(8, 3, 4, 4)
    torch.testing.assert_close(cache["pattern", 0], expected, rtol=0, atol=1e-6)
    # And so where nobody looks: what comes after a position changes nothing at it.
    changed = tokens.clone()
    changed[:, 2:] = (changed[:, 2:] + 3) % 11
    assert torch.equal(model(tokens)[:, :2], model(changed)[:, :2])
    torch.testing.assert_close(model(tokens), logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fields", [{"attn_only": False, "act_fn": "relu"}, {"normalization_type": "LN"}])
def test_what_is_no_plain_sum_is_refused(fields) -> None:
    model = HookedTransformer(toy_configs.skip_trigram(device="cpu", **fields))
    for take_apart in (token_circuits, operand_study):
        with pytest.raises(InvalidInputError, match="not a sum over heads"):
            take_apart(model)


def test_what_is_not_there_is_refused() -> None:
    model = random_model()
    with pytest.raises(InvalidInputError, match="layer is 1"):
        token_circuits(model, layer=1)
    with pytest.raises(InvalidInputError, match="position is 4"):
        head_logits(model, torch.tensor([[1, 5, 2, 0]]), position=4)


@torch.no_grad()
def test_a_head_that_adds_its_mean_is_missed_by_what_it_did() -> None:
    model = HookedTransformer(
        toy_configs.palindrome(3, 2, d_model=8, n_heads=2, d_head=4, d_mlp=8, device="cpu", dtype=torch.float64)
    )
    randomize(model, spread=0.5)
    data = PalindromeDataset(40, half=2, n_symbols=3, seed=1)
    found = heads_needed(model, data)
    for layer, head in ((0, 1), (1, 0)):
        name = f"blocks.{layer}.attn.hook_result"
        model.cfg.use_attn_result = True
        _, cache = model.run_with_cache(data.tokens)
        mean = cache[name][:, :, head].mean(0)

        def put(result, hook, head=head, mean=mean):
            return torch.cat(
                [result[:, :, :head], mean.expand_as(result[:, :, head])[:, :, None], result[:, :, head + 1 :]], 2
            )

        logits = model.run_with_hooks(data.tokens, fwd_hooks=[(name, put)])[:, -1]
        loss = F.cross_entropy(logits, data.labels[:, 0])
        assert float(found.loss_without[layer, head]) == pytest.approx(float(loss), abs=1e-6)
        right = (logits.argmax(-1) == data.labels[:, 0]).double().mean()
        assert float(found.accuracy_without[layer, head]) == pytest.approx(float(right), abs=1e-6)
    plain = F.cross_entropy(model(data.tokens)[:, -1], data.labels[:, 0])
    assert found.loss == pytest.approx(float(plain), abs=1e-6), "no hook is left on the model"
