"""`attribution_patch`: all patches at once, estimated from gradients.

Putting what an activation was in another run in its place changes the metric, to first order, by the difference times
the gradient: `(other - base) . d metric / d activation`. One backward pass gives that for every position, head and
component (Nanda 2023, "Attribution Patching"; Syed et al. 2023, arXiv 2310.10348). It errs where the metric bends on
the way. With `steps > 1` the gradient is a mean over runs whose first residual stream lies on the straight line from
the base run's to the other's (integrated gradients of the inputs, as in Hanna et al. 2024, arXiv 2403.17806; here at
the midpoints of equal pieces): the embeddings are interpolated, and no other activation.

It costs two forward passes and, for each step, a forward and a backward pass, whatever the number of cells; memory is
that of the backward pass of a batch of prompts. `"pattern"` is `[prompt, layer, head, pos, pos]` while it lasts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.progress import progress_bar
from headscope.analysis.patching.comparison import AttributionPatchingResult
from headscope.analysis.patching.measured import ByMetric, Measured, Numbers, by_metric
from headscope.analysis.patching.sites import as_sites
from headscope.analysis.prompts.controls import Control, RandomWay, check_moves, controlled
from headscope.analysis.prompts.named_metrics import (
    KLMetric,
    ManyMetrics,
    MetricLike,
    OneMetric,
    SeveralMetrics,
    as_metric,
)
from headscope.analysis.prompts.task import Task
from headscope.analysis.prompts.two_runs import Direction, Scale, Scorer, TaskRuns
from headscope.analysis.recording.record import check_final, record
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer
from headscope.ops.arrays import stack_padded
from headscope.ops.devices import Budget, wide

__all__ = ["attribution_patch"]


@overload
def attribution_patch(
    model: HookedTransformer,
    task: Task,
    sites: str | Sequence[str] = ("resid_pre", "attn_out", "mlp_out", "z"),
    *,
    direction: Direction = "denoising",
    scale: Scale = "share",
    steps: int = 1,
    positions: Any = None,
    metric: OneMetric = None,
    control: Control | None = None,
    seed: int = 0,
    progress: bool = True,
) -> AttributionPatchingResult: ...


@overload
def attribution_patch(
    model: HookedTransformer,
    task: Task,
    sites: str | Sequence[str] = ("resid_pre", "attn_out", "mlp_out", "z"),
    *,
    direction: Direction = "denoising",
    scale: Scale = "share",
    steps: int = 1,
    positions: Any = None,
    metric: ManyMetrics,
    control: Control | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ByMetric[AttributionPatchingResult]: ...


@torch.no_grad()
def attribution_patch(
    model: HookedTransformer,
    task: Task,
    sites: str | Sequence[str] = ("resid_pre", "attn_out", "mlp_out", "z"),
    *,
    direction: Direction = "denoising",
    scale: Scale = "share",
    steps: int = 1,
    positions: Any = None,
    metric: MetricLike = None,
    control: Control | None = None,
    seed: int = 0,
    progress: bool = True,
) -> AttributionPatchingResult | ByMetric[AttributionPatchingResult]:
    """Estimate to first order what `activation_patch` measures, for every layer, position and head at once.

    `prompts.two_runs` explains the options that all kinds of patching share.

    Args:
        model: The model; hooks on it stay in force.
        task: Prompts and corrupted prompts, aligned token by token.
        sites: One of these or several: `resid_pre`, `resid_mid`, `resid_post`, `attn_out`, `mixer_out`, `mlp_out`,
            `z`, `q`, `k`, `v`, `pattern`.
        direction: `"denoising"` puts values of the clean run into the corrupted one, `"noising"` the other way round.
        scale: `"share"` of the clean metric less the corrupted one, or the change in the unit of the `"metric"`.
        steps: 1 takes gradients in the run that is patched; more take their mean over so many runs on the way from its
            embeddings to the other's.
        positions: `"end"` or another name (`task.word_idx`), a number, a tensor `[prompt]`, or a list (of a pattern:
            the query's); default: all.
        metric: A name (`"logit_difference"`, `"probability"`, `"kl"`: see `prompts.named_metrics`), a `PromptMetric`,
            or a differentiable function of the logits `[prompt, pos, d_vocab]` of all prompts that gives one number;
            all prompts go through one backward pass then. Default: the task's logit difference. A list of names, or a
            mapping from names of your own, takes the gradients of several in the same runs.
        control: Also measure where there is nothing to find: `"reinitialized"`, `"shuffled_answers"` or
            `"norm_matched"` (see `prompts.controls`). It costs as much again.
        seed: Of the control.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: As for `activation_patch`; for `steps` below 1, a metric that has no gradient, or `"kl"` with
            noising in one step, where it has none to first order.
        UnknownNameError: For a site or a position of another name.
        NotFiniteError: If a final state or an estimate is not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True))
        >>> attribution_patch(model, task, ["z", "resid_pre"], positions=["S2", "end"], progress=False)
        AttributionPatchingResult: headscope-demo on 20 prompts, such as ...
          denoising, share, gradients of the patched run: +8.8552 clean, -0.7838 corrupted
          z (5 layers x 2 positions x 4 heads): 3.2 at end +0.491, 2.2 at end +0.257, 0.2 at S2 +0.126
          resid_pre (5 layers x 2 positions): 4 at end +0.658, 0 at S2 +0.637, 3 at S2 +0.491
          8 of 45 stand out (sign flips over 20 prompts; the largest of 45 cells, 5% for all)
    """
    if steps < 1:
        raise InvalidInputError(f"steps must be at least 1; got {steps}.")
    hook_names = as_sites(model, sites)
    runs = TaskRuns(model, task, direction, scale, positions)
    estimated, sizes = _estimated(model, runs, hook_names, steps, positions is None, metric, progress=progress)
    beside: Iterable[Numbers | None] = repeat(None)
    if control is not None:
        of_control = controlled(model, task, control, metric=metric, seed=seed)
        other_runs = TaskRuns(*of_control, direction, scale, positions)
        way = RandomWay(seed) if control == "norm_matched" else None
        options = (hook_names, steps, positions is None, metric, way)
        beside = _estimated(of_control[0], other_runs, *options, progress=progress)[0].numbers(estimated)
    made = {}
    for numbers, of_control_too in zip(estimated.numbers(), beside, strict=False):
        shapes, values = _every(model.cfg.n_layers, hook_names, sizes, numbers)
        if of_control_too is not None:
            of_it = _every(model.cfg.n_layers, hook_names, sizes, of_control_too)[1]
            values |= {f"control_{name}": each for name, each in of_it.items()}
        n_positions = int(runs.positions.mask.sum()) if positions is None else runs.positions.at.numel()
        made[numbers.name] = AttributionPatchingResult(
            info=runs.info(model, n_positions),
            **values,
            clean=numbers.clean,
            corrupted=numbers.corrupted,
            sites=tuple(hook_names),
            shapes=shapes,
            positions=runs.positions.names,
            direction=direction,
            scale=scale,
            steps=steps,
            control=control or "",
            clusters=task.clusters,
        )
    return by_metric(made)


def _estimated(
    model: HookedTransformer,
    runs: TaskRuns,
    hook_names: Mapping[str, Mapping[int, str]],
    steps: int,
    everywhere: bool,
    metric: MetricLike,
    way: RandomWay | None = None,
    *,
    progress: bool,
) -> tuple[Measured, dict[str, torch.Size]]:
    """Return estimates of all patches, hook point by hook point, and the shape of each one's cells."""
    if way is not None:
        check_moves(hook_names)
    scorer = Scorer(model, runs.task, as_metric(model, runs.task, metric))
    measured = scorer.metric.metrics.values() if isinstance(scorer.metric, SeveralMetrics) else [scorer.metric]
    if runs.direction == "noising" and steps == 1 and any(isinstance(each, KLMetric) for each in measured):
        raise InvalidInputError(
            "kl has no first-order change at the clean run, where it is at its least: every estimate would be 0. Use "
            "direction='denoising', or steps=5."
        )
    batches = list(scorer.batches(Budget.of(model.W_E.device).backward_tokens))
    names = [name for of_site in hook_names.values() for name in of_site.values()]
    found: Measured | None = None
    sizes: dict[str, torch.Size] = {}
    with progress_bar(len(batches) * steps, "attribution patching", shown=progress) as bar:
        for rows in batches:
            batch = _Linearized(model, runs, scorer, rows, names, way)
            at = None if everywhere else runs.positions.at.T[rows]
            sizes = {name: batch.cells_of(name, at) for name in names}
            found = found or Measured(runs, scorer, sum(size.numel() for size in sizes.values()))
            changes: Any = 0.0
            for step in range(steps):
                of_metrics = batch.gradients(0.0 if steps == 1 else (step + 0.5) / steps)
                parts = [batch.along(gradients, at, by_prompt=found.keeps_rows) for gradients in of_metrics]
                changes = changes + (torch.stack(parts, -1) if found.names else parts[0]) / steps
                bar.update()
            ends = scorer.values(rows, torch.stack([batch.base_final, batch.other_final]))
            base, other = ends.to(changes.device)
            found.add(rows, base, other, changes if scorer.is_of_prompts else changes[:, 0])
    assert found is not None
    return found, sizes


def _every(
    n_layers: int, hook_names: Mapping[str, Mapping[int, str]], sizes: Mapping[str, torch.Size], numbers: Numbers
) -> tuple[tuple[tuple[int, ...], ...], dict[str, Any]]:
    """The shape of each site, and the numbers of all cells, NaN for those that a layer does not have."""

    def stacked(cells: Float[Tensor, "cell *prompt"]) -> list[Float[Tensor, "..."]]:
        parts = cells.to(numbers.clean.dtype).split([size.numel() for size in sizes.values()])
        by_name = {name: part.unflatten(0, size) for (name, size), part in zip(sizes.items(), parts, strict=True)}
        return [_layers(n_layers, names, by_name) for names in hook_names.values()]

    by_site = stacked(numbers.values)
    values = torch.cat([each.flatten() for each in by_site])
    rows = None
    if numbers.per_prompt is not None:
        rows = torch.cat([each.flatten(0, -2) for each in stacked(numbers.per_prompt.T)]).T.contiguous()
    return tuple(tuple(each.shape) for each in by_site), {"values": values, "per_prompt": rows}


def _layers(n_layers: int, names: Mapping[int, str], values: Mapping[str, Tensor]) -> Float[Tensor, "layer *cell"]:
    """Stack a site's values; NaN for layers that do not have it."""
    nothing = torch.full_like(values[next(iter(names.values()))], torch.nan)
    by_layer = [values[names[layer]] if layer in names else nothing for layer in range(n_layers)]
    return stack_padded(by_layer, fill=torch.nan)  # layers may have fewer key-value heads than others


class _Linearized:
    """Both runs of some prompts, and the gradients of their metric at every site."""

    def __init__(
        self,
        model: HookedTransformer,
        runs: TaskRuns,
        scorer: Scorer,
        rows: Tensor,
        names: Iterable[str],
        way: RandomWay | None = None,
    ) -> None:
        self.model, self.runs, self.scorer, self.rows = model, runs, scorer, rows
        self.names = list(names)
        self.start, base, self.base_final = self._ends(runs.base)
        other_start, other, self.other_final = self._ends(runs.other, of_other=True)
        self.way = other_start - self.start
        self.difference = {name: other[name] - base[name] for name in self.names}
        if way is not None:
            self.difference = {name: way.instead_of(each) for name, each in self.difference.items()}
        if runs.task.corrupted_mask is not None:
            self._leave_padding()

    def _leave_padding(self) -> None:
        """Keep what is at padding of either run; a pattern's positions are its queries', behind the heads."""
        clean, corrupted = self.runs.task.masks
        real = (clean & corrupted)[self.rows]
        for name, each in self.difference.items():
            behind = (1, real.shape[1], 1) if name.endswith("pattern") else (real.shape[1], *[1] * (each.ndim - 2))
            self.difference[name] = each * real.view(len(real), *behind)

    def _ends(self, tokens: Tensor, *, of_other: bool = False) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        options = self.runs.options(self.rows, of_other=of_other)
        start = self.model.input_to_embed(tokens[self.rows], **options)[0]
        kept, final = self._run(start.clone(), of_other=of_other)
        check_final(final)
        return start, kept, final

    def _run(
        self, start: Tensor, *, of_other: bool = False
    ) -> tuple[dict[str, Tensor], Float[Tensor, "prompt read d_model"]]:
        tokens, options = self.runs.base[self.rows], self.runs.options(self.rows, of_other=of_other)
        kept, final = record(self.model, start, self.names, start_at_layer=0, tokens=tokens, **options)
        return kept, self.scorer.read(self.rows, final)

    def gradients(self, at: float) -> Iterator[dict[str, Tensor]]:
        """Yield the gradients of each metric at each site, `at` of the way from the base run to the other.

        A prompt's activations move its own metric alone, so that the gradient of the sum is that of each prompt.
        """
        with torch.enable_grad():
            start = (self.start + at * self.way).detach().requires_grad_()
            kept, final = self._run(start)
            metric = self.scorer.metric
            each = metric.metrics if isinstance(metric, SeveralMetrics) else {"metric": metric}
            values = {
                name: Scorer(self.model, self.runs.task, one).values(self.rows, final[None]).sum()
                for name, one in each.items()
            }
            for name, value in values.items():
                if not value.requires_grad:
                    raise InvalidInputError(
                        f"{name} has no gradient: it must be made of its logits by torch functions alone.",
                        code="HS-METRIC-02",
                    )
        for number, value in enumerate(values.values(), start=1):
            gradients = torch.autograd.grad(
                value, list(kept.values()), allow_unused=True, materialize_grads=True, retain_graph=number < len(values)
            )
            yield dict(zip(kept, gradients, strict=True))

    def cells_of(self, name: str, at: Int[Tensor, "prompt position"] | None) -> torch.Size:
        """The shape of a hook point's cells, for one prompt."""
        shape = list(self.difference[name].shape[1:] if name.endswith("pattern") else self.difference[name].shape[1:-1])
        if at is not None:
            shape[1 if name.endswith("pattern") else 0] = at.shape[1]
        return torch.Size(shape)

    def along(
        self, gradients: Mapping[str, Tensor], at: Int[Tensor, "prompt position"] | None, *, by_prompt: bool
    ) -> Float[Tensor, "cell prompt"]:
        """Return the differences along the gradients, summed over what a cell consists of, and over prompts if told."""
        return torch.cat([self._summed(name, gradients[name], at, by_prompt) for name in self.names])

    def _summed(
        self, name: str, gradient: Tensor, at: Int[Tensor, "prompt position"] | None, by_prompt: bool
    ) -> Float[Tensor, "cell prompt"]:
        product = self.difference[name] * gradient
        if not name.endswith("pattern"):
            product = product.sum(-1)
        if at is not None:
            # A pattern's positions are its third axis, behind the heads.
            axis = 2 if name.endswith("pattern") else 1
            prompts = torch.arange(len(product), device=product.device)[:, None]
            product = product.movedim(axis, 1)[prompts, at].movedim(1, axis)
        product = product if by_prompt else product.sum(0, keepdim=True)
        return wide(product).flatten(1).T
