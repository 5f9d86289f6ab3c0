import pytest
import torch

from headscope.data.random_tokens import repeated_random_tokens
from headscope.errors import InvalidInputError


def test_blocks_are_said_again_after_bos():
    tokens = repeated_random_tokens(3, 7, d_vocab=40, bos=39, n_repeats=3, seed=2)
    assert tokens.shape == (3, 22) and tokens.dtype == torch.long
    assert (tokens[:, 0] == 39).all()
    blocks = tokens[:, 1:].view(3, 3, 7)
    assert (blocks == blocks[:, :1]).all()
    assert (blocks != 39).all()
    assert not torch.equal(blocks[0], blocks[1])


def test_without_bos_there_is_nothing_in_front():
    assert repeated_random_tokens(2, 5, d_vocab=9).shape == (2, 10)


def test_every_allowed_token_is_equally_likely():
    allowed = torch.tensor([3, 8, 11, 200])
    tokens = repeated_random_tokens(100, 100, allowed=allowed, n_repeats=1, seed=0)
    counts = torch.bincount(tokens.flatten(), minlength=201)
    assert counts[allowed].sum() == 10_000
    # Four standard deviations of a binomial of 10,000 draws at 1/4.
    assert (counts[allowed] - 2500).abs().max() < 4 * (10_000 * 0.25 * 0.75) ** 0.5


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    first = repeated_random_tokens(2, 20, d_vocab=100, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, repeated_random_tokens(2, 20, d_vocab=100, seed=1))
    assert not torch.equal(first, repeated_random_tokens(2, 20, d_vocab=100, seed=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be at least .*; got 0"),
        ({"length": -2}, "length must be at least .*; got -2"),
        ({"n_repeats": 0}, "n_repeats must be at least .*; got 0"),
        ({"d_vocab": None}, "either d_vocab"),
        ({"allowed": [1]}, "either d_vocab"),
        ({"d_vocab": 1, "bos": 0}, "No token is left"),
        ({"d_vocab": None, "allowed": []}, "No token is left"),
        ({"d_vocab": None, "allowed": [4, -1]}, "-1"),
    ],
)
def test_bad_options_are_refused(options, message):
    arguments = {"batch": 2, "length": 3, "d_vocab": 10, **options}
    with pytest.raises(InvalidInputError, match=message):
        repeated_random_tokens(arguments.pop("batch"), arguments.pop("length"), **arguments)
