"""The induction task: rows that repeat a random sequence of tokens, each with a period of its own."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.data.tasks.base import TaskDataset, log_or_zero, new_generator
from headscope.errors import InvalidInputError, check_at_least

__all__ = ["InductionDataset"]


class InductionDataset(TaskDataset):
    """Rows of repeated sequences ("blocks"); every position but the last answers with the next token.

    A block is drawn without replacement, so no token is in it twice. Its length is drawn for each row, so that looking
    back by a fixed distance does not help: the model has to find the earlier occurrence of the current token and copy
    the token after it (an induction head).

    Write `L` for the length of a row's block, uniform on `shortest` to `longest`, and `t` for a position, from 0. From
    `t = L` on, the current token has been seen before and determines the next one: signal, with loss 0. Before, all
    tokens seen differ; the next one repeats the first token if the block ends here, which happens with probability
    `h = 1 / (longest - max(t + 1, shortest) + 1)` if `t + 1 >= shortest` and `h = 0` before; otherwise it is any of the
    `n = d_vocab - t - 1` tokens not seen yet. Such an answer is noise: its entropy is
    `-h log h - (1 - h) log((1 - h) / n)`, its likeliest value has probability `max(h, (1 - h) / n)`. `bayes_loss` and
    `bayes_accuracy` are the means over all answers.

    Args:
        size: Number of rows.
        length: Tokens in a row.
        d_vocab: Number of tokens in the vocabulary.
        shortest: Tokens in the shortest block.
        longest: Tokens in the longest block; half a row by default.
        seed: Seed of the draw; the global generator is untouched.

    Raises:
        InvalidInputError: If a number is too small, a block longer than its row or than the vocabulary, or `longest`
            below `shortest`.

    Attributes:
        block_lengths: Tokens in each row's block, `[sample]`.

    Example:
        >>> data = InductionDataset(3, length=12, d_vocab=20, shortest=3, seed=1)
        >>> data.tokens
        tensor([[ 4,  1, 13,  6,  2,  4,  1, 13,  6,  2,  4,  1],
                [ 8, 14, 13,  1, 15, 19,  8, 14, 13,  1, 15, 19],
                [10, 17,  6,  4, 11,  1, 10, 17,  6,  4, 11,  1]])
        >>> data.block_lengths
        tensor([5, 6, 6])
    """

    task = "induction"

    def __init__(
        self,
        size: int,
        length: int = 32,
        d_vocab: int = 32,
        shortest: int = 4,
        longest: int | None = None,
        seed: int = 0,
    ) -> None:
        longest = length // 2 if longest is None else longest
        check_at_least(1, size=size, shortest=shortest)
        check_at_least(shortest, longest=longest)
        check_at_least(2, length=length)
        for name, limit in (("length", length - 1), ("d_vocab", d_vocab)):
            if longest > limit:
                raise InvalidInputError(
                    f"longest is {longest}; with {name} {limit} blocks have at most {limit} tokens."
                )
        generator = new_generator(seed)
        blocks = torch.rand(size, d_vocab, generator=generator, device="cpu").argsort(dim=1)
        lengths = torch.randint(shortest, longest + 1, (size,), generator=generator, device="cpu")
        position = torch.arange(length, device="cpu")
        tokens = blocks.gather(1, position % lengths[:, None])
        signal = position[:-1] >= lengths[:, None]
        entropy, likeliest = _before_the_block_ends(length - 1, d_vocab, shortest, longest)
        super().__init__(
            tokens=tokens,
            labels=tokens[:, 1:],
            signal=signal,
            answer_positions=range(length - 1),
            best_loss=torch.where(signal, 0.0, entropy),
            best_accuracy=torch.where(signal, 1.0, likeliest),
            d_vocab=d_vocab,
            options={
                "size": size,
                "length": length,
                "d_vocab": d_vocab,
                "shortest": shortest,
                "longest": longest,
                "seed": seed,
            },
        )
        self.block_lengths: Int[Tensor, " sample"] = lengths


def _before_the_block_ends(
    n: int, d_vocab: int, shortest: int, longest: int
) -> tuple[Float[Tensor, " pos"], Float[Tensor, " pos"]]:
    """Entropy of the next token, and probability of the likeliest one, while all tokens so far differ."""
    entropy, likeliest = torch.zeros(n, device="cpu"), torch.ones(n, device="cpu")
    for t in range(min(n, longest)):
        ends = 1.0 / (longest - max(t + 1, shortest) + 1) if t + 1 >= shortest else 0.0
        new = d_vocab - t - 1
        surprise = sum(-p * math.log(p) for p in (ends, 1.0 - ends) if p > 0)
        entropy[t] = surprise + (1.0 - ends) * log_or_zero(new)
        likeliest[t] = max(ends, (1.0 - ends) / new if new else 0.0)
    return entropy, likeliest
