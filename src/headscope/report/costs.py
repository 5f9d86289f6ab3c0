"""The work of each analysis, in stages named as the bars it opens: the only place that knows what an analysis costs.

Amounts are those of `analysis.core.costs`; a plan multiplies them by rates measured on the machine at hand.
"""

from collections.abc import Sequence
from typing import Any

import torch

from headscope.analysis.circuits.graph import Graph
from headscope.analysis.circuits.search import FEW
from headscope.analysis.core.components import all_components
from headscope.analysis.core.costs import Work, head_operations, layer_operations, row_operations
from headscope.analysis.heads.inhibition import CANDIDATES, MOST, SCREENED
from headscope.analysis.patching.sites import AXES, as_sites, patch_axes
from headscope.analysis.prompts.positions import Positions
from headscope.analysis.prompts.task import Task
from headscope.analysis.prompts.two_runs import Scorer
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget

__all__ = [
    "Stages",
    "ablation_work",
    "attribution_work",
    "circuit_work",
    "edge_patching_work",
    "edges_work",
    "entropy_work",
    "explore_work",
    "loss_work",
    "patching_work",
    "ranks_work",
    "scores_work",
    "suppression_scores_work",
    "suppression_work",
    "training_work",
    "types_work",
]

# Work by the name of the bar that moves with it.
Stages = dict[str, Work]

_REPEATED = 32  # rows of random tokens in the analyses that make them
_SAID = 50  # random tokens said twice
_SEARCHED = 100  # passes in the search for a circuit


def _forward(model: HookedTransformer, n_tokens: int | float, layers: int | float | None = None) -> Work:
    """The work of running tokens through the layers."""
    n_layers = model.cfg.n_layers if layers is None else layers
    calls = max(1.0, n_tokens / Budget.of(model.W_E.device).batch_tokens)
    return Work(runs=calls, layers=n_tokens * n_layers * layer_operations(model))


def _batches(model: HookedTransformer, n_tokens: int) -> int:
    return -(-n_tokens // Budget.of(model.W_E.device).batch_tokens)


def _unembedded_heads(model: HookedTransformer, n_heads: int) -> Work:
    """The work of making `W_O W_U` for some heads, once for a batch."""
    return Work(products=n_heads * model.cfg.d_model * head_operations(model))


def entropy_work(model: HookedTransformer, n_tokens: int, *, baseline: str = "zero") -> Stages:
    """Return the work of `measure_entropy`."""
    cfg = model.cfg
    n_components = cfg.n_layers * (cfg.n_heads + (not cfg.attn_only))
    states = Work(products=n_tokens * (cfg.n_layers + 1) * row_operations(model))
    reduced = Work(heads=n_tokens * n_components * head_operations(model))
    weights = _batches(model, n_tokens) * _unembedded_heads(model, cfg.n_layers * cfg.n_heads)
    stages = {"entropy": _forward(model, n_tokens) + states + reduced + weights}
    return stages if baseline == "zero" else {"means": _forward(model, n_tokens), **stages}


def loss_work(model: HookedTransformer, n_tokens: int) -> Stages:
    """Return the work of `predict_next_tokens`."""
    return {"loss": _forward(model, n_tokens) + Work(rows=n_tokens * row_operations(model))}


def ablation_work(
    model: HookedTransformer,
    n_tokens: int,
    *,
    layers: Sequence[int] | None = None,
    values: Sequence[str] = ("zero", "mean"),
    effects: Sequence[str] = ("patched", "direct"),
) -> Stages:
    """Return the work of `ablate_heads`; `layers` has the first layer of each set of components, by default each head.

    Single heads are assumed in direct effects, which are made at the rank of a head.
    """
    cfg = model.cfg
    starts = (
        [layer for layer in cfg.layers_with("attn") for _ in range(cfg.n_heads)] if layers is None else list(layers)
    )
    work = Work()
    if set(effects) != {"direct"}:
        left = sum(cfg.n_layers - start for start in starts)
        runs = max(1.0, n_tokens / Budget.of(model.W_E.device).batch_tokens) * len(starts)
        resumed = Work(runs=runs, layers=n_tokens * left * layer_operations(model))
        work += len(values) * (resumed + Work(rows=n_tokens * len(starts) * row_operations(model)))
    if "direct" in effects:
        reduced = Work(heads=len(values) * n_tokens * len(starts) * head_operations(model))
        work += reduced + _batches(model, n_tokens) * _unembedded_heads(model, len(starts))
    clean = _forward(model, n_tokens)
    return {"means": clean, "ablation": work} if "mean" in values else {"ablation": clean + work}


def scores_work(model: HookedTransformer, n_text: int = 0) -> Stages:
    """Return the work of `head_scores` on random tokens, and on a text of some tokens."""
    on_text = _forward(model, n_text) if n_text else Work()
    return {"head scores": _forward(model, _REPEATED * _repeated_tokens(model)) + on_text}


def suppression_scores_work(model: HookedTransformer, n_prompts: int) -> Stages:
    """Return the work of `suppression_scores`."""
    stages = {"anti-induction": _forward(model, _REPEATED * _repeated_tokens(model))}
    return stages | ({"IOI": _forward(model, n_prompts * 18)} if n_prompts else {})


def suppression_work(
    model: HookedTransformer, n_tokens: int, n_heads: int, *, effect: str = "direct", variant: str = "paper"
) -> Stages:
    """Return the work of `copy_suppression_preserving_ablation`: two changed predictions for each head and token."""
    clean = _forward(model, n_tokens)
    changed = 2 * n_heads * Work(rows=n_tokens * row_operations(model))
    if effect == "patched":
        changed += 2 * n_heads * _forward(model, n_tokens, model.cfg.n_layers / 2)
    if variant == "own_logit":
        changed += Work(products=2.0 * model.cfg.d_model**2 * model.cfg.d_vocab)
    return {"means": clean, "suppression": clean + changed}


def ranks_work(model: HookedTransformer, n_heads: int, n_tokens: int | None = None) -> Stages:
    """Return the work of `weights_circuit_ranks`: two rows of the vocabulary for each head and token."""
    n_tokens = model.cfg.d_vocab if n_tokens is None else n_tokens
    embedded = Work(layers=model.cfg.d_vocab * layer_operations(model))
    made = n_heads * 3 * Work(products=model.cfg.d_vocab * 2.0 * model.cfg.d_model * model.cfg.d_head)
    # Two products a head, without exponentials: about half of what a head's output takes elsewhere.
    return {"circuit ranks": embedded + made + n_heads * Work(heads=n_tokens * head_operations(model))}


def training_work(model: HookedTransformer, n_tokens: int, n_steps: int) -> Stages:
    """Return the work of training on some tokens in each step; a backward pass is two forward passes."""
    step = _forward(model, n_tokens) + Work(layers=n_tokens * row_operations(model))
    return {"train": 3 * n_steps * step}


def types_work(model: HookedTransformer, task: Task | None = None, n_text: int = 0) -> Stages:
    """Return the work of `detect_heads` with a text of some tokens; with a task, as if some heads moved names."""
    repeated = _REPEATED * _repeated_tokens(model)
    stages = {"attention": 2 * _forward(model, repeated), "repeats": _forward(model, repeated)}
    if n_text:
        stages["text"] = 2 * _forward(model, n_text)
    if task is None:
        return stages
    prompts = _forward(model, task.clean_tokens.numel())
    if task.corrupted_tokens is None:
        return {**stages, "attribution": prompts}
    # Every head on a few prompts, then the likeliest on more; what runs anew is one position, in half of the layers.
    n_few = min(MOST, len(task))
    runs = 2 * SCREENED * model.cfg.n_layers * model.cfg.n_heads / 2 + CANDIDATES * n_few
    few = (n_few / len(task)) * prompts
    swept = 3 * few + _forward(model, runs, model.cfg.n_layers / 2)
    return {**stages, "attribution": prompts, "path patching": swept, "patched heads": 5 * few}


def explore_work(model: HookedTransformer, n_tokens: int, n_shown: int, n_entropy: int, n_ablated: int) -> Stages:
    """Return the work of `explore`: tokens in all, of the sequences shown, and of both samples.

    Patterns and what is summed of them take about as long as the pass itself.
    """
    stages = {"activity": 2 * _forward(model, n_tokens), "sequences": 2 * _forward(model, n_shown)}
    stages |= entropy_work(model, n_entropy) if n_entropy else {}
    if n_ablated:
        stages |= ablation_work(model, n_ablated, values=("mean",))
    return stages | types_work(model, n_text=min(n_tokens, n_shown + n_entropy + n_ablated))


def attribution_work(model: HookedTransformer, task: Task) -> Stages:
    """Return the work of `attribute`, whose readings of the run are cheap beside it."""
    return {"attribution": _forward(model, task.clean_tokens.numel())}


def patching_work(
    model: HookedTransformer,
    task: Task,
    sites: Sequence[str],
    *,
    by_position: bool | None = None,
    positions: Any = None,
) -> Stages:
    """Return the work of `activation_patch`.

    The metric is taken to be a difference of two logits, which reads no whole prediction.
    """
    # A patch changes nothing before the first token in which both prompts differ, and then is not run.
    at = Positions.of(task, positions).at
    first = torch.zeros_like(at[0]) if task.corrupted_tokens is None else Scorer(model, task).changes_at.to(at.device)
    length = (task.positions - at + 1).clamp(min=0).double()
    anew = [float(each) for each in torch.where(at >= first, length, 0.0).mean(1)]
    together = float((task.positions - at.clamp(min=first).amin(0) + 1).clamp(min=0).double().mean())
    cells: list[tuple[int, float]] = []  # the layer of each, and on how many positions a prompt is run anew
    for site, hook_names in as_sites(model, sites).items():
        axes = patch_axes(site, "head" not in AXES[site] if by_position is None else by_position)
        of_layer = (anew if "pos" in axes else [together]) * (model.cfg.n_heads if "head" in axes else 1)
        cells += [(layer, n_positions) for layer in hook_names for n_positions in of_layer]
    layers = sum((model.cfg.n_layers - layer) * n_positions for layer, n_positions in cells)
    n_prompts = len(task)
    runs = len(cells) / max(1.0, Budget.of(model.W_E.device).batch_tokens / max(1, task.clean_tokens.numel()))
    run = Work(runs=runs, layers=n_prompts * layers * layer_operations(model))
    return {f"patching {', '.join(sites)}": 2 * _forward(model, task.clean_tokens.numel()) + run}


def circuit_work(model: HookedTransformer, task: Task, max_receivers: int) -> Stages:
    """Return the work of `find_circuit`: the search for its heads, and the paths into each receiver.

    Growing, thinning and running circuits takes some hundred passes of half of the prompts. In small models, every
    earlier sender is swept into three inputs of a receiver; in others gradients leave few, and both runs cost the most.
    """
    n_tokens, n_parts = task.clean_tokens.numel(), len(all_components(model.cfg))
    search = _SEARCHED * _forward(model, n_tokens / 2)
    receivers = min(max_receivers, n_parts)
    if n_parts <= FEW:
        return {"circuit": search + 3 * receivers * _swept(model, task, n_parts / 2, receivers=1)}
    return {"circuit": search + edges_work(model, task, "eap", 1)["edges"] + receivers * _forward(model, n_tokens)}


def edges_work(model: HookedTransformer, task: Task, method: str, steps: int) -> Stages:
    """Return the work of `edge_attribution`: passes forward and backward, and two more products for each edge."""
    graph, n_tokens = Graph.of(model.cfg), task.clean_tokens.numel()
    passes = {"eap": 1.0, "clean_corrupted": 2.0, "eap_ig_activations": steps * (model.cfg.n_layers + 0.5)}
    scored = Work(products=2.0 * graph.n_edges * n_tokens * model.cfg.d_model)
    backward = 3 * _forward(model, n_tokens) + scored
    return {"edges": 2 * _forward(model, n_tokens) + passes.get(method, float(steps)) * backward}


def edge_patching_work(model: HookedTransformer, task: Task, n_edges: int) -> Stages:
    """Return the work of `edge_patch`: each edge a run of half the layers, each receiver both runs."""
    n_tokens = task.clean_tokens.numel()
    return {"edge patching": n_edges * (_forward(model, n_tokens) + _forward(model, n_tokens, model.cfg.n_layers / 2))}


def _swept(model: HookedTransformer, task: Task, senders: int | float, *, receivers: int) -> Work:
    """The work of path patching: for each sender, half of the layers of one position of every prompt run anew."""
    return receivers * senders * _forward(model, len(task), model.cfg.n_layers / 2)


def _repeated_tokens(model: HookedTransformer) -> int:
    return 2 * min(_SAID, (model.cfg.n_ctx - 1) // 2) + 1
