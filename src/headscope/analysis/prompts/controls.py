"""Controls: the same measurement where there is nothing to find, to stand beside the finding.

- `"reinitialized"`: a model of the same shape with weights drawn anew, on the same prompts. It shows what the shape of
  the model and of the prompts alone give: heads that see a token that differs, positions that come before others. Hooks
  are not carried over.
- `"shuffled_answers"`: each prompt gets the right and wrong answers of another one, the runs being the same. It shows
  what of an effect is about any answer, and not about the prompt's own. Prompts that share their answers keep them.
- `"norm_matched"`: the patched vectors move as far as they do in truth, in a random direction: at each position (and of
  each head), `base + |other - base| * random unit vector`. It shows what any disturbance of that size does.

A control's numbers are in the scale of the finding: as shares of the finding's clean metric less its corrupted one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.result import check_option
from headscope.analysis.prompts.named_metrics import KLMetric, MetricLike, SeveralMetrics, as_metric
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError
from headscope.model.config import HookedTransformerConfig
from headscope.model.transformer import HookedTransformer

__all__ = ["Control", "RandomWay", "check_moves", "controlled", "reinitialized", "shuffled_answers"]

Control = Literal["reinitialized", "shuffled_answers", "norm_matched"]


def controlled(
    model: HookedTransformer, task: Task, control: Control, *, metric: MetricLike = None, seed: int = 0
) -> tuple[HookedTransformer, Task]:
    """Return the model and the task that a control measures.

    Raises:
        InvalidInputError: For another control, or one that would change nothing: answers that are alike, or that the
            metric does not read.
    """
    check_option("control", control, get_args(Control))
    if control == "reinitialized":
        return reinitialized(model, seed), task
    if control == "shuffled_answers":
        measured = as_metric(model, task, metric)
        read = measured.metrics.values() if isinstance(measured, SeveralMetrics) else [measured]
        named = metric is None or isinstance(metric, str) or all(isinstance(each, str) for each in _listed(metric))
        if task.metric is not None or not named or any(isinstance(each, KLMetric) for each in read):
            raise InvalidInputError(
                "control='shuffled_answers' needs metrics that read the task's answers: logit_difference, probability "
                "or rank. Take another control, or measure the others in a call of their own."
            )
        return model, shuffled_answers(task, seed)
    return model, task


def reinitialized(model: HookedTransformer, seed: int = 0) -> HookedTransformer:
    """Return a model of the same shape with weights drawn from a seed, on the same device and in the same dtype.

    Example:
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> other = reinitialized(model)
        >>> other.cfg.n_heads == model.cfg.n_heads, bool((other.W_Q == model.W_Q).any())
        (True, False)
    """
    cfg = HookedTransformerConfig.from_dict({**model.cfg.to_dict(), "seed": seed, "init_weights": True})
    made = HookedTransformer(cfg, model.tokenizer, default_padding_side=model.default_padding_side)
    return made.to(model.W_E.device).eval()


def shuffled_answers(task: Task, seed: int = 0) -> Task:
    """Return a task whose prompts have each other's answers, none its own.

    Raises:
        InvalidInputError: If all prompts have the same answers.

    Example:
        >>> tokenizer = HookedTransformer.from_pretrained("headscope-demo").tokenizer
        >>> texts = ["Mary gave a book to", "John gave a book to", "Tom gave a book to"]
        >>> task = Task.from_prompts(texts, ["John", "Tom", "Mary"], ["Mary", "John", "Tom"], tokenizer)
        >>> shuffled_answers(task).answers
        ((' Mary', ' Tom'), (' John', ' Mary'), (' Tom', ' John'))
    """
    n = len(task)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    taken = torch.empty(n, dtype=torch.long)
    taken[order] = order.roll(1)  # one cycle through all of them, so that none keeps its own
    rows = taken.to(task.correct.device)
    right, wrong = task.correct[rows], task.incorrect[rows]
    if torch.equal(right, task.correct) and torch.equal(wrong, task.incorrect):
        raise InvalidInputError(
            f"the answers of all {n} prompts are alike: shuffling them changes nothing. Take another control, or "
            "prompts with other answers."
        )
    answers = tuple(task.answers[at] for at in taken.tolist())
    return replace(task, correct=right, incorrect=wrong, answers=answers)


def check_moves(sites: Iterable[str]) -> None:
    """Refuse sites whose activations cannot move in a random direction.

    Raises:
        InvalidInputError: For attention patterns.
    """
    if "pattern" in sites:
        raise InvalidInputError(
            "control='norm_matched' is of vectors: a pattern moved in a random direction is no distribution. Take "
            "another control, or leave the site out."
        )


class RandomWay:
    """Random directions of the length of a true difference.

    Args:
        seed: Of the directions.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def instead_of(self, way: Float[Tensor, "*cell d"]) -> Float[Tensor, "*cell d"]:
        """Return vectors as long as these, each in a direction of its own.

        Example:
            >>> way = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
            >>> RandomWay(0).instead_of(way).norm(dim=-1)
            tensor([5., 0.])
        """
        drawn = torch.randn(way.shape, generator=self._generator, dtype=torch.float32).to(way)
        return drawn * (way.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))


def _listed(metric: MetricLike) -> list[object]:
    """The entries of a list or a mapping of metrics; a metric by itself as one."""
    if isinstance(metric, Mapping):
        return list(metric.values())
    return list(metric) if isinstance(metric, list | tuple) else [metric]
