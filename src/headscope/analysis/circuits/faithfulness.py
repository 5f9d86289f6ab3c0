"""`circuit_faithfulness`: the share of a task's metric that a circuit keeps when it alone is at work.

With m(C) the metric of a run in which only the circuit C gives what it gives, and all else what it gives in the other
run,

    faithfulness(C) = (m(C) - m(nothing)) / (m(whole model) - m(nothing))

(Mueller et al. 2025, arXiv 2504.13151, section 3). With all else patched, m(nothing) is the corrupted run's; a circuit
without any node still has the clean embedding, and MLPs if these are in every circuit: its metric stands beside, as
`empty`. With means or zeros in the place of all else, m(nothing) is that of the circuit without any part.

Over circuits of growing size, taken from a ranking of parts, two areas are

    CPR = integral of faithfulness over the share of parts kept       higher is better: the metric comes back early
    CMD = integral of |1 - faithfulness|                              lower is better: it stays what it is

by the trapezoidal rule over the shares measured, not divided by their range. Over shares of edges from 0.1 % to all
they are the areas of the benchmark MIB, which ranks edges by value for CPR (`absolute=False`) and by magnitude for
CMD. Its areas, too, are over the shares asked for; the number of edges that are left once dead ends are cut, which it
reports beside them, is not computed here. Areas over shares of nodes have not been compared with its own. A circuit of
the same size, drawn at random, is the control.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.analysis.circuits.circuit_result import FINAL, Circuit
from headscope.analysis.circuits.edge_runs import Ablation, CircuitRuns
from headscope.analysis.circuits.faithfulness_result import SHARES, Faithfulness
from headscope.analysis.circuits.graph import Graph
from headscope.analysis.circuits.node_runs import NodeRuns
from headscope.analysis.core.components import canonical_label, component_of, part_labels
from headscope.analysis.core.named_arrays import cell_label
from headscope.analysis.core.progress import progress_bar
from headscope.analysis.core.result import Result, RunInfo, check_option
from headscope.analysis.patching.path_ends import EMBED
from headscope.analysis.prompts.metrics import AnswerMetric, Metric, gap_between
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError, unknown_name
from headscope.model.transformer import HookedTransformer

__all__ = ["SHARES", "Level", "PartRuns", "circuit_faithfulness", "kept_by", "ranked_parts", "read_circuit", "runs_of"]

Level = Literal["nodes", "edges"]


@runtime_checkable
class PartRuns(Protocol):
    """A model whose parts, nodes or edges, are at work or not; see `NodeRuns`."""

    parts: tuple[str, ...]
    whole: Tensor
    nothing: Tensor
    empty: Tensor

    def values(self, kept: Bool[Tensor, "circuit part"], *, progress: bool = False) -> Float[Tensor, "circuit *prompt"]:
        """The metric of circuits."""


class EdgeRuns:
    """Runs of circuits of edges, in the terms of `NodeRuns`."""

    def __init__(self, model: HookedTransformer, task: Task, ablation: Ablation, metric: Metric | None) -> None:
        self._runs = CircuitRuns(model, task, ablation=ablation, metric=metric)
        self.allowed = self._runs.graph.allowed
        self.parts = self._runs.graph.labels_of(self.allowed)
        ends = torch.tensor([[False], [True]], device="cpu").expand(2, len(self.parts))
        self.empty, self.whole = self.values(ends)
        self.nothing = self.empty

    def values(self, kept: Bool[Tensor, "circuit part"], *, progress: bool = False) -> Float[Tensor, "circuit *prompt"]:
        """The metric of circuits, given the edges that each keeps."""
        masks = self.allowed.new_zeros(len(kept), *self.allowed.shape)
        masks[:, self.allowed] = kept.cpu()
        return self._runs.measure(masks, progress=progress)


def runs_of(
    model: HookedTransformer,
    task: Task,
    level: Level,
    ablation: Ablation,
    *,
    keep_mlps: bool = True,
    metric: Metric | None = None,
) -> PartRuns:
    """Return the runs of circuits of a level."""
    if level == "edges":
        return EdgeRuns(model, task, ablation, metric)
    return NodeRuns(model, task, ablation, keep_mlps=keep_mlps, metric=metric)


def circuit_faithfulness(
    model: HookedTransformer,
    task: Task,
    circuit: Any,
    *,
    level: Level | None = None,
    ablation: Ablation = "patch",
    sizes: Sequence[int | float] | None = None,
    absolute: bool = True,
    keep_mlps: bool = True,
    metric: Metric | None = None,
    controls: int = 3,
    seed: int = 0,
    progress: bool = True,
) -> Faithfulness:
    """Measure the share of a task's metric that a circuit keeps by itself, or circuits of growing size.

    Cost: a forward pass of the prompts for each circuit, whatever its size; `1 + controls` circuits for each size.

    Args:
        model: The model. With hooks on it, nodes are run in whole passes; edges are refused.
        task: Prompts with corrupted ones.
        circuit: A `Circuit`, or a list of heads and MLPs (`"9.9"`, `(9, 9)`, `"mlp3"`) or of edges (`"1.0 -> 2.1.q"`):
            one circuit, or its beginnings if `sizes` are given. Or scores to rank parts by: a mapping from their
            labels, a tensor `[layer, head]` (or with MLPs as a last column), or a result with one ranking of parts.
        level: `"nodes"` keeps outputs of components, `"edges"` what single readers get of them; default: what the
            labels name. A `Circuit` can be taken as either, its edges with those from the embedding into its nodes.
        ablation: What all else gives: its output on the corrupted prompt (`"patch"`), the mean of that over prompts at
            each position (`"mean"`), or zero.
        sizes: Numbers of parts (`10`), or shares of all (`0.1`, rounded down); default: the circuit's own size, and for
            scores the shares of the benchmark MIB, 0.1 % to 100 %.
        absolute: Rank scores by magnitude, else by value: those that work most for the answer first, which in a result
            of noising or ablation are the lowest.
        keep_mlps: MLPs and mixers are at work in every circuit of nodes, as the embedding is, so that parts are heads.
        metric: What is measured; default: the task's metric.
        controls: Number of random circuits of each size.
        seed: Of the random circuits.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: For a task without corrupted prompts or one on which both ends are alike; parts that are no
            parts of the model's circuits, or named twice; a size out of range.
        NotFiniteError: If a final state is not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True))
        >>> circuit_faithfulness(model, task, ["0.2", "0.3", "2.2", "3.2"], sizes=[1, 2, 4], progress=False)
        Faithfulness: headscope-demo on 20 prompts, such as ...
          logit difference: +8.855 logits whole model, right in 100% of prompts; -0.784 on the corrupted prompts; ...
          1 head (5.0%): keeps ...
          2 heads (10.0%): keeps ...
          4 heads (20.0%): keeps ...
    """
    named, scores = read_circuit(model, circuit, level)
    if level is None:
        level = "edges" if any("->" in name for name in named) else "nodes"
    check_option("level", level, ("nodes", "edges"))
    if controls < 0:
        raise InvalidInputError(f"controls is a number of random circuits, 0 or more; got {controls}.")
    runs = runs_of(model, task, level, ablation, keep_mlps=keep_mlps, metric=metric)
    gap = gap_between(runs.whole.mean(), runs.nothing.mean())
    if scores and gap < 0 and isinstance(circuit, Result) and not absolute:
        raise InvalidInputError(
            "the metric is lower on the clean prompts, so that the sign of a result does not say what works for the "
            "answer. Rank by magnitude (absolute=True), or give a mapping of scores."
        )
    ranking = ranked_parts(runs.parts, named, scores, absolute)
    if sizes is None:
        sizes = SHARES if scores else [len(ranking)]
    counts, shares = _sizes(sizes, len(runs.parts), len(ranking))
    options = {"level": level, "ablation": ablation, "controls": controls, "seed": seed}
    options |= {"keep_mlps": keep_mlps} if level == "nodes" else {}
    options |= {"absolute": absolute} if scores else {}
    n_positions = int(task.attention_mask.sum())
    return kept_by(
        runs,
        ranking,
        counts,
        shares,
        info=RunInfo(model.cfg.model_name, model.weight_processing, task.description, len(task), n_positions, options),
        has_answers=isinstance(task.measure if metric is None else metric, AnswerMetric),
        clusters=task.clusters,
        level=level,
        ablation=ablation,
        controls=controls,
        seed=seed,
        progress=progress,
    )


def kept_by(
    runs: PartRuns,
    ranking: Sequence[str],
    counts: Sequence[int],
    shares: Sequence[float],
    *,
    info: RunInfo,
    has_answers: bool,
    clusters: Int[Tensor, " prompt"] | None = None,
    level: str = "nodes",
    ablation: str = "patch",
    controls: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> Faithfulness:
    """Run the first parts of a ranking, as many as `counts` says, and as many random ones."""
    generator = torch.Generator("cpu").manual_seed(seed)
    n_parts = len(runs.parts)
    places = {name: at for at, name in enumerate(runs.parts)}
    orders = [torch.tensor([places[name] for name in ranking], dtype=torch.long, device="cpu")]
    orders += [torch.randperm(n_parts, generator=generator, device="cpu") for _ in range(controls)]
    values = []
    with progress_bar(len(orders), "faithfulness", shown=progress) as bar:
        for order in orders:
            values.append(runs.values(_beginnings(order, counts, n_parts), progress=progress).cpu())
            bar.update()
    is_of_prompts = values[0].ndim > 1
    own, *random = (each.mean(1) for each in values) if is_of_prompts else values
    return Faithfulness(
        info=info,
        sizes=torch.tensor(counts),
        shares=torch.tensor(shares, dtype=own.dtype),
        metrics=own,
        per_prompt=values[0] if is_of_prompts else None,
        random=torch.stack(random) if random else None,
        whole=runs.whole.cpu(),
        nothing=runs.nothing.cpu(),
        empty=runs.empty.cpu(),
        ranking=tuple(ranking),
        n_parts=n_parts,
        level=level,
        ablation=ablation,
        has_answers=has_answers,
        clusters=None if clusters is None else clusters.cpu(),
    )


def _beginnings(order: Int[Tensor, " ranked"], sizes: Sequence[int], n_parts: int) -> Bool[Tensor, "size part"]:
    """The circuits of the first parts of a ranking."""
    kept = torch.zeros(len(sizes), n_parts, dtype=torch.bool, device="cpu")
    for circuit, size in zip(kept, sizes, strict=True):
        circuit[order[:size]] = True
    return kept


def read_circuit(model: HookedTransformer, circuit: Any, level: str | None) -> tuple[list[str], dict[str, float]]:
    """Return the labels of parts, and what they are ranked by where that was given."""
    if isinstance(circuit, Circuit):
        nodes = [node for node in circuit.nodes if node not in (EMBED, FINAL)]
        if level != "edges":
            return nodes, {}
        graph = Graph.of(model.cfg)
        kept = graph.of_edges(circuit.edge_labels)
        if EMBED not in circuit.nodes:  # where nobody looked for paths from it
            kept[0] |= graph.of_nodes(nodes)[0]
        return list(graph.labels_of(kept)), {}
    if isinstance(circuit, Result):
        size = sum(circuit.array(name).values.numel() for name in circuit.declared() if name in circuit.measured())
        circuit = {each.label: circuit.answer_sign * each.value for each in circuit.top(size, mlps=True)}
    if isinstance(circuit, Tensor):
        circuit = _by_component(model, circuit)
    if isinstance(circuit, Mapping):
        scores = {_label(name): float(score) for name, score in circuit.items()}
        return list(scores), scores
    if isinstance(circuit, str) or not isinstance(circuit, Iterable):
        raise InvalidInputError(
            "a circuit is a Circuit, a list of parts such as ['9.9', 'mlp3'] or ['9.9 -> final'], or scores to rank "
            f"parts by; got {circuit!r}."
        )
    return [_label(name) for name in circuit], {}


def _label(name: object) -> str:
    return str(name) if "->" in str(name) else canonical_label(getattr(name, "label", name))


def _by_component(model: HookedTransformer, scores: Tensor) -> dict[str, float]:
    """The scores of a map of components, by label; NaN stands for those a layer does not have."""
    labels = part_labels(model.cfg)
    columns = labels[: model.cfg.n_heads] if scores.ndim == 2 and scores.shape[1] == model.cfg.n_heads else labels
    if scores.shape != (model.cfg.n_layers, len(columns)):
        raise InvalidInputError(
            f"scores of components are [layer, head], or [layer, {', '.join(labels)}]: "
            f"{[model.cfg.n_layers, len(labels)]}; got {list(scores.shape)}."
        )
    cells = {
        cell_label({"layer": layer, "part": column}): float(scores[layer, at])
        for layer in range(model.cfg.n_layers)
        for at, column in enumerate(columns)
    }
    return {label: score for label, score in cells.items() if score == score}


def ranked_parts(
    parts: tuple[str, ...], named: Sequence[str], scores: Mapping[str, float], absolute: bool
) -> tuple[str, ...]:
    """The parts of a circuit, the highest score first; without MLPs where these are in every circuit."""
    known = set(parts)
    mlps_stay = not any(part.startswith("mlp") for part in parts)
    names = [name for name in named if name in known or not (mlps_stay and _is_whole(name))]
    for name in names:
        if name not in known:
            raise unknown_name("part of a circuit", name, parts, code="HS-NAME-10")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InvalidInputError(f"{sorted(twice)[0]} is named twice; name each part once.", code="HS-HEADS-04")
    if scores:
        names.sort(key=lambda name: -(abs(scores[name]) if absolute else scores[name]))
    return tuple(names)


def _is_whole(name: str) -> bool:
    component = component_of(name)
    return component is not None and component.head is None


def _sizes(sizes: Sequence[int | float], n_parts: int, n_ranked: int) -> tuple[list[int], list[float]]:
    """The number of parts of each circuit, and its share of all."""
    counts, shares = [], []
    for size in sizes:
        count = size if isinstance(size, int) else int(size * n_parts + 1e-9)
        share = size / n_parts if isinstance(size, int) else float(size)
        if not 0 <= count <= n_parts or share < 0:
            raise InvalidInputError(f"a size is a number of parts up to {n_parts}, or a share up to 1.0; got {size}.")
        if count > n_ranked and n_ranked < n_parts:
            raise InvalidInputError(f"size {size} takes {count} parts, and only {n_ranked} of {n_parts} are ranked.")
        counts.append(count)
        shares.append(share)
    if not counts or counts != sorted(counts):
        raise InvalidInputError(f"sizes grow from one circuit to the next; got {list(sizes)}.")
    return counts, shares
