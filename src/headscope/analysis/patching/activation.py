"""`activation_patch`: which pieces of one run, put into the other, bring a task's answer back or break it."""

from collections.abc import Container, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.progress import each_step
from headscope.analysis.patching.base_run import obstacle, way_of_running
from headscope.analysis.patching.engine import Patch, measure_patches
from headscope.analysis.patching.result import PatchingResult
from headscope.analysis.patching.sites import AXES, as_sites, patch_axes
from headscope.analysis.prompts.metrics import Metric, PromptMetric, as_number
from headscope.analysis.prompts.task import Task
from headscope.analysis.prompts.two_runs import Direction, Scale, Scorer, TaskRuns
from headscope.analysis.recording.record import record
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget

__all__ = ["activation_patch"]

# A patch's axes and its index along each.
_Cell = dict[str, int]


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
    metric: Metric | None = None,
    progress: bool = True,
) -> PatchingResult:
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
        metric: A function of the logits `[prompt, pos, d_vocab]` of all prompts that gives one number; default: the
            task's logit difference.
        progress: Show a progress bar.

    Returns:
        For each site `[layer, pos]`, `[layer, head]`, `[layer, pos, head]` (a pattern's: `[layer, head, pos]`) or
        `[layer]`; NaN for layers that do not have it.

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
    hook_names = as_sites(model, sites)
    runs = TaskRuns(model, task, direction, scale, positions)
    axes = {
        site: patch_axes(site, "head" not in AXES[site] if by_position is None else by_position) for site in hook_names
    }
    cells = [(site, cell) for site in hook_names for cell in _cells(model, site, axes[site], len(runs.positions.names))]
    here = [at for at, (site, cell) in enumerate(cells) if _is_in(model, cell, site, hook_names[site])]
    names = [name for of_site in hook_names.values() for name in of_site.values()]
    patched, ends = torch.zeros(len(here), dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    n_side_by_side = len(here) if obstacle(model) is None else 1
    scorer = Scorer(model, runs.task, metric)
    batches = list(scorer.batches(Budget.of(model.W_E.device).batch_tokens, n_side_by_side))
    for rows in each_step(batches, "patching " + ", ".join(hook_names), shown=progress):
        some = runs.task[rows]
        measure = scorer.of_rows(rows)
        mask, other_mask = some.masks if direction == "noising" else some.masks[::-1]
        real = None if some.corrupted_mask is None else mask & other_mask
        other, cache = _run(model, runs.other[rows], measure, names, other_mask)
        base, _ = _run(model, runs.base[rows], measure, [], mask)
        at = runs.positions.at[:, rows]
        patches = []
        for site, cell in (cells[at] for at in here):
            name, places = hook_names[site][cell["layer"]], at[cell["pos"]][None] if "pos" in cell else at
            patches.append(Patch(name, partial(_put, cache[name], places, site, cell.get("head"), real)))
        values = measure_patches(
            model, runs.base[rows], measure, patches, attention_mask=mask, watched=names, progress=progress
        )
        weight = len(some) / len(task)
        patched += torch.tensor(values, dtype=torch.float64) * weight
        ends += torch.tensor([base, other], dtype=torch.float64) * weight
    clean, corrupted = runs.clean_and_corrupted(*ends)
    every = torch.full((len(cells),), torch.nan)  # also cells of a layer that lacks the site, or the head
    every[here] = runs.scaled(patched - ends[0], *ends).float()
    return PatchingResult(
        info=runs.info(model, len(task), sites=list(hook_names), direction=direction),
        values=every,
        sites=tuple(hook_names),
        axes=tuple(" ".join(axes[site]) for site in hook_names),
        positions=runs.positions.names,
        position_labels=runs.positions.labels,
        n_layers=model.cfg.n_layers,
        n_heads=model.cfg.n_heads,
        n_key_value_heads=model.cfg.n_cached_heads,
        direction=direction,
        unit=_unit(direction, scale, "logit difference" if metric is None else "metric"),
        clean=float(clean),
        corrupted=float(corrupted),
        runs=way_of_running(model),
    )


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
) -> tuple[float, dict[str, Float[Tensor, "prompt ..."]]]:
    """Return a run's metric, and its activations at some hook points."""
    kept, states = record(model, tokens, names, attention_mask=attention_mask)
    if not (isinstance(metric, PromptMetric) and obstacle(model) is None):
        return as_number(metric(model.to_logits(states))), kept
    rows = torch.arange(len(states), device=states.device)
    return float(metric.of_states(model, states[rows, metric.positions][None])), kept
