"""Metrics by name, and several of them measured of the same runs.

All read a prompt where its answer is predicted, and have a number for each prompt:

- `"logit_difference"`: right minus wrong answers' logits (logits).
- `"probability"`: that the next token is one of the right answers.
- `"kl"`: how far the next token's distribution is from the clean run's, `KL(clean || patched)` (nats); 0 for the clean
  run. It knows no answers.
- `"rank"`: how many tokens have a higher logit than the best right answer; 0 is the first place. It has no gradient.

The last three make the logits of the whole vocabulary, for some cells at a time: `Budget.work_bytes` bounds them. A
mean over prompts of a probability or a rank is that of these numbers, not of their logarithms.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.prompts.metrics import AnswerMetric, Metric, PromptMetric
from headscope.analysis.prompts.task import Task
from headscope.analysis.recording.record import record
from headscope.errors import InvalidInputError, unknown_name
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget

__all__ = [
    "KLMetric",
    "ManyMetrics",
    "MetricLike",
    "OneMetric",
    "ProbabilityMetric",
    "RankMetric",
    "SeveralMetrics",
    "as_metric",
    "unit_of",
]

OneMetric = Metric | str | None
"""A metric, or its name; `None` is the task's own."""
ManyMetrics = list[str] | tuple[str, ...] | Mapping[str, Metric | str]
"""The names of several metrics, or several by names of your own."""
MetricLike = OneMetric | ManyMetrics


class VocabularyMetric(PromptMetric):
    """A metric of all logits where each prompt is read."""

    @abstractmethod
    def of_logits(
        self, logits: Float[Tensor, "cell prompt d_vocab"], rows: Any = slice(None)
    ) -> Float[Tensor, "cell prompt"]:
        """Return each prompt's number, from its logits where it is read."""

    def of_prompts(
        self, model: HookedTransformer, states: Float[Tensor, "cell prompt d_model"], rows: Any = slice(None)
    ) -> Float[Tensor, "cell prompt"]:
        """Return each prompt's number, from final states where they are read; some cells at a time."""
        n_logits = states.shape[1] * model.cfg.d_vocab_out
        together = max(1, Budget.of(states.device).work_bytes // (16 * n_logits))
        return torch.cat([self.of_logits(model.to_logits(some), rows) for some in states.split(together)])

    def each(self, logits: Float[Tensor, "prompt pos d_vocab"]) -> Float[Tensor, " prompt"]:
        """Return each prompt's number, from its logits at every position."""
        at = self.places(*logits.shape[:2]).to(logits.device)
        return self.of_logits(logits[torch.arange(len(logits), device=logits.device), at[:, 0]][None])[0]


@dataclass(frozen=True, eq=False)
class ProbabilityMetric(VocabularyMetric):
    """The probability that the next token is a right answer.

    Attributes:
        correct: The right answers of each prompt; one that is given twice counts once.
        positions: Where they are predicted.

    Example:
        >>> metric = ProbabilityMetric(torch.tensor([[0, 1]]), torch.tensor([2]))
        >>> metric(torch.zeros(1, 3, 8))
        tensor(0.2500)
    """

    correct: Int[Tensor, "prompt n_correct"]
    positions: Int[Tensor, " prompt"]

    def of_logits(
        self, logits: Float[Tensor, "cell prompt d_vocab"], rows: Any = slice(None)
    ) -> Float[Tensor, "cell prompt"]:
        right = self.correct[rows].to(logits.device)
        is_again = (right[:, :, None] == right[:, None, :]).tril(-1).any(-1)
        log_probs = _log_probs(logits).gather(-1, right.expand(len(logits), -1, -1))
        return log_probs.exp().masked_fill(is_again, 0.0).sum(-1)

    def of_rows(self, rows: Any) -> "ProbabilityMetric":
        return ProbabilityMetric(self.correct[rows], self.positions[rows])


@dataclass(frozen=True, eq=False)
class RankMetric(VocabularyMetric):
    """The number of tokens with a higher logit than the best right answer.

    Attributes:
        correct: The right answers of each prompt.
        positions: Where they are predicted.

    Example:
        >>> metric = RankMetric(torch.tensor([[1]]), torch.tensor([0]))
        >>> metric(torch.tensor([[[5.0, 2.0, 3.0, 1.0]]]))
        tensor(2.)
    """

    correct: Int[Tensor, "prompt n_correct"]
    positions: Int[Tensor, " prompt"]

    def of_logits(
        self, logits: Float[Tensor, "cell prompt d_vocab"], rows: Any = slice(None)
    ) -> Float[Tensor, "cell prompt"]:
        right = self.correct[rows].to(logits.device)
        best = logits.gather(-1, right.expand(len(logits), -1, -1)).amax(-1, keepdim=True)
        return (logits > best).sum(-1).to(torch.promote_types(logits.dtype, torch.float32))

    def of_rows(self, rows: Any) -> "RankMetric":
        return RankMetric(self.correct[rows], self.positions[rows])


@dataclass(frozen=True, eq=False)
class KLMetric(VocabularyMetric):
    """The divergence of the next token's distribution from another one, `KL(reference || measured)`, in nats.

    Attributes:
        reference: The other's log-probabilities: 4 bytes for each prompt and token of the vocabulary in float32.
        positions: Where each prompt is read.
    """

    reference: Float[Tensor, "prompt d_vocab"]
    positions: Int[Tensor, " prompt"]

    @classmethod
    def of(cls, model: HookedTransformer, task: Task) -> Self:
        """Make the metric of a task, whose clean prompts are run once for it."""
        task = task.to(model.W_E.device)
        together = max(1, Budget.of(model.W_E.device).batch_tokens // task.clean_tokens.shape[1])
        parts = []
        with torch.no_grad():
            for rows in torch.arange(len(task), device=model.W_E.device).split(together):
                final = record(model, task.clean_tokens[rows], [], attention_mask=task.masks[0][rows]).final
                read = final[torch.arange(len(rows), device=final.device), task.positions[rows]]
                parts.append(_log_probs(model.to_logits(read[None]))[0])
        return cls(torch.cat(parts), task.positions)

    def of_logits(
        self, logits: Float[Tensor, "cell prompt d_vocab"], rows: Any = slice(None)
    ) -> Float[Tensor, "cell prompt"]:
        reference = self.reference[rows].to(logits.device)
        probs = reference.exp()
        # A token that the reference never gives adds nothing; at two logits of -inf it would be 0 x NaN.
        return (probs * (reference - _log_probs(logits)).masked_fill(probs == 0, 0.0)).sum(-1)

    def of_rows(self, rows: Any) -> "KLMetric":
        return KLMetric(self.reference[rows], self.positions[rows])


@dataclass(frozen=True, eq=False)
class SeveralMetrics(PromptMetric):
    """Several metrics of the same runs, along a last axis.

    Attributes:
        metrics: By name; all read the same positions.
    """

    metrics: Mapping[str, PromptMetric]

    @property
    def positions(self) -> Int[Tensor, " prompt"]:  # type: ignore[override]
        """The position at which each prompt is read."""
        return next(iter(self.metrics.values())).positions

    def of_prompts(
        self, model: HookedTransformer, states: Float[Tensor, "cell prompt d_model"], rows: Any = slice(None)
    ) -> Float[Tensor, "cell prompt metric"]:
        """Return each prompt's numbers, from final states where they are read."""
        return _side_by_side([metric.of_prompts(model, states, rows) for metric in self.metrics.values()])

    def each(self, logits: Float[Tensor, "prompt pos d_vocab"]) -> Float[Tensor, "prompt metric"]:
        """Return each prompt's numbers, from its logits at every position."""
        return _side_by_side([metric.each(logits) for metric in self.metrics.values()])

    def of_rows(self, rows: Any) -> "SeveralMetrics":
        return SeveralMetrics({name: metric.of_rows(rows) for name, metric in self.metrics.items()})


def as_metric(model: HookedTransformer, task: Task, asked: MetricLike) -> Metric:
    """Return the metric that was asked for; several as one.

    Raises:
        UnknownNameError: For another name.
        InvalidInputError: For several metrics of which one has no numbers of single prompts, or reads other positions
            than the first; for none at all; for the answers of a task that has none.
    """
    if asked is None:
        return task.measure
    if isinstance(asked, str):
        return _named(model, task, asked)
    if not isinstance(asked, list | tuple | Mapping):
        return asked
    named = asked if isinstance(asked, Mapping) else {each: each for each in asked}
    metrics: dict[str, PromptMetric] = {}
    for name, each in named.items():
        metric = _named(model, task, each) if isinstance(each, str) else each
        if not isinstance(metric, PromptMetric):
            raise InvalidInputError(
                f"metrics that are measured together have a number for each prompt; {name!r} has one for all of them. "
                "Measure it in a call of its own."
            )
        if metrics and not torch.equal(metric.positions.cpu(), next(iter(metrics.values())).positions.cpu()):
            raise InvalidInputError(f"metrics that are measured together read the same positions; {name!r} does not.")
        metrics[name] = metric
    if not metrics:
        raise InvalidInputError(f"no metric is named; give some of {', '.join(_MADE_BY)}.")
    return SeveralMetrics(metrics)


def unit_of(metric: Metric, name: str = "") -> str:
    """Return the unit of a metric, or of the one of several that has a name; empty where none is known.

    Example:
        >>> unit_of(RankMetric(torch.zeros(2, 1).long(), torch.zeros(2).long())), unit_of(torch.mean)
        ('', '')
    """
    if isinstance(metric, SeveralMetrics):
        return unit_of(metric.metrics[name])
    return "logits" if isinstance(metric, AnswerMetric) else "nats" if isinstance(metric, KLMetric) else ""


def _named(model: HookedTransformer, task: Task, name: str) -> PromptMetric:
    if name not in _MADE_BY:
        raise unknown_name("metric", name, _MADE_BY, hint="Or give a function of the logits.", code="HS-NAME-09")
    if name in ("probability", "rank") and not task.correct.shape[-1]:
        raise InvalidInputError(f"metric {name!r} is of right answers, and the task has none.")
    return _MADE_BY[name](model, task.to(model.W_E.device))


_MADE_BY = {
    "logit_difference": lambda model, task: AnswerMetric.of(task),
    "probability": lambda model, task: ProbabilityMetric(task.correct, task.positions),
    "kl": KLMetric.of,
    "rank": lambda model, task: RankMetric(task.correct, task.positions),
}


def _log_probs(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _side_by_side(each: Sequence[Tensor]) -> Tensor:
    """Numbers of several metrics along a last axis, in the finest of their dtypes."""
    finest = torch.float64 if any(one.dtype == torch.float64 for one in each) else torch.float32
    return torch.stack([one.to(finest) for one in each], dim=-1)
