"""Runs of one prompt, as it is and with the outputs of some components changed, and what is kept of them.

A change takes the place of what a component gives: a head's output before `W_O`, an MLP's or a mixer's as it is added
to the stream. The plain run keeps every state and output; a changed one begins in the layer of the first change, and at
the first position changed: attention is causal, so that what stands before it is as it was, and its keys and values are
kept. A model whose blocks cannot be taken up there (see `patching.base_run.obstacle`) runs from the layer on
whole. Either way it is the model's own blocks that run, with hooks, so that norms behind attention, parallel blocks and
shared keys and values do what they do in any run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.components import Component
from headscope.analysis.patching.base_run import BaseRun, SuffixRuns, obstacle
from headscope.analysis.recording.record import check_final, hook_name, readable_hooks, record
from headscope.model.hooks import HookPoint, Reader
from headscope.model.transformer import HookedTransformer

__all__ = ["Check", "PromptRun", "PromptRuns", "ResolvedChange"]

# Raises if nobody waits for the run any longer; called before every layer.
Check = Callable[[], None]
# A prompt has no padding, whatever token it ends in: see `HookedTransformer.forward`.
_UNPADDED: dict[str, Any] = {"padding_side": "right"}


@dataclass(frozen=True)
class ResolvedChange:
    """A change whose component and positions the model and the prompt have.

    Attributes:
        part: The component.
        positions: Where, in order; counted from the start.
        action: `zero`, `mean`, `scale` or `patch`.
        factor: What `scale` multiplies by.
    """

    part: Component
    positions: tuple[int, ...]
    action: str
    factor: float | None

    def value(self, own: Tensor, mean: Tensor | None, other: Tensor | None) -> Tensor:
        """Return what takes the place of a component's own output `[pos, width]` at these positions."""
        if self.factor is not None:
            return own * self.factor
        if self.action == "zero":
            return torch.zeros_like(own)
        instead = mean if self.action == "mean" else other
        assert instead is not None
        return instead.to(own).expand_as(own)


@dataclass(frozen=True, eq=False)
class PromptRun:
    """A run of a prompt.

    Attributes:
        tokens: `[1, pos]`.
        kept: Activations at all positions, `[1, pos, ...]`, by hook name.
        final: The final state, `[1, pos, d_model]`.
        from_layer: Below this layer the run is another's, whose tensors it shares.
        suffixes: What runs of later layers and positions need; `None` where the model is run whole.
    """

    tokens: Int[Tensor, "1 pos"]
    kept: Mapping[str, Tensor]
    final: Float[Tensor, "1 pos d_model"]
    from_layer: int = 0
    suffixes: SuffixRuns | None = None

    @property
    def length(self) -> int:
        """The number of tokens."""
        return self.tokens.shape[1]

    @property
    def nbytes(self) -> int:
        """The bytes of all that is this run's own."""
        if self.suffixes is not None:
            return self.suffixes.base.nbytes
        return self.final.nbytes + sum(each.nbytes for name, each in self.kept.items() if self._is_own(name))

    def entering(self, layer: int) -> Float[Tensor, "1 pos d_model"]:
        """Return the stream that enters a layer."""
        return self.kept[stream_name(layer)]

    def output(self, part: Component) -> Float[Tensor, "pos width"]:
        """Return what a component gave."""
        written = self.kept[hook_name(part)][0]
        return written if part.head is None else written[:, part.head]

    def _is_own(self, name: str) -> bool:
        where, _, rest = name.partition(".")
        return where == "blocks" and int(rest.partition(".")[0]) >= self.from_layer


class PromptRuns:
    """Makes runs of prompts.

    Args:
        model: A causal model without hooks on it.
        names: The activations to keep of each run, beside the streams and outputs that changed runs begin with.
        means: What `mean` puts in a component's place.
    """

    def __init__(
        self, model: HookedTransformer, names: Sequence[str], means: Mapping[Component, Float[Tensor, " width"]]
    ) -> None:
        self.model, self.means = model, means
        self.n_layers = model.cfg.n_layers
        self.resumes = obstacle(model) is None
        streams = [stream_name(layer) for layer in range(self.n_layers)]
        self.names = readable_hooks(model, dict.fromkeys([*streams, *names]))

    def plain(self, tokens: Int[Tensor, "1 pos"], check: Check) -> PromptRun:
        """Return the run of a prompt as it is.

        Raises:
            NotFiniteError: If a final state is not finite.
        """
        with self._checking(check):
            if not self.resumes:
                kept, final = record(self.model, tokens, self.names, **_UNPADDED)
                check_final(final)
                return PromptRun(tokens, kept, final)
            base = BaseRun(self.model, tokens, self.names, 0, **_UNPADDED)
        check_final(base.final)
        return PromptRun(tokens, base.kept, base.final, suffixes=SuffixRuns(base, None))

    def changed(
        self, plain: PromptRun, changes: Sequence[ResolvedChange], other: PromptRun | None, check: Check
    ) -> PromptRun:
        """Return the run of the same prompt with changes, at least one.

        Args:
            plain: The run without them.
            changes: The changes; no component twice at a position.
            other: The run that patches come from.
            check: Called before every layer.

        Raises:
            NotFiniteError: If a final state is not finite.
        """
        first = min(change.part.layer for change in changes)
        suffixes = plain.suffixes
        start = 0 if suffixes is None else min(min(change.positions) for change in changes)
        read: dict[str, Tensor] = {}
        names = [name for name in self.names if _layer_of(name) >= first]

        def keep(activation: Tensor, hook: HookPoint) -> None:
            read[hook.name or ""] = activation

        with self.model.hooks([*self._replacing(changes, other, start), *((name, Reader(keep)) for name in names)]):
            stream = plain.entering(first)[:, start:]
            if suffixes is None:
                with self._checking(check):
                    stream = record(
                        self.model, stream.clone(), start_at_layer=first, tokens=plain.tokens, **_UNPADDED
                    ).final
            else:
                for layer in range(first, self.n_layers):
                    check()
                    read[stream_name(layer)] = stream
                    stream = suffixes.through(layer, start, stream, queries=True)
        check_final(stream)
        kept = {
            name: _behind(plain.kept[name], start, read[name]) if name in read else plain.kept[name]
            for name in self.names
        }
        return PromptRun(plain.tokens, kept, _behind(plain.final, start, stream), from_layer=first)

    def pattern(self, run: PromptRun, layer: int) -> Float[Tensor, "head pos pos"] | None:
        """Return the attention pattern of a layer, from the stream that enters it; `None` without attention.

        No change reaches it but through that stream: what a component of the layer gives comes behind its pattern.
        """
        if "attn" not in self.model.cfg.parts_of(layer):
            return None
        name = f"blocks.{layer}.attn.hook_pattern"
        kept = record(
            self.model,
            run.entering(layer).clone(),
            {name: None},
            start_at_layer=layer,
            stop_at_layer=layer + 1,
            tokens=run.tokens,
            **_UNPADDED,
        ).kept
        pattern: Tensor = kept[name]
        return pattern[0]

    @contextmanager
    def changing(self, changes: Sequence[ResolvedChange], other: PromptRun | None, check: Check) -> Iterator[None]:
        """Keep changes in force on the model itself, for whole runs of the prompt within."""
        with self.model.hooks(self._replacing(changes, other, 0)), self._checking(check):
            yield

    def _replacing(
        self, changes: Sequence[ResolvedChange], other: PromptRun | None, start: int
    ) -> list[tuple[Any, Callable[..., Any]]]:
        """Hooks that put changes in force, in runs of the positions from `start` on."""
        by_name: dict[str, list[ResolvedChange]] = {}
        for change in changes:
            by_name.setdefault(hook_name(change.part), []).append(change)

        def replace(output: Tensor, hook: HookPoint) -> Tensor:
            changed = output.clone()
            for change in by_name[hook.name or ""]:
                part, at = change.part, torch.tensor(change.positions, device=output.device)
                target = changed[0] if part.head is None else changed[0, :, part.head]
                given = None if other is None else other.output(part)[at]
                target[at - start] = change.value(target[at - start], self.means.get(part), given)
            return changed

        return [(name, replace) for name in by_name]

    @contextmanager
    def _checking(self, check: Check) -> Iterator[None]:
        """Have `check` called before every layer of runs within."""
        names = [stream_name(layer) for layer in range(self.n_layers)]
        with self.model.hooks([(name, Reader(lambda _, hook: check())) for name in names]):
            yield


def stream_name(layer: int) -> str:
    """Return the hook point that shows the stream as it enters a layer."""
    return f"blocks.{layer}.hook_resid_pre"


def _layer_of(name: str) -> int:
    """Return the layer of a hook point; -1 in front of all."""
    part, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if part == "blocks" else -1


def _behind(before: Tensor, start: int, after: Tensor) -> Tensor:
    """One run's activations up to a position, and another's from there on."""
    return torch.cat([before[:, :start], after], dim=1) if start else after
