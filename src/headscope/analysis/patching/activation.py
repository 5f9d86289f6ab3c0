"""`activation_patch`: which pieces of one run, put into the other, bring a task's answer back or break it."""

from collections.abc import Container, Iterable, Sequence
from functools import partial
from itertools import product, repeat
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.progress import each_step
from headscope.analysis.patching.base_run import obstacle, way_of_running
from headscope.analysis.patching.engine import Patch, measure_patches, measured_of_logits
from headscope.analysis.patching.measured import ByMetric, Measured, Numbers, by_metric
from headscope.analysis.patching.result import PatchingResult
from headscope.analysis.patching.sites import AXES, as_sites, patch_axes
from headscope.analysis.prompts.controls import Control, RandomWay, check_moves, controlled
from headscope.analysis.prompts.metrics import Metric, PromptMetric
from headscope.analysis.prompts.named_metrics import ManyMetrics, MetricLike, OneMetric, as_metric
from headscope.analysis.prompts.task import Task
from headscope.analysis.prompts.two_runs import Direction, Scale, Scorer, TaskRuns
from headscope.analysis.recording.record import record
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget

__all__ = ["activation_patch"]

# A patch's axes and its index along each.
_Cell = dict[str, int]


@overload
def activation_patch(
    model: HookedTransformer,
    task: Task,
    sites: str | Sequence[str] = "resid_pre",
    *,
    direction: Direction = "denoising",
    scale: Scale = "share",
    by_position: bool | None = None,
    positions: Any = None,
    metric: OneMetric = None,
    control: Control | None = None,
    seed: int = 0,
    progress: bool = True,
) -> PatchingResult: ...


@overload
def activation_patch(
    model: HookedTransformer,
    task: Task,
    sites: str | Sequence[str] = "resid_pre",
    *,
    direction: Direction = "denoising",
    scale: Scale = "share",
    by_position: bool | None = None,
    positions: Any = None,
    metric: ManyMetrics,
    control: Control | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ByMetric[PatchingResult]: ...


@torch.no_grad()
def activation_patch(
    model: HookedTransformer,
    task: Task,
    sites: str | Sequence[str] = "resid_pre",
    *,
    direction: Direction = "denoising",
    scale: Scale = "share",
    by_position: bool | None = None,
    positions: Any = None,
    metric: MetricLike = None,
    control: Control | None = None,
    seed: int = 0,
    progress: bool = True,
) -> PatchingResult | ByMetric[PatchingResult]:
    """Put each piece of one run into the other, one at a time, and measure the answer.

    Prompts are run in batches of bounded size, and only what a patch can change is run (see `patching.engine`). Prompts
    of several lengths go together. `prompts.two_runs` explains the options that all kinds of patching share.

    Args:
        model: The model; hooks on it stay in force.
        task: Prompts and corrupted prompts, aligned token by token.
        sites: One of these or several: `"resid_pre"`, `"resid_mid"`, `"resid_post"`, `"attn_out"`, `"mixer_out"`,
            `"mlp_out"`; and of each head its output `"z"`, `"q"`, `"k"`, `"v"` (for each group, where heads share keys
            and values) and `"pattern"`.
        direction: `"denoising"` puts values of the clean run into the corrupted one, `"noising"` the other way round.
        scale: `"share"` of the clean metric less the corrupted one (denoising goes from 0 to 1, noising from 0 to -1),
            or the change in the unit of the `"metric"`.
        by_position: Each position by itself, or all that are asked for together; default: by itself for the residual
            stream and what layers add to it, together for what is inside heads. A pattern's position is the query's.
        positions: `"end"` or another name (`task.word_idx`), a number, a tensor `[prompt]`, or a list; default: all.
        metric: A name (`"logit_difference"`, `"probability"`, `"kl"`, `"rank"`: see `prompts.named_metrics`), a
            `PromptMetric`, or a function of the logits `[prompt, pos, d_vocab]` of all prompts that gives one number;
            default: the task's logit difference. A list of names, or a mapping from names of your own, measures
            several of the same patched runs.
        control: Also measure where there is nothing to find: `"reinitialized"`, `"shuffled_answers"` or
            `"norm_matched"` (see `prompts.controls`). It costs as much again.
        seed: Of the control.
        progress: Show a progress bar.

    Returns:
        For each site `[layer, pos]`, `[layer, head]`, `[layer, pos, head]` (a pattern's: `[layer, head, pos]`) or
        `[layer]`; NaN for layers that do not have it. The values of single prompts, errors and tests come with it (see
        `OverPrompts`), unless the metric has one number for all prompts. Of several metrics, a result for each, by
        name.

    Raises:
        InvalidInputError: If the task has no corrupted prompts, the model has no such site, a position is not in every
            prompt, the metric is not one number, or shares are asked for where both runs have the same metric.
        UnknownNameError: For a site or a position of another name.
        NotFiniteError: If a patched run's metric is not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=8, tokenizer=model.tokenizer, prepend_bos=True))
        >>> activation_patch(model, task, ["resid_pre", "z"], positions=["S2", "end"], progress=False).top(3)
                            the share of the logit difference brought back
        resid_pre 4 at end  +0.98...
        resid_pre 0 at S2   +0.81...
        resid_pre 2 at S2   +0.66...
    """
    runs = TaskRuns(model, task, direction, scale, positions)
    sweep = _Sweep(model, sites, by_position, len(runs.positions.names))
    measured = sweep.measured(model, runs, metric, progress=progress)
    beside: Iterable[Numbers | None] = repeat(None)
    if control is not None:
        of_control = controlled(model, task, control, metric=metric, seed=seed)
        other_runs = TaskRuns(*of_control, direction, scale, positions)
        way = RandomWay(seed) if control == "norm_matched" else None
        beside = sweep.measured(of_control[0], other_runs, metric, way, progress=progress).numbers(measured)
    made = {}
    for numbers, of_control_too in zip(measured.numbers(), beside, strict=False):
        of_task = "logit_difference" if metric is None and task.metric is None else ""
        name = numbers.name or (metric if isinstance(metric, str) else of_task)
        made[numbers.name] = PatchingResult(
            info=runs.info(model, len(task), sites=list(sweep.hook_names), direction=direction),
            **sweep.every(numbers),
            sites=tuple(sweep.hook_names),
            axes=tuple(" ".join(axes) for axes in sweep.axes.values()),
            positions=runs.positions.names,
            position_labels=runs.positions.labels,
            n_layers=model.cfg.n_layers,
            n_heads=model.cfg.n_heads,
            n_key_value_heads=model.cfg.n_cached_heads,
            direction=direction,
            unit=_unit(direction, scale, name.replace("_", " ") or "metric"),
            clean=float(numbers.clean),
            corrupted=float(numbers.corrupted),
            runs=way_of_running(model),
            **({} if of_control_too is None else sweep.every(of_control_too, "control_")),
            control=control or "",
            clusters=task.clusters,
        )
    return by_metric(made)


class _Sweep:
    """The patches of some sites, whatever they are measured by.

    Attributes:
        hook_names: The hook points of each site, by layer.
        axes: The axes of each site.
    """

    def __init__(
        self, model: HookedTransformer, sites: str | Sequence[str], by_position: bool | None, n_positions: int
    ) -> None:
        self.hook_names = as_sites(model, sites)
        self.axes = {
            site: patch_axes(site, "head" not in AXES[site] if by_position is None else by_position)
            for site in self.hook_names
        }
        self.cells = [
            (site, cell) for site in self.hook_names for cell in _cells(model, site, self.axes[site], n_positions)
        ]
        # Not cells of a layer that lacks the site, or the head.
        self.here = [
            at for at, (site, cell) in enumerate(self.cells) if _is_in(model, cell, site, self.hook_names[site])
        ]

    def measured(
        self,
        model: HookedTransformer,
        runs: TaskRuns,
        metric: MetricLike,
        way: RandomWay | None = None,
        *,
        progress: bool,
    ) -> Measured:
        """Run all patches; with a `way`, what is put in moves there from the base run."""
        if way is not None:
            check_moves(self.hook_names)
        names = [name for of_site in self.hook_names.values() for name in of_site.values()]
        n_side_by_side = len(self.here) if obstacle(model) is None else 1
        scorer = Scorer(model, runs.task, as_metric(model, runs.task, metric))
        found = Measured(runs, scorer, len(self.here))
        batches = list(scorer.batches(Budget.of(model.W_E.device).batch_tokens, n_side_by_side))
        for rows in each_step(batches, "patching " + ", ".join(self.hook_names), shown=progress):
            some = runs.task[rows]
            measure = scorer.of_rows(rows)
            mask, other_mask = some.masks if runs.direction == "noising" else some.masks[::-1]
            real = None if some.corrupted_mask is None else mask & other_mask
            other, cache = _run(model, runs.other[rows], measure, names, other_mask)
            base, of_base = _run(model, runs.base[rows], measure, names if way else [], mask)
            if way is not None:
                cache = {name: of_base[name] + way.instead_of(cache[name] - of_base[name]) for name in names}
            at = runs.positions.at[:, rows]
            patches = []
            for site, cell in (self.cells[at] for at in self.here):
                name = self.hook_names[site][cell["layer"]]
                places = at[cell["pos"]][None] if "pos" in cell else at
                patches.append(Patch(name, partial(_put, cache[name], places, site, cell.get("head"), real)))
            values = measure_patches(
                model, runs.base[rows], measure, patches, attention_mask=mask, watched=names, progress=progress
            )
            found.add(rows, base, other, values - base)
        return found

    def every(self, numbers: Numbers, prefix: str = "") -> dict[str, Any]:
        """The numbers of all cells, NaN for those that are not there."""
        every = torch.full((len(self.cells),), torch.nan, device=numbers.values.device)
        every[self.here] = numbers.values.float()
        rows = None
        if numbers.per_prompt is not None:
            rows = torch.full((len(numbers.per_prompt), len(self.cells)), torch.nan, device=every.device)
            rows[:, self.here] = numbers.per_prompt.float()
        return {f"{prefix}values": every, f"{prefix}per_prompt": rows}


def _unit(direction: Direction, scale: Scale, measured: str) -> str:
    if scale == "metric":
        return f"the change of the {measured}"
    return f"the share of the {measured} " + ("brought back" if direction == "denoising" else "broken (-1: all)")


def _cells(model: HookedTransformer, site: str, axes: tuple[str, ...], n_positions: int) -> list[_Cell]:
    """Return the patches of a site in the order of its axes."""
    cfg = model.cfg
    heads = cfg.n_cached_heads if site in ("k", "v") else cfg.n_heads
    sizes = {"layer": cfg.n_layers, "head": heads, "pos": n_positions}
    return [dict(zip(axes, index, strict=True)) for index in product(*(range(sizes[axis]) for axis in axes))]


def _is_in(model: HookedTransformer, cell: _Cell, site: str, layers: Container[int]) -> bool:
    """Return True if the layer of a patch has the site, and the head: some have fewer key-value heads than others."""
    layer, of_keys = cell["layer"], site in ("k", "v")
    n_heads = model.cfg.cached_heads_of(layer) if of_keys else model.cfg.n_heads
    return layer in layers and cell.get("head", 0) < n_heads


def _put(
    source: Tensor, positions: Tensor, site: str, head: int | None, real: Tensor | None, activation: Tensor
) -> None:
    """Set some positions of an activation (of a head) where they are `real`; a pattern's position is its query's."""
    rows = torch.arange(len(activation), device=activation.device)
    for position in positions:
        of_head = (position,) if head is None else (position, head)
        at = (rows, head, position) if site == "pattern" else (rows, *of_head)
        given = source[at]
        if real is not None:
            here = real[rows, position].view(-1, *[1] * (given.ndim - 1))
            given = torch.where(here, given, activation[at])
        activation[at] = given


def _run(
    model: HookedTransformer, tokens: Tensor, metric: Metric, names: list[str], attention_mask: Tensor
) -> tuple[Float[Tensor, "..."], dict[str, Float[Tensor, "prompt ..."]]]:
    """Return a run's metric (of each prompt, if it is a `PromptMetric`), and its activations at some hook points."""
    kept, states = record(model, tokens, names, attention_mask=attention_mask)
    if not (isinstance(metric, PromptMetric) and obstacle(model) is None):
        return measured_of_logits(metric, model.to_logits(states)), kept
    rows = torch.arange(len(states), device=states.device)
    at = metric.places(*states.shape[:2])[:, 0].to(states.device)
    return metric.of_prompts(model, states[rows, at][None])[0].cpu().double(), kept
