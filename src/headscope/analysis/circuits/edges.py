"""`edge_attribution`: the effect of corrupting each edge of a model, all edges at once, from gradients.

Corrupting the edge u -> v alone, so that v reads what u gave in the other run and all else as it is, changes the metric
to first order by

    score(u -> v) = (out_u(other) - out_u(base)) . d metric / d input_v

summed over positions, where the gradient takes in all that follows from v (edge attribution patching: Syed et al. 2023,
arXiv 2310.10348). Out_u is what u adds to the stream, input_v the stream as v reads it, before its norm. The methods
differ in the run that gradients are taken in (Hanna et al. 2024, arXiv 2403.17806, and Mueller et al. 2025, arXiv
2504.13151):

- `"eap"`: the base run, the one that is patched.
- `"eap_ig"`: the mean over `steps` runs whose embeddings lie on the straight line from the base run's to the other's
  (integrated gradients; at the midpoints of equal pieces, which converges faster than at their ends, and so gives the
  same up to the sign in both directions).
- `"eap_ig_activations"`: for the edges of each sender, the mean over `steps` base runs in which the outputs of its
  layer's heads together (or of its MLP, its mixer, the embedding) lie on the line between both runs'.
- `"clean_corrupted"`: the mean of the gradients of both runs.

As steps grow, the scores with `"eap_ig"` of the edges out of the embedding sum to what the metric changes between the
two runs, and with `"eap_ig_activations"` those out of one layer's heads to what patching all of them at once changes.

Cost for P passes (a pass is a forward and a backward one; 1, `steps`, `steps` times two for each layer, 2): beside them
two forward passes, and for each pass E T d_model multiplications for E edges and T tokens, and as many as a layer's
query, key and value weights take. Memory: `out_u(other) - out_u(base)`, `[sender, prompt, pos, d_model]`, the gradients
of one layer's inputs, `[3 heads, prompt, pos, d_model]`, and what a backward pass keeps; prompts come in batches for
which it is bounded. Where attention only looks back, positions before the first token that differs are left out of all
of these. Scores of each prompt, `[prompt, sender, receiver]`, are kept as long as they fit
`Budget.kept_bytes`, and after that their sums and squares.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from headscope.analysis.circuits.edges_result import EdgeAttributionResult
from headscope.analysis.circuits.graph import Graph
from headscope.analysis.circuits.input_gradients import InputGradients
from headscope.analysis.circuits.sender_outputs import (
    EMBEDDED,
    SenderOutputs,
    check_rewirable,
    heads_name,
    whole_name,
)
from headscope.analysis.core.progress import Bar, progress_bar
from headscope.analysis.core.result import check_option
from headscope.analysis.core.stats import standard_errors
from headscope.analysis.prompts.controls import Control, RandomWay, controlled
from headscope.analysis.prompts.metrics import AnswerMetric, Metric
from headscope.analysis.prompts.task import Task
from headscope.analysis.prompts.two_runs import Direction, Scale, Scorer, TaskRuns
from headscope.analysis.recording.record import Replacement, check_final, record
from headscope.errors import check_at_least
from headscope.model.block import TransformerBlock
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget
from headscope.ops.kernels.products import product_each

__all__ = ["EdgeMethod", "edge_attribution"]

EdgeMethod = Literal["eap", "eap_ig", "eap_ig_activations", "clean_corrupted"]


@torch.no_grad()
def edge_attribution(
    model: HookedTransformer,
    task: Task,
    method: EdgeMethod = "eap_ig",
    *,
    steps: int = 5,
    direction: Direction = "noising",
    scale: Scale = "share",
    metric: Metric | None = None,
    control: Control | None = None,
    seed: int = 0,
    progress: bool = True,
) -> EdgeAttributionResult:
    """Estimate what patching each edge by itself would change, for all edges at once.

    Args:
        model: The model, without hooks.
        task: Prompts and corrupted prompts, aligned token by token.
        method: Where gradients are taken; see the module.
        steps: Runs that gradients are a mean over, for the two methods with `ig`.
        direction: `"noising"`, the direction of the papers, puts values of the corrupted run into the clean one: an
            edge that works for the answer scores below zero. `"denoising"` puts values of the clean run into the
            corrupted one.
        scale: `"share"` of the clean metric less the corrupted one (an edge that carried all would score -1 in noising
            and 1 in denoising), or the change in the unit of the `"metric"`.
        metric: A differentiable metric; default: the task's own.
        control: Also measure where there is nothing to find: `"reinitialized"`, `"shuffled_answers"` or
            `"norm_matched"` (see `prompts.controls`; what each sender adds at a position changes in a random direction
            then, along the same gradients). It costs as much again.
        seed: Of the control.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: For a task without corrupted prompts, an option out of range, a metric without a gradient,
            hooks on the model, or parts of somebody else's that read the stream in ways of their own.
        NotFiniteError: If a final state or a score is not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True))
        >>> edge_attribution(model, task, progress=False)
        EdgeAttributionResult: ...
    """
    check_option("method", method, get_args(EdgeMethod))
    check_at_least(1, steps=steps)
    check_rewirable(model)
    graph = Graph.of(model.cfg)
    runs = TaskRuns(model, task, direction, scale)
    attribution = _Attribution(model, graph, runs, metric, method, steps)
    (base, other), totals = attribution.of_all(progress=progress)
    clean, corrupted = runs.clean_and_corrupted(base, other)
    unit = 1.0 if scale == "metric" else float(runs.scaled(torch.ones_like(base), base, other))
    measured = {"": totals}
    if control is not None:
        of_control = controlled(model, task, control, metric=metric, seed=seed)
        way = RandomWay(seed) if control == "norm_matched" else None
        other_runs = TaskRuns(*of_control, direction, scale)
        beside = _Attribution(of_control[0], graph, other_runs, metric, method, steps, way)
        measured["control_"] = beside.of_all(progress=progress)[1]
    values: dict[str, Any] = {}
    for prefix, each in measured.items():
        means, errors, rows = each.scaled(unit, of_prompts=attribution.scorer.is_of_prompts)
        runs.scaled(means, base, other)  # which refuses what is not finite
        values[f"{prefix}values"] = graph.spread(means.to(base.dtype))
        values[f"{prefix}errors"] = graph.spread(errors.to(base.dtype))
        values[f"{prefix}per_prompt"] = rows
    return EdgeAttributionResult(
        info=runs.info(model, int(runs.task.attention_mask.sum())),
        **values,
        control=control or "",
        clusters=task.clusters,
        clean=clean,
        corrupted=corrupted,
        sender_labels=graph.sender_labels,
        receiver_labels=graph.receiver_labels,
        method=method,
        steps=steps if "ig" in method.split("_") else 1,
        direction=direction,
        scale=scale,
        has_answers=isinstance(attribution.scorer.metric, AnswerMetric),
    )


class _Attribution:
    """Scores of all edges on some prompts after the other."""

    def __init__(
        self,
        model: HookedTransformer,
        graph: Graph,
        runs: TaskRuns,
        metric: Metric | None,
        method: EdgeMethod,
        steps: int,
        way: RandomWay | None = None,
    ) -> None:
        self.model, self.graph, self.runs, self.method, self.way = model, graph, runs, method, way
        self.scorer = Scorer(model, runs.task, metric)
        self.outputs, self.inputs = SenderOutputs(model), InputGradients(model, graph)
        midpoints = [(step + 0.5) / steps for step in range(steps)]
        self.points = {"eap": [0.0], "clean_corrupted": [0.0, 1.0]}.get(method, midpoints)
        # With attention that only looks back, both runs are one before the first token that differs.
        blocks = [cast(TransformerBlock, model.blocks[layer]) for layer in model.cfg.layers_with("attn")]
        length = runs.task.clean_tokens.shape[1]
        self.ahead = runs.task.corrupted_mask is not None or any(block.looks_ahead(length) for block in blocks)
        self.together = self._senders_together() if method == "eap_ig_activations" else [slice(0, len(graph.senders))]

    @property
    def n_passes(self) -> int:
        """Backward passes for a batch."""
        return len(self.points) * len(self.together)

    def of_all(self, *, progress: bool) -> tuple[Float[Tensor, " run"], "_Totals"]:
        """Return the metric of both runs, the mean over prompts, and the scores."""
        model, graph = self.model, self.graph
        per_token = len(graph.senders) * model.cfg.d_model * max(4, model.W_E.element_size())
        budget = Budget.of(model.W_E.device)
        batches = list(self.scorer.batches(max(1, min(budget.backward_tokens, budget.work_bytes // per_token))))
        totals = _Totals(self.runs.task, graph, budget.kept_bytes)
        ends = []
        with progress_bar(len(batches) * self.n_passes, "edges", shown=progress) as bar:
            for rows in batches:
                metrics, scores = self.of(rows, bar)
                ends.append(metrics)
                totals.add(rows, scores)
        return torch.cat(ends, dim=1).mean(1).cpu(), totals

    def of(self, rows: Int[Tensor, " row"], bar: Bar) -> tuple[Tensor, Float[Tensor, "row sender receiver"]]:
        """Return the metric of both runs, `[run, *prompt]` with the prompts last, and each prompt's scores."""
        base, base_final = self._run(rows)
        other, other_final = self._run(rows, of_other=True)
        ends = self.scorer.values(
            rows, torch.stack([self.scorer.read(rows, each) for each in (base_final, other_final)])
        )
        length = base[EMBEDDED].shape[1]
        first = 0 if self.ahead else min(int(self.scorer.changes_at[rows].min()), length - 1)
        changes = self._changes(rows, base, other, slice(first, length))
        along = changes if self.way is None else self.way.instead_of(changes)
        scores = changes.new_zeros(len(rows), len(self.graph.senders), len(self.graph.receivers))
        for senders in self.together:
            for point in self.points:
                if self.method == "eap_ig_activations":
                    layer, start, replaced = self._moved(senders, point, base, changes)
                else:
                    way = other[EMBEDDED] - base[EMBEDDED]
                    layer, start, replaced = 0, base[EMBEDDED] + point * way, {}
                self._add(scores, along, senders, rows, start, layer, replaced)
                bar.update()
        return ends.view(2, -1), scores / len(self.points)

    def _run(self, rows: Int[Tensor, " row"], *, of_other: bool = False) -> tuple[dict[str, Tensor], Tensor]:
        tokens = (self.runs.other if of_other else self.runs.base)[rows]
        # Copies, since whatever comes later in a run may be written in the same place.
        wanted = dict.fromkeys((*self.outputs.watched, *self._written), torch.clone)
        kept, final = record(self.model, tokens, wanted, **self.runs.options(rows, of_other=of_other))
        check_final(final)
        return kept, final

    @property
    def _written(self) -> list[str]:
        """Hook points of the base run that are needed to take it up in the middle."""
        if self.method != "eap_ig_activations":
            return []
        layers = range(self.model.cfg.n_layers)
        return [f"blocks.{layer}.hook_{each}" for layer in layers for each in ("resid_pre", "resid_post", "attn_out")]

    def _changes(
        self, rows: Int[Tensor, " row"], base: Mapping[str, Tensor], other: Mapping[str, Tensor], here: slice
    ) -> Float[Tensor, "row sender here d_model"]:
        """Return what each sender adds to the stream in the other run, less what it adds in the base run.

        Where both runs are one that is nothing: `here` are the other positions.
        """
        given, given_other = self.outputs.given(base), self.outputs.given(other)
        first = given[EMBEDDED][:, here]
        wide = torch.promote_types(first.dtype, torch.float32)
        # Prompts first, so that one product for each of them makes its scores.
        changes = first.new_empty(len(first), len(self.graph.senders), *first.shape[1:], dtype=wide)
        for name, where in self._places():
            change = given_other[name][:, here].to(wide) - given[name][:, here]
            if name.endswith("hook_z"):
                layer = int(name.split(".")[1])
                changes[:, where] = self.outputs.added(layer, change).movedim(0, 1)
            else:
                changes[:, where] = change[:, None]
        if self.runs.task.corrupted_mask is not None:
            clean, corrupted = (mask[rows, here] for mask in self.runs.task.masks)
            changes.masked_fill_(~(clean & corrupted)[:, None, :, None], 0.0)
        return changes

    def _places(self) -> Iterator[tuple[str, slice]]:
        """Yield what shows a sender's output, or those of a layer's heads, and where these stand in the graph."""
        yield EMBEDDED, slice(0, 1)
        for layer in range(self.model.cfg.n_layers):
            for part in ("attn", "mixer", "mlp"):
                where = self.graph.writers(layer, part)
                if where.stop > where.start:
                    yield heads_name(layer) if part == "attn" else whole_name(layer, part), where

    def _senders_together(self) -> list[slice]:
        return [where for _, where in self._places()]

    def _moved(
        self,
        senders: slice,
        point: float,
        base: Mapping[str, Tensor],
        changes: Float[Tensor, "row sender here d_model"],
    ) -> tuple[int, Tensor, dict[str, Sequence[Replacement]]]:
        """Return a layer, and the stream that enters it, from which on senders are on the way to the other run."""
        sender = self.graph.senders[senders.start]
        before = base[EMBEDDED].shape[1] - changes.shape[2]
        moved = F.pad(point * changes[:, senders].sum(1), (0, 0, before, 0))
        if sender.component is None:
            return 0, base[EMBEDDED] + moved, {}
        layer = sender.component.layer
        if sender.component.part != "mlp" and self.model.cfg.has_resid_mid and "mlp" in self.model.cfg.parts_of(layer):
            # The MLP beside them reads it, so the run begins before their layer and they are put in on the way.
            name = whole_name(layer, sender.component.part)
            return layer, base[f"blocks.{layer}.hook_resid_pre"], {name: [Replacement(base[name] + moved)]}
        return layer + 1, base[f"blocks.{layer}.hook_resid_post"] + moved, {}

    def _add(
        self,
        scores: Float[Tensor, "row sender receiver"],
        changes: Float[Tensor, "row sender here d_model"],
        senders: slice,
        rows: Int[Tensor, " row"],
        start: Tensor,
        layer: int,
        replaced: Mapping[str, Sequence[Replacement]],
    ) -> None:
        """Add to the scores of some senders' edges those with the gradients of one run."""

        def score(final: Tensor) -> Tensor:
            return self.scorer.values(rows, self.scorer.read(rows, final)[None]).sum()

        options = {"tokens": self.runs.base[rows], **self.runs.options(rows)}
        here = slice(start.shape[1] - changes.shape[2], start.shape[1])
        start = start.to(self.model.W_E.dtype)
        for receivers, gradient in self.inputs.of(start, score, here, layer=layer, replaced=replaced, **options):
            # Senders stand in the order in which they write: what a receiver reads is a first part of them.
            stop = min(senders.stop, int(self.graph.allowed[:, receivers.start].sum()))
            if senders.start < stop:
                left = changes[:, senders.start : stop].flatten(2)
                right = gradient.movedim(0, 1).flatten(2).to(left.dtype).mT
                found = product_each(left, right, left.new_empty(*left.shape[:2], right.shape[-1]))
                scores[:, senders.start : stop, receivers] += found


class _Totals:
    """Scores over prompts: those of each as long as there is room, else sums and sums of squares.

    Without room for each, errors over clusters of prompts are not known.
    """

    def __init__(self, task: Task, graph: Graph, room: int) -> None:
        n_prompts, self._clusters = len(task), task.clusters
        self._allowed = graph.allowed
        self._rows: list[Tensor] = []
        self._scores: list[Tensor] = []
        self._keeps = n_prompts * graph.n_edges * 4 <= room
        self._n = n_prompts
        self._sums = torch.zeros(2, graph.n_edges, dtype=torch.float64, device="cpu")

    def add(self, rows: Int[Tensor, " row"], scores: Float[Tensor, "row sender receiver"]) -> None:
        """Add those of some prompts."""
        of_edges = scores.cpu()[:, self._allowed]
        exact = of_edges.double()
        self._sums += torch.stack([exact.sum(0), exact.square().sum(0)])
        if self._keeps:
            self._rows.append(rows.cpu())
            self._scores.append(of_edges)

    def scaled(
        self, unit: float, *, of_prompts: bool
    ) -> tuple[Float[Tensor, " edge"], Float[Tensor, " edge"], Float[Tensor, "edge prompt"] | None]:
        """Return means, standard errors and the values of prompts; of a metric of all prompts, sums alone."""
        sums, squares = self._sums
        if not of_prompts:
            return sums * unit, torch.full_like(sums, torch.nan), None
        n = self._n
        means = sums / n
        spread = (squares - n * means.square()).clamp(min=0) / max(1, n - 1)
        each = None
        if self._keeps:
            ordered = torch.cat(self._scores)[torch.cat(self._rows).argsort()]
            each = (ordered * unit).T.contiguous()
            spread = (ordered.double() - means).square().sum(0) / max(1, n - 1)
        errors = (spread / n).sqrt() * abs(unit) if n > 1 else torch.full_like(means, torch.nan)
        if self._clusters is not None:
            rows = torch.full_like(means, torch.nan)[None] if each is None else each.T.double()
            errors = standard_errors(rows, None if each is None else self._clusters)
        return means * unit, errors, each
