"""`ablate_components`: what a task loses without each head, mixer and MLP.

Patching is blind to a part that gives the same in both runs, whatever depends on it: a head that finds the end of the
prompt, an MLP that writes a constant. Taking the part away is not. `"zero"` puts nothing in its place, `"mean"` its
mean at that position over the task's corrupted prompts (its clean ones, where there are none).

Of each component a run from its layer on, several side by side: with L layers of H heads and an MLP, about
(H + 1) (L + 1) / 2 forward passes of all prompts for each value.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.components import Component, all_components, component_sets, set_label
from headscope.analysis.core.progress import progress_bar
from headscope.analysis.core.result import Array, Result, RunInfo, check_option
from headscope.analysis.core.stats import standard_errors
from headscope.analysis.prompts.metrics import AnswerMetric, Metric
from headscope.analysis.prompts.task import Task
from headscope.analysis.prompts.two_runs import Scorer
from headscope.analysis.recording.component_means import OutputSums
from headscope.analysis.recording.record import (
    CleanRuns,
    Replacement,
    check_final,
    hook_name,
    record,
    streams_entering,
)
from headscope.analysis.storage.accumulator import added
from headscope.errors import InvalidInputError, NotFiniteError
from headscope.model.hooks import is_listening
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget

__all__ = ["TaskAblation", "ablate_components"]

Value = Literal["zero", "mean"]
_NO_ERRORS = "a single prompt, or a metric of all prompts, has no errors."


@dataclass(frozen=True, repr=False)
class TaskAblation(Result):
    """The change of a task's metric when components are ablated, each by itself.

    Attributes:
        change: The metric of the ablated run less that of the clean one, `[value, component, prompt]`; without the last
            axis for a metric of all prompts. Below zero, the component works for the right answer.
        clean: The metric of the clean run.
        values: What was put in the components' place.
        component_labels: `10.7`, `mlp3`, or `10.7+11.10` for components ablated together.
        has_answers: The metric is a logit difference, in logits.
        clusters: A number for each prompt, the same for those not drawn independently (see `Task`); errors are over
            clusters.
        info: What was run on what.
    """

    kind: ClassVar[str] = "task ablation"
    arrays: ClassVar[Mapping[str, Array]] = {
        "change": Array("value component prompt", title="change of the metric", error="errors"),
        "errors": Array("value component", column="error", absent=_NO_ERRORS, of=lambda found: found.errors),
    }
    coords: ClassVar[Mapping[str, str]] = {"value": "values", "component": "component_labels"}
    rows: ClassVar[tuple[str, ...]] = ("component", "value")
    columns: ClassVar[tuple[str, ...]] = ("change", "errors")
    ranked: ClassVar[tuple[str, ...]] = ("change",)
    fixed: ClassVar[Mapping[str, int | str]] = {"value": 0}
    either_way: ClassVar[bool] = True
    change: Float[Tensor, "value component *prompt"]
    clean: float
    values: tuple[str, ...]
    component_labels: tuple[str, ...]
    has_answers: bool = False
    clusters: Int[Tensor, " prompt"] | None = None

    def declared(self) -> Mapping[str, Array]:
        unit = "logits" if self.has_answers else ""
        return {name: replace(array, unit=unit) for name, array in self.arrays.items()}

    @property
    def errors(self) -> Float[Tensor, "value component"] | None:
        """One standard error of each mean over prompts; `None` for one prompt, or a metric of all prompts."""
        if self.change.ndim < 3:
            return None
        errors = standard_errors(self.change.movedim(2, 0), self.clusters)
        return None if bool(errors.isnan().all()) else errors

    @property
    def answer_sign(self) -> int:
        return -1

    def mean(self) -> Float[Tensor, "value component"]:
        """The changes, means over prompts."""
        return self.change.mean(2) if self.change.ndim == 3 else self.change

    def _notes(self) -> Iterator[str]:
        yield f"{'logit difference' if self.has_answers else 'metric'}: {self.clean:+.4f} clean"
        unit = " (logits)" if self.has_answers else ""
        for value in self.values:
            best = self.top(5, mlps=True, value=value).line(errors=True)
            yield f"{value}-ablated, change{unit}: {best}"


@torch.no_grad()
def ablate_components(
    model: HookedTransformer,
    task: Task,
    components: Iterable[object] | None = None,
    *,
    values: Sequence[Value] = ("zero", "mean"),
    metric: Metric | None = None,
    progress: bool = True,
) -> TaskAblation:
    """Measure a task's metric without each of some heads, mixers and MLPs.

    `ablate_heads` asks the same of a text and the loss of its next tokens.

    Args:
        model: The model; hooks on it stay in force.
        task: Prompts; corrupted ones, if it has them, are what means are over.
        components: What to ablate: `(10, 7)`, `"10.7"`, `"mlp3"`, `"mixer3"`, or a list of these that is ablated
            together. Default: every head, mixer and MLP.
        values: What takes the output's place at every position: `"zero"`, or its `"mean"` over the corrupted prompts at
            that position.
        metric: A function of the logits `[prompt, pos, d_vocab]` of all prompts that gives one number, or a
            `PromptMetric`; default: the task's own.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: For a component that does not exist, another value, or a metric that is not one number.
        NotFiniteError: If an ablated run's metric is not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True))
        >>> ablate_components(model, task, progress=False)
        TaskAblation: headscope-demo on 20 prompts, such as ...
          logit difference: +8.8552 clean
          zero-ablated, change (logits): ...
          mean-ablated, change (logits): ...
    """
    for value in values:
        check_option("values", value, get_args(Value))
    if not values or len(set(values)) < len(values):
        raise InvalidInputError(f"values must be different ones of 'zero' and 'mean'; got {list(values)}.")
    sets = component_sets(model.cfg, all_components(model.cfg) if components is None else components)
    task = task.to(model.W_E.device)
    scorer = Scorer(model, task, metric)
    instead = _Instead(model, task, sets) if "mean" in values else None
    order = sorted(range(len(sets)), key=lambda at: min(sets[at]).layer)
    base, parts, row_numbers = [], [], []
    with progress_bar(len(sets) * len(values) * len(task), "ablating", shown=progress) as bar:
        for rows in scorer.batches(Budget.of(model.W_E.device).batch_tokens):
            batch = _AblatedRuns(model, task, scorer, rows, sorted({min(each).layer for each in sets}))
            base.append(batch.clean)
            found = batch.clean.new_empty(len(values), len(sets), *batch.clean.shape)
            for value_at, value in enumerate(values):
                for group in batch.groups([sets[at] for at in order]):
                    some = [order[at] for at in group]
                    means = instead if value == "mean" else None
                    found[value_at, some] = batch.metrics([sets[at] for at in some], means)
                    bar.update(len(some) * len(rows))
            parts.append(found)
            row_numbers.append(rows)
    if base[0].ndim:
        back = torch.cat(row_numbers).argsort()
        clean, ablated = torch.cat(base)[back], torch.cat(parts, -1)[..., back]
    else:
        clean, ablated = base[0], parts[0]
    if not bool(ablated.isfinite().all()):
        raise NotFiniteError(
            "the metric of an ablated run is not finite. Check the metric and the weights for NaN.", code="HS-FINITE-02"
        )
    info = RunInfo(
        model.cfg.model_name,
        model.weight_processing,
        task.description,
        len(task),
        int(task.attention_mask.sum()),
        {"values": list(values)},
    )
    return TaskAblation(
        info=info,
        change=ablated - clean,
        clean=float(clean.mean()),
        values=tuple(values),
        component_labels=tuple(set_label(each) for each in sets),
        has_answers=isinstance(scorer.metric, AnswerMetric),
        clusters=task.clusters,
    )


class _Instead:
    """The means that take components' places, at each position."""

    def __init__(self, model: HookedTransformer, task: Task, sets: Iterable[Iterable[Component]]) -> None:
        parts = frozenset(part for together in sets for part in together)
        outputs = OutputSums(CleanRuns(model, parts, room=0), by_position=True)
        mask = task.masks[1]
        tokens = task.clean_tokens if task.corrupted_tokens is None else task.corrupted_tokens
        sums: dict[str, Tensor] = {}
        n_rows = max(1, Budget.of(tokens.device).batch_tokens // tokens.shape[1])
        for some, real in zip(tokens.split(n_rows), mask.split(n_rows), strict=True):
            sums = added(sums, outputs.measure(Batch(some, real, real), 0))
        self._means, self._length = outputs.means(sums), tokens.shape[1]

    def of(self, part: Component) -> Float[Tensor, "pos width"]:
        return self._means.of(part, self._length)


class _AblatedRuns:
    """Some prompts, run clean, and from a layer on with components ablated."""

    def __init__(
        self, model: HookedTransformer, task: Task, scorer: Scorer, rows: Int[Tensor, " row"], layers: Sequence[int]
    ) -> None:
        self.model, self.scorer, self.rows = model, scorer, rows
        self.tokens, self.mask = task.clean_tokens[rows], task.attention_mask[rows]
        with streams_entering(model, layers) as self.streams:
            final = record(model, self.tokens, attention_mask=self.mask).final
        check_final(final)
        self.clean = scorer.values(rows, scorer.read(rows, final)[None])[0]
        # A hook of the user's may count on the batch it was made for.
        listeners = any(is_listening(point) for point in model.hook_points())
        budget = Budget.of(self.tokens.device).batch_tokens
        self.together = 1 if listeners else max(1, budget // self.tokens.numel())

    def groups(self, sets: Sequence[tuple[Component, ...]]) -> Iterator[list[int]]:
        """The numbers of sets, in order of their first layers, that are run side by side."""
        at = 0
        while at < len(sets):
            layer = min(sets[at]).layer
            group = [n for n in range(at, min(at + self.together, len(sets))) if min(sets[n]).layer == layer]
            yield group
            at += len(group)

    def metrics(self, sets: Sequence[tuple[Component, ...]], means: _Instead | None) -> Float[Tensor, "set *prompt"]:
        """The metric without each of some sets, which begin in one layer."""
        n, start = len(self.rows), min(sets[0]).layer
        replaced: dict[str, list[Replacement]] = {}
        for number, together in enumerate(sets):
            here = slice(number * n, (number + 1) * n)
            for part in together:
                value = self.streams[start].new_zeros(1) if means is None else means.of(part)
                replaced.setdefault(hook_name(part), []).append(Replacement(value, part.head, here))
        final = record(
            self.model,
            self.streams[start].repeat(len(sets), 1, 1),
            replaced=replaced,
            start_at_layer=start,
            tokens=self.tokens.repeat(len(sets), 1),
            attention_mask=self.mask.repeat(len(sets), 1),
        ).final.unflatten(0, (len(sets), n))
        read = torch.stack([self.scorer.read(self.rows, each) for each in final])
        return self.scorer.values(self.rows, read)
