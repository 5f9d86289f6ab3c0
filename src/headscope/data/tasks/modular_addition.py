"""Modular addition: `a b =` answered by `(a + b) mod p`, with part of the table held out."""

import torch
from jaxtyping import Int
from torch import Tensor

from headscope.data.tasks.base import TaskDataset, new_generator, settled
from headscope.errors import InvalidInputError, check_at_least

__all__ = ["ModularAdditionDataset"]


class ModularAdditionDataset(TaskDataset):
    """A random part of the addition table modulo `p`: prompts `[a, b, p]`, where token `p` stands for `=`.

    Every answer follows from its prompt: `bayes_loss` is 0 and `bayes_accuracy` 1, also on the held-out part. Trained
    on a small part of the table with weight decay, a network memorizes it first and learns the rule much later (Power
    et al. 2022, "Grokking"; Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability").

    Args:
        p: The modulus; numbers are tokens 0 to `p - 1`.
        fraction: Share of the table used for training.
        seed: Seed of the split; the global generator is untouched.
        rest: Take the other part, which is held out from training.

    Raises:
        InvalidInputError: If `p` is below 2, or a part is empty.

    Attributes:
        p: The modulus.

    Example:
        >>> data = ModularAdditionDataset(p=7, fraction=0.5)
        >>> held_out = data.held_out()
        >>> len(data), len(held_out), data.d_vocab
        (24, 25, 8)
        >>> held_out[0]  # 7 stands for =
        (tensor([1, 3, 7]), tensor([4]))
    """

    task = "modular-addition"

    def __init__(self, p: int = 113, fraction: float = 0.3, seed: int = 0, rest: bool = False) -> None:
        check_at_least(2, p=p)
        n_training = round(fraction * p * p)
        if not 0 < n_training < p * p:
            raise InvalidInputError(
                f"fraction is {fraction}; it must be between 0 and 1, so that both parts have one of the {p * p} sums."
            )
        shuffled = torch.randperm(p * p, generator=new_generator(seed), device="cpu")
        chosen = shuffled[n_training:] if rest else shuffled[:n_training]
        a, b = chosen // p, chosen % p
        labels: Int[Tensor, "sample 1"] = ((a + b) % p)[:, None]
        super().__init__(
            tokens=torch.stack([a, b, torch.full_like(a, p)], dim=1),
            labels=labels,
            answer_positions=range(2, 3),
            d_vocab=p + 1,
            options={"p": p, "fraction": fraction, "seed": seed, "rest": rest},
            **settled(labels),
        )
        self.p = p

    def held_out(self, size: int | None = None) -> "ModularAdditionDataset":
        """Return the other part of the table, all of it.

        Raises:
            InvalidInputError: For any other `size`.
        """
        other = ModularAdditionDataset(**{**self.options, "rest": not self.options["rest"]})
        if size is None or size == len(other):
            return other
        raise InvalidInputError(f"size is {size}; the held-out part is all the other {len(other)} sums of the table.")
