"""The methods on the scoreboard: each gives components, or edges, a score, and knows nothing of the answers.

A score is the size of an effect, the mean over prompts in its own method's unit; only the order counts. What is below a
millionth of a method's largest score counts as zero, since it is rounding.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from headscope.analysis.circuits.edges import EdgeMethod, edge_attribution
from headscope.analysis.circuits.graph import Graph
from headscope.analysis.core.components import all_components
from headscope.analysis.patching.ablation import ablate_components
from headscope.analysis.patching.activation import activation_patch
from headscope.analysis.patching.gradient import attribution_patch
from headscope.analysis.patching.path import path_patch_sweep
from headscope.analysis.patching.path_ends import FINAL
from headscope.analysis.prompts.attribution import attribute
from headscope.analysis.prompts.task import Task
from headscope.model.transformer import HookedTransformer

__all__ = ["COMPONENTS", "EDGES", "Scores"]

Scores = Mapping[str, float]
Method = Callable[[HookedTransformer, Task], Scores]
ROUNDING = 1e-6


def _scored(labels: tuple[str, ...], effects: Tensor) -> Scores:
    sizes = effects.detach().cpu().double().flatten().nan_to_num().abs()
    sizes[sizes < ROUNDING * sizes.max()] = 0
    return dict(zip(labels, sizes.tolist(), strict=True))


def _direct(model: HookedTransformer, task: Task) -> Scores:
    found = attribute(model, task, sources=False, neurons=False, progress=False)
    of = dict(zip(found.component_labels, found.components.mean(0).unbind(), strict=True))
    labels = _labels(model)
    return _scored(labels, torch.stack([of[label] for label in labels]))


def _of_sites(measure: Callable[..., Mapping[str, Tensor]], model: HookedTransformer, task: Task) -> Scores:
    """Heads by `z`, MLPs and mixers by what they add, at all positions together."""
    cfg = model.cfg
    sites = {"attn": "z", "mlp": "mlp_out", "mixer": "mixer_out"}
    found = measure(model, task, [site for part, site in sites.items() if cfg.layers_with(part)])
    parts = all_components(cfg)
    effects = [
        found[sites[part.part]][part.layer, part.head] if part.head is not None else found[sites[part.part]][part.layer]
        for part in parts
    ]
    return _scored(_labels(model), torch.stack(effects))


def _patched(model: HookedTransformer, task: Task, sites: list[str]) -> Mapping[str, Tensor]:
    found = activation_patch(
        model, task, sites, direction="noising", scale="metric", by_position=False, progress=False
    )  # fmt: skip
    return {site: found[site] for site in sites}


def _estimated(model: HookedTransformer, task: Task, sites: list[str], steps: int) -> Mapping[str, Tensor]:
    found = attribution_patch(
        model, task, sites, direction="noising", scale="metric", steps=steps, progress=False
    )  # fmt: skip
    return {site: found.over_positions(site) for site in sites}


def _ablated(model: HookedTransformer, task: Task, value: str) -> Scores:
    found = ablate_components(model, task, values=[value], progress=False)  # type: ignore[list-item]
    return _scored(found.component_labels, found.mean()[0])


def _into_final(model: HookedTransformer, task: Task) -> Scores:
    swept = path_patch_sweep(
        model, task, receivers=FINAL, senders=list(_labels(model)), direction="noising", scale="metric", progress=False
    )
    return _scored(swept.sender_labels, swept.values)


def _edges_patched(model: HookedTransformer, task: Task) -> Scores:
    """Each edge by itself: what the receiver reads of the sender, that of the other run, all between being frozen."""
    graph = Graph.of(model.cfg)
    labels, effects = [], []
    for at, receiver in enumerate(graph.receiver_labels):
        component = graph.receivers[at].component
        if component is not None and component.is_mixer:
            continue  # it reads all positions at once, which no path does
        senders = [graph.sender_labels[sender] for sender in graph.allowed[:, at].nonzero()[:, 0].tolist()]
        swept = path_patch_sweep(
            model, task, receivers=receiver, senders=senders, direction="noising", scale="metric", progress=False
        )
        labels += [f"{sender} -> {receiver}" for sender in senders]
        effects.append(swept.values)
    return _scored(tuple(labels), torch.cat(effects))


def _edges_estimated(model: HookedTransformer, task: Task, method: EdgeMethod) -> Scores:
    found = edge_attribution(model, task, method, scale="metric", progress=False)
    return _scored(found.edge_labels, found.values[found.allowed])


def _by_edges(of_edges: Method, model: HookedTransformer, task: Task) -> Scores:
    """A component by the strongest of the edges out of it."""
    scores = dict.fromkeys(_labels(model), 0.0)
    for edge, score in of_edges(model, task).items():
        sender = edge.split(" -> ")[0]
        if sender in scores:
            scores[sender] = max(scores[sender], score)
    return scores


def _labels(model: HookedTransformer) -> tuple[str, ...]:
    return tuple(part.label for part in all_components(model.cfg))


_GRADIENTS: Mapping[str, Method] = {
    "EAP": partial(_edges_estimated, method="eap"),
    "EAP-IG": partial(_edges_estimated, method="eap_ig"),
    "EAP-IG, activations": partial(_edges_estimated, method="eap_ig_activations"),
}
COMPONENTS: Mapping[str, Method] = {
    "direct attribution": _direct,
    "activation patching": partial(_of_sites, _patched),
    "attribution patching": partial(_of_sites, partial(_estimated, steps=1)),
    "attribution patching, 5 steps": partial(_of_sites, partial(_estimated, steps=5)),
    **{name: partial(_by_edges, method) for name, method in _GRADIENTS.items()},
    "path patching into final": _into_final,
    "zero ablation": partial(_ablated, value="zero"),
    "mean ablation": partial(_ablated, value="mean"),
}
EDGES: Mapping[str, Method] = {"path patching": _edges_patched, **_GRADIENTS}
