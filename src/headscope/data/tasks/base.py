"""Base class of toy tasks: prompts, answer positions, answers, and the best that any predictor can do.

A task is drawn all at once, by vectorized operations with its own generator, and kept as tensors. Its answers are of
two kinds: *signal*, determined by the prompt, and *noise*, determined by nothing. The two are always counted apart,
since an overall number depends on the share of noise.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from headscope.errors import InvalidInputError
from headscope.ops.devices import wide

__all__ = ["TaskDataset", "TaskMetrics", "log_or_zero", "new_generator", "settled"]

_HELD_OUT = 1 << 31  # this bit of a seed tells held-out data from training data


@dataclass(frozen=True)
class TaskMetrics:
    """Loss in nats and accuracy: means over all answers, over signal and over noise; NaN for a kind with no answers.

    Attributes:
        loss: Mean cross-entropy of all answers.
        accuracy: Fraction of all answers with the highest logit.
        signal_loss: Mean cross-entropy where the prompt determines the answer.
        signal_accuracy: Accuracy there.
        noise_loss: Mean cross-entropy where it does not.
        noise_accuracy: Accuracy there.
    """

    loss: float
    accuracy: float
    signal_loss: float
    signal_accuracy: float
    noise_loss: float
    noise_accuracy: float

    @classmethod
    def of(
        cls,
        loss: Float[Tensor, "sample answer"],
        accuracy: Float[Tensor, "sample answer"],
        signal: Bool[Tensor, "sample answer"],
    ) -> Self:
        """Average over answers.

        Args:
            loss: Cross-entropy of each answer, in nats.
            accuracy: 1 where the answer has the highest logit, else 0; or a probability of that.
            signal: True where the prompt determines the answer.
        """
        parts = (torch.ones_like(signal), signal, ~signal)
        return cls(*(float(wide(value[part]).mean()) for part in parts for value in (loss, accuracy)))


@dataclass(kw_only=True, eq=False, repr=False)
class TaskDataset(Dataset[tuple[Tensor, Tensor]]):
    """Prompts and answers of a toy task, all drawn at once. Indexing gives `(tokens[pos], labels[answer])`.

    Attributes:
        task: The task's name.
        tokens: Prompts, `[sample, pos]`.
        labels: The answers, `[sample, answer]`.
        signal: True where the prompt determines the answer, `[sample, answer]`.
        answer_positions: The consecutive positions whose logits should predict the answers.
        best_loss: Entropy of each answer given the tokens up to its position, `[sample, answer]`, in nats.
        best_accuracy: Probability of the likeliest answer, `[sample, answer]`.
        d_vocab: Number of tokens; answers are among them.
        options: Constructor arguments: the same options give the same data.
    """

    task: ClassVar[str] = "task"
    tokens: Int[Tensor, "sample pos"]
    labels: Int[Tensor, "sample answer"]
    signal: Bool[Tensor, "sample answer"]
    answer_positions: range
    best_loss: Float[Tensor, "sample answer"]
    best_accuracy: Float[Tensor, "sample answer"]
    d_vocab: int
    options: dict[str, Any]

    def __post_init__(self) -> None:
        assert len(self.answer_positions) == self.labels.shape[1] and self.answer_positions.step == 1

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.tokens[index], self.labels[index]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"

    @property
    def n_ctx(self) -> int:
        """Tokens in a prompt."""
        return self.tokens.shape[1]

    @property
    def bayes(self) -> TaskMetrics:
        """Lowest expected loss and highest expected accuracy of any predictor on these prompts.

        A predictor sees the tokens up to the answer's position; its lowest loss is the entropy of the answer given
        these, its highest accuracy the probability of the likeliest one. Each task derives both.
        """
        return TaskMetrics.of(self.best_loss, self.best_accuracy, self.signal)

    @property
    def bayes_loss(self) -> float:
        """Lowest expected mean loss of any predictor on these prompts, in nats."""
        return self.bayes.loss

    @property
    def bayes_accuracy(self) -> float:
        """Highest expected accuracy of any predictor on these prompts."""
        return self.bayes.accuracy

    def held_out(self, size: int | None = None) -> "TaskDataset":
        """Draw held-out samples of the same task: the seed differs in a bit that seeds below 2**31 do not have.

        Args:
            size: Number of samples; as many as here by default.
        """
        changed = {"size": len(self) if size is None else size, "seed": self.options["seed"] ^ _HELD_OUT}
        return type(self)(**{**self.options, **changed})


def new_generator(seed: int) -> torch.Generator:
    """Make a separate generator, so that the global one is untouched.

    Raises:
        InvalidInputError: If the seed is not between 0 and 2**32 - 1.
    """
    if not 0 <= seed < 1 << 32:
        raise InvalidInputError(f"seed is {seed}; it must be between 0 and 2**32 - 1.")
    return torch.Generator().manual_seed(seed)


def settled(labels: Int[Tensor, "sample answer"]) -> dict[str, Tensor]:
    """Return `signal`, `best_loss` and `best_accuracy` for answers that are all determined by the prompt."""
    shape = labels.shape
    return {
        "signal": torch.ones(shape, dtype=torch.bool, device="cpu"),
        "best_loss": torch.zeros(shape, device="cpu"),
        "best_accuracy": torch.ones(shape, device="cpu"),
    }


def log_or_zero(number: int) -> float:
    """Return `log(number)`, or 0 for 0."""
    return math.log(number) if number > 0 else 0.0
