"""Metrics of patched runs, and the positions and tokens they read.

A metric is any function of logits `[batch, pos, d_vocab]` that gives one number. A metric that says where it looks
costs less: `last_position` and `reads` save the logits everywhere else. A `PromptMetric` has a number for each prompt,
made of its final state at one position: an `AnswerMetric` (right minus wrong answers' logits) or a `NumberMetric` (the
output of a model that gives numbers) makes only the logits it looks at.

    >>> import torch
    >>> metric = last_position(lambda logits: logits[:, -1, 3].mean())
    >>> float(metric(torch.arange(70.0).view(2, 5, 7)))
    48.5
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.model.activations.readout import Readout, readout_of
from headscope.model.hooks import is_plain
from headscope.model.transformer import HookedTransformer

__all__ = [
    "AnswerMetric",
    "LinearMetric",
    "Metric",
    "NumberMetric",
    "PositionMetric",
    "PromptMetric",
    "as_number",
    "gap_between",
    "last_position",
    "reads",
]

Metric = Callable[[Float[Tensor, "batch pos d_vocab"]], Tensor | float]


@runtime_checkable
class HasAnswers(Protocol):
    """An owner of right and wrong answers, such as a `Task`."""

    @property
    def correct(self) -> Tensor:
        """The right answers of each prompt."""

    @property
    def incorrect(self) -> Tensor:
        """The wrong ones."""

    @property
    def positions(self) -> Tensor:
        """The position at which each prompt's are predicted."""


@dataclass(frozen=True, eq=False)
class PositionMetric:
    """A metric that reads some positions only; made by `last_position` or `reads`.

    Attributes:
        metric: A function of the logits at these positions.
        positions: The same for every row, or a tensor with one for each row.
    """

    metric: Metric
    positions: tuple[int, ...] | Int[Tensor, " batch"]

    def places(self, batch: int, length: int) -> Int[Tensor, "batch read"]:
        """Return the positions read in each row of a batch, counted from the start.

        Raises:
            InvalidInputError: If there is no such position, or there are not as many as rows.
        """
        if isinstance(self.positions, Tensor):
            return _checked(self.positions[:, None], batch, length)
        return _checked(torch.tensor(self.positions).expand(batch, -1), batch, length)

    def __call__(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Tensor | float:
        at = self.places(*logits.shape[:2]).to(logits.device)
        return self.metric(logits.gather(1, at[..., None].expand(-1, -1, logits.shape[-1])))


def last_position(metric: Metric) -> PositionMetric:
    """Make a metric that reads nothing but the last position: it gets logits `[batch, 1, d_vocab]`.

    A metric written with `logits[:, -1, ...]` stays right.

    Args:
        metric: Gives one number for these logits.
    """
    return reads(metric, -1)


def reads(metric: Metric, positions: int | Sequence[int] | Int[Tensor, " batch"]) -> PositionMetric:
    """Make a metric that reads some positions only: it gets logits `[batch, len(positions), d_vocab]`.

    Args:
        metric: Gives one number for these logits.
        positions: One position or several, the same in each row; or a tensor with one position for each row (the metric
            then gets `[batch, 1, d_vocab]`). Negative ones count from the end.

    Example:
        >>> metric = reads(lambda logits: logits[:, 0, 3].mean() - logits[:, 1, 3].mean(), [2, 4])
        >>> float(metric(torch.arange(70.0).view(2, 5, 7)))
        -14.0
    """
    if isinstance(positions, Tensor) and positions.ndim == 1:
        return PositionMetric(metric, positions)
    some = [positions] if isinstance(positions, int) else [int(each) for each in positions]
    if not some:
        raise InvalidInputError("a metric reads at least one position; got none.")
    return PositionMetric(metric, tuple(some))


class PromptMetric(ABC):
    """A metric with a number for each prompt, read from its final state at one position; over prompts, their mean.

    Attributes:
        positions: Where each prompt is read.
    """

    positions: Int[Tensor, " prompt"]

    @abstractmethod
    def of_prompts(
        self, model: HookedTransformer, states: Float[Tensor, "cell prompt d_model"], rows: Any = slice(None)
    ) -> Float[Tensor, "cell prompt"]:
        """Return each prompt's number, from final states where they are read.

        Args:
            model: Whose states they are.
            states: Of the residual stream, before the final norm.
            rows: Which prompts they are of.
        """

    @abstractmethod
    def of_rows(self, rows: Any) -> "PromptMetric":
        """Return the metric of some of the prompts."""

    def to(self, device: torch.device | str) -> Self:
        """Return the metric on another device."""
        moved = copy.copy(self)
        vars(moved).update({name: each.to(device) for name, each in vars(self).items() if isinstance(each, Tensor)})
        return moved

    @abstractmethod
    def each(self, logits: Float[Tensor, "prompt pos d_vocab"]) -> Float[Tensor, " prompt"]:
        """Return each prompt's number, from its logits at every position."""

    def __call__(self, logits: Float[Tensor, "prompt pos d_vocab"]) -> Float[Tensor, ""]:
        """Return the mean over prompts, from their logits at every position."""
        return self.each(logits).mean()

    def places(self, batch: int, length: int) -> Int[Tensor, "batch 1"]:
        """Return the position at which each row is read.

        Raises:
            InvalidInputError: If there are not as many prompts as rows, or a position is out of range.
        """
        return _checked(self.positions[:, None], batch, length)

    def of_states(
        self, model: HookedTransformer, states: Float[Tensor, "cell prompt d_model"]
    ) -> Float[Tensor, " cell"]:
        """Return the mean over prompts, from final states where they are read."""
        return self.of_prompts(model, states).mean(-1)


class LinearMetric(PromptMetric):
    """A `PromptMetric` that is a weighted sum of a few logits and a constant, so that it can be attributed."""

    @abstractmethod
    def terms(self, rows: Any = slice(None)) -> tuple[Int[Tensor, "prompt term"], Float[Tensor, "prompt term"]]:
        """Return the tokens whose logits are summed, and their weights, in float64 on the CPU."""

    @property
    def constant(self) -> float:
        """The number that is added to the sum."""
        return 0.0

    def each(self, logits: Float[Tensor, "prompt pos d_vocab"]) -> Float[Tensor, " prompt"]:
        """Return each prompt's number, from its logits at every position."""
        tokens, weights = self.terms()
        tokens, weights = tokens.to(logits.device), weights.to(logits.dtype).to(logits.device)
        if len(logits) != len(tokens):
            raise InvalidInputError(f"the metric is of {len(tokens)} prompts, and the logits of {len(logits)}.")
        at = self.places(*logits.shape[:2]).to(logits.device)
        read = logits.gather(1, at[..., None].expand(-1, -1, logits.shape[-1]))[:, 0]
        _check_outputs(tokens, logits.shape[-1])
        return (read.gather(-1, tokens) * weights).sum(-1) + self.constant

    def of_prompts(
        self, model: HookedTransformer, states: Float[Tensor, "cell prompt d_model"], rows: Any = slice(None)
    ) -> Float[Tensor, "cell prompt"]:
        """Return each prompt's number, from final states where they are read.

        Only the logits it looks at are made, in float32 at least, unless a module in the unembedding's place hides its
        weights, or hooks are to see the logits made.

        Args:
            model: Whose states they are.
            states: Of the residual stream, before the final norm.
            rows: Which prompts they are of.

        Raises:
            InvalidInputError: For an answer that the model has no logit for.
        """
        tokens, weights = self.terms(rows)
        tokens = tokens.to(states.device)
        _check_outputs(tokens, model.cfg.d_vocab_out)
        parts = (*model.ln_final.modules(), *model.unembed.modules())
        if Readout.obstacle(model) is None and all(is_plain(part, type(part)) for part in parts):
            readout = readout_of(model)
            state = readout.normalize(states.to(torch.promote_types(states.dtype, torch.float32)))
            columns = readout.W_U.T[tokens].to(state.dtype)
            logits = torch.einsum("cpd,pad->cpa", state, columns) + readout.b_U[tokens].to(state.dtype)
            if readout.soft_cap:
                logits = readout.soft_cap * torch.tanh(logits / readout.soft_cap)
        else:
            logits = torch.stack([model.to_logits(cell[:, None])[:, 0].gather(-1, tokens) for cell in states])
        return (logits * weights.to(logits.dtype).to(logits.device)).sum(-1) + self.constant


@dataclass(frozen=True, eq=False)
class AnswerMetric(LinearMetric):
    """`(d - zero) / unit`, where `d` is the mean over prompts of right minus wrong answers' logits.

    Attributes:
        correct: The right answers of each prompt.
        incorrect: The wrong ones.
        positions: Where they are predicted.
        zero: The difference that counts as 0.
        unit: The distance from there that counts as 1.
    """

    correct: Int[Tensor, "prompt n_correct"]
    incorrect: Int[Tensor, "prompt n_incorrect"]
    positions: Int[Tensor, " prompt"]
    zero: float = 0.0
    unit: float = 1.0

    @classmethod
    def of(cls, task: HasAnswers, *, zero: float = 0.0, unit: float = 1.0) -> Self:
        """Make the metric of a task's answers.

        Raises:
            InvalidInputError: If the task has no right or no wrong ones.
        """
        if not (task.correct.shape[-1] and task.incorrect.shape[-1]):
            raise InvalidInputError(
                "the task has no right and wrong answers to take the logit difference of. Give it some (correct and "
                "incorrect), or name the metric."
            )
        return cls(task.correct, task.incorrect, task.positions, zero, unit)

    @property
    def constant(self) -> float:
        return -self.zero / self._unit

    def terms(self, rows: Any = slice(None)) -> tuple[Int[Tensor, "prompt term"], Float[Tensor, "prompt term"]]:
        right, wrong = self.correct[rows], self.incorrect[rows]
        weights = [
            torch.full(each.shape, by / each.shape[1], dtype=torch.float64, device="cpu")
            for each, by in ((right, 1.0), (wrong, -1.0))
        ]
        return torch.cat([right, wrong], dim=1), torch.cat(weights, dim=1) / self._unit

    def of_rows(self, rows: Any) -> "AnswerMetric":
        return AnswerMetric(self.correct[rows], self.incorrect[rows], self.positions[rows], self.zero, self.unit)

    def differences(
        self, model: HookedTransformer, states: Float[Tensor, "cell prompt d_model"], rows: Any = slice(None)
    ) -> Float[Tensor, "cell prompt"]:
        """Return each prompt's right minus wrong answers' logits; see `of_prompts`."""
        return AnswerMetric(self.correct, self.incorrect, self.positions).of_prompts(model, states, rows)

    @property
    def _unit(self) -> float:
        if self.unit == 0:
            raise _no_gap("equal")
        return self.unit


@dataclass(frozen=True, eq=False)
class NumberMetric(LinearMetric):
    """The output of a model that gives numbers, where each prompt is read: its logit times a sign.

    With the sign of the clean number less the corrupted one, the clean run has the higher metric on every prompt, and
    what prompts differ by does not cancel.

    Attributes:
        positions: Where the number is read.
        signs: What each prompt's number is multiplied by.
        output: Which of the model's outputs it is.
    """

    positions: Int[Tensor, " prompt"]
    signs: Float[Tensor, " prompt"]
    output: int = 0

    @classmethod
    def between(
        cls, clean: Float[Tensor, " prompt"], corrupted: Float[Tensor, " prompt"], positions: Int[Tensor, " prompt"]
    ) -> Self:
        """Make the metric of prompts whose right number is known, for both runs.

        Raises:
            InvalidInputError: If both are the same for a prompt.

        Example:
            >>> metric = NumberMetric.between(torch.tensor([0.5, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([2, 1]))
            >>> metric.signs
            tensor([ 1., -1.])
        """
        signs = (clean - corrupted).sign()
        if bool((signs == 0).any()):
            row = int((signs == 0).nonzero()[0])
            raise InvalidInputError(
                f"the right number of prompt {row} is {float(clean[row])} in both runs, so that it tells nothing of a "
                "patch. Leave it out, or read another position."
            )
        return cls(positions, signs)

    def terms(self, rows: Any = slice(None)) -> tuple[Int[Tensor, "prompt term"], Float[Tensor, "prompt term"]]:
        signs = self.signs[rows][:, None]
        return torch.full_like(signs, self.output, dtype=torch.long), signs.cpu().double()

    def of_rows(self, rows: Any) -> "NumberMetric":
        return NumberMetric(self.positions[rows], self.signs[rows], self.output)


def gap_between(clean: float | Tensor, corrupted: float | Tensor, hint: str = "") -> float | Tensor:
    """Return the clean metric less the corrupted one, of which effects are shares.

    Raises:
        InvalidInputError: If the two are equal, so that there is nothing to take shares of.
    """
    if float(clean) == float(corrupted):
        raise _no_gap(f"both {float(clean):.4f}", hint)
    return clean - corrupted


def _no_gap(said: str, hint: str = "") -> InvalidInputError:
    return InvalidInputError(
        f"the clean and the corrupted metric are {said}: nothing can be broken or brought back. Does the model do the "
        f"task, and do the corrupted prompts differ from the clean ones?{hint}"
    )


def as_number(value: Any) -> float:
    """Return the value of a metric as one number.

    Raises:
        InvalidInputError: If it is not one.
    """
    if isinstance(value, Tensor) and value.numel() != 1:
        raise InvalidInputError(
            f"the metric must give one number for the logits it gets; it gave shape {list(value.shape)}. "
            "Take a mean over the batch.",
            code="HS-METRIC-01",
        )
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidInputError(
            f"the metric must give one number for the logits it gets; it gave {value!r} "
            f"({type(value).__name__}). Does it return its result?",
            code="HS-METRIC-01",
        ) from None


def _checked(positions: Tensor, batch: int, length: int) -> Tensor:
    if len(positions) != batch:
        raise InvalidInputError(
            f"the metric reads a position in each of {len(positions)} rows, and {batch} rows are patched."
        )
    from_start = torch.where(positions < 0, positions + length, positions)
    if bool(((from_start < 0) | (from_start >= length)).any()):
        raise InvalidInputError(
            f"the metric reads positions from {int(positions.min())} to {int(positions.max())}; there are {length}."
        )
    return from_start


def _check_outputs(tokens: Tensor, d_vocab_out: int) -> None:
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= d_vocab_out:
        raise InvalidInputError(
            f"answers must be tokens from 0 to {d_vocab_out - 1}; they go from {low} to {high}.", code="HS-TOKENS-01"
        )
