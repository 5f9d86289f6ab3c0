"""`path_patch` and `path_patch_sweep`: what a part of the model does through the parts that read it.

Three passes (Wang et al. 2022, arXiv 2211.00593, section 3.1, who noise; Goldowsky-Dill et al. 2023, arXiv 2304.05969).
Both prompts are run. Then the base run once more, with all heads (and MLPs) frozen at their own output except the
senders, which give their output of the other run; what the receivers read there is recorded. Last the base run with the
receivers reading that, and everything after them recomputed.

With attention frozen nothing moves from one position to another, and with MLPs frozen too, what senders change goes
into the stream as it is: a receiver reads `norm(stream + sum of changes)`, so the second pass needs no forward pass. It
costs a `d_head x d_model` product for each sender and token, and with recomputed MLPs these, at the patched positions.
Norms are those of the changed stream, never with a frozen scale; a post-norm of attention gets the senders of its layer
together. The third pass resumes at the first receiver's layer; into `"final"` there is none. GPT-2 small, 8 prompts of
16 tokens, all heads into queries of layer 9: 144 runs of 3 layers. With hooks on the model every pass is a whole run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, overload

import torch
from torch import Tensor

from headscope.analysis.core.components import all_components, component_of, part_labels
from headscope.analysis.core.named_arrays import cell_label
from headscope.analysis.core.progress import progress_bar
from headscope.analysis.patching.base_run import way_of_running
from headscope.analysis.patching.measured import ByMetric, Measured, Numbers, by_metric
from headscope.analysis.patching.path_block import Cell, PathBlock, WholePaths
from headscope.analysis.patching.path_ends import Receiver, as_receivers, as_senders, check_fed, sender_of
from headscope.analysis.patching.path_result import PathPatchingResult
from headscope.analysis.prompts.controls import Control, RandomWay, controlled
from headscope.analysis.prompts.named_metrics import ManyMetrics, MetricLike, OneMetric, as_metric, unit_of
from headscope.analysis.prompts.task import Task
from headscope.analysis.prompts.two_runs import Direction, Scale, Scorer, TaskRuns
from headscope.analysis.recording.record import check_final
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget

__all__ = ["path_patch", "path_patch_sweep"]


@overload
def path_patch(
    model: HookedTransformer,
    task: Task,
    *,
    senders: object,
    receivers: object,
    direction: Direction = "denoising",
    scale: Scale = "share",
    freeze_mlps: bool = True,
    positions: Any = None,
    metric: OneMetric = None,
    control: Control | None = None,
    seed: int = 0,
) -> PathPatchingResult: ...


@overload
def path_patch(
    model: HookedTransformer,
    task: Task,
    *,
    senders: object,
    receivers: object,
    direction: Direction = "denoising",
    scale: Scale = "share",
    freeze_mlps: bool = True,
    positions: Any = None,
    metric: ManyMetrics,
    control: Control | None = None,
    seed: int = 0,
) -> ByMetric[PathPatchingResult]: ...


def path_patch(
    model: HookedTransformer,
    task: Task,
    *,
    senders: object,
    receivers: object,
    direction: Direction = "denoising",
    scale: Scale = "share",
    freeze_mlps: bool = True,
    positions: Any = None,
    metric: MetricLike = None,
    control: Control | None = None,
    seed: int = 0,
) -> PathPatchingResult | ByMetric[PathPatchingResult]:
    """Change senders as the receivers see them, all of them at once, and measure the answer.

    `prompts.two_runs` explains the options that all kinds of patching share.

    Args:
        model: The model; hooks on it stay in force.
        task: Prompts and corrupted prompts, aligned token by token.
        senders: `(9, 9)`, `"9.9"`, `"mlp5"`, `"mixer5"`, `"embed"`, or a list of these. Mixers in between are frozen as
            attention is.
        receivers: What reads the change: a head's query, key or value input (`"9.9.q"`, `("9.9", "q")`), all three
            (`"9.9"`), an MLP (`"mlp5"`), the final residual stream (`"final"`), or a list. Where heads share keys and
            values, those that one head sees are changed, and not those of the others in its group.
        direction: `"denoising"` puts values of the clean run into the corrupted one; `"noising"`, the direction of Wang
            et al., the other way round.
        scale: `"share"` of the clean metric less the corrupted one, or the change in the unit of the `"metric"`.
        freeze_mlps: Only direct paths through the residual stream. `False` also takes those through the MLPs between.
        positions: Where the senders change, and so (attention being frozen) where receivers read a change: `"end"` or
            another name (`task.word_idx`), a number, a tensor `[prompt]`, or a list; default: everywhere.
        metric: A name (`"logit_difference"`, `"probability"`, `"kl"`, `"rank"`: see `prompts.named_metrics`), a
            `PromptMetric`, or a function of the logits `[prompt, pos, d_vocab]` of all prompts that gives one number;
            those that say what they read (`reads`, `last_position`) are faster. Default: the task's logit difference. A
            list of names, or a mapping from names of your own, measures several of the same patched runs.
        control: Also measure where there is nothing to find: `"reinitialized"`, `"shuffled_answers"` or
            `"norm_matched"` (see `prompts.controls`). It costs as much again.
        seed: Of the control.

    Returns:
        A result with a single value, which `float` gives: the metric's change.

    Raises:
        InvalidInputError: As for `activation_patch`; for components that do not exist, or a sender that no path leads
            from.
        UnknownNameError: For an end or a position of another name.
        NotFiniteError: If a final state or a patched run's metric is not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True))
        >>> path_patch(model, task, senders="3.2", receivers="final", positions="end")
        PathPatchingResult: headscope-demo on 20 prompts, such as ...
          senders -> final; denoising, MLPs frozen, positions: end
          metric: +8.8552 logits clean, -0.7838 corrupted
          runs: suffix
                   change (logits), share
          3.2      +2.29... ± 0.27...  +23.8%
          1 of 1 stands out (sign flips over 20 prompts; the largest of 1 cell, 5% for all)
    """
    cell = as_senders(model.cfg, senders)
    into = as_receivers(model.cfg, receivers)
    check_fed(cell, into)
    sweep = _Sweep([cell], (), into, freeze_mlps)
    options = {"direction": direction, "scale": scale, "positions": positions}
    return sweep.measured(model, task, options, metric, control, seed, progress=False)


@overload
def path_patch_sweep(
    model: HookedTransformer,
    task: Task,
    *,
    receivers: object,
    senders: str | Iterable[object] = "heads",
    direction: Direction = "denoising",
    scale: Scale = "share",
    freeze_mlps: bool = True,
    positions: Any = None,
    metric: OneMetric = None,
    control: Control | None = None,
    seed: int = 0,
    progress: bool = True,
) -> PathPatchingResult: ...


@overload
def path_patch_sweep(
    model: HookedTransformer,
    task: Task,
    *,
    receivers: object,
    senders: str | Iterable[object] = "heads",
    direction: Direction = "denoising",
    scale: Scale = "share",
    freeze_mlps: bool = True,
    positions: Any = None,
    metric: ManyMetrics,
    control: Control | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ByMetric[PathPatchingResult]: ...


def path_patch_sweep(
    model: HookedTransformer,
    task: Task,
    *,
    receivers: object,
    senders: str | Iterable[object] = "heads",
    direction: Direction = "denoising",
    scale: Scale = "share",
    freeze_mlps: bool = True,
    positions: Any = None,
    metric: MetricLike = None,
    control: Control | None = None,
    seed: int = 0,
    progress: bool = True,
) -> PathPatchingResult | ByMetric[PathPatchingResult]:
    """Run `path_patch` from each of many senders, by itself, into the same receivers.

    Args:
        model: See `path_patch`, as for all that is not said here.
        task: Prompts and corrupted prompts.
        receivers: What reads the change.
        senders: `"heads"`, `"components"` (heads, mixers and MLPs), `"all"` (these one after the other, behind the
            embedding), or a list, of which each entry is one sender or several that change together. Without a list,
            those that no path leads from get 0, and those that a layer does not have NaN.
        direction: `"denoising"` or `"noising"`.
        scale: `"share"` or `"metric"`.
        freeze_mlps: Only direct paths.
        positions: Where the senders change.
        metric: What is measured.
        control: What stands beside it.
        seed: Of the control.
        progress: Show a progress bar.

    Raises:
        InvalidInputError, UnknownNameError, NotFiniteError: As for `path_patch`.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True))
        >>> path_patch_sweep(model, task, receivers="final", positions="end", progress=False).top(3)
                 change (logits), share
        3.2      +2.29... ± 0.27...  +23.8%
        2.2      +1.32... ± 0.17...  +13.8%
        1.3      -0.15... ± 0.51...   -1.6%
    """
    cfg = model.cfg
    into = as_receivers(cfg, receivers)
    cells: list[Cell]
    shape: tuple[int, ...]
    absent: list[int] = []
    if isinstance(senders, str) and senders in ("heads", "components"):
        columns = part_labels(cfg)[: cfg.n_heads if senders == "heads" else None]
        places = [cell_label({"layer": layer, "part": part}) for layer in range(cfg.n_layers) for part in columns]
        ordered = [component for component in map(component_of, places) if component is not None]
        cells = [(sender_of(component),) for component in ordered]
        shape = (cfg.n_layers, len(columns))
        absent = [at for at, component in enumerate(ordered) if component.part not in cfg.parts_of(component.layer)]
    elif senders == "all":
        cells = [(sender_of(component),) for component in (None, *all_components(cfg))]
        shape = (len(cells),)
    else:
        cells = [as_senders(cfg, each) for each in ([senders] if isinstance(senders, str) else senders)]
        shape = (len(cells),)
        if not cells:
            raise InvalidInputError(
                "no senders are named; give 'heads', 'components', 'all' or a list, such as ['0.0']."
            )
        for cell in cells:
            check_fed(cell, into)
    sweep = _Sweep(cells, shape, into, freeze_mlps, absent)
    options = {"direction": direction, "scale": scale, "positions": positions}
    return sweep.measured(model, task, options, metric, control, seed, progress=progress)


@dataclass(frozen=True)
class _Sweep:
    """Paths from each of some senders into the same receivers, whatever they are measured by.

    Attributes:
        cells: The senders that change together.
        shape: Of the values.
        receivers: What reads the change.
        freeze_mlps: Only direct paths.
        absent: Cells that the model does not have.
    """

    cells: Sequence[Cell]
    shape: tuple[int, ...]
    receivers: tuple[Receiver, ...]
    freeze_mlps: bool
    absent: Sequence[int] = ()

    @torch.no_grad()
    def measured(
        self,
        model: HookedTransformer,
        task: Task,
        options: dict[str, Any],
        metric: MetricLike,
        control: Control | None,
        seed: int,
        *,
        progress: bool,
    ) -> PathPatchingResult | ByMetric[PathPatchingResult]:
        """Measure all paths, and beside them those of a control."""
        runs = TaskRuns(model, task, **options)
        found = self.run(model, runs, metric, progress=progress)
        beside: Iterable[Numbers | None] = repeat(None)
        if control is not None:
            other_model, other_task = controlled(model, task, control, metric=metric, seed=seed)
            other_runs = TaskRuns(other_model, other_task, **options)
            way = RandomWay(seed) if control == "norm_matched" else None
            beside = self.run(other_model, other_runs, metric, way, progress=progress).numbers(found)
        made = {}
        for numbers, of_control in zip(found.numbers(), beside, strict=False):
            of_it = {} if of_control is None else self.every(of_control, "control_")
            made[numbers.name] = PathPatchingResult(
                info=runs.info(model, int(runs.positions.mask.sum())),
                **self.every(numbers),
                clean=numbers.clean,
                corrupted=numbers.corrupted,
                sender_labels=tuple("+".join(sender.label for sender in cell) for cell in self.cells),
                receiver_labels=tuple(receiver.label for receiver in self.receivers),
                direction=runs.direction,
                scale=runs.scale,
                freeze_mlps=self.freeze_mlps,
                positions=str(runs.positions),
                runs=way_of_running(model),
                control=control or "",
                clusters=task.clusters,
                unit=unit_of(found.scorer.metric, numbers.name),
                **of_it,
            )
        return by_metric(made)

    @property
    def fed(self) -> list[int]:
        """The cells that a path leads from, in the order in which they write."""
        last = max(receiver.stage for receiver in self.receivers)
        fed = [at for at, cell in enumerate(self.cells) if cell[0].stage <= last and at not in self.absent]
        return sorted(fed, key=lambda at: self.cells[at][0].stage)

    def run(
        self,
        model: HookedTransformer,
        runs: TaskRuns,
        metric: MetricLike,
        way: RandomWay | None = None,
        *,
        progress: bool,
    ) -> Measured:
        """Run all paths; with a `way`, senders move there from the base run."""
        fed = self.fed
        senders = list({sender for at in fed for sender in self.cells[at]})
        scorer = Scorer(model, runs.task, as_metric(model, runs.task, metric))
        found = Measured(runs, scorer, len(fed))
        passes = PathBlock if way_of_running(model) == "suffix" else WholePaths
        with progress_bar(len(fed) * len(runs.task), "path patching", shown=progress) as bar:
            for rows in scorer.batches(Budget.of(model.W_E.device).batch_tokens):
                block = passes(model, runs, scorer, rows, senders, self.receivers, self.freeze_mlps, way)
                for batch in block.alike(len(fed)):
                    ends = torch.stack([batch.base, batch.other])
                    check_final(ends)
                    base, other = scorer.values(batch.rows, ends)
                    patched = [base.new_zeros(0, *base.shape)]
                    for start in range(0, len(fed), batch.together):
                        some = [self.cells[at] for at in fed[start : start + batch.together]]
                        patched.append(scorer.values(batch.rows, batch.finals(some)))
                        bar.update(len(some) * len(batch.rows))
                    found.add(batch.rows, base, other, torch.cat(patched) - base)
        return found

    def every(self, numbers: Numbers, prefix: str = "") -> dict[str, Any]:
        """The numbers of all cells: 0 for those that no path leads from, NaN for those that are not there."""

        def filled(of_fed: Tensor) -> Tensor:
            every = of_fed.new_zeros(len(self.cells), *of_fed.shape[1:])
            every[self.fed] = of_fed
            every[list(self.absent)] = torch.nan
            return every.view((*self.shape, *of_fed.shape[1:]))

        rows = None if numbers.per_prompt is None else filled(numbers.per_prompt.T)
        return {f"{prefix}values": filled(numbers.values), f"{prefix}per_prompt": rows}
