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

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.progress import progress_bar
from headscope.analysis.patching.comparison import AttributionPatchingResult
from headscope.analysis.patching.sites import as_sites
from headscope.analysis.prompts.metrics import Metric
from headscope.analysis.prompts.task import Task
from headscope.analysis.prompts.two_runs import Direction, Scale, Scorer, TaskRuns
from headscope.analysis.recording.record import check_final, record
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer
from headscope.ops.arrays import stack_padded
from headscope.ops.devices import Budget

__all__ = ["attribution_patch"]


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
    metric: Metric | None = None,
    progress: bool = True,
) -> AttributionPatchingResult:
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
        metric: A differentiable function of the logits `[prompt, pos, d_vocab]` of all prompts that gives one number;
            all prompts go through one backward pass then. Default: the task's logit difference.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: As for `activation_patch`; for `steps` below 1, or a metric that has no gradient.
        UnknownNameError: For a site or a position of another name.
        NotFiniteError: If a final state or an estimate is not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True))
        >>> attribution_patch(model, task, ["z", "resid_pre"], positions=["S2", "end"], progress=False)
        AttributionPatchingResult: headscope-demo (...) on 20 prompts, such as ...
          denoising, share, gradients of the patched run: +8.8552 clean, -0.7838 corrupted
          z (5 layers x 2 positions x 4 heads): 3.2 at end +0.491, 2.2 at end +0.257, 0.2 at S2 +0.126
          resid_pre (5 layers x 2 positions): 4 at end +0.658, 0 at S2 +0.637, 3 at S2 +0.491
    """
    if steps < 1:
        raise InvalidInputError(f"steps must be at least 1; got {steps}.")
    hook_names = as_sites(model, sites)
    runs = TaskRuns(model, task, direction, scale, positions)
    at = None if positions is None else runs.positions.at.T
    scorer = Scorer(model, runs.task, metric)
    batches = list(scorer.batches(Budget.of(model.W_E.device).backward_tokens))
    every = [name for names in hook_names.values() for name in names.values()]
    totals: dict[str, Tensor] = {}
    ends = []
    with progress_bar(len(batches) * steps, "attribution patching", shown=progress) as bar:
        for rows in batches:
            batch = _Linearized(model, runs, scorer, rows, every)
            ends.append(scorer.values(rows, torch.stack([batch.base_final, batch.other_final])).view(2, -1))
            for step in range(steps):
                gradients = batch.gradients(0.0 if steps == 1 else (step + 0.5) / steps)
                for name, gradient in gradients.items():
                    part = batch.summed(name, gradient, None if at is None else at[rows]) / steps
                    totals[name] = totals[name] + part if name in totals else part
                bar.update()
    base, other = torch.cat(ends, dim=1).mean(1)
    clean, corrupted = runs.clean_and_corrupted(base, other)
    scaled = {name: runs.scaled(total.to(base.dtype), base, other) for name, total in totals.items()}
    by_site = [_layers(model.cfg.n_layers, names, scaled) for names in hook_names.values()]
    return AttributionPatchingResult(
        info=runs.info(model, int(runs.positions.mask.sum()) if at is None else at.numel()),
        values=torch.cat([each.flatten() for each in by_site]),
        clean=clean,
        corrupted=corrupted,
        sites=tuple(hook_names),
        shapes=tuple(tuple(each.shape) for each in by_site),
        positions=runs.positions.names,
        direction=direction,
        scale=scale,
        steps=steps,
    )


def _layers(n_layers: int, names: Mapping[int, str], values: Mapping[str, Tensor]) -> Float[Tensor, "layer *cell"]:
    """Stack a site's values; NaN for layers that do not have it."""
    nothing = torch.full_like(values[next(iter(names.values()))], torch.nan)
    by_layer = [values[names[layer]] if layer in names else nothing for layer in range(n_layers)]
    return stack_padded(by_layer, fill=torch.nan)  # layers may have fewer key-value heads than others


class _Linearized:
    """Both runs of some prompts, and the gradients of their metric at every site."""

    def __init__(
        self, model: HookedTransformer, runs: TaskRuns, scorer: Scorer, rows: Tensor, names: Iterable[str]
    ) -> None:
        self.model, self.runs, self.scorer, self.rows = model, runs, scorer, rows
        self.names = list(names)
        self.start, base, self.base_final = self._ends(runs.base)
        other_start, other, self.other_final = self._ends(runs.other, of_other=True)
        self.way = other_start - self.start
        self.difference = {name: other[name] - base[name] for name in self.names}
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

    def gradients(self, at: float) -> dict[str, Tensor]:
        """Return the gradients of the mean metric at each site, `at` of the way from the base run to the other."""
        with torch.enable_grad():
            start = (self.start + at * self.way).detach().requires_grad_()
            kept, final = self._run(start)
            # What these prompts add to the mean over all prompts; a metric of your own is one number for all.
            metrics = self.scorer.values(self.rows, final[None])
            value = metrics.sum() / (1 if metrics.ndim == 1 else len(self.runs.task))
            if not value.requires_grad:
                raise InvalidInputError(
                    "metric has no gradient: it must be made of its logits by torch functions alone."
                )
            gradients = torch.autograd.grad(value, list(kept.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(kept, gradients, strict=True))

    def summed(self, name: str, gradient: Tensor, at: Int[Tensor, "prompt position"] | None) -> Float[Tensor, "*cell"]:
        """Return the difference along the gradient, summed over prompts and over what a cell consists of."""
        product = self.difference[name] * gradient
        if not name.endswith("pattern"):
            product = product.sum(-1)
        if at is not None:
            # A pattern's positions are its third axis, behind the heads.
            axis = 2 if name.endswith("pattern") else 1
            prompts = torch.arange(len(product), device=product.device)[:, None]
            product = product.movedim(axis, 1)[prompts, at].movedim(1, axis)
        return product.sum(0).double()
