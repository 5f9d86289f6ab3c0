"""A task's two runs as patching uses them: which is patched, at which positions, and how a patched run is scored."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.core.result import check_option
from headscope.analysis.prompts.metrics import AnswerMetric, Metric, PositionMetric, as_number
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError, unknown_name
from headscope.model.hooks import is_listening
from headscope.model.transformer import HookedTransformer

__all__ = ["Direction", "Scorer", "TaskRuns", "check_unhooked", "in_words", "position_of"]

Direction = Literal["noising", "denoising"]


class TaskRuns:
    """The run that is patched (`base`) and the one that gives the values (`other`).

    Noising puts the corrupted run's values into the clean one, denoising the clean run's into the corrupted one.

    Attributes:
        task: The task, on the model's device.
        base: Tokens of the run that is patched.
        other: Tokens of the run that the values are from.
        where: The positions at which values are put in.
    """

    def __init__(self, model: HookedTransformer, task: Task, direction: Direction, positions: Any = None) -> None:
        check_option("direction", direction, ("noising", "denoising"))
        if task.corrupted_tokens is None:
            raise InvalidInputError(
                f"patching needs corrupted prompts, and {task!r} has none. Make it with corrupted=..., from templates, "
                "or by Task.from_ioi."
            )
        self.task = task = task.to(model.W_E.device)
        assert task.corrupted_tokens is not None
        runs = (task.clean_tokens, task.corrupted_tokens)
        self.base, self.other = runs if direction == "noising" else runs[::-1]
        self.where = _where(task, positions)
        # No real token looks at the padding behind it: without a mask it gets the same, and faster.
        mask = task.attention_mask
        behind = model.cfg.attention_dir == "causal" and bool((mask[:, 1:] <= mask[:, :-1]).all())
        self._mask = None if behind else mask

    def options(self, rows: slice, times: int = 1) -> dict[str, Any]:
        """What the forward pass of some prompts, so many times over, is told of padding."""
        mask = None if self._mask is None else self._mask[rows].repeat(times, 1)
        return {"attention_mask": mask, "padding_side": "right"}


def in_words(positions: Any) -> str:
    """Positions as a result names them."""
    if positions is None:
        return "all"
    if isinstance(positions, Tensor):
        return str(int(positions)) if positions.ndim == 0 else "one of each prompt"
    return str(positions) if isinstance(positions, (str, int)) else ", ".join(map(in_words, positions))


def _where(task: Task, positions: Any) -> Bool[Tensor, "prompt pos"]:
    """The positions that are asked for, of real tokens."""
    if positions is None:
        return task.attention_mask
    listed = [positions] if isinstance(positions, (str, int, Tensor)) else positions
    if not isinstance(listed, Iterable):
        raise InvalidInputError(f"positions must be names, numbers or a tensor of them; got {positions!r}.")
    chosen = torch.zeros_like(task.attention_mask)
    for each in listed:
        chosen.scatter_(1, position_of(task, each)[:, None], True)
    return chosen


def position_of(task: Task, named: Any) -> Int[Tensor, " prompt"]:
    """Where a position is in each prompt: a number, or a name such as `"end"` and those in `task.word_idx`.

    Raises:
        InvalidInputError: If it is not a real token of every prompt.
        UnknownNameError: For a name that the task does not have.
    """
    device = task.attention_mask.device
    if isinstance(named, str):
        known = {"end": task.positions, **task.word_idx}
        if named not in known:
            raise unknown_name("position", named, known, hint="Or give a number from 0.")
        at = known[named].to(device)
    elif isinstance(named, Tensor) and named.ndim == 1 and len(named) != len(task):
        raise InvalidInputError(f"there are {len(task)} prompts, and positions of {len(named)}; give one for each.")
    else:
        at = torch.as_tensor(named, device=device).expand(len(task))
    inside = (at >= 0) & (at < task.attention_mask.shape[1])
    if not bool(inside.all()) or not bool(task.attention_mask.gather(1, at[:, None]).all()):
        shortest = int(task.attention_mask.sum(1).min())
        raise InvalidInputError(
            f"position {named!r} is not a real token of every prompt; the shortest has {shortest} of them."
        )
    return at


class Scorer:
    """A metric of final states, which are read only where it looks.

    The task's logit difference (`metric=None`) looks at a few logits where each answer is predicted. One of your own
    says where (`last_position`, `reads`, an `AnswerMetric`), or is given all logits of all prompts.

    Attributes:
        places: The positions whose final states it takes.
    """

    def __init__(self, model: HookedTransformer, task: Task, metric: Metric | None = None) -> None:
        self.model, self.task = model, task
        self.metric = None if metric is None else metric
        self._answers = AnswerMetric.of(task)
        n, length = task.clean_tokens.shape
        everywhere = torch.arange(length).expand(n, -1)
        places = task.positions[:, None] if metric is None else everywhere
        if isinstance(self.metric, (AnswerMetric, PositionMetric)):
            places = self.metric.places(n, length)
        self.places: Int[Tensor, "prompt read"] = places.to(task.clean_tokens.device)

    def blocks(self, n_tokens: int) -> Iterator[slice]:
        """The prompts in parts of so many tokens at most (or one prompt); all together for a metric of your own."""
        n, width = self.task.clean_tokens.shape
        step = max(1, n_tokens // width) if self.metric is None else n
        for start in range(0, n, step):
            yield slice(start, min(start + step, n))

    def read(self, rows: slice, final: Float[Tensor, "prompt pos d_model"]) -> Float[Tensor, "prompt read d_model"]:
        """The final states that are looked at."""
        at = self.places[rows]
        return final[torch.arange(len(final), device=final.device)[:, None], at]

    def values(self, rows: slice, final: Float[Tensor, "run prompt read d_model"]) -> Float[Tensor, "run *prompt"]:
        """The metric of each run: of each prompt for the logit difference, else one number.

        Raises:
            InvalidInputError: If a metric of your own is not one number.
        """
        metric = self.metric
        if metric is None:
            return self._answers.differences(self.model, final[:, :, 0], rows)
        if isinstance(metric, AnswerMetric):
            return metric.of_states(self.model, final[:, :, 0])
        of_logits = metric.metric if isinstance(metric, PositionMetric) else metric
        return torch.stack([_one_number(of_logits(self.model.to_logits(each))) for each in final])


def _one_number(value: Tensor | float) -> Float[Tensor, ""]:
    as_number(value.detach() if isinstance(value, Tensor) else value)
    return torch.as_tensor(value).reshape(())


def check_unhooked(model: HookedTransformer, what: str) -> None:
    """Refuse a model with hooks on it, or something else in the place of a hook point.

    Raises:
        InvalidInputError: Naming the first.
    """
    for name, module in model.mod_dict.items():
        if name.rsplit(".", 1)[-1].startswith("hook_") and is_listening(module):
            raise InvalidInputError(
                f"{what} needs the model without hooks, and there is one at {name}. Take it off: model.reset_hooks() "
                "(including_permanent=True for permanent ones)."
            )
