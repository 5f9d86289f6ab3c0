"""`edge_patch`: what patching single edges changes, beside what gradients say it would.

The edge u -> v is patched by path patching along the direct path: v reads what u gave in the other run and all else as
it is, and everything after v is computed again. Edges into one receiver go through one sweep: a run of the layers from
that receiver on for each of them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.circuits.edges_result import EdgeAttributionResult, EdgeResult
from headscope.analysis.circuits.graph import Graph
from headscope.analysis.core.over_prompts import NO_CONTROL
from headscope.analysis.core.progress import progress_bar
from headscope.analysis.core.result import Array
from headscope.analysis.core.stats import standard_errors
from headscope.analysis.patching.comparison import PatchingComparison
from headscope.analysis.patching.path import path_patch_sweep
from headscope.analysis.prompts.controls import Control
from headscope.analysis.prompts.metrics import AnswerMetric, Metric
from headscope.analysis.prompts.task import Task
from headscope.analysis.prompts.two_runs import Direction, Scale
from headscope.errors import InvalidInputError, check_at_least
from headscope.model.transformer import HookedTransformer

__all__ = ["EdgePatchingResult", "edge_patch"]


@dataclass(frozen=True, repr=False)
class EdgePatchingResult(EdgeResult):
    """The change of a metric when single edges are patched.

    Attributes:
        values: The metric of the patched run less that of the run before, the mean over prompts, in the scale.
        errors: One standard error over prompts; NaN for a metric of all prompts together.
        estimates: What `edge_attribution` estimated, in the same scale; `None` for edges by name.
        edges: `embed -> 0.0.q`, ...
        control_values: What the control gave, in the same scale as `values`.
        control_errors: One standard error of it.
    """

    kind: ClassVar[str] = "edge patching"
    arrays: ClassVar[Mapping[str, Array]] = {
        "values": Array("edge", title="change", column="change", error="errors"),
        "errors": Array("edge", column="error"),
        "estimates": Array("edge", column="estimate", absent="these edges were named, not estimated first."),
        "control_values": Array("edge", column="control", error="control_errors", absent=NO_CONTROL),
        "control_errors": Array("edge", absent=NO_CONTROL, of=lambda found: found.control_errors),
        "per_prompt": Array("edge prompt", absent="a metric of all prompts has no values of single ones."),
    }
    coords: ClassVar[Mapping[str, str]] = {"edge": "edges"}
    columns: ClassVar[tuple[str, ...]] = ("values", "errors", "estimates", "control_values")
    ranked: ClassVar[tuple[str, ...]] = ("values",)
    values: Float[Tensor, " edge"]
    errors: Float[Tensor, " edge"] = field()
    estimates: Float[Tensor, " edge"] | None
    edges: tuple[str, ...]
    control_values: Float[Tensor, " edge"] | None = field(default=None, kw_only=True)
    control_errors: Float[Tensor, " edge"] | None = field(default=None, kw_only=True)

    @property
    def answer_sign(self) -> int:
        return 1 if self.direction == "denoising" else -1

    def compare(self) -> PatchingComparison:
        """Agreement of the estimates with the patches, which `views.attribution_scatter` draws.

        Raises:
            InvalidInputError: If there are no estimates, or fewer than two edges.
        """
        if self.estimates is None:
            raise InvalidInputError(
                "these edges were named, not estimated first: give edge_patch what edge_attribution gave."
            )
        return PatchingComparison(
            "edges", ("edge",), self.estimates, self.values, data=self.info.data, names=self.edges
        )

    def _notes(self) -> Iterator[str]:
        yield f"{len(self.edges)} edge{'s' * (len(self.edges) != 1)}; {self.direction}, {self.scale}"
        if self.estimates is not None and len(self.edges) > 1:
            both = self.compare()
            yield f"with what gradients estimate: Pearson {both.pearson:.3f}, Spearman {both.spearman:.3f}"
        yield from super()._notes()


@torch.no_grad()
def edge_patch(
    model: HookedTransformer,
    task: Task,
    edges: EdgeAttributionResult | Iterable[str | tuple[str, str]],
    *,
    n: int = 50,
    direction: Direction | None = None,
    scale: Scale | None = None,
    metric: Metric | None = None,
    control: Control | None = None,
    seed: int = 0,
    progress: bool = True,
) -> EdgePatchingResult:
    """Patch edges one at a time, and measure the answer.

    Args:
        model: The model, without hooks.
        task: Prompts and corrupted prompts, aligned token by token.
        edges: What `edge_attribution` gave, of which the strongest are patched; or edges by name, `"1.0 -> 2.1.q"`.
            Mixers read all positions at once, which no path does: edges into them are left out.
        n: How many of the strongest.
        direction: `"noising"` or `"denoising"`; default: that of the estimates, else `"noising"`.
        scale: `"share"` or `"metric"`; default: that of the estimates, else `"share"`.
        metric: What is measured; default: the task's own. Give the one that the estimates are of.
        control: Also measure where there is nothing to find: `"reinitialized"`, `"shuffled_answers"` or
            `"norm_matched"` (see `prompts.controls`). It costs as much again.
        seed: Of the control.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: For a task without corrupted prompts, an edge that there is not, or a direction or scale
            other than the estimates'.
        UnknownNameError: For an end of an edge that there is not.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.analysis import Task, edge_attribution
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True))
        >>> found = edge_attribution(model, task, progress=False)
        >>> edge_patch(model, task, found, n=12, progress=False)
        EdgePatchingResult: ...
    """
    graph = Graph.of(model.cfg)
    estimated = None
    if isinstance(edges, EdgeAttributionResult):
        estimated = edges
        for name, asked, had in (("direction", direction, estimated.direction), ("scale", scale, estimated.scale)):
            if asked not in (None, had):
                raise InvalidInputError(f"the estimates have {name}={had!r}, and {asked!r} is asked for: leave it out.")
        kept = _strongest(graph, estimated, n)
    else:
        kept = graph.of_edges(edges)
    ends = kept.nonzero().tolist()
    if not ends:
        raise InvalidInputError("no edges are named; give at least one, such as ['0.0 -> final'].")
    options: dict[str, Any] = {
        "direction": direction or (estimated.direction if estimated is not None else "noising"),
        "scale": scale or (estimated.scale if estimated is not None else "share"),
        "metric": metric,
        "control": control,
        "seed": seed,
        "progress": progress,
    }
    into: dict[int, list[int]] = {}
    for sender, receiver in ends:
        into.setdefault(receiver, []).append(sender)
    pairs, sweeps = [], []
    with progress_bar(len(ends), "edge patching", shown=progress) as bar:
        for receiver, senders in into.items():
            bar.step = len(senders)
            labels, reader = [graph.sender_labels[sender] for sender in senders], graph.receiver_labels[receiver]
            sweeps.append(path_patch_sweep(model, task, senders=labels, receivers=reader, **options))
            pairs += [(sender, receiver) for sender in senders]
            bar.update(len(senders))
    changes = torch.cat([swept.values for swept in sweeps])
    order = changes.abs().argsort(descending=True, stable=True)
    measured = _joined([(swept.values, swept.per_prompt) for swept in sweeps], order, task.clusters)
    if control is not None:
        of_control = _joined(
            [(swept.control_values, swept.control_per_prompt) for swept in sweeps], order, task.clusters
        )
        measured |= {f"control_{name}": each for name, each in of_control.items()}
    ordered = [pairs[at] for at in order.tolist()]
    return EdgePatchingResult(
        info=sweeps[0].info,
        **measured,
        estimates=None if estimated is None else torch.stack([estimated.values[pair] for pair in ordered]).to(changes),
        edges=tuple(f"{graph.sender_labels[sender]} -> {graph.receiver_labels[reader]}" for sender, reader in ordered),
        clean=sweeps[0].clean,
        corrupted=sweeps[0].corrupted,
        direction=options["direction"],
        scale=options["scale"],
        control=control or "",
        clusters=task.clusters,
        has_answers=isinstance(task.measure if metric is None else metric, AnswerMetric),
    )


def _joined(
    parts: Sequence[tuple[Tensor | None, Tensor | None]],
    order: Int[Tensor, " edge"],
    clusters: Int[Tensor, " prompt"] | None,
) -> dict[str, Any]:
    """Return the values, errors and single prompts of several sweeps, edges in some order."""
    values = torch.cat([each for each, _ in parts if each is not None])[order]
    rows = [each for _, each in parts if each is not None]
    per_prompt = torch.cat(rows)[order] if rows else None
    errors = torch.full_like(values, torch.nan) if per_prompt is None else standard_errors(per_prompt.T, clusters)
    return {"values": values, "errors": errors, "per_prompt": per_prompt}


def _strongest(graph: Graph, estimated: EdgeAttributionResult, n: int) -> Tensor:
    """The circuit of the strongest edges that a path can follow."""
    check_at_least(1, n=n)
    if (estimated.sender_labels, estimated.receiver_labels) != (graph.sender_labels, graph.receiver_labels):
        raise InvalidInputError("the estimates are of a model with other heads and MLPs than this one.")
    patchable = torch.tensor([each.component is None or not each.component.is_mixer for each in graph.receivers])
    sizes = estimated.values.abs().masked_fill(~(estimated.allowed & patchable), -torch.inf)
    n = min(n, int((sizes >= 0).sum()))
    kept = torch.zeros_like(graph.allowed)
    kept.view(-1)[sizes.flatten().argsort(descending=True, stable=True)[:n]] = True
    return kept
