"""The words of patching, the same for every method: which run is patched, at which positions, and in which scale.

- **clean, corrupted**: a task's prompts, and the same prompts with what tells the answer taken out.
- **direction**: `"denoising"` (the default) puts values of the clean run into the corrupted one and asks what comes
  back; `"noising"` puts values of the corrupted run into the clean one and asks what breaks. The run that is patched is
  the base run here, the one that gives the values the other run.
- **scale**: a value is the metric of the patched run less that of the base run, so that 0 is a patch without effect.
  `"share"` (the default) divides it by the clean metric less the corrupted one: 1 is all that denoising can bring back,
  -1 all that noising can break. `"metric"` leaves it in the metric's unit, logits for the task's own metric.
- **positions**: a name, a number, a tensor with one position for each prompt, or a list of these (`prompts.positions`).
- **metric**: the task's own (its logit difference, unless it was given another), or a function of the logits
  `[prompt, pos, d_vocab]` of all prompts that gives one number (`prompts.metrics`). A `PromptMetric` has one for each
  prompt.
- **hooks** on the model stay in force in every run, and cost the shortcuts.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.result import RunInfo, check_option
from headscope.analysis.prompts.metrics import Metric, PositionMetric, PromptMetric, as_number, gap_between
from headscope.analysis.prompts.positions import Positions
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError, NotFiniteError
from headscope.model.transformer import HookedTransformer

__all__ = ["Direction", "Scale", "Scorer", "TaskRuns"]

Direction = Literal["denoising", "noising"]
Scale = Literal["share", "metric"]

_MANY_CELLS = 32  # from here on a batch of one prompt is enough to fill products of matrices


class TaskRuns:
    """A task's two runs, as a patching function was asked to use them.

    Attributes:
        task: The task, on the model's device.
        base: Tokens of the run that is patched.
        other: Tokens of the run that the values are from.
        positions: Where values are put in.
        direction: Which run is which.
        scale: The scale of values.

    Raises:
        InvalidInputError: For another direction or scale, a task without corrupted prompts, or a position that is not
            in every prompt.
        UnknownNameError: For a position that the task has no name for.
    """

    def __init__(
        self,
        model: HookedTransformer,
        task: Task,
        direction: Direction = "denoising",
        scale: Scale = "share",
        positions: Any = None,
    ) -> None:
        check_option("direction", direction, get_args(Direction))
        check_option("scale", scale, get_args(Scale))
        if task.corrupted_tokens is None:
            raise InvalidInputError(
                f"patching needs corrupted prompts, and {task!r} has none. Give them: `corrupted` in from_prompts, a "
                "column of that name in a file, from_templates, from_tokens, or from_ioi.",
                code="HS-PROMPTS-02",
            )
        self.direction, self.scale = direction, scale
        self.task = task = task.to(model.W_E.device)
        assert task.corrupted_tokens is not None
        runs = (task.clean_tokens, task.corrupted_tokens)
        self.base, self.other = runs if direction == "noising" else runs[::-1]
        self.positions = Positions.of(task, positions)
        # No real token looks at the padding behind it: without a mask it gets the same, and faster.
        behind = model.cfg.attention_dir == "causal"
        behind &= all(bool((mask[:, 1:] <= mask[:, :-1]).all()) for mask in task.masks)
        masks = task.masks if direction == "noising" else task.masks[::-1]
        self._masks = None if behind else masks

    def options(self, rows: Int[Tensor, " row"], times: int = 1, *, of_other: bool = False) -> dict[str, Any]:
        """Return the options on padding for a forward pass of some prompts, repeated `times` times.

        Args:
            rows: Which prompts.
            times: How often.
            of_other: For the run that values are from, in the place of the one that is patched.
        """
        mask = None if self._masks is None else self._masks[of_other]
        return {"attention_mask": None if mask is None else mask[rows].repeat(times, 1), "padding_side": "right"}

    def info(self, model: HookedTransformer, n_positions: int, **options: Any) -> RunInfo:
        """Return the record of a run on the task."""
        return RunInfo(
            model.cfg.model_name, model.weight_processing, self.task.description, len(self.task), n_positions, options
        )

    def clean_and_corrupted(self, base: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Put the metrics of the base and the other run in the order clean, corrupted."""
        return (base, other) if self.direction == "noising" else (other, base)

    def scaled(self, change: Float[Tensor, "*cell"], base: Tensor, other: Tensor) -> Float[Tensor, "*cell"]:
        """Return changes of the metric in the scale that was asked for.

        Args:
            change: The metric of patched runs less that of the base run.
            base: The metric of the base run.
            other: That of the other run.

        Raises:
            NotFiniteError: If a change is not finite.
            InvalidInputError: If shares are asked for, and both runs have the same metric.
        """
        if not bool(change.isfinite().all()):
            raise NotFiniteError(
                "the metric of a patched run is not finite. Check the metric, the weights, and the activations of both "
                "runs for NaN.",
                code="HS-FINITE-02",
            )
        if self.scale == "metric":
            return change
        clean, corrupted = self.clean_and_corrupted(base, other)
        return change / gap_between(clean, corrupted, hint=" With scale='metric' no share is taken.")


class Scorer:
    """A metric of final states, read only where it looks.

    The task's own metric (`metric=None`), if it is the logit difference, takes the answers' logits where they are
    predicted. Another says where it looks (`last_position`, `reads`, a `PromptMetric`), or is given all logits of all
    prompts.

    Attributes:
        places: The positions whose final states it takes.
    """

    def __init__(self, model: HookedTransformer, task: Task, metric: Metric | None = None) -> None:
        self.model, self.task, self.metric = model, task, task.measure if metric is None else metric
        n, length = task.clean_tokens.shape
        places = torch.arange(length).expand(n, -1)
        if isinstance(self.metric, PromptMetric | PositionMetric):
            places = self.metric.places(n, length)
        self.places: Int[Tensor, "prompt read"] = places.to(task.clean_tokens.device)

    @property
    def is_of_prompts(self) -> bool:
        """True if it has a number for each prompt."""
        return isinstance(self.metric, PromptMetric)

    def of_rows(self, rows: Int[Tensor, " row"]) -> Metric:
        """Return the metric of a batch; one of all prompts as it is."""
        return self.metric.of_rows(rows) if isinstance(self.metric, PromptMetric) else self.metric

    @cached_property
    def changes_at(self) -> Int[Tensor, " prompt"]:
        """The first position at which each prompt and its corrupted one differ; the length, where they never do.

        A token that is real in one of them alone is a difference: what comes behind it sees it, or not.
        """
        assert self.task.corrupted_tokens is not None
        clean, corrupted = self.task.masks
        differ = (self.task.clean_tokens != self.task.corrupted_tokens) | (clean != corrupted)
        return torch.where(differ.any(1), differ.int().argmax(1), differ.shape[1])

    def batches(self, n_tokens: int, n_cells: int = 1) -> Iterator[Int[Tensor, " row"]]:
        """Cut the prompts into batches of at most `n_tokens` (or one prompt); one for a metric of all prompts.

        With many patches to run on each, prompts go together that change, and predict their answers, at the same
        places: patched runs of a batch are of the positions between its first change and its last answer.
        """
        n, width = self.task.clean_tokens.shape
        for rows in self.alike(torch.arange(n), n_cells):
            yield from rows.split(max(1, n_tokens // width)) if self.is_of_prompts else [rows]

    def alike(self, rows: Int[Tensor, " row"], n_cells: int) -> list[Int[Tensor, " _"]]:
        """Cut some prompts in the same way, but for their number."""
        if not self.is_of_prompts or n_cells < _MANY_CELLS:
            return [rows]
        ends = torch.stack([self.changes_at, self.places[:, -1]]).cpu()[:, rows]
        which = ends.unique(dim=1, return_inverse=True)[1]
        return [rows[which == number] for number in range(int(which.max()) + 1)]

    def read(
        self, rows: Int[Tensor, " row"], final: Float[Tensor, "prompt pos d_model"]
    ) -> Float[Tensor, "prompt read d_model"]:
        """Return the final states at the positions that the metric reads."""
        return final[torch.arange(len(final), device=final.device)[:, None], self.places[rows]]

    def values(
        self, rows: Int[Tensor, " row"], final: Float[Tensor, "run prompt read d_model"]
    ) -> Float[Tensor, "run *prompt"]:
        """Return the metric of each run: for each prompt if it is a `PromptMetric`, else one number.

        Raises:
            InvalidInputError: If a metric of your own is not one number.
        """
        metric = self.metric
        if isinstance(metric, PromptMetric):
            return metric.of_prompts(self.model, final[:, :, 0], rows)
        of_logits = metric.metric if isinstance(metric, PositionMetric) else metric
        return torch.stack([_one_number(of_logits(self.model.to_logits(each))) for each in final])


def _one_number(value: Tensor | float) -> Float[Tensor, ""]:
    as_number(value.detach() if isinstance(value, Tensor) else value)
    return torch.as_tensor(value).reshape(())
