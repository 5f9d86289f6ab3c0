"""One forward pass and what is kept of it: everything that looks inside a run is `record`ed here.

Each activation is reduced as it passes, by what is said beside its name, so that nothing is held that nobody asked for.
Hooks on the model stay in force: replacements come behind them, and what is kept is read last.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.components import Component
from headscope.analysis.core.head_lists import over_layers
from headscope.analysis.recording.by_hand import layers_between
from headscope.errors import InvalidInputError, NotFiniteError
from headscope.model.activations.readout import Readout
from headscope.model.hooks import HookPoint, Reader
from headscope.model.names import post_scale_name
from headscope.model.transformer import HookedTransformer
from headscope.ops.changed_predictions import Prediction
from headscope.ops.devices import Budget

__all__ = [
    "CleanRun",
    "CleanRuns",
    "Reading",
    "Recording",
    "Replacement",
    "Steps",
    "check_final",
    "clean_prediction",
    "clean_run",
    "hook_name",
    "readable_hooks",
    "record",
    "record_patterns",
    "replacing",
    "streams_entering",
]

# What is kept of an activation; `None` keeps it as it is.
Reading = Callable[[Tensor], Any] | None


class Recording(NamedTuple):
    """A forward pass.

    Attributes:
        kept: The activations asked for, or what was made of them, by hook name.
        final: The residual stream where the run stopped.
    """

    kept: dict[str, Any]
    final: Float[Tensor, "row pos d_model"]


class Replacement(NamedTuple):
    """A value in the place of an activation.

    Attributes:
        value: Whatever can be expanded to what it replaces.
        head: Replace one head of `[row, pos, head, width]`; default: all.
        rows: Replace some rows of the batch; default: all.
    """

    value: Tensor
    head: int | None = None
    rows: slice = slice(None)

    def write(self, activation: Tensor) -> None:
        """Put the value into an activation, in place."""
        target = activation[self.rows] if self.head is None else activation[self.rows, :, self.head]
        target.copy_(self.value.expand_as(target))


def replacing(replaced: Mapping[str, Sequence[Replacement]]) -> list[tuple[Any, Callable[..., Any]]]:
    """Return hooks that put values in the place of activations, by hook name."""

    def replace(activation: Tensor, hook: HookPoint) -> Tensor:
        changed = activation.clone()
        for each in replaced[hook.name or ""]:
            each.write(changed)
        return changed

    return [(name, replace) for name in replaced]


def record(
    model: HookedTransformer,
    inputs: Tensor,
    wanted: Mapping[str, Reading] | Iterable[str] = (),
    *,
    replaced: Mapping[str, Sequence[Replacement]] = MappingProxyType({}),
    stop_at_layer: int | None = None,
    **options: Any,
) -> Recording:
    """Run a model and keep some of its activations.

    Args:
        model: The model; hooks on it stay in force.
        inputs: Tokens; a residual stream with `start_at_layer`. Hooks may write to a stream, so hand in one of your
            own.
        wanted: Hook points; those that the model lacks are passed over. As a mapping, with what each activation is
            reduced to as it passes. Without, the activation itself is kept, which later hooks may write to.
        replaced: What takes the place of some activations.
        stop_at_layer: Default: behind the last layer, before the final norm.
        options: See `HookedTransformer.forward`: `attention_mask`, `start_at_layer`, `tokens`, ...

    Raises:
        InvalidInputError: If a module stands where an activation is read.
    """
    readings: Mapping[str, Reading] = wanted if isinstance(wanted, Mapping) else dict.fromkeys(wanted)
    kept: dict[str, Any] = {}

    def keep(activation: Tensor, hook: HookPoint) -> None:
        reading = readings[hook.name or ""]
        kept[hook.name or ""] = activation if reading is None else reading(activation)

    # With gradients, one may be asked for of what is kept.
    hook = keep if torch.is_grad_enabled() else Reader(keep)
    hooks = [*replacing(replaced), *((name, hook) for name in readable_hooks(model, readings))]
    final = model.run_with_hooks(
        inputs, fwd_hooks=hooks, stop_at_layer=model.cfg.n_layers if stop_at_layer is None else stop_at_layer, **options
    )
    return Recording(kept, final)


def record_patterns(
    model: HookedTransformer, batch: Batch, reading: Callable[[Tensor], Tensor]
) -> Float[Tensor, "layer *read"]:
    """Run a batch and return what each layer's attention pattern is reduced to, on the CPU; NaN without attention.

    Args:
        model: The model; hooks on it stay in force.
        batch: The batch.
        reading: Reduces a pattern `[row, head, query_pos, key_pos]` as it passes.

    Raises:
        InvalidInputError: If a module stands where a pattern is read.
    """
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in model.cfg.layers_with("attn")]
    kept = record(model, batch.tokens, dict.fromkeys(names, reading), attention_mask=batch.attention_mask).kept
    return over_layers(model.cfg, torch.stack([kept[name].cpu() for name in names]))


@contextmanager
def streams_entering(model: HookedTransformer, layers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Keep what enters some layers in a run within the `with` block, by layer, for later runs to resume from.

    They are copies from before all hooks there, which the later runs come to again.

    Raises:
        InvalidInputError: If a module stands where a stream is read.
    """
    names = {f"blocks.{layer}.hook_resid_pre": layer for layer in layers}
    streams: dict[int, Tensor] = {}

    def keep(stream: Tensor, hook: HookPoint) -> None:
        streams[names[hook.name or ""]] = stream.clone()

    with model.hooks([(name, Reader(keep)) for name in readable_hooks(model, names)], prepend=True):
        yield streams


class Steps:
    """A run that goes up through the layers as far as it is asked to.

    Args:
        model: The model; hooks on it stay in force.
        tokens: The tokens it runs on.
        attention_mask: See `HookedTransformer.forward`.
    """

    def __init__(self, model: HookedTransformer, tokens: Tensor, attention_mask: Tensor | None) -> None:
        self.model, self.tokens, self.attention_mask = model, tokens, attention_mask
        self._layer = -1
        self._stream = tokens

    def entering(self, layer: int) -> Float[Tensor, "row pos d_model"]:
        """Return the stream as it enters a layer, before any hook there; `n_layers` gives the final state.

        Layers must not go down from one call to the next.
        """
        assert layer >= self._layer
        if layer > self._layer:
            # A copy, since hooks may write to what they are shown, and others go on from here too.
            self._stream = record(
                self.model,
                self._stream.clone(),
                start_at_layer=None if self._layer < 0 else self._layer,
                stop_at_layer=layer,
                tokens=self.tokens,
                attention_mask=self.attention_mask,
            ).final
            self._layer = layer
        return self._stream


@dataclass(frozen=True)
class CleanRun:
    """The outputs of some components in one forward pass.

    Attributes:
        resid: What enters each layer at which a patched run resumes, before any hook there.
        written: What each layer's heads (`[row, pos, head, d_head]`, before `W_O`), MLPs and mixers (`[row, pos,
            d_model]`) gave, what norms behind attention divided by, and what else was asked for, by hook name.
        final: The final state.
    """

    resid: Mapping[int, Float[Tensor, "row pos d_model"]]
    written: Mapping[str, Tensor]
    final: Float[Tensor, "row pos d_model"]

    def output(self, component: Component) -> Float[Tensor, "row pos width"]:
        """Return a component's output: a head's `z`, or what an MLP or a mixer adds."""
        written = self.written[hook_name(component)]
        return written if component.head is None else written[:, :, component.head]

    def onto_stream(self, component: Component, part: Float[Tensor, "row pos width"]) -> Float[Tensor, "row pos width"]:
        """A part of a component's output over this run's scale of the norm behind it, if there is one.

        A head's comes to the stream through `output_weights` then; an MLP's output is behind its norm already.
        """
        scale = None if component.head is None else self.written.get(post_scale_name(component.layer))
        return part if scale is None else part / scale


def hook_name(component: Component) -> str:
    """Return the hook point that shows a component's output."""
    return f"blocks.{component.layer}." + ("attn.hook_z" if component.part == "attn" else f"hook_{component.part}_out")


@torch.no_grad()
def clean_run(
    model: HookedTransformer,
    batch: Batch,
    parts: Iterable[Component],
    resume_at: Iterable[int] = (),
    also: Iterable[str] = (),
) -> CleanRun:
    """Run a batch and keep the outputs of some components, and the stream as it enters some layers.

    Args:
        model: The model; hooks on it stay in force.
        batch: The batch.
        parts: The components.
        resume_at: The layers.
        also: Hook points of other activations that are kept.

    Raises:
        InvalidInputError: if a module stands where one of these is read.
        NotFiniteError: if a final state is not finite.
    """
    parts = list(parts)
    names = sorted({*also, *map(hook_name, parts)})
    layers = sorted({part.layer for part in parts if part.head is not None})
    names += [post_scale_name(layer) for layer in layers]
    # What `check_heads_add_up` looks at.
    names += [f"blocks.{layer}.hook_attn_out" for layer in layers_between(model, layers)]
    # Copies: the stream may be written to in place afterwards, by later hooks too.
    readings = dict.fromkeys(names, torch.clone)
    with streams_entering(model, resume_at) as resid:
        kept, final = record(model, batch.tokens, readings, attention_mask=batch.attention_mask)
    hidden = [name for name in map(hook_name, parts) if name not in kept]
    if hidden:
        raise InvalidInputError(
            f"there is no {hidden[0]} to read: a module without it stands in its place. Put it back."
        )
    check_final(final[batch.places])
    return CleanRun(resid, kept, final)


def clean_prediction(
    readout: Readout,
    batch: Batch,
    where: Bool[Tensor, "row pos"] | tuple[Tensor, Tensor],
    final: Float[Tensor, "n d_model"],
) -> Prediction:
    """Return the predictions at some positions of a batch, for changed ones to be compared with."""
    return Prediction(
        readout.normalize(final),
        readout.W_U.detach().to(final.dtype),
        readout.b_U.detach().to(final.dtype),
        batch.tokens.roll(-1, dims=1)[where],
        readout.soft_cap,
    )


class CleanRuns:
    """Clean runs of batches, which a first pass over the data keeps for the second, as far as there is room for them.

    Args:
        model: The model.
        parts: Components whose outputs are kept.
        resume_at: Layers whose input is kept.
        also: Hook points of other activations that are kept.
        room: How many bytes of runs are kept from the first pass; 0 where it goes through other data.
    """

    def __init__(
        self,
        model: HookedTransformer,
        parts: Iterable[Component],
        resume_at: Iterable[int] = (),
        *,
        also: Iterable[str] = (),
        room: int | None = None,
    ) -> None:
        self.model = model
        self.parts = frozenset(parts)
        self.resume_at, self.also = tuple(resume_at), tuple(also)
        self._kept: dict[int, tuple[Batch, CleanRun]] = {}
        self._room = Budget.of(model.W_E.device).kept_bytes if room is None else room

    def first(self, batch: Batch, n_before: int) -> CleanRun:
        """Run a batch that `n_before` rows of the data come before, and keep the run if there is room."""
        run = clean_run(self.model, batch, self.parts, self.resume_at, self.also)
        size = sum(each.nbytes for each in (*run.written.values(), *run.resid.values(), run.final))
        if size <= self._room:
            self._room -= size
            self._kept[n_before] = batch, run
        return run

    def second(self, batch: Batch, n_before: int) -> CleanRun:
        """The run that was kept of a batch, which is then forgotten; else a new one."""
        kept = self._kept.pop(n_before, None)
        if kept is not None and torch.equal(kept[0].tokens, batch.tokens):
            return kept[1]
        return clean_run(self.model, batch, self.parts, self.resume_at, self.also)


def check_final(final: Float[Tensor, "*lead d_model"]) -> None:
    """Refuse final states that are not finite.

    Raises:
        NotFiniteError: If there are any.
    """
    if not bool(final.isfinite().all()):
        raise NotFiniteError(
            "the model's final residual stream holds NaN or infinite values. Check its weights, and any hooks on it.",
            code="HS-FINITE-02",
        )


def readable_hooks(model: HookedTransformer, wanted: Iterable[str]) -> list[str]:
    """Return the hook points among `wanted` that the model has.

    Raises:
        InvalidInputError: if a module stands where one of them is.
    """
    names = [name for name in wanted if name in model.mod_dict]
    replaced = [name for name in names if name not in model.hook_dict]
    if replaced:
        module = type(model.mod_dict[replaced[0]]).__name__
        raise InvalidInputError(
            f"{replaced[0]} holds a {module} instead of a hook point, so what passes there cannot be read. "
            "Take it out for this analysis, or apply it with a hook."
        )
    return names
