"""Metrics of patched runs, and the positions and tokens they read.

A metric is any function of logits `[batch, pos, d_vocab]` that gives one number. A metric that says where it looks
costs less: `last_position` and `reads` save the logits everywhere else, and an `AnswerMetric`, which looks at a few
tokens only, all logits but theirs.

    >>> import torch
    >>> metric = last_position(lambda logits: logits[:, -1, 3].mean())
    >>> float(metric(torch.arange(70.0).view(2, 5, 7)))
    48.5
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.prompts.task import Task, answer_difference
from headscope.errors import InvalidInputError
from headscope.model.activations.readout import Readout, readout_of
from headscope.model.hooks import is_plain
from headscope.model.transformer import HookedTransformer

__all__ = ["AnswerMetric", "Metric", "PositionMetric", "as_number", "gap_between", "last_position", "reads"]

Metric = Callable[[Float[Tensor, "batch pos d_vocab"]], Tensor | float]


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


@dataclass(frozen=True, eq=False)
class AnswerMetric:
    """`(d - zero) / unit`, where `d` is the mean over prompts of right minus wrong answers' logits.

    Only the answers' logits are computed for it.

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
    def of(cls, task: Task, *, zero: float = 0.0, unit: float = 1.0) -> Self:
        """Make the metric of a task's answers."""
        return cls(task.correct, task.incorrect, task.positions, zero, unit)

    def places(self, batch: int, length: int) -> Int[Tensor, "batch 1"]:
        """Return the position at which each row's answer is predicted.

        Raises:
            InvalidInputError: If there are not as many prompts as rows, or a position is out of range.
        """
        return _checked(self.positions[:, None], batch, length)

    def __call__(self, logits: Float[Tensor, "prompt pos d_vocab"]) -> Float[Tensor, ""]:
        return self._share(answer_difference(logits, self.correct, self.incorrect, positions=self.positions).mean())

    def of_states(
        self, model: HookedTransformer, states: Float[Tensor, "cell prompt d_model"]
    ) -> Float[Tensor, " cell"]:
        """Return the metric of final states where the answers are predicted."""
        return self._share(self.differences(model, states).mean(-1))

    def _share(self, difference: Float[Tensor, "*cell"]) -> Float[Tensor, "*cell"]:
        if self.unit == 0:
            raise _no_gap("equal")
        return (difference - self.zero) / self.unit

    def differences(
        self, model: HookedTransformer, states: Float[Tensor, "cell prompt d_model"], rows: Any = slice(None)
    ) -> Float[Tensor, "cell prompt"]:
        """Return each prompt's right minus wrong answers' logits, from final states where they are predicted.

        Only the answers' own logits are made, in float32 at least, unless a module in the unembedding's place hides its
        weights, or hooks are to see the logits made.

        Args:
            model: Whose states they are.
            states: Of the residual stream, before the final norm.
            rows: Which prompts they are of.

        Raises:
            InvalidInputError: For an answer that the model has no logit for.
        """
        correct, incorrect = self.correct[rows], self.incorrect[rows]
        answers = torch.cat([correct, incorrect], dim=1).to(states.device)
        low, high = int(answers.min()), int(answers.max())
        if low < 0 or high >= model.cfg.d_vocab_out:
            raise InvalidInputError(
                f"answers must be tokens from 0 to {model.cfg.d_vocab_out - 1}; they go from {low} to {high}."
            )
        parts = (*model.ln_final.modules(), *model.unembed.modules())
        if Readout.is_shown_by(model.unembed) and all(is_plain(part, type(part)) for part in parts):
            readout = readout_of(model)
            state = readout.normalize(states.to(torch.promote_types(states.dtype, torch.float32)))
            columns = readout.W_U.T[answers].to(state.dtype)
            logits = torch.einsum("cpd,pad->cpa", state, columns) + readout.b_U[answers].to(state.dtype)
            if readout.soft_cap:
                logits = readout.soft_cap * torch.tanh(logits / readout.soft_cap)
        else:
            logits = torch.stack([model.to_logits(cell[:, None])[:, 0].gather(-1, answers) for cell in states])
        right = correct.shape[1]
        return logits[..., :right].mean(-1) - logits[..., right:].mean(-1)


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
            "Take a mean over the batch."
        )
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidInputError(
            f"the metric must give one number for the logits it gets; it gave {value!r} "
            f"({type(value).__name__}). Does it return its result?"
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
