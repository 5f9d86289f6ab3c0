"""`scoreboard`: every method on models whose answers are known, as a table.

Rules, fixed before any model was looked at:

- a component or an edge is scored by the size of its effect, and a method by how well that tells what is true from what
  is not (AUROC, ties are half; `methods`);
- edges from the embedding are left out, since no truth names them; of all others, those that the truth does not name
  are false;
- `detect_heads` and `find_circuit` run with their defaults, the first on the model's own prompts where it has some, and
  else on random tokens said twice, without special tokens. A label of a kind that the truth speaks of is right or
  wrong on heads whose kind is known; any label on an idle head is wrong; other labels count for nothing;
- re-initialized means that each weight tensor has its entries in another order (seed 1): no label is right there.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headscope.analysis.circuits.circuit import find_circuit
from headscope.analysis.circuits.graph import Graph
from headscope.analysis.core.progress import progress_bar
from headscope.analysis.heads.types import detect_heads
from headscope.analysis.heads.types_result import HeadTypes
from headscope.analysis.prompts.task import Task
from headscope.analysis.scoreboard.known_tasks import known_task, share_right, thirds
from headscope.analysis.scoreboard.methods import COMPONENTS, EDGES
from headscope.analysis.scoreboard.scoring import Found, auroc, found
from headscope.analysis.scoreboard.truth import EMBED, Truth
from headscope.data.ioi import IOIDataset
from headscope.errors import HeadscopeError, InvalidInputError
from headscope.model.checkpoints.names import DEMO
from headscope.model.transformer import HookedTransformer

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["KnownModel", "ModelScore", "Scoreboard", "demo_model", "known_models", "scoreboard"]

_PATCHING = "activation patching"


@dataclass(frozen=True)
class KnownModel:
    """A model whose answers are known.

    Attributes:
        name: What the table calls it.
        load: Loads it.
        truth: What is known: a `truth.json`, or a `Truth`.
        task: Its task; default: made of what is known.
    """

    name: str
    load: Callable[[], HookedTransformer]
    truth: Path | Truth
    task: Callable[[HookedTransformer], Task] | None = None


@dataclass
class ModelScore:
    """The scores of one model.

    Attributes:
        name: The model.
        right: How much of its task it does; NaN where none is known.
        n_true: Components known to do it.
        n_idle: Those known to do nothing.
        labels: The labels of `detect_heads` beside the known kinds.
        idle_labelled: Idle heads that got one.
        labels_reinitialized: Labels in the model with its weights in another order.
        components: AUROC of each method for components.
        unseen: True components of which patching shows no effect.
        edges: AUROC of each method for edges.
        circuit: The paths of `find_circuit` beside the known edges.
        seconds: How long it took.
        notes: What could not be measured, and why.
    """

    name: str
    right: float = float("nan")
    n_true: int = 0
    n_idle: int = 0
    labels: Found = field(default_factory=lambda: Found(0, 0, 0))
    idle_labelled: int = 0
    labels_reinitialized: int = 0
    components: dict[str, float] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    edges: dict[str, float] = field(default_factory=dict)
    circuit: Found | None = None
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


class Scoreboard(tuple[ModelScore, ...]):
    """Scores of models, printed as tables."""

    __slots__ = ()

    def to_frame(self) -> "pd.DataFrame":
        """One row per model; columns of methods are `components: ...` and `edges: ...`."""
        import pandas as pd

        rows = []
        for each in self:
            row: dict[str, object] = {
                "model": each.name,
                "right": each.right,
                "true": each.n_true,
                "idle": each.n_idle,
                "labels_precision": each.labels.precision,
                "labels_recall": each.labels.recall,
                "idle_labelled": each.idle_labelled,
                "labels_reinitialized": each.labels_reinitialized,
            }
            row |= {f"components: {name}": value for name, value in each.components.items()}
            row |= {f"edges: {name}": value for name, value in each.edges.items()}
            if each.circuit is not None:
                row |= {"circuit_precision": each.circuit.precision, "circuit_recall": each.circuit.recall}
            rows.append({**row, "seconds": each.seconds, "notes": "; ".join(each.notes)})
        return pd.DataFrame(rows)

    def markdown(self) -> str:
        """Three tables and notes, in Markdown: models and their labels, components, edges."""
        return "\n".join([*self._models(), "", *self._methods(), "", *self._edges(), *self._remarks()])

    def __str__(self) -> str:
        return self.markdown()

    __repr__ = __str__

    def _models(self) -> list[str]:
        heading = (
            "model", "does its task", "true, idle parts", "labels: precision", "recall", "on idle heads",
            "when re-initialized", "seconds",
        )  # fmt: skip
        return _table(
            heading,
            (
                (
                    each.name,
                    _share(each.right),
                    f"{each.n_true}, {each.n_idle}",
                    _fraction(each.labels.right, each.labels.right + each.labels.wrong),
                    _fraction(each.labels.right, each.labels.right + each.labels.missed),
                    str(each.idle_labelled),
                    str(each.labels_reinitialized),
                    f"{each.seconds:.1f}",
                )
                for each in self
            ),
        )

    def _methods(self) -> list[str]:
        scored = [each for each in self if each.components]
        names = list(dict.fromkeys(name for each in scored for name in each.components))
        return _table(
            ("AUROC of components", *names),
            ((each.name, *(_area(each.components.get(name)) for name in names)) for each in scored),
        )

    def _edges(self) -> list[str]:
        scored = [each for each in self if each.edges]
        names = list(dict.fromkeys(name for each in scored for name in each.edges))
        heading = ("AUROC of edges", *names, "find_circuit: precision", "recall")
        return _table(
            heading,
            (
                (
                    each.name,
                    *(_area(each.edges.get(name)) for name in names),
                    ""
                    if each.circuit is None
                    else _fraction(each.circuit.right, each.circuit.right + each.circuit.wrong),
                    ""
                    if each.circuit is None
                    else _fraction(each.circuit.right, each.circuit.right + each.circuit.missed),
                )
                for each in scored
            ),
        )

    def _remarks(self) -> list[str]:
        remarks = [f"- {each.name}: {note}" for each in self for note in each.notes]
        return ["", *remarks] if remarks else []


def known_models(folder: Path | str) -> list[KnownModel]:
    """Return the models in a folder: its subfolders (or itself) with a `truth.json` beside the weights.

    Raises:
        InvalidInputError: If there is none.
    """
    folder = Path(folder)
    places = [folder, *sorted(each for each in folder.iterdir() if each.is_dir())] if folder.is_dir() else []
    known = [place for place in places if (place / "truth.json").is_file()]
    if not known:
        raise InvalidInputError(f"{folder} holds no model of known answers: no folder in it has a truth.json.")

    def loading(place: Path) -> Callable[[], HookedTransformer]:
        return lambda: HookedTransformer.from_pretrained_no_processing(str(place))

    return [KnownModel(place.name, loading(place), place / "truth.json") for place in known]


def demo_model() -> KnownModel:
    """The demo model with its indirect objects, and the heads that docs/kinds.md checks by other code."""

    def task(model: HookedTransformer) -> Task:
        return Task.from_ioi(IOIDataset(N=32, tokenizer=model.tokenizer, prepend_bos=True), "ABB->ABA, BAB->BAA")

    heads = {"previous_token": frozenset({"0.3"}), "induction": frozenset({"1.0", "1.1", "1.2", "1.3"})}
    return KnownModel(DEMO, lambda: HookedTransformer.from_pretrained(DEMO), Truth(DEMO, kinds=heads), task)


def scoreboard(models: Path | str | Iterable[KnownModel], *, progress: bool = True) -> Scoreboard:
    """Score every method on models whose answers are known.

    Args:
        models: A folder of models with a `truth.json` each, or what `known_models` makes of it, and others.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: If a folder holds no such model.

    Example:
        >>> board = scoreboard([demo_model()], progress=False)
        >>> board[0].name, board[0].labels.precision, board[0].labels.recall, board[0].labels_reinitialized
        ('headscope-demo', 1.0, 1.0, 0)
    """
    listed = known_models(models) if isinstance(models, Path | str) else list(models)
    scores = []
    with progress_bar(len(listed), "scoreboard", shown=progress) as bar:
        for known in listed:
            scores.append(_scored(known))
            bar.update()
    return Scoreboard(scores)


def _scored(known: KnownModel) -> ModelScore:
    score, start = ModelScore(known.name), time.perf_counter()
    try:
        model = known.load()
        truth = known.truth if isinstance(known.truth, Truth) else Truth.read(known.truth, model.cfg)
    except HeadscopeError as error:
        score.notes.append(f"it does not load: {_said(error)}")
        return score
    score.n_true, score.n_idle = len(truth.true), len(truth.idle)
    score.notes += truth.notes
    task = None
    try:
        task = known_task(model, truth) if known.task is None else known.task(model)
    except InvalidInputError as error:
        score.notes.append(_said(error))
    score.right = share_right(model, truth, task)
    if task is not None and truth.true and truth.idle:
        _score_components(score, model, truth, task)
    if task is not None and truth.edges:
        _score_edges(score, model, truth, task)
    _score_labels(score, model, truth)
    score.seconds = time.perf_counter() - start
    return score


def _score_components(score: ModelScore, model: HookedTransformer, truth: Truth, task: Task) -> None:
    for name, method in COMPONENTS.items():
        try:
            scores = method(model, task)
        except HeadscopeError as error:
            score.notes.append(f"{name}: {_said(error)}")
            continue
        score.components[name] = auroc(scores, truth.true, truth.idle)
        if name == _PATCHING:
            score.unseen = tuple(sorted(part for part in truth.true if not scores.get(part)))
            if score.unseen:
                parts = ", ".join(score.unseen)
                score.notes.append(f"patching shows no effect of {parts}")


def _score_edges(score: ModelScore, model: HookedTransformer, truth: Truth, task: Task) -> None:
    graph = Graph.of(model.cfg)
    every = [(u, v) for u, v in graph.allowed.nonzero().tolist() if graph.sender_labels[u] != EMBED]
    ends = [(graph.sender_labels[u], graph.receiver_labels[v]) for u, v in every]
    named = {(sender, receiver): f"{sender} -> {receiver}" for sender, receiver in ends}
    true = {named[end] for end in ends if _is_named(end, truth.edges)}
    false = {named[end] for end in ends if not _is_named(end, truth.edges)}
    for name, method in EDGES.items():
        try:
            score.edges[name] = auroc(method(model, task), true, false)
        except HeadscopeError as error:
            score.notes.append(f"{name} of edges: {_said(error)}")
    try:
        circuit = find_circuit(model, task, progress=False)
    except HeadscopeError as error:
        score.notes.append(f"find_circuit: {_said(error)}")
        return
    paths = {edge for edge in circuit.edge_labels if not edge.startswith(f"{EMBED} ")}
    # A receiver whose input is not known is one end, whichever of its inputs is named.
    score.circuit = found(
        (_as_known(edge, truth.edges) for edge in paths),
        (f"{sender} -> {receiver}" for sender, receiver in truth.edges),
    )


def _is_named(end: tuple[str, str], edges: frozenset[tuple[str, str]]) -> bool:
    sender, receiver = end
    return (sender, receiver) in edges or (sender, _without_input(receiver)) in edges


def _as_known(edge: str, edges: frozenset[tuple[str, str]]) -> str:
    sender, receiver = edge.split(" -> ")
    whole = _without_input(receiver)
    return f"{sender} -> {whole}" if (sender, whole) in edges else edge


def _without_input(receiver: str) -> str:
    return receiver[:-2] if receiver[-2:] in (".q", ".k", ".v") else receiver


# Labels


def _score_labels(score: ModelScore, model: HookedTransformer, truth: Truth) -> None:
    try:
        data = _rows(model, truth)
        special = sorted(truth.special, key=lambda token: token != truth.bos)
        labels = _labels(detect_heads(model, data, special_tokens=special, progress=False))
        _reorder(model)
        again = detect_heads(model, data, special_tokens=special, progress=False)
        score.labels_reinitialized = len(_labels(again))
    except HeadscopeError as error:
        score.notes.append(f"detect_heads: {_said(error)}")
        return
    known = {(kind, head) for kind, heads in truth.kinds.items() for head in heads}
    of_kind = {head for _, head in known}
    judged = {
        (kind, head) for kind, head in labels if head in truth.idle or (kind in {*truth.kinds} and head in of_kind)
    }
    # Of a kind that some head of a layer is: any head there that has the label.
    for kind, layer in truth.some.items():
        if kind not in truth.kinds:
            there = {(each, head) for each, head in labels if each == kind and head.startswith(f"{layer}.")}
            known |= {min(there)} if there else {(kind, f"{layer}.?")}
            judged |= {min(there)} if there else set()
    score.labels = found(judged, known)
    score.idle_labelled = len({head for _, head in labels if head in truth.idle})


def _labels(types: HeadTypes) -> set[tuple[str, str]]:
    return {(kind, each.label) for kind in types.kinds for each in types.heads(kind)}


def _rows(model: HookedTransformer, truth: Truth) -> Tensor | list[Tensor] | None:
    """Rows that heads are labeled on; `None` for random tokens said twice."""
    if truth.examples:
        lengths = sorted({len(each.clean) for each in truth.examples})
        return [torch.tensor([each.clean for each in truth.examples if len(each.clean) == n]) for n in lengths]
    if model.tokenizer is None and "induction" in truth.some:
        return thirds(model, truth.special, truth.bos, 0)[0]
    return None


def _reorder(model: HookedTransformer) -> None:
    """Give each weight tensor its own entries in another order."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.copy_(weight.flatten()[order].view(weight.shape))


# Text


def _said(error: Exception) -> str:
    return " ".join(str(error).split())


def _share(value: float) -> str:
    return "" if value != value else f"{value:.0%}"


def _area(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.2f}"


def _fraction(part: int, whole: int) -> str:
    return f"{part} of {whole}" if whole else ""


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown, its columns aligned."""
    cells = [list(heading), *(list(row) for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(heading))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [lines[0], rule, *lines[1:]]
