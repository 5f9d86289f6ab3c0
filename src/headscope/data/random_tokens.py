"""Repeated random tokens: sequences whose next token can be predicted only by looking back.

A sequence of uniformly random tokens is followed by the same sequence again. The first copy is unpredictable; the
second is fully predictable to a head that finds the earlier occurrence of the current token and attends to the token
after it (an induction head).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from headscope.errors import InvalidInputError, check_at_least

__all__ = ["repeated_random_tokens"]


def repeated_random_tokens(
    batch: int,
    length: int,
    *,
    d_vocab: int | None = None,
    allowed: Sequence[int] | Int[Tensor, " allowed"] | None = None,
    bos: int | None = None,
    n_repeats: int = 2,
    seed: int = 0,
) -> Int[Tensor, "batch pos"]:
    """Draw uniformly random tokens and repeat them.

    Args:
        batch: Number of sequences.
        length: Tokens in one copy. With `bos` a sequence has `1 + n_repeats * length` tokens, otherwise one fewer.
        d_vocab: Draw from all ids below this one, except `bos`. Give this or `allowed`.
        allowed: Draw from these ids only, each equally likely; an id given twice is twice as likely.
        bos: Token to put before every sequence.
        n_repeats: Number of copies in all; 1 gives random tokens without repetition.
        seed: Seed of the draw; the global generator is untouched.

    Raises:
        InvalidInputError: If a size is not positive, if both or neither of `d_vocab` and `allowed` are given,
            if no token is allowed, or if an allowed id is negative.

    Example:
        >>> repeated_random_tokens(2, 4, d_vocab=50, bos=0, seed=1)
        tensor([[ 0, 22, 25, 40,  4, 22, 25, 40,  4],
                [ 0, 39, 28, 15, 34, 39, 28, 15, 34]])
    """
    check_at_least(1, batch=batch, length=length, n_repeats=n_repeats)
    ids = _allowed_ids(d_vocab, allowed, bos)
    generator = torch.Generator().manual_seed(seed)
    copy = ids[torch.randint(len(ids), (batch, length), generator=generator, device="cpu")]
    tokens = copy.repeat(1, n_repeats)
    if bos is None:
        return tokens
    return torch.cat([torch.full((batch, 1), bos, dtype=torch.long, device="cpu"), tokens], dim=1)


def _allowed_ids(
    d_vocab: int | None, allowed: Sequence[int] | Int[Tensor, " allowed"] | None, bos: int | None
) -> Int[Tensor, " allowed"]:
    if (d_vocab is None) == (allowed is None):
        raise InvalidInputError(
            f"Give either d_vocab (draw from all ids) or allowed (draw from these); "
            f"d_vocab is {d_vocab} and allowed is {'missing' if allowed is None else 'given'}."
        )
    if allowed is not None:
        ids = torch.as_tensor(allowed, dtype=torch.long, device="cpu").flatten()
    else:
        assert d_vocab is not None
        ids = torch.arange(d_vocab, device="cpu")
        if bos is not None:
            ids = ids[ids != bos]
    if len(ids) == 0:
        raise InvalidInputError("No token is left to draw from; d_vocab or allowed must leave one id besides bos.")
    if int(ids.min()) < 0:
        raise InvalidInputError(f"Token id {int(ids.min())} is not allowed; ids start at 0.")
    return ids
