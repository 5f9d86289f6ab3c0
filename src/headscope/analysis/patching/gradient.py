"""`attribution_patch`: all patches at once, estimated from gradients.

Putting what an activation was in another run in its place changes the metric, to first order, by the difference times
the gradient: `(other - base) . d metric / d activation`. One backward pass gives that for every position, head and
component (Nanda 2023, "Attribution Patching"; Syed et al. 2023, arXiv 2310.10348). It errs where the metric bends on
the way. With `steps > 1` the gradient is a mean over runs whose first residual stream lies on the straight line from
the base run's to the other's (integrated gradients of the inputs, as in Hanna et al. 2024, arXiv 2403.17806; here at
the midpoints of equal pieces): the embeddings are interpolated, and no other activation.

It costs two forward passes and, for each step, a forward and a backward pass, whatever the number of cells; memory is
that of the backward pass of a block of prompts. `"pattern"` is `[prompt, layer, head, pos, pos]` while it lasts.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from headscope.analysis.core.result import RunInfo
from headscope.analysis.patching.comparison import AXES, AttributionPatchingResult
from headscope.analysis.prompts.metrics import Metric
from headscope.analysis.prompts.task import Task
from headscope.analysis.prompts.two_runs import Direction, Scorer, TaskRuns, position_of
from headscope.analysis.recording.lens_states import check_final, readable_hooks
from headscope.errors import InvalidInputError, unknown_name
from headscope.model.hooks import HookPoint
from headscope.model.names import get_act_name
from headscope.model.transformer import HookedTransformer

__all__ = ["attribution_patch"]

# Tokens whose activations are kept for one backward pass.
_BACKWARD_TOKENS = 512


@torch.no_grad()
def attribution_patch(
    model: HookedTransformer,
    task: Task,
    *,
    sites: Sequence[str] = ("resid_pre", "attn_out", "mlp_out", "z"),
    direction: Direction = "noising",
    steps: int = 1,
    positions: Sequence[int | str] | None = None,
    metric: Metric | None = None,
    progress: bool = True,
) -> AttributionPatchingResult:
    """What each patch of an activation would change, to first order: of every layer, position and head.

    Args:
        model: The model; hooks on it stay in force.
        task: Prompts with corrupted ones.
        sites: `resid_pre`, `resid_mid`, `resid_post`, `attn_out`, `mlp_out`, `z`, `q`, `k`, `v` or `pattern`.
        direction: `"noising"` puts the corrupted run's values into the clean run, `"denoising"` the clean run's into
            the corrupted one.
        steps: 1 takes gradients in the run that is patched; more take their mean over so many runs on the way from its
            embeddings to the other's.
        positions: Which positions (of a pattern: of the query): numbers, or names such as `"end"` or `"S2"`
            (`task.word_idx`); default: all.
        metric: A differentiable function of the logits `[prompt, pos, d_vocab]` of all prompts, giving one number; all
            prompts go through one backward pass then. Default: the task's logit difference.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: For a task without corrupted prompts, `steps` below 1, a site that the model does not have,
            a position that is not in every prompt, or a metric that has no gradient.
        UnknownNameError: For a site or a position of another name.
        NotFiniteError: If a final state is not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True))
        >>> found = attribution_patch(model, task, sites=("z", "resid_pre"), progress=False)
        >>> found["z"].shape == (model.cfg.n_layers, task.clean_tokens.shape[1], model.cfg.n_heads)
        True
    """
    if steps < 1:
        raise InvalidInputError(f"steps must be at least 1; got {steps}.")
    names = _hook_names(model, sites)
    runs = TaskRuns(model, task, direction)
    at = None if positions is None else torch.stack([position_of(runs.task, each) for each in positions], 1)
    scorer = Scorer(model, runs.task, metric)
    blocks = list(scorer.blocks(_BACKWARD_TOKENS))
    totals: dict[str, Tensor] = {}
    ends = []
    with tqdm(total=len(blocks) * steps, desc="attribution patching", disable=not progress, leave=False) as bar:
        for rows in blocks:
            block = _LinearBlock(model, runs, scorer, rows, names)
            ends.append(scorer.values(rows, torch.stack([block.base_final, block.other_final])).view(2, -1))
            for step in range(steps):
                gradients = block.gradients(0.0 if steps == 1 else (step + 0.5) / steps)
                for name, gradient in gradients.items():
                    share = block.summed(name, gradient, at) / steps
                    totals[name] = totals[name] + share if name in totals else share
                bar.update()
    base, other = torch.cat(ends, dim=1).mean(1)
    clean, corrupted = (base, other) if direction == "noising" else (other, base)
    by_site = [torch.stack([totals[name] for name in names[site]]).to(base.dtype) for site in sites]
    return AttributionPatchingResult(
        info=RunInfo(
            model=model.cfg.model_name,
            processing=model.weight_processing,
            data=task.description,
            n_sequences=len(task),
            n_positions=int(runs.where.sum() if at is None else at.numel()),
        ),
        values=torch.cat([each.flatten() for each in by_site]),
        clean=clean,
        corrupted=corrupted,
        sites=tuple(sites),
        shapes=tuple(tuple(each.shape) for each in by_site),
        positions=tuple(range(runs.base.shape[1]) if positions is None else positions),
        direction=direction,
        steps=steps,
    )


def _hook_names(model: HookedTransformer, sites: Sequence[str]) -> dict[str, list[str]]:
    """For each site its hook points, one for each layer."""
    if not sites or isinstance(sites, str) or len(set(sites)) < len(sites):
        raise InvalidInputError(f"sites must be different ones of {', '.join(AXES)}; got {sites!r}.")
    found = {}
    for site in sites:
        if site not in AXES:
            raise unknown_name("site", site, AXES)
        names = [get_act_name(site, layer) for layer in range(model.cfg.n_layers)]
        found[site] = readable_hooks(model, names)
        if len(found[site]) < len(names):
            raise InvalidInputError(f"{model.cfg.model_name!r} has no {site!r}: its blocks are of another kind.")
    return found


class _LinearBlock:
    """Some prompts, and the gradients of their metric at every site."""

    def __init__(
        self, model: HookedTransformer, runs: TaskRuns, scorer: Scorer, rows: slice, names: dict[str, list[str]]
    ) -> None:
        self.model, self.runs, self.scorer, self.rows = model, runs, scorer, rows
        self.names = [name for some in names.values() for name in some]
        self.start, base, self.base_final = self._ends(runs.base)
        other_start, other, self.other_final = self._ends(runs.other)
        self.way = other_start - self.start
        self.difference = {name: other[name] - base[name] for name in self.names}

    def _ends(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        tokens, options = tokens[self.rows], self.runs.options(self.rows)
        start = self.model.input_to_embed(tokens, **options)[0]
        kept, final = self._run(start.clone())
        check_final(final)
        return start, kept, final

    def _run(self, start: Tensor) -> tuple[dict[str, Tensor], Float[Tensor, "prompt read d_model"]]:
        kept: dict[str, Tensor] = {}

        def keep(activation: Tensor, hook: HookPoint) -> None:
            kept[hook.name or ""] = activation

        final = self.model.run_with_hooks(
            start,
            fwd_hooks=[(name, keep) for name in self.names],
            start_at_layer=0,
            stop_at_layer=self.model.cfg.n_layers,
            tokens=self.runs.base[self.rows],
            **self.runs.options(self.rows),
        )
        return kept, self.scorer.read(self.rows, final)

    def gradients(self, at: float) -> dict[str, Tensor]:
        """Of the metric, its mean over all prompts, at each site, so far on the way from the base run to the other."""
        with torch.enable_grad():
            start = (self.start + at * self.way).detach().requires_grad_()
            kept, final = self._run(start)
            # A sum of shares of the mean over prompts, or one number for all.
            found = self.scorer.values(self.rows, final[None])
            value = found.sum() / (1 if found.ndim == 1 else len(self.runs.task))
            if not value.requires_grad:
                raise InvalidInputError(
                    "metric has no gradient: it must be made of its logits by torch functions alone."
                )
            gradients = torch.autograd.grad(value, list(kept.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(kept, gradients, strict=True))

    def summed(
        self, name: str, gradient: Tensor, positions: Int[Tensor, "prompt position"] | None
    ) -> Float[Tensor, "*cell"]:
        """The difference along the gradient: of each cell, summed over prompts and over what a cell consists of."""
        product = self.difference[name] * gradient
        if not name.endswith("pattern"):
            product = product.sum(-1)
        elif positions is not None:
            product = product.transpose(1, 2)
        if positions is not None:
            prompts = torch.arange(len(product), device=product.device)[:, None]
            product = product[prompts, positions[self.rows]]
            product = product.transpose(1, 2) if name.endswith("pattern") else product
        return product.sum(0).double()
