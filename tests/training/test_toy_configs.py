"""Configs and recipes of toy models: what is learned, what stays, and that recipes reach what they say."""

import pytest
import torch

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis.heads.types import detect_heads
from headscope.errors import InvalidInputError, UnknownNameError
from headscope.training import toy_configs
from headscope.training.toy import train
from headscope.training.toy_fourier import fourier_power
from headscope.training.toy_tasks import (
    induction_task,
    modular_addition_task,
    palindrome_task,
    skip_trigram_task,
    toy_task,
)


def test_one_hot_embeddings_are_identities_and_stay() -> None:
    task = skip_trigram_task(size=200, device="cpu")
    model = task.model
    train(model, task.data, task.training, progress=False)
    assert torch.equal(model.W_E, torch.eye(11)) and torch.equal(model.W_U, torch.eye(11))
    assert not model.b_U.any()
    before = toy_configs.one_hot(HookedTransformer(toy_configs.skip_trigram(device="cpu")))
    assert not torch.equal(model.W_V, before.W_V)
    tokens = task.data.tokens[:5]
    _, cache = model.run_with_cache(tokens)
    assert torch.equal(cache["embed"], torch.nn.functional.one_hot(tokens, 11).float())


def test_a_stream_too_narrow_for_one_hot_tokens_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="d_model is 8"):
        toy_configs.one_hot(HookedTransformer(toy_configs.skip_trigram(d_model=8, device="cpu")))


@pytest.mark.parametrize("name", ["skip_trigram", "induction", "modular_addition", "palindrome"])
def test_configs_are_plain_and_take_other_values(name: str) -> None:
    maker = getattr(toy_configs, name)
    cfg = maker(seed=5, device="cpu")
    assert type(cfg) is HookedTransformerConfig and cfg.seed == 5
    assert HookedTransformer(cfg)(torch.zeros(1, 2, dtype=torch.long)).shape == (1, 2, cfg.d_vocab)
    with pytest.raises(UnknownNameError, match="n_head"):
        maker(n_head=2)


def test_tasks_by_name() -> None:
    for name in ("skip-trigram", "induction", "palindrome"):
        task = toy_task(name, seed=3, size=64, device="cpu")
        assert task.data.task == name and task.data.options["seed"] == 3 == task.training.seed == task.model.cfg.seed
        assert task.model.cfg.d_vocab == task.data.d_vocab and len(task.data) == 64
    with pytest.raises(UnknownNameError, match="'skip-trigram'"):
        toy_task("skip-trigrams")


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))])
def test_the_skip_trigram_recipe_solves_its_task(seed: int) -> None:
    task = skip_trigram_task(seed, device="cpu")
    assert (task.model.cfg.n_heads, task.model.cfg.d_head) == (3, 1)
    result = train(task.model, task.data, task.training, validation=task.validation, progress=False)
    assert result.final.signal_accuracy >= 0.999
    # Nothing is to be had from noise but its spread.
    assert abs(result.final.noise_loss - result.bayes.noise_loss) < 0.1


@pytest.mark.slow
def test_the_induction_recipe_makes_an_induction_head() -> None:
    task = induction_task(device="cpu")
    result = train(task.model, task.data, task.training, validation=task.validation, progress=False)
    assert result.final.signal_accuracy > 0.99
    found = detect_heads(task.model, progress=False)
    previous, induction = found.heads("previous_token"), found.heads("induction")
    assert induction[0].value >= 0.9 and {head.layer for head in induction} == {1}
    assert previous and {head.layer for head in previous} == {0}
    # What the keys of the strong induction heads read is what previous-token heads wrote, above all else.
    named = torch.zeros(task.model.cfg.n_heads, dtype=torch.bool)
    named[[head.head for head in previous]] = True
    unrelated = task.model.cfg.d_model**-0.5
    for head in induction:
        if head.value >= 0.9:
            read = found.composition[found.composition_heads.tolist().index([head.layer, head.head]), 0]
            assert float(read[named].mean()) > float(read[~named].max())
            assert float(read[named].mean()) > 1.3 * unrelated


@pytest.mark.slow
@pytest.mark.parametrize(("p", "fraction", "seed"), [(113, 0.3, 0), (47, 0.5, 2)])
def test_the_modular_addition_recipe_learns_by_heart_and_then_to_add(p: int, fraction: float, seed: int) -> None:
    """Both stay at their table, as far as they are followed, with a weight decay of 1."""
    task = modular_addition_task(seed, p=p, fraction=fraction, device="cpu")
    result = train(task.model, task.data, task.training, validation=task.validation, progress=False)
    assert result.final.accuracy > 0.99
    assert result.validation is not None
    by_heart, grokked = result.train.reached(), result.validation.reached()
    # Of 30 % of a table it is 85 to 365 steps later (seeds 0 to 4): known by heart late, and not long before the rule.
    assert by_heart is not None and grokked is not None and grokked >= by_heart + 60
    later = result.validation.step >= by_heart
    assert float(result.validation.accuracy[later][0]) < 0.7, "it could add as soon as it knew its table"
    # By turning circles of a few speeds.
    before = fourier_power(modular_addition_task(seed, p=p, device="cpu").model.W_E[:p])
    after = fourier_power(task.model.W_E[:p])
    assert float(before.topk(6).values.sum()) < 0.4 and float(after.topk(6).values.sum()) > 0.9


@pytest.mark.slow
def test_the_palindrome_recipe_solves_its_task() -> None:
    task = palindrome_task(device="cpu")
    result = train(task.model, task.data, task.training, validation=task.validation, progress=False)
    assert result.final.accuracy > 0.97


def test_positions_to_look_back_by() -> None:
    model = toy_configs.easy_positions(HookedTransformer(toy_configs.induction(device="cpu")))
    assert not model.pos_embed.W_pos.requires_grad and model.W_E.requires_grad
    # A product of two positions depends on how far apart they are alone, and is highest for the same one.
    products = (model.W_pos @ model.W_pos.T).detach()
    for offset in (0, 1, 7):
        assert float(products.diagonal(offset).std()) < 1e-4
    assert float(products[10, 10]) > 1.2 * float(products[10, 9])
    assert 0.45 < float(model.W_E.detach().std()) < 0.55
    with pytest.raises(InvalidInputError, match="positional_embedding_type is 'none'"):
        toy_configs.easy_positions(HookedTransformer(toy_configs.skip_trigram(device="cpu")))


def test_modular_addition_is_made_of_the_two_parts_of_one_table() -> None:
    task = modular_addition_task(p=7, fraction=0.5, device="cpu")
    both = torch.cat([task.data.tokens, task.validation.tokens])
    assert len(both.unique(dim=0)) == 49 and task.training.batch_size == len(task.data)
