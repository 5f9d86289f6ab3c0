"""`find_circuit`: the heads and MLPs a task goes through, and the paths between them, by path patching.

From the final residual stream back: what sends to it, then what sends to the queries, keys and values of those heads
and into those MLPs, and so on (Wang et al. 2022, arXiv 2211.00593, section 3). A path is kept if corrupting it alone
changes the logit difference by a stated share, and significantly so (two-sided Student t over prompts, with
Bonferroni's correction for all that sends to one input).
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch

from headscope.analysis.circuits.circuit_result import FINAL, Circuit
from headscope.analysis.core.components import component_of
from headscope.analysis.core.progress import progress_bar
from headscope.analysis.core.result import RunInfo
from headscope.analysis.core.stats import LEVEL, estimates
from headscope.analysis.patching.path import path_patch_sweep
from headscope.analysis.patching.path_ends import INPUTS
from headscope.analysis.patching.path_result import PathPatchingResult
from headscope.analysis.prompts.metrics import Metric, PromptMetric
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer

if TYPE_CHECKING:
    pass

__all__ = ["find_circuit"]

_SHOWN = 12


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
    progress: bool = True,
) -> Circuit:
    """Find the paths that carry a task, from the final residual stream back.

    Cost: for each receiver, and each of a head's three inputs, one path-patching sweep over all that comes before: as
    many runs of the layers behind the receiver as there are senders. The sweep into the final stream costs no run.

    Args:
        model: The model, without hooks.
        task: Prompts with corrupted ones.
        head_types: What `detect_heads` found, to group the heads by.
        min_effect: The least effect of a path, as a share of what corrupting the prompts changes.
        level: The probability that chance alone gives any path into a receiver's input that is kept.
        max_receivers: Into how many heads and MLPs, the ones with the strongest paths first, further paths are sought.
        mlps: Let MLPs be senders and receivers. Without, paths through MLPs are left out (they stay as they are).
        metric: A `PromptMetric`, which has a number for each prompt; default: the task's own.
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
    """
    for name, share in (("min_effect", min_effect), ("level", level)):
        if not 0 < share < 1:
            raise InvalidInputError(f"{name} is a share, between 0 and 1; got {share}.")
    if max_receivers < 0:
        raise InvalidInputError(f"max_receivers must be at least 0; got {max_receivers}.")
    if not isinstance(task.measure if metric is None else metric, PromptMetric):
        raise InvalidInputError(
            "a circuit is found from errors over prompts, and the metric has one number for all of them. Give one with "
            "a number for each prompt: an AnswerMetric or a NumberMetric."
        )
    if len(task) < 2:
        raise InvalidInputError("a circuit is found from two prompts or more, so that errors are known.")
    sweep = partial(
        path_patch_sweep,
        model,
        task,
        senders="components" if mlps else "heads",
        direction="noising",
        scale="metric",
        metric=metric,
        progress=progress,
    )
    whole = sweep(receivers=FINAL)
    clean, corrupted = float(whole.clean), float(whole.corrupted)
    if abs(clean - corrupted) < 1e-6:
        raise InvalidInputError(
            f"the clean and the corrupted metric are both {clean:.4f}: no path can carry what tells them "
            "apart. Does the model do the task, and are the corrupted prompts others?"
        )
    threshold = min_effect * abs(clean - corrupted)
    paths = _clear_paths(whole, FINAL, "", threshold, level)
    waiting = {path.sender: abs(path.effect) for path in paths}
    done: set[str] = set()
    with progress_bar(max_receivers, "circuit", shown=progress) as bar:
        while waiting and len(done) < max_receivers:
            node = max(waiting, key=lambda each: waiting[each])
            del waiting[node]
            done.add(node)
            reads = _inputs(node)
            bar.step = 1 / max(1, len(reads))
            for read in reads:
                swept = sweep(receivers=f"{node}.{read}" if read else node)
                found = _clear_paths(swept, node, read, threshold, level)
                paths += found
                for path in found:
                    if path.sender not in done:
                        waiting[path.sender] = max(abs(path.effect), waiting.get(path.sender, 0.0))
                bar.update(bar.step)
            if not reads:
                bar.update()
    options = {"min_effect": min_effect, "level": level, "max_receivers": max_receivers, "mlps": mlps}
    n_positions = int(task.attention_mask.sum())
    info = RunInfo(model.cfg.model_name, model.weight_processing, task.description, len(task), n_positions, options)
    # Nodes in order of layers, paths in order of strength.
    names = {end for path in paths for end in (path.sender, path.receiver)} | {FINAL}
    nodes = sorted(names, key=lambda name: _place(name, model.cfg.n_layers))
    paths.sort(key=lambda path: -abs(path.effect))
    pairs = [(nodes.index(path.sender), nodes.index(path.receiver)) for path in paths]
    return Circuit(
        info=info,
        edges=torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        effects=torch.tensor([path.effect for path in paths]),
        errors=torch.tensor([path.error for path in paths]),
        layers=torch.tensor([_place(name, model.cfg.n_layers)[0] for name in nodes]),
        nodes=tuple(nodes),
        groups=tuple(_group(name, head_types) for name in nodes),
        inputs=tuple(path.read for path in paths),
        threshold=threshold,
        clean=clean,
        corrupted=corrupted,
        left_out=tuple(sorted(waiting)),
    )


class _Path(NamedTuple):
    sender: str
    receiver: str
    read: str
    effect: float
    error: float


def _inputs(node: str) -> Sequence[str]:
    """The inputs of a node to search; before heads of the first layer there is only the embedding."""
    component = component_of(node)
    if component is not None and component.is_mixer:
        return ()  # it reads all positions at once, which no path does
    if component is None or component.head is None:
        return ("",)
    return INPUTS if component.layer else ()


def _clear_paths(swept: PathPatchingResult, node: str, read: str, threshold: float, level: float) -> list[_Path]:
    """The paths into an input of a node that change enough, and significantly so."""
    assert swept.per_prompt is not None
    lost = estimates(-swept.per_prompt.flatten(0, -2)[..., None])
    kept = (lost.values.abs() >= threshold) & lost.clear(level=level)
    return [
        _Path(swept.sender_labels[at], node, read, lost[at].value, lost[at].error)
        for at in kept.nonzero()[:, 0].tolist()
    ]


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
