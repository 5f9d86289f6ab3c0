"""The skip-trigram task: two operands, far apart, and an arbitrary lookup table over unordered pairs of them."""

import math

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headscope.data.tasks.base import TaskDataset, new_generator
from headscope.errors import InvalidInputError, check_at_least

__all__ = ["SkipTrigramDataset"]

_N_TOKENS = 11
_OPERANDS = (1, 2, 3, 4)
_FIRST_NOISE = 5
_QUERY = 0
_LONGEST_LISTED = 9  # 746,496 prompts


class SkipTrigramDataset(TaskDataset):
    """Prompts over 11 tokens, each a signal (with probability `1 / prob`) or noise.

    In a signal the first token and the last but one are *operands*, drawn from 1 to 4, the last token is 0, and the
    label is that of the unordered pair in `ANSWERS`. All other tokens are drawn from 5 to 10. Noise consists of such
    tokens only, with an unpredictable label drawn from 0 to 10.

    The best predictor knows a signal's label (loss 0, accuracy 1) and gives every label of noise the same probability
    (loss log 11, accuracy 1/11). With a share `s` of signal, `bayes_loss` is `(1 - s) log 11` and `bayes_accuracy`
    `s + (1 - s) / 11`: 1.199 and 0.545 for `s = 1/2`.

    Operands are drawn independently, so a pair of equal ones, `(1, 1)`, `(2, 2)`, ..., is half as frequent as a pair of
    different ones; `equal_pairs=True` makes all ten pairs equally likely.

    Args:
        size: Number of samples.
        prob: One in this many is a signal.
        prompt_length: Tokens in a prompt.
        seed: Seed of the draw; the global generator is untouched.
        equal_pairs: Draw all unordered pairs of operands equally often.

    Raises:
        InvalidInputError: If `size` or `prob` is below 1, `prompt_length` below 3, or the seed out of range.

    Attributes:
        operands: Both operands of a signal, zeros for noise, `[sample, 2]`.

    Example:
        >>> data = SkipTrigramDataset(1000, prob=2, prompt_length=4, seed=1)
        >>> for index in data.is_signal.nonzero()[:3, 0]:
        ...     print(data.tokens[index].tolist(), data.labels[index].tolist())
        [1, 8, 3, 0] [2]
        [1, 7, 2, 0] [1]
        [4, 8, 3, 0] [8]
        >>> round(data.bayes.noise_loss, 3), data.bayes.signal_accuracy
        (2.398, 1.0)
    """

    task = "skip-trigram"
    ANSWERS = {
        (1, 1): 0, (1, 2): 1, (1, 3): 2, (1, 4): 3, (2, 2): 4, (2, 3): 5, (2, 4): 6, (3, 3): 7, (3, 4): 8, (4, 4): 9,
    }  # fmt: skip

    def __init__(
        self, size: int, prob: int = 2, prompt_length: int = 4, seed: int = 42, equal_pairs: bool = False
    ) -> None:
        check_at_least(1, size=size, prob=prob)
        check_at_least(3, prompt_length=prompt_length)
        generator = new_generator(seed)

        def draw(low: int, high: int, *shape: int) -> Tensor:
            return torch.randint(low, high, shape, generator=generator, device="cpu")

        signal = draw(0, prob, size) == prob - 1
        operands = draw(min(_OPERANDS), max(_OPERANDS) + 1, size, 2)
        if equal_pairs:
            # `ANSWERS` lists each pair with its smaller operand first; swap half of them, so that both orders occur.
            pairs = torch.tensor(list(self.ANSWERS), device="cpu")[draw(0, len(self.ANSWERS), size)]
            operands = torch.where(draw(0, 2, size, 1).bool(), pairs, pairs.flip(1))
        operands = operands * signal[:, None]
        tokens = draw(_FIRST_NOISE, _N_TOKENS, size, prompt_length)
        query = torch.full((size,), _QUERY, device="cpu")
        for place, values in ((0, operands[:, 0]), (-2, operands[:, 1]), (-1, query)):
            tokens[:, place] = torch.where(signal, values, tokens[:, place])
        labels = torch.where(signal, self.label_table()[operands[:, 0], operands[:, 1]], draw(0, _N_TOKENS, size))
        super().__init__(
            tokens=tokens,
            labels=labels[:, None],
            signal=signal[:, None],
            answer_positions=range(prompt_length - 1, prompt_length),
            best_loss=torch.where(signal, 0.0, math.log(_N_TOKENS))[:, None],
            best_accuracy=torch.where(signal, 1.0, 1.0 / _N_TOKENS)[:, None],
            d_vocab=_N_TOKENS,
            options={
                "size": size,
                "prob": prob,
                "prompt_length": prompt_length,
                "seed": seed,
                "equal_pairs": equal_pairs,
            },
        )
        self.operands = operands

    @property
    def is_signal(self) -> Bool[Tensor, " sample"]:
        """True for samples whose prompt determines the answer."""
        return self.signal[:, 0]

    @classmethod
    def label_table(cls) -> Int[Tensor, "operand other"]:
        """Return the label of each ordered pair of operands, `[5, 5]`; −1 where one is 0, which is not an operand."""
        table = torch.full((max(_OPERANDS) + 1,) * 2, -1, device="cpu")
        for (low, high), label in cls.ANSWERS.items():
            table[low, high] = table[high, low] = label
        return table

    @classmethod
    def every_signal(cls, prompt_length: int = 4) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, " prompt"]]:
        """List every possible signal prompt and its label: 16 pairs times 6 fillers for each place between.

        Raises:
            InvalidInputError: If `prompt_length` is below 3, or above 9, where there are too many to list.

        Example:
            >>> tokens, labels = SkipTrigramDataset.every_signal()
            >>> tokens.shape, labels.unique().tolist()
            (torch.Size([96, 4]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
        """
        check_at_least(3, prompt_length=prompt_length)
        if prompt_length > _LONGEST_LISTED:
            raise InvalidInputError(
                f"prompt_length is {prompt_length}; above {_LONGEST_LISTED} there are too many prompts to list."
            )
        operand = torch.tensor(_OPERANDS, device="cpu")
        filler, query = torch.arange(_FIRST_NOISE, _N_TOKENS, device="cpu"), torch.tensor([_QUERY], device="cpu")
        tokens = torch.cartesian_prod(operand, *[filler] * (prompt_length - 3), operand, query)
        return tokens, cls.label_table()[tokens[:, 0], tokens[:, -2]]
