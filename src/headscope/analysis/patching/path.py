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
from typing import Any

import torch
from torch import Tensor

from headscope.analysis.core.components import component_of, part_labels
from headscope.analysis.core.named_arrays import cell_label
from headscope.analysis.core.progress import progress_bar
from headscope.analysis.patching.base_run import way_of_running
from headscope.analysis.patching.path_block import Cell, PathBlock, WholePaths
from headscope.analysis.patching.path_ends import Receiver, as_receivers, as_senders, check_fed, sender_of
from headscope.analysis.patching.path_result import PathPatchingResult
from headscope.analysis.prompts.metrics import Metric
from headscope.analysis.prompts.task import Task
from headscope.analysis.prompts.two_runs import Direction, Scale, Scorer, TaskRuns
from headscope.analysis.recording.record import check_final
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget

__all__ = ["path_patch", "path_patch_sweep"]


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
    metric: Metric | None = None,
) -> PathPatchingResult:
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
        metric: A function of the logits `[prompt, pos, d_vocab]` of all prompts that gives one number; those that say
            what they read (`reads`, `last_position`) are faster. Default: the task's logit difference.

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
        PathPatchingResult: headscope-demo (...) on 20 prompts, such as ...
          senders -> final; denoising, MLPs frozen, positions: end
          metric: +8.8552 clean, -0.7838 corrupted
          runs: suffix
                   change, share
          3.2      +2.29...  +23.8%
    """
    cell = as_senders(model.cfg, senders)
    into = as_receivers(model.cfg, receivers)
    check_fed(cell, into)
    runs = TaskRuns(model, task, direction, scale, positions)
    return _measured(model, runs, [cell], (), into, freeze_mlps, metric, progress=False)


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
    metric: Metric | None = None,
    progress: bool = True,
) -> PathPatchingResult:
    """Run `path_patch` from each of many senders, by itself, into the same receivers.

    Args:
        model: See `path_patch`, as for all that is not said here.
        task: Prompts and corrupted prompts.
        receivers: What reads the change.
        senders: `"heads"`, `"components"` (heads, mixers and MLPs), or a list, of which each entry is one sender or
            several that change together. Of the first two, those that no path leads from get 0, and those that a layer
            does not have NaN.
        direction: `"denoising"` or `"noising"`.
        scale: `"share"` or `"metric"`.
        freeze_mlps: Only direct paths.
        positions: Where the senders change.
        metric: What is measured.
        progress: Show a progress bar.

    Raises:
        InvalidInputError, UnknownNameError, NotFiniteError: As for `path_patch`.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True))
        >>> path_patch_sweep(model, task, receivers="final", positions="end", progress=False).top(3)
                 change, share
        3.2      +2.29...  +23.8%
        2.2      +1.32...  +13.8%
        1.3      -0.15...   -1.6%
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
    else:
        cells = [as_senders(cfg, each) for each in ([senders] if isinstance(senders, str) else senders)]
        shape = (len(cells),)
        if not cells:
            raise InvalidInputError("no senders are named; give 'heads', 'components' or a list, such as ['0.0'].")
        for cell in cells:
            check_fed(cell, into)
    runs = TaskRuns(model, task, direction, scale, positions)
    return _measured(model, runs, cells, shape, into, freeze_mlps, metric, absent=absent, progress=progress)


@torch.no_grad()
def _measured(
    model: HookedTransformer,
    runs: TaskRuns,
    cells: Sequence[Cell],
    shape: tuple[int, ...],
    receivers: tuple[Receiver, ...],
    freeze_mlps: bool,
    metric: Metric | None,
    *,
    absent: Sequence[int] = (),
    progress: bool,
) -> PathPatchingResult:
    n_prompts = len(runs.task)
    last = max(receiver.stage for receiver in receivers)
    fed = [at for at, cell in enumerate(cells) if cell[0].stage <= last and at not in absent]
    fed.sort(key=lambda at: cells[at][0].stage)
    senders = list({sender for at in fed for sender in cells[at]})
    scorer = Scorer(model, runs.task, metric)
    way = way_of_running(model)
    passes = PathBlock if way == "suffix" else WholePaths
    parts, order = [], []
    with progress_bar(len(fed) * n_prompts, "path patching", shown=progress) as bar:
        for rows in scorer.batches(Budget.of(model.W_E.device).batch_tokens):
            for batch in passes(model, runs, scorer, rows, senders, receivers, freeze_mlps).alike(len(fed)):
                ends = torch.stack([batch.base, batch.other])
                check_final(ends)
                metrics = [scorer.values(batch.rows, ends)]
                for start in range(0, len(fed), batch.together):
                    some = [cells[at] for at in fed[start : start + batch.together]]
                    metrics.append(scorer.values(batch.rows, batch.finals(some)))
                    bar.update(len(some) * len(batch.rows))
                parts.append(torch.cat(metrics))
                order.append(batch.rows)
    # The logit difference has a value for each prompt, a metric of your own one for all.
    base, other, *patched = torch.cat(parts, dim=-1)[:, torch.cat(order).argsort()] if parts[0].ndim > 1 else parts[0]
    change = base.new_zeros(len(cells), *base.shape)
    change[fed] = torch.stack(patched) - base if patched else base.new_zeros(0, *base.shape)
    means = base.mean(), other.mean()

    def scaled(change: Tensor) -> Tensor:
        values = runs.scaled(change, *means)
        values[list(absent)] = torch.nan
        return values

    clean, corrupted = runs.clean_and_corrupted(*means)
    return PathPatchingResult(
        info=runs.info(model, int(runs.positions.mask.sum())),
        values=scaled(change.mean(1) if base.ndim else change).view(shape),
        per_prompt=scaled(change).view(*shape, n_prompts) if base.ndim else None,
        clean=clean,
        corrupted=corrupted,
        sender_labels=tuple("+".join(sender.label for sender in cell) for cell in cells),
        receiver_labels=tuple(receiver.label for receiver in receivers),
        direction=runs.direction,
        scale=runs.scale,
        freeze_mlps=freeze_mlps,
        positions=str(runs.positions),
        runs=way,
    )
