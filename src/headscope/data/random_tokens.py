"""Repeated random tokens: sequences in which only looking back can tell what comes next.

A block of tokens drawn uniformly, then the same block again. On the first block nothing can be predicted; on
the second everything can, by a head that finds the earlier copy of the current token and reads what followed
it (an induction head).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from headscope.errors import InvalidInputError

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
    """Draw blocks of uniformly random tokens and say each block again.

    Args:
        batch: Number of sequences.
        length: Tokens in a block. With `bos` a sequence has `1 + n_repeats * length` tokens, else one fewer.
        d_vocab: Draw from all ids below this one, `bos` left out. Give this or `allowed`.
        allowed: Draw from these ids only, each equally likely; an id given twice is twice as likely.
        bos: Token to put in front of every sequence.
        n_repeats: How many times the block is said in all; 1 gives plain random tokens.
        seed: Seed of the draw; the global generator is left alone.

    Raises:
        InvalidInputError: If a size is not positive, if both or neither of `d_vocab` and `allowed` are given,
            if no token is allowed, or if an allowed id is negative.

    Example:
        >>> tokens = repeated_random_tokens(4, 10, d_vocab=50, bos=0, seed=1)
        >>> tokens.shape
        torch.Size([4, 21])
        >>> bool((tokens[:, 1:11] == tokens[:, 11:]).all() and (tokens[:, 1:] != 0).all())
        True
    """
    for name, value in (("batch", batch), ("length", length), ("n_repeats", n_repeats)):
        if value < 1:
            raise InvalidInputError(f"{name} is {value}; it must be 1 or more.")
    ids = _allowed_ids(d_vocab, allowed, bos)
    generator = torch.Generator().manual_seed(seed)
    block = ids[torch.randint(len(ids), (batch, length), generator=generator)]
    tokens = block.repeat(1, n_repeats)
    if bos is None:
        return tokens
    return torch.cat([torch.full((batch, 1), bos, dtype=torch.long), tokens], dim=1)


def _allowed_ids(
    d_vocab: int | None, allowed: Sequence[int] | Int[Tensor, " allowed"] | None, bos: int | None
) -> Int[Tensor, " allowed"]:
    if (d_vocab is None) == (allowed is None):
        raise InvalidInputError(
            f"Give d_vocab (draw from all ids) or allowed (draw from these), one of them; "
            f"d_vocab is {d_vocab} and allowed is {'missing' if allowed is None else 'given'}."
        )
    if allowed is not None:
        ids = torch.as_tensor(allowed, dtype=torch.long).flatten().cpu()
    else:
        assert d_vocab is not None
        ids = torch.arange(d_vocab)
        if bos is not None:
            ids = ids[ids != bos]
    if len(ids) == 0:
        raise InvalidInputError("No token is left to draw from; d_vocab or allowed must hold one id besides bos.")
    if int(ids.min()) < 0:
        raise InvalidInputError(f"Token id {int(ids.min())} is not allowed; ids start at 0.")
    return ids
