"""`find_circuit`: the heads that carry a task by themselves, and the paths between these and MLPs.

Heads are found by what they keep of the task when they alone are at work (`search`). Paths are found by path patching,
from the final residual stream back: what sends to it, then what sends to the queries, keys and values of the heads, and
into MLPs (Wang et al. 2022, arXiv 2211.00593, section 3). A path is kept if corrupting it alone changes the metric by a
stated share, and significantly so (two-sided Student t over prompts, with Bonferroni's correction for all that sends to
one input).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from headscope.analysis.circuits.circuit_result import FINAL, Circuit
from headscope.analysis.circuits.edges import edge_attribution
from headscope.analysis.circuits.faithfulness import kept_by
from headscope.analysis.circuits.node_runs import NodeRuns
from headscope.analysis.circuits.search import FEW, effects_alone, faithful_parts
from headscope.analysis.core.components import all_components, component_of
from headscope.analysis.core.progress import Bar, progress_bar
from headscope.analysis.core.result import RunInfo
from headscope.analysis.core.stats import LEVEL, estimates_over_prompts
from headscope.analysis.patching.path import path_patch_sweep
from headscope.analysis.patching.path_ends import INPUTS
from headscope.analysis.patching.path_result import PathPatchingResult
from headscope.analysis.prompts.metrics import AnswerMetric, Metric, PromptMetric
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer

__all__ = ["find_circuit"]

_ENOUGH = 16  # prompts, of which half may be kept from the search,
_CLUSTERS = 4  # if they are of so many clusters
_SEARCHING = 4  # steps of the bar for the search, where a receiver is one
_SIZES = 6  # numbers of heads that are run by themselves


@runtime_checkable
class KindsOfHeads(Protocol):
    """Kinds of heads, by which a circuit groups them; `HeadTypes` is one."""

    def main_kind(self, layer: int, head: int) -> str | None:
        """Return the kind that says most about a head's part in the task; `None` for an unlabeled head."""


def find_circuit(
    model: HookedTransformer,
    task: Task,
    head_types: KindsOfHeads | None = None,
    *,
    min_effect: float = 0.03,
    level: float = LEVEL,
    max_receivers: int = 12,
    mlps: bool = True,
    metric: Metric | None = None,
    controls: int = 2,
    progress: bool = True,
) -> Circuit:
    """Find the heads that carry a task by themselves, and the paths between them.

    The heads are those that keep what the whole model does when they alone are at work, MLPs staying as they are (see
    `faithful_parts`). Half of the prompts of each label judge the search, and the other half say how faithful the
    circuit is, prompts of a cluster on one side; fewer than 16 prompts do both. The paths are sought from the final
    residual stream back, into the heads found first, the strongest before others. In models of more than 64 heads and
    MLPs only the heads found and MLPs send, and only those are patched for which gradients estimate half of the least
    effect; in smaller ones all components send, and the heads on the paths, for which all prompts are searched, join
    the circuit.

    Cost: the search, some 40 forward passes of half of the prompts; then for each receiver, input and sender a run of
    the layers behind the receiver. The sweep into the final stream costs no run.

    Args:
        model: The model, without hooks.
        task: Prompts with corrupted ones.
        head_types: What `detect_heads` found, to group the heads by.
        min_effect: The least effect of a head in the circuit, and of a path, as a share of what corrupting the prompts
            changes.
        level: The probability that chance alone gives any path into a receiver's input that is kept.
        max_receivers: Into how many heads and MLPs, the heads found first, paths are sought.
        mlps: Let MLPs be senders and receivers. Without, paths through MLPs are left out (they stay as they are).
        metric: A `PromptMetric`, which has a number for each prompt; default: the task's own.
        controls: Number of sets of random heads to be run beside the circuit.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: For a task without corrupted prompts or of fewer than two prompts, one on which both runs are
            alike, an option out of range, or hooks on the model.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> dataset = IOIDataset(N=20, tokenizer=model.tokenizer, prepend_bos=True)
        >>> task = Task.from_ioi(dataset, "ABB->ABA, BAB->BAA")
        >>> circuit = find_circuit(model, task, max_receivers=2, progress=False)
        >>> for sender, receiver, read in zip(circuit.edges[:3, 0], circuit.edges[:3, 1], circuit.inputs):
        ...     print(circuit.nodes[sender], "->", circuit.nodes[receiver], read)
        mlp4 -> final
        3.2 -> final
        mlp0 -> 3.2 v
        >>> alone = circuit.faithfulness
        >>> print(f"{len(circuit.kept)} heads keep {alone.faithfulness[-1]:.0%} of {alone.gap:+.1f} logits")
        5 heads keep ...
    """
    measured = _checked(task, min_effect, level, max_receivers, metric)
    searched, said = _halves(task)
    paths = _Paths(model, task, min_effect, level, mlps, measured, progress)
    n_steps = _SEARCHING + max_receivers + 1
    with progress_bar(n_steps, "circuit", shown=progress) as bar:
        bar.step = _SEARCHING
        whole = paths.into_final()
        judging = NodeRuns(model, task[searched], metric=measured.of_rows(searched))
        found = faithful_parts(judging, min_effect, progress=progress)
        paths.narrow(found.parts, task[searched], measured.of_rows(searched))
        bar.update(bar.step)
        strength = dict(zip(found.parts, found.effects.abs().tolist(), strict=True))
        left_out = paths.follow(strength, max_receivers, bar)
        bar.step = 1
        heads = paths.heads(found.parts)
        saying = judging if said is searched else NodeRuns(model, task[said], metric=measured.of_rows(said))
        sizes = sorted({max(1, round(len(heads) * at / _SIZES)) for at in range(1, _SIZES + 1)}) if heads else [0]
        options = {"min_effect": min_effect, "level": level, "max_receivers": max_receivers, "mlps": mlps}
        n_positions = int(task.attention_mask.sum())
        info = RunInfo(model.cfg.model_name, model.weight_processing, task.description, len(task), n_positions, options)
        has_answers = isinstance(measured, AnswerMetric)
        shares = [size / max(1, len(saying.parts)) for size in sizes]
        kept = kept_by(
            saying,
            heads,
            sizes,
            shares,
            info=info,
            has_answers=has_answers,
            clusters=task[said].clusters,
            controls=controls,
        )
        inside = torch.tensor([part in heads for part in judging.parts], dtype=torch.bool, device="cpu")
        alone = dict(zip(sorted(heads, key=judging.parts.index), effects_alone(judging, inside).tolist(), strict=True))
        bar.update(n_steps - bar.done)
    # Nodes in order of layers, paths in order of strength.
    names = {end for path in paths.found for end in (path.sender, path.receiver)} | {FINAL, *heads}
    nodes = sorted(names, key=lambda name: _place(name, model.cfg.n_layers))
    ordered = sorted(paths.found, key=lambda path: -abs(path.effect))
    pairs = [(nodes.index(path.sender), nodes.index(path.receiver)) for path in ordered]
    return Circuit(
        info=info,
        edges=torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        effects=torch.tensor([path.effect for path in ordered]),
        errors=torch.tensor([path.error for path in ordered]),
        layers=torch.tensor([_place(name, model.cfg.n_layers)[0] for name in nodes]),
        nodes=tuple(nodes),
        groups=tuple(_group(name, head_types) for name in nodes),
        inputs=tuple(path.read for path in ordered),
        threshold=paths.threshold,
        clean=float(whole.clean),
        corrupted=float(whole.corrupted),
        left_out=left_out,
        node_effects=torch.tensor([alone.get(name, torch.nan) for name in nodes]),
        kept=heads,
        kept_sizes=kept.sizes,
        kept_per_prompt=kept.per_prompt,
        kept_random=kept.random,
        kept_whole=kept.whole,
        kept_nothing=kept.nothing,
        kept_empty=kept.empty,
        kept_clusters=kept.clusters,
        n_parts=kept.n_parts,
        held_out=said is not searched and set(heads) == set(found.parts),
        has_answers=has_answers,
    )


def _checked(task: Task, min_effect: float, level: float, max_receivers: int, metric: Metric | None) -> PromptMetric:
    """Refuse options out of range, and return the metric."""
    for name, share in (("min_effect", min_effect), ("level", level)):
        if not 0 < share < 1:
            raise InvalidInputError(f"{name} is a share, between 0 and 1; got {share}.")
    if max_receivers < 0:
        raise InvalidInputError(f"max_receivers must be at least 0; got {max_receivers}.")
    measured = task.measure if metric is None else metric
    if not isinstance(measured, PromptMetric):
        raise InvalidInputError(
            "a circuit is found from errors over prompts, and the metric has one number for all of them. Give one with "
            "a number for each prompt: an AnswerMetric or a NumberMetric.",
            code="HS-METRIC-04",
        )
    if len(task) < 2:
        raise InvalidInputError("a circuit is found from two prompts or more, so that errors are known.")
    return measured


def _halves(task: Task) -> tuple[Int[Tensor, " searched"], Int[Tensor, " said"]]:
    """The prompts that judge a search, and those that say how faithful it is: as many of each label, if enough.

    The prompts of a cluster are on one side: those of a template are each other's corrupted prompts.
    """
    clusters: dict[int, list[int]] = {}
    for row, cluster in enumerate(range(len(task)) if task.clusters is None else task.clusters.tolist()):
        clusters.setdefault(cluster, []).append(row)
    by_label = sorted(clusters.values(), key=lambda rows: task.labels[rows[0]])
    if len(task) < _ENOUGH or len(by_label) < _CLUSTERS:
        every = torch.arange(len(task), device="cpu")
        return every, every
    searched, said = (torch.tensor(sorted(chain(*by_label[at::2])), device="cpu") for at in (0, 1))
    return searched, said


class _Path(NamedTuple):
    sender: str
    receiver: str
    read: str
    effect: float
    error: float


class _Paths:
    """Paths, and the search for more of them from the final stream back.

    Attributes:
        found: The paths.
        threshold: The least effect of a path, in the metric's unit.
    """

    threshold: float

    def __init__(
        self,
        model: HookedTransformer,
        task: Task,
        min_effect: float,
        level: float,
        mlps: bool,
        metric: PromptMetric,
        progress: bool,
    ) -> None:
        self.model, self.min_effect, self.level, self.mlps, self.progress = model, min_effect, level, mlps, progress
        self._clusters = task.clusters
        self.found: list[_Path] = []
        self._senders: str | list[str] = "components" if mlps else "heads"
        self._estimated: dict[str, dict[str, float]] | None = None  # by receiver, of each sender
        self._sweep = partial(
            path_patch_sweep, model, task, direction="noising", scale="metric", metric=metric, progress=progress
        )

    def into_final(self) -> PathPatchingResult:
        """Find the paths into the final stream, which cost no run."""
        whole = self._sweep(receivers=FINAL, senders=self._senders)
        clean, corrupted = float(whole.clean), float(whole.corrupted)
        if abs(clean - corrupted) < 1e-6:
            raise InvalidInputError(
                f"the clean and the corrupted metric are both {clean:.4f}: no path can carry what tells them "
                "apart. Does the model do the task, and are the corrupted prompts others?"
            )
        self.threshold = self.min_effect * abs(clean - corrupted)
        self.found += self._clear(whole, FINAL, "", whole.values.numel())
        return whole

    def narrow(self, heads: Sequence[str], task: Task, metric: PromptMetric) -> None:
        """Of many components, look only at some heads and MLPs, and there at the paths that gradients see."""
        parts = all_components(self.model.cfg)
        if len(parts) <= FEW:
            return
        self._senders = [*heads, *(part.label for part in parts if self.mlps and part.head is None)]
        self.found = [path for path in self.found if path.sender in self._senders]
        edges = edge_attribution(self.model, task, "eap", metric=metric, progress=self.progress)
        among = {sender: at for at, sender in enumerate(edges.sender_labels) if sender in self._senders}
        self._estimated = {
            receiver: {sender: abs(float(edges.values[u, v])) for sender, u in among.items() if edges.allowed[u, v]}
            for v, receiver in enumerate(edges.receiver_labels)
        }

    def follow(self, strength: Mapping[str, float], max_receivers: int, bar: Bar) -> tuple[str, ...]:
        """Find the paths into heads and MLPs, first into those of known strength; return those left out."""
        waiting = {path.sender: abs(path.effect) for path in self.found} | dict(strength)
        done: set[str] = set()
        while waiting and len(done) < max_receivers:
            node = max(waiting, key=lambda each: (each in strength, waiting[each]))
            del waiting[node]
            done.add(node)
            reads = _inputs(node)
            bar.step = 1 / max(1, len(reads))
            for read in reads:
                more = self._into(node, read)
                self.found += more
                for path in more:
                    if path.sender not in done:
                        waiting[path.sender] = max(abs(path.effect), waiting.get(path.sender, 0.0))
                bar.update(bar.step)
            if not reads:
                bar.update()
        return tuple(sorted(waiting))

    def heads(self, first: Sequence[str]) -> tuple[str, ...]:
        """Return some heads, then all others that send along a path, the strongest first."""
        ends = {path.sender: abs(path.effect) for path in sorted(self.found, key=lambda path: abs(path.effect))}
        others = [name for name in reversed(ends) if _is_head(name) and name not in first]
        return (*first, *others)

    def _into(self, node: str, read: str) -> list[_Path]:
        """The paths into an input of a node."""
        receiver, senders, among = f"{node}.{read}" if read else node, self._senders, None
        if self._estimated is not None:
            known = self._estimated[receiver]
            senders, among = [sender for sender, size in known.items() if size >= self.min_effect / 2], len(known)
            if not senders:
                return []
        swept = self._sweep(receivers=receiver, senders=senders)
        return self._clear(swept, node, read, among or swept.values.numel())

    def _clear(self, swept: PathPatchingResult, node: str, read: str, among: int) -> list[_Path]:
        """The paths into an input of a node that change enough, and significantly so as one of `among`."""
        assert swept.per_prompt is not None
        lost = estimates_over_prompts(-swept.per_prompt.flatten(0, -2).T, self._clusters)
        kept = (lost.values.abs() >= self.threshold) & lost.clear(among=among, level=self.level)
        return [
            _Path(swept.sender_labels[at], node, read, lost[at].value, lost[at].error)
            for at in kept.nonzero()[:, 0].tolist()
        ]


def _inputs(node: str) -> Sequence[str]:
    """The inputs of a node to search; before heads of the first layer there is only the embedding."""
    component = component_of(node)
    if component is not None and component.is_mixer:
        return ()  # it reads all positions at once, which no path does
    if component is None or component.head is None:
        return ("",)
    return INPUTS if component.layer else ()


def _is_head(name: str) -> bool:
    component = component_of(name)
    return component is not None and component.head is not None


def _place(name: str, n_layers: int) -> tuple[int, bool, bool, int]:
    """Layer, what writes first, number."""
    component = component_of(name)
    return (n_layers, False, False, 0) if component is None else component.place


def _group(name: str, head_types: KindsOfHeads | None) -> str:
    """The kind of a node."""
    component = component_of(name)
    if component is None:
        return FINAL
    if component.head is None:
        return "mixer" if component.is_mixer else "MLP"
    kind = None if head_types is None else head_types.main_kind(component.layer, component.head)
    return kind or "head"
