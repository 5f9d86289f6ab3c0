"""Path patching by whole runs, so that every hook on the model sees what it always sees.

It gives what `PathBlock` gives without hooks, at the cost of two forward passes for each sender.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.components import all_heads, all_mlps
from headscope.analysis.patching.path_block import Cell, PathBlock
from headscope.analysis.patching.path_ends import Receiver, Sender
from headscope.analysis.recording.record import hook_name
from headscope.model.hooks import HookPoint

__all__ = ["WholePaths"]

_ENTERING = "blocks.0.hook_resid_pre"


class WholePaths(PathBlock):
    """The three passes of path patching over some prompts, each a run through the hooks on the model."""

    def _run_both(self, senders: Sequence[Sender]) -> None:
        self.together, self.where = 1, self.runs.where[self.rows]
        heads = {hook_name(head) for head in all_heads(self.cfg)}
        self.frozen = heads | {hook_name(mlp) for mlp in all_mlps(self.cfg) if mlp.layer not in self.mlps}
        names = {_ENTERING, *heads, *map(hook_name, all_mlps(self.cfg))}
        self.kept, self.base = self._run(self.runs.base, names)
        self.given, self.other = self._run(self.runs.other, names)

    def finals(self, cells: Sequence[Cell]) -> Float[Tensor, "cell prompt read d_model"]:
        """Return the final states where they are read, each cell's senders patched into the receivers."""
        return torch.stack([self._final(cell) for cell in cells])

    def _final(self, cell: Cell) -> Float[Tensor, "prompt read d_model"]:
        sending: dict[str, list[int | slice]] = {}
        for sender in cell:
            sending.setdefault(_output(sender), []).append(_part(sender))
        receiving: dict[str, list[int | slice]] = {}
        for receiver in self.receivers:
            receiving.setdefault(_input(receiver), []).append(_part(receiver))
        recorded: dict[str, Tensor] = {}

        def send(activation: Tensor, hook: HookPoint) -> Tensor:
            kept, given = self.kept[hook.name or ""].clone(), self.given[hook.name or ""]
            for part in sending.get(hook.name or "", ()):
                kept[:, :, part][self.where] = given[:, :, part][self.where]
            return kept

        def record(activation: Tensor, hook: HookPoint) -> None:
            recorded[hook.name or ""] = activation.clone()

        def receive(activation: Tensor, hook: HookPoint) -> Tensor:
            activation = activation.clone()
            for part in receiving[hook.name or ""]:
                activation[:, :, part] = recorded[hook.name or ""][:, :, part]
            return activation

        into = [] if self.into_final else [(name, record) for name in receiving]
        final = self._hooked([*((name, send) for name in self.frozen | sending.keys()), *into])
        return final if self.into_final else self._hooked([(name, receive) for name in receiving])

    def _hooked(self, hooks: Sequence[tuple[str, Any]]) -> Float[Tensor, "prompt read d_model"]:
        with self._heads_apart():
            final = self.model.run_with_hooks(
                self.tokens, fwd_hooks=list(hooks), stop_at_layer=self.cfg.n_layers, **self.runs.options(self.rows)
            )
        return self.scorer.read(self.rows, final)


def _part(end: Sender | Receiver) -> int | slice:
    """Return the index of an end along its activation's third axis: a head, or all of the vector."""
    return slice(None) if end.component is None or end.component.head is None else end.component.head


def _output(sender: Sender) -> str:
    return _ENTERING if sender.component is None else hook_name(sender.component)


def _input(receiver: Receiver) -> str:
    """Name the hook point of what a receiver reads, before the norm; the final state has none."""
    if receiver.component is None:
        return ""
    return f"blocks.{receiver.component.layer}.hook_{f'{receiver.input}_input' if receiver.input else 'mlp_in'}"
