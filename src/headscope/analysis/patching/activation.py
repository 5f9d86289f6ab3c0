"""`activation_patch`: which pieces of a run, put into another, bring a task's answer back, or break it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from headscope.analysis.core.batches import BLOCK_TOKENS
from headscope.analysis.core.result import RunInfo, check_option
from headscope.analysis.patching.base_run import can_be_resumed
from headscope.analysis.patching.engine import Patch, measure_patches
from headscope.analysis.patching.result import PatchingResult
from headscope.analysis.prompts.metrics import AnswerMetric, Metric, as_number
from headscope.analysis.prompts.task import Task
from headscope.errors import InvalidInputError, NotFiniteError, unknown_name
from headscope.model.names import get_act_name
from headscope.model.transformer import HookedTransformer

__all__ = ["SITES", "activation_patch"]

_STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
SITES = (*_STREAM, "z", "q", "k", "v", "pattern")
_UNITS = {
    "denoising": "the share of the logit difference brought back",
    "noising": "the share of the logit difference broken (-1: all)",
}


@torch.no_grad()
def activation_patch(
    model: HookedTransformer,
    task: Task,
    sites: str | Sequence[str] = "resid_pre",
    *,
    direction: Literal["denoising", "noising"] = "denoising",
    by_position: bool | None = None,
    positions: Sequence[int | str] | None = None,
    metric: Metric | None = None,
    progress: bool = True,
) -> PatchingResult:
    """Put each piece of one run into the other, one at a time, and measure the answer.

    Prompts are run in parts of bounded size, and only what a patch can change is run (see `patch_runs`). Prompts of
    several lengths go together: a position is the same number in each, or by its name the place of the same word.

    Args:
        model: The model.
        task: Prompts and corrupted prompts, aligned token by token.
        sites: What is patched: `"resid_pre"`, `"resid_mid"`, `"resid_post"`, `"attn_out"`, `"mlp_out"`; and of each
            head its output `"z"`, `"q"`, `"k"`, `"v"` (for each group, where heads share keys and values) and
            `"pattern"`.
        direction: `"denoising"` puts parts of the clean run into the corrupted one; `"noising"` the other way round.
        by_position: Each position by itself, or all that are asked for together; default: by itself for the residual
            stream and what layers add to it, together for what is inside heads. A pattern's position is the query's.
        positions: Which positions: numbers, or names of words in `task.word_idx`; default: all.
        metric: A function of the logits `[prompt, pos, d_vocab]` of all prompts, whose numbers are then given as they
            are; default: the task's logit difference, on a scale where denoising goes from 0 (corrupted) to 1 (clean),
            and noising from 0 (clean) to -1 (corrupted).
        progress: Show a progress bar.

    Returns:
        For each site `[layer, pos]`, `[layer, head]`, `[layer, pos, head]` (a pattern's: `[layer, head, pos]`) or
        `[layer]`.

    Raises:
        InvalidInputError: If the task has no corrupted prompts, both runs have the same logit difference, a position is
            out of range, or the metric is not one number.
        UnknownNameError: For a site or a word that does not exist.
        NotFiniteError: If a patched run's metric is not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.data.ioi import IOIDataset
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> task = Task.from_ioi(IOIDataset(N=8, tokenizer=model.tokenizer, prepend_bos=True))
        >>> found = activation_patch(model, task, ["resid_pre", "z"], progress=False)
        >>> found["z"].shape == (model.cfg.n_layers, model.cfg.n_heads)
        True
        >>> by_word = activation_patch(model, task, positions=["S2", "end"], progress=False)
        >>> by_word["resid_pre"].shape == (model.cfg.n_layers, 2)
        True
    """
    chosen = (sites,) if isinstance(sites, str) else tuple(dict.fromkeys(sites))
    _check_sites(model, chosen)
    check_option("direction", direction, tuple(_UNITS))
    if task.corrupted_tokens is None:
        raise InvalidInputError(
            "the task has no corrupted prompts to patch from or into: give them (`corrupted` in from_prompts, a column "
            "of that name in a file, from_templates, from_ioi)."
        )
    task = task.to(model.W_E.device)
    at, labels = _positions(task, positions)
    plan = _Plan(model, chosen, at, by_position)
    runs = _Runs(model, plan, direction == "denoising", progress)
    if metric is not None:
        values, ends = runs.measured(task, metric)
        unit = "the metric"
    else:
        total, total_ends = torch.zeros(plan.n_patches, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        step = max(1, BLOCK_TOKENS // task.clean_tokens.shape[1])
        for first in range(0, len(task), step):
            some = task[first : first + step]
            found, difference = runs.measured(some, AnswerMetric.of(some), slice(first, first + step))
            total += found * (len(some) / len(task))
            total_ends += difference * (len(some) / len(task))
        ends, unit = total_ends, _UNITS[direction]
        values = _normalized(total, ends, direction == "denoising")
    if not bool(values.isfinite().all()):
        raise NotFiniteError(
            "the metric of a patched run is not finite. Check the weights and the activations of both runs for NaN."
        )
    return PatchingResult(
        info=RunInfo(
            model=model.cfg.model_name,
            processing=model.weight_processing,
            data=task.description,
            n_sequences=len(task),
            n_positions=len(task),
            options={"sites": list(chosen), "direction": direction},
        ),
        values=values.float(),
        sites=chosen,
        axes=tuple(" ".join(plan.axes(site)) for site in chosen),
        positions=tuple(range(task.clean_tokens.shape[1]) if positions is None else positions),
        position_labels=labels,
        n_layers=model.cfg.n_layers,
        n_heads=model.cfg.n_heads,
        n_key_value_heads=model.cfg.n_cached_heads,
        direction=direction,
        unit=unit,
        clean=float(ends[0]),
        corrupted=float(ends[1]),
    )


def _check_sites(model: HookedTransformer, sites: tuple[str, ...]) -> None:
    if not sites:
        raise InvalidInputError(f"give at least one site: {', '.join(SITES)}.")
    there = [site for site in SITES if get_act_name(site, 0) in model.hook_dict]
    for site in sites:
        if site in SITES and site not in there:
            raise InvalidInputError(f"this model has no {site!r}: its blocks have {', '.join(there)}.")
        if site not in SITES:
            raise unknown_name("site", site, SITES)


def _normalized(values: Tensor, ends: Tensor, denoises: bool) -> Tensor:
    clean, corrupted = ends.tolist()
    if clean == corrupted:
        raise InvalidInputError(
            f"the clean and the corrupted prompts have the same logit difference, {clean:.4f}: nothing can be broken "
            "or brought back. Does the model do the task, and do the corrupted prompts differ from the clean ones?"
        )
    return (values - (corrupted if denoises else clean)) / (clean - corrupted)


def _positions(
    task: Task, positions: Sequence[int | str] | None
) -> tuple[Int[Tensor, "position prompt"], tuple[str, ...]]:
    """Where each position is in every prompt, and what stands there."""
    n, length = task.clean_tokens.shape
    found, labels = [], []
    for each in range(length) if positions is None else positions:
        if isinstance(each, str):
            if each not in task.word_idx:
                raise unknown_name("word", each, task.word_idx, hint="A task of IOIDataset has words; others numbers.")
            found.append(task.word_idx[each])
            labels.append(each)
        else:
            if not -length <= each < length:
                raise InvalidInputError(f"positions must be from 0 to {length - 1}, or names of words; got {each}.")
            found.append(torch.full((n,), each % length, device=task.clean_tokens.device))
            labels.append(_label(task, each % length))
    if not found:
        raise InvalidInputError("give at least one position, or None for all.")
    return torch.stack(found), tuple(labels)


def _label(task: Task, position: int) -> str:
    """The token at a position, if all prompts have the same; else the name of the word there, or one of the tokens."""
    tokens = list(dict.fromkeys(row[position] for row in task.str_tokens if position < len(row)))
    if len(tokens) == 1:
        return tokens[0]
    words = [name for name, at in task.word_idx.items() if bool((at == position).all())]
    return words[0] if words else f"{tokens[0]}…" if tokens else ""


@dataclass(frozen=True)
class _Plan:
    """The patches, in order: of each site, its cells in the order of its axes."""

    model: HookedTransformer
    sites: tuple[str, ...]
    at: Int[Tensor, "position prompt"]
    by_position: bool | None

    def axes(self, site: str) -> tuple[str, ...]:
        apart = site in _STREAM if self.by_position is None else self.by_position
        if site in _STREAM:
            return ("layer", "pos") if apart else ("layer",)
        if not apart:
            return ("layer", "head")
        return ("layer", "head", "pos") if site == "pattern" else ("layer", "pos", "head")

    def cells(self) -> list[tuple[str, dict[str, int]]]:
        """Each patch's site, and its index by axis."""
        cfg, found = self.model.cfg, []
        for site in self.sites:
            heads = cfg.n_cached_heads if site in ("k", "v") else cfg.n_heads
            sizes, axes = {"layer": cfg.n_layers, "head": heads, "pos": len(self.at)}, self.axes(site)
            indices = product(*(range(sizes[axis]) for axis in axes))
            found += [(site, dict(zip(axes, index, strict=True))) for index in indices]
        return found

    @property
    def n_patches(self) -> int:
        return len(self.cells())

    def names(self) -> list[str]:
        """All hook points that are patched."""
        return [get_act_name(site, layer) for site in self.sites for layer in range(self.model.cfg.n_layers)]

    def setter(self, site: str, at: dict[str, int], rows: slice, source: Tensor) -> Callable[[Tensor], None]:
        """What puts a piece of `source` into an activation of these prompts."""
        positions = self.at[:, rows]
        return partial(_put, source, positions if "pos" not in at else positions[at["pos"]][None], site, at.get("head"))


def _put(source: Tensor, positions: Tensor, site: str, head: int | None, activation: Tensor) -> None:
    """Set some positions of an activation (of a head), a position of a pattern being its query's."""
    rows = torch.arange(len(activation), device=activation.device)
    for position in positions:
        if site == "pattern":
            activation[rows, head, position] = source[rows, head, position]
        elif head is None:
            activation[rows, position] = source[rows, position]
        else:
            activation[rows, position, head] = source[rows, position, head]


@dataclass(frozen=True)
class _Runs:
    """The runs of some prompts: clean, corrupted, and patched."""

    model: HookedTransformer
    plan: _Plan
    denoises: bool
    progress: bool

    def measured(self, task: Task, metric: Metric, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The metric of each patch, and of the clean and the corrupted run."""
        options: dict[str, Any] = {"attention_mask": task.attention_mask}
        assert task.corrupted_tokens is not None
        both = (task.clean_tokens, task.corrupted_tokens)
        source, target = both if self.denoises else both[::-1]
        names = self.plan.names()
        from_source, cache = self._run(source, metric, options, names)
        patches = [
            Patch(name, self.plan.setter(site, at, rows, cache[name]))
            for site, at in self.plan.cells()
            for name in [get_act_name(site, at["layer"])]
        ]
        from_target, _ = self._run(target, metric, options, [])
        values = measure_patches(self.model, target, metric, patches, watched=names, progress=self.progress, **options)
        ends = (from_source, from_target) if self.denoises else (from_target, from_source)
        return torch.tensor(values, dtype=torch.float64), torch.tensor(ends, dtype=torch.float64)

    def _run(
        self, tokens: Tensor, metric: Metric, options: dict[str, Any], names: list[str]
    ) -> tuple[float, dict[str, Tensor]]:
        """A run's metric, and its activations."""
        options = {**options, "names_filter": names, "return_cache_object": False}
        if not (isinstance(metric, AnswerMetric) and can_be_resumed(self.model)):
            logits, cache = self.model.run_with_cache(tokens, **options)
            return as_number(metric(logits)), cache
        states, cache = self.model.run_with_cache(tokens, stop_at_layer=self.model.cfg.n_layers, **options)
        rows = torch.arange(len(states), device=states.device)
        return float(metric.of_states(self.model, states[rows, metric.positions][None])), cache
