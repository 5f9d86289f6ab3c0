"""`path_patch` and `path_patch_sweep`: what breaks when one part of the model changes only as some others see it.

Three passes (Wang et al. 2022, arXiv 2211.00593, section 3.1; Goldowsky-Dill et al. 2023, arXiv 2304.05969). Both
prompts are run. Then the base run once more, all heads (and MLPs) kept at what they gave but for the senders, which
give what they gave in the other run: what the receivers read there is recorded. Last the base run with the receivers
reading that, and all that comes after them computed again.

With attention frozen nothing moves from one position to another, and with MLPs frozen too, what senders change goes
into the stream as it is: a receiver reads `norm(stream + sum of changes)`, so the second pass needs no forward pass. It
costs a `d_head x d_model` product for each sender and token, and with recomputed MLPs these, at the patched positions.
Norms are those of the changed stream, never with a frozen scale; one behind attention gets the senders of its layer
together. The third pass resumes at the first receiver's layer; into
`"final"` there is none. GPT-2 small, 8 prompts of 16 tokens, all heads into queries of layer 9: 144 runs of 3 layers.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tqdm import tqdm

from headscope.analysis.core.batches import BLOCK_TOKENS
from headscope.analysis.core.components import all_heads, all_mlps
from headscope.analysis.core.result import RunInfo
from headscope.analysis.patching.path_block import Cell, PathBlock
from headscope.analysis.patching.path_ends import Receiver, as_receivers, as_senders, check_fed, sender_of
from headscope.analysis.patching.path_result import PathPatchingResult
from headscope.analysis.prompts.metrics import Metric
from headscope.analysis.prompts.task import Task
from headscope.analysis.prompts.two_runs import Direction, Scorer, TaskRuns, check_unhooked, in_words
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer

__all__ = ["path_patch", "path_patch_sweep"]


def path_patch(
    model: HookedTransformer,
    task: Task,
    *,
    senders: object,
    receivers: object,
    direction: Direction = "noising",
    freeze_mlps: bool = True,
    positions: Any = None,
    metric: Metric | None = None,
) -> PathPatchingResult:
    """What happens to the metric when senders change as receivers see them, all of them at once.

    Args:
        model: The model, without hooks.
        task: Prompts with corrupted ones.
        senders: `(9, 9)`, `"9.9"`, `"mlp5"`, `"embed"`, or a list of these.
        receivers: What reads the change: a head's query, key or value input (`"9.9.q"`, `("9.9", "q")`), all three
            (`"9.9"`), an MLP (`"mlp5"`), the final residual stream (`"final"`), or a list. Where heads share keys and
            values, those that one head sees are changed, and not those of the others in its group.
        direction: `"noising"` puts the corrupted run's values into the clean run, `"denoising"` the clean run's into
            the corrupted one.
        freeze_mlps: Only direct paths through the residual stream. `False` also takes those through the MLPs between.
        positions: Where the senders change, and so (attention being frozen) where receivers read a change: names such
            as `"end"` or `"S2"` (`task.word_idx`), numbers, a tensor `[prompt]`, or a list. Default: everywhere.
        metric: A function of the logits `[prompt, pos, d_vocab]` of all prompts, giving one number; those that say what
            they read (`reads`, `last_position`) are faster. Default: the task's logit difference.

    Returns:
        A result with a single value, which `float` gives: the metric's change.

    Raises:
        InvalidInputError: For a task without corrupted prompts, components that do not exist, a sender that no path
            leads from, a position that is not in every prompt, or hooks on the model.
        UnknownNameError: For a name of another form.
        NotFiniteError: If a final state is not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True))
        >>> effect = path_patch(model, task, senders="0.1", receivers="final", positions="end")
        >>> effect.sender_labels, effect.receiver_labels, effect.values.shape
        (('0.1',), ('final',), torch.Size([]))
    """
    cell = as_senders(model.cfg, senders)
    into = as_receivers(model.cfg, receivers)
    check_fed(cell, into)
    return _measured(
        model,
        task,
        [cell],
        (),
        into,
        direction=direction,
        freeze_mlps=freeze_mlps,
        positions=positions,
        metric=metric,
        progress=False,
    )


def path_patch_sweep(
    model: HookedTransformer,
    task: Task,
    *,
    receivers: object,
    senders: str | Iterable[object] = "heads",
    direction: Direction = "noising",
    freeze_mlps: bool = True,
    positions: Any = None,
    metric: Metric | None = None,
    progress: bool = True,
) -> PathPatchingResult:
    """`path_patch` from each of many senders, by itself, into the same receivers.

    Args:
        model: The model, without hooks.
        task: Prompts with corrupted ones.
        receivers: See `path_patch`.
        senders: `"heads"`, `"components"` (heads and MLPs), or a list, of which each entry is one sender or several
            that change together. Of the first two, those that no path leads from get 0.
        direction: See `path_patch`.
        freeze_mlps: See `path_patch`.
        positions: See `path_patch`.
        metric: See `path_patch`.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: As for `path_patch`.
        UnknownNameError: As for `path_patch`.
        NotFiniteError: As for `path_patch`.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True))
        >>> found = path_patch_sweep(model, task, receivers="final", positions="end", progress=False)
        >>> found.values.shape == (model.cfg.n_layers, model.cfg.n_heads)
        True
    """
    cfg = model.cfg
    into = as_receivers(cfg, receivers)
    cells: list[Cell]
    shape: tuple[int, ...]
    if isinstance(senders, str) and senders in ("heads", "components"):
        mlps = all_mlps(cfg) if senders == "components" else ()
        ordered = sorted((*all_heads(cfg), *mlps), key=lambda part: (part.layer, part.head is None))
        cells = [(sender_of(component),) for component in ordered]
        shape = (cfg.n_layers, len(cells) // cfg.n_layers)
    else:
        cells = [as_senders(cfg, each) for each in ([senders] if isinstance(senders, str) else senders)]
        shape = (len(cells),)
        if not cells:
            raise InvalidInputError("no senders are named; give 'heads', 'components' or a list, such as ['0.0'].")
        for cell in cells:
            check_fed(cell, into)
    return _measured(
        model,
        task,
        cells,
        shape,
        into,
        direction=direction,
        freeze_mlps=freeze_mlps,
        positions=positions,
        metric=metric,
        progress=progress,
    )


@torch.no_grad()
def _measured(
    model: HookedTransformer,
    task: Task,
    cells: Sequence[Cell],
    shape: tuple[int, ...],
    receivers: tuple[Receiver, ...],
    *,
    direction: Direction,
    freeze_mlps: bool,
    positions: Any,
    metric: Metric | None,
    progress: bool,
) -> PathPatchingResult:
    check_unhooked(model, "path patching")
    runs = TaskRuns(model, task, direction, positions)
    last = max(receiver.stage for receiver in receivers)
    fed = [at for at, cell in enumerate(cells) if cell[0].stage <= last]
    fed.sort(key=lambda at: cells[at][0].stage)
    scorer = Scorer(model, runs.task, metric)
    parts = []
    with tqdm(total=len(fed) * len(task), desc="path patching", unit="run", disable=not progress, leave=False) as bar:
        for rows in scorer.blocks(BLOCK_TOKENS):
            senders = {sender for at in fed for sender in cells[at]}
            block = PathBlock(model, runs, scorer, rows, senders, receivers, freeze_mlps)
            found = [scorer.values(rows, torch.stack([block.base, block.other]))]
            for start in range(0, len(fed), block.together):
                some = [cells[at] for at in fed[start : start + block.together]]
                found.append(scorer.values(rows, block.finals(some)))
                bar.update(len(some) * (rows.stop - rows.start))
            parts.append(torch.cat(found))
    base, other, *patched = torch.cat(parts, dim=-1) if parts[0].ndim > 1 else parts[0]
    change = base.new_zeros(len(cells), *base.shape)
    change[fed] = torch.stack(patched) - base if patched else base.new_zeros(0, *base.shape)
    clean, corrupted = (base, other) if direction == "noising" else (other, base)
    return PathPatchingResult(
        info=RunInfo(
            model=model.cfg.model_name,
            processing=model.weight_processing,
            data=task.description,
            n_sequences=len(task),
            n_positions=int(runs.where.sum()),
        ),
        values=(change.mean(1) if base.ndim else change).view(shape),
        per_prompt=change.view(*shape, len(task)) if base.ndim else None,
        clean=clean.mean(),
        corrupted=corrupted.mean(),
        sender_labels=tuple("+".join(sender.label for sender in cell) for cell in cells),
        receiver_labels=tuple(receiver.label for receiver in receivers),
        direction=direction,
        freeze_mlps=freeze_mlps,
        positions=in_words(positions),
    )
