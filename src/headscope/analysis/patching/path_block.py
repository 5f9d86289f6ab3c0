"""The passes of path patching over some prompts: what receivers read when senders change, and what follows.

What senders change lives on rows: the positions at which they are patched, of one prompt after the other. Attention
being frozen, a change never leaves its row on the way to the receivers.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.components import Component, all_components, all_mlps
from headscope.analysis.patching.base_run import BaseRun, SuffixRuns
from headscope.analysis.patching.path_ends import Receiver, Sender, mlp_stage
from headscope.analysis.prompts.controls import RandomWay
from headscope.analysis.prompts.two_runs import Scorer, TaskRuns
from headscope.analysis.recording.record import Reading, Recording, Replacement, hook_name, record, replacing
from headscope.model.block import TransformerBlock
from headscope.model.names import post_scale_name
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget

__all__ = ["Cell", "PathBlock", "WholePaths"]

# Senders that are patched together.
Cell = tuple[Sender, ...]


@dataclass(frozen=True)
class _BothRuns:
    """Both runs of some prompts.

    Attributes:
        run: The base run.
        base: Its final states where they are read.
        other: Those of the other run.
        streams: The base run's residual stream, by the stage at which it is read.
        changed: The other run's activations less the base run's, by hook name.
        behind: For each layer, what the norm behind attention was given, but for a mean that it takes away: enough to
            go through it again.
    """

    run: BaseRun
    base: Float[Tensor, "prompt read d_model"]
    other: Float[Tensor, "prompt read d_model"]
    streams: Mapping[int, Float[Tensor, "prompt pos d_model"]]
    changed: Mapping[str, Tensor]
    behind: Mapping[int, Float[Tensor, "prompt pos d_model"]]

    def of(self, rows: Int[Tensor, " row"]) -> "_BothRuns":
        """Return the same of some of the prompts."""

        def taken(found: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
            return {key: each[rows] for key, each in found.items()}

        parts = (taken(each) for each in (self.streams, self.changed, self.behind))
        return _BothRuns(self.run.of(rows), self.base[rows], self.other[rows], *parts)


class PathBlock:
    """Some prompts: what both runs gave on them, and patched runs from there.

    Args:
        model: The model, without hooks.
        runs: The task's two runs.
        scorer: What reads final states.
        rows: Which of its prompts.
        senders: All that will be patched.
        receivers: What reads the changes.
        freeze_mlps: Whether MLPs in between keep what they gave.
        way: Random directions in which senders change, in the place of the other run's.

    Attributes:
        base: The base run's final states where they are read, `[prompt, read, d_model]`.
        other: Those of the other run.
        together: Number of cells patched side by side.
    """

    def __init__(
        self,
        model: HookedTransformer,
        runs: TaskRuns,
        scorer: Scorer,
        rows: Int[Tensor, " row"],
        senders: Sequence[Sender],
        receivers: tuple[Receiver, ...],
        freeze_mlps: bool,
        way: RandomWay | None = None,
    ) -> None:
        self.way = way
        self.model, self.cfg, self.runs, self.rows, self.receivers = model, model.cfg, runs, rows, receivers
        self.scorer, self.blocks = scorer, cast(Sequence[Any], model.blocks)
        self.into_final = receivers[0].component is None
        self.first = min((sender.stage for sender in senders), default=0)
        self.last = max(receiver.stage for receiver in receivers)
        self.start = min(receiver.stage for receiver in receivers) // 2
        between = [] if freeze_mlps else [mlp.layer for mlp in all_mlps(self.cfg)]
        self.mlps = [at for at in between if mlp_stage(self.cfg, at) >= self.first and 2 * at + 2 <= self.last]
        if not self.into_final:
            # One kind of input in the first layer that reads: it is taken up right behind that.
            inputs = {_input(each) for each in self.receivers if each.component and each.component.layer == self.start}
            self.entry = inputs.pop() if len(inputs) == 1 else _stream(2 * self.start)
        self._run_both(senders)

    def alike(self, n_cells: int) -> Iterator["PathBlock"]:
        """The prompts in parts: with many cells those together that change, and predict their answers, at one place."""
        for rows in self.scorer.alike(self.rows, n_cells):
            part = copy.copy(self)
            part._narrow(rows)
            yield part

    def _run_both(self, senders: Sequence[Sender]) -> None:
        written = {_output(sender) for sender in senders}
        read = {r.stage for r in self.receivers} | {mlp_stage(self.cfg, layer) for layer in self.mlps}
        streams = {stage: _stream(stage) for stage in read if stage < 2 * self.cfg.n_layers}
        kept = {_input(receiver) for receiver in self.receivers if receiver.component}
        kept |= {_mlp_out(layer) for layer in self.mlps}
        if not self.into_final:
            kept |= {f"blocks.{self.start}.{name}" for name in self._block.read_by_resumed(self._entry_site)}
        behind = {}
        if self.cfg.has_post_norms:
            heads = {s.component.layer for s in senders if s.component is not None and s.component.head is not None}
            behind = {layer: post_scale_name(layer).replace("hook_scale", "hook_normalized") for layer in heads}
        shown = {*behind.values(), *map(post_scale_name, behind)}
        names = written | kept | shown | set(streams.values())
        with self._heads_apart():
            run = BaseRun(self.model, self.runs.base[self.rows], names, self.start, **self.runs.options(self.rows))
        other, other_final = self._run(self.runs.other, sorted(written), of_other=True)
        base = run.kept
        run.kept = {name: base[name] for name in kept}
        self._of_all = _BothRuns(
            run,
            self.scorer.read(self.rows, run.final),
            other_final,
            {stage: base[name] for stage, name in streams.items()},
            {name: self._change(other[name] - base[name]) for name in sorted(written)},
            {layer: (base[name] * base[post_scale_name(layer)]).to(base[name].dtype) for layer, name in behind.items()},
        )
        self._narrow(self.rows)

    def _change(self, way: Tensor) -> Tensor:
        """The change of what senders write: that of the other run, or a random one as long."""
        return way if self.way is None else self.way.instead_of(way)

    def _narrow(self, rows: Int[Tensor, " row"]) -> None:
        """Go on with some of the prompts that were run."""
        ran = self._of_all.of((self.rows[None] == rows[:, None]).int().argmax(1))
        self.rows, self.base, self.other, self.kept = rows, ran.base, ran.other, ran.run.kept
        self.suffixes = SuffixRuns(ran.run, self.scorer.places[rows])
        self.where = self.runs.positions.mask[rows]
        if self.into_final:
            # What is not read of the final state need not be changed.
            self.where = torch.zeros_like(self.where).scatter(1, self.scorer.places[rows], True) & self.where
        if ran.run.is_causal:
            # Before the first token that differs, both runs are one: to give the other's values there changes nothing.
            places = torch.arange(self.where.shape[1], device=self.where.device)
            self.where = self.where & (places >= self.scorer.changes_at[rows][:, None])
        # Attention being frozen up to there, receivers read a change only where senders are patched.
        somewhere = self.where.any(0).nonzero()
        self.begin = 0 if not ran.run.is_causal else int(somewhere[0]) if len(somewhere) else self.suffixes.stop
        n_passed = self.scorer.places[rows].numel()
        if not self.into_final:
            n_passed = max(1, len(rows) * (self.suffixes.stop - self.begin))
        self.together = max(1, Budget.of(self.where.device).batch_tokens // n_passed)
        self.streams = {stage: stream[self.where] for stage, stream in ran.streams.items()}
        self.changed = {name: change[self.where] for name, change in ran.changed.items()}
        self.behind = {layer: given[self.where] for layer, given in ran.behind.items()}

    def _run(
        self, tokens: Tensor, wanted: Mapping[str, Reading] | Iterable[str] = (), *, of_other: bool = False, **more: Any
    ) -> Recording:
        """Run the prompts; of the final states only those are kept that are read."""
        options = self.runs.options(self.rows, of_other=of_other)
        with self._heads_apart():
            kept, final = record(self.model, tokens[self.rows], wanted, **options, **more)
        return Recording(kept, self.scorer.read(self.rows, final))

    @contextmanager
    def _heads_apart(self) -> Iterator[None]:
        """Let hooks see each head's keys and values, where a group shares them and one head's are to change."""
        before = self.cfg.ungroup_grouped_query_attention
        try:
            if any(receiver.input in ("k", "v") for receiver in self.receivers):
                self.cfg.ungroup_grouped_query_attention = True
            yield
        finally:
            self.cfg.ungroup_grouped_query_attention = before

    def finals(self, cells: Sequence[Cell]) -> Float[Tensor, "cell prompt read d_model"]:
        """Final states where they are read, each cell's senders patched into the receivers."""
        changes = self._changes(cells)
        if self.into_final:
            change = self.base.new_zeros(len(cells), *self.where.shape, self.cfg.d_model)
            change[:, self.where] = changes[self.last]
            return self.base + torch.stack([self.scorer.read(self.rows, each) for each in change])
        if self.begin >= self.suffixes.stop:
            return self.base.expand(len(cells), *self.base.shape)
        n, here = len(cells), slice(self.begin, self.suffixes.stop)
        site = self._entry_site
        kept = {
            name: value.repeat(n, *[1] * (value.ndim - 1))
            for name, value in self.suffixes.base.of_block(self.start, self._block.read_by_resumed(site)).items()
        }
        above: dict[str, list[Replacement]] = {}
        for receiver in self.receivers:
            assert receiver.component is not None
            value = self._received(receiver, changes[receiver.stage]).flatten(0, 1)
            if _input(receiver) == self.entry:
                Replacement(value, receiver.component.head).write(kept[site])
            else:
                replacement = Replacement(value[:, here], receiver.component.head)
                above.setdefault(_input(receiver), []).append(replacement)
        mask = self.suffixes.base.mask
        with self._heads_apart(), self.model.hooks(replacing(above)):
            mask = None if mask is None else mask.repeat(n, 1)
            stage, stream = self._block.resumed(site, kept[site], kept, here, mask)
            final = self.suffixes.finals(2 * self.start + stage, self.begin, stream, queries=bool(above))
        return final.unflatten(0, (n, -1))

    @property
    def _block(self) -> TransformerBlock:
        return cast(TransformerBlock, self.model.blocks[self.start])

    @property
    def _entry_site(self) -> str:
        """The name in the block of what the third pass begins with."""
        return self.entry.removeprefix(f"blocks.{self.start}.")

    # The second pass

    def _changes(self, cells: Sequence[Cell]) -> dict[int, Float[Tensor, "cell row d_model"]]:
        """Return the stream's difference from the base run's at each stage where a receiver reads."""
        wanted = {receiver.stage for receiver in self.receivers}
        reads = {mlp_stage(self.cfg, layer): layer for layer in self.mlps}
        arriving: dict[int, Tensor] = {}
        found = {}
        change = self.base.new_zeros(len(cells), int(self.where.sum()), self.cfg.d_model)
        moved = False
        for stage in range(self.last + 1):
            if stage in arriving:
                change += arriving.pop(stage)
            for number, cell in enumerate(cells):
                here = [sender for sender in cell if sender.stage == stage]
                if here:
                    change[number] += self._written(here)
                    moved = True
            if stage in wanted:
                found[stage] = change.clone()
            if stage in reads and moved:
                layer = reads[stage]
                written = self.blocks[layer].mlp_out(self.streams[stage] + change)
                more = written - self.kept[_mlp_out(layer)][self.where]
                for number, cell in enumerate(cells):
                    if any(sender.component == Component(layer, None) for sender in cell):
                        more[number] = 0  # it gives what it gave in the other run
                arriving[2 * layer + 2] = more
        return found

    def _written(self, senders: Sequence[Sender]) -> Float[Tensor, "row d_model"]:
        """Return what senders of one stage add to the stream in the other run, less what they add in the base run."""
        change: Any = sum(map(self._given, senders))
        part = senders[0].component
        if part is None or part.head is None or part.layer not in self.behind:
            return change
        # The norm behind attention gets all heads together, and its scale changes with them.
        norm, before = self.blocks[part.layer].ln1_post, self.behind[part.layer]
        return norm(before + change) - norm(before)

    def _given(self, sender: Sender) -> Float[Tensor, "row d_model"]:
        change, part = self.changed[_output(sender)], sender.component
        if part is None or part.head is None:
            return change
        return change[:, part.head] @ self.blocks[part.layer].attn.W_O[part.head]

    def _received(
        self, receiver: Receiver, change: Float[Tensor, "cell row d_model"]
    ) -> Float[Tensor, "cell prompt pos width"]:
        """Return what a receiver makes of what it reads: a head's queries, keys or values, or an MLP's output."""
        component, before, made = receiver.component, self.streams[receiver.stage], self.kept[_input(receiver)]
        assert component is not None
        block = self.blocks[component.layer]
        if component.head is None:
            made = made.repeat(len(change), 1, 1, 1)
            made[:, self.where] = block.mlp_out(before + change)
            return made
        made = made[:, :, component.head].repeat(len(change), 1, 1, 1)
        shown = made[:, self.where]
        made[:, self.where] = block.reprojected(receiver.input, component.head, shown, before, before + change)
        return made


class WholePaths(PathBlock):
    """The same by whole runs, two for each sender, so that every hook on the model sees what it always sees."""

    def _run_both(self, senders: Sequence[Sender]) -> None:
        self.together, self.where = 1, self.runs.positions.mask[self.rows]
        parts = all_components(self.cfg)
        names = {_stream(0), *map(hook_name, parts)}
        self.kept, self.base = self._run(self.runs.base, names)
        given, self.other = self._run(self.runs.other, names, of_other=True)
        if self.way is not None:
            given = {name: self.kept[name] + self._change(given[name] - self.kept[name]) for name in sorted(names)}
        self.given = given
        self.frozen = {hook_name(part) for part in parts if part.part != "mlp" or part.layer not in self.mlps}

    def alike(self, n_cells: int) -> Iterator[PathBlock]:
        """All prompts: a whole run gains nothing by what they have in common."""
        yield self

    def finals(self, cells: Sequence[Cell]) -> Float[Tensor, "cell prompt read d_model"]:
        """Final states where they are read, each cell's senders patched into the receivers."""
        return torch.stack([self._final(cell) for cell in cells])

    def _final(self, cell: Cell) -> Float[Tensor, "prompt read d_model"]:
        sent = {name: self.kept[name].clone() for name in map(_output, cell)}
        for sender in cell:
            name, part = _output(sender), _part(sender)
            sent[name][:, :, part][self.where] = self.given[name][:, :, part][self.where]
        given = {name: [Replacement(sent.get(name, self.kept[name]))] for name in self.frozen | sent.keys()}
        inputs = {receiver: _read(receiver) for receiver in self.receivers if receiver.component}
        recorded, final = self._run(self.runs.base, dict.fromkeys(inputs.values(), torch.clone), replaced=given)
        if self.into_final:
            return final
        received: dict[str, list[Replacement]] = {}
        for receiver, name in inputs.items():
            assert receiver.component is not None
            value = Replacement(recorded[name][:, :, _part(receiver)], receiver.component.head)
            received.setdefault(name, []).append(value)
        return self._run(self.runs.base, replaced=received).final


def _read(receiver: Receiver) -> str:
    """Return the hook point that shows what a receiver reads, before the norm."""
    assert receiver.component is not None
    return f"blocks.{receiver.component.layer}.hook_" + (f"{receiver.input}_input" if receiver.input else "mlp_in")


def _part(end: Sender | Receiver) -> int | slice:
    """Return the index of an end along its activation's third axis: a head, or all of the vector."""
    return slice(None) if end.component is None or end.component.head is None else end.component.head


def _stream(stage: int) -> str:
    return f"blocks.{stage // 2}.hook_resid_" + ("mid" if stage % 2 else "pre")


def _mlp_out(layer: int) -> str:
    return hook_name(Component(layer, None))


def _output(sender: Sender) -> str:
    """Return the hook point that shows what a sender writes; the embedding is all that enters the first layer."""
    return _stream(0) if sender.component is None else hook_name(sender.component)


def _input(receiver: Receiver) -> str:
    """Return the hook point that shows what a receiver makes of its input."""
    assert receiver.component is not None
    layer = receiver.component.layer
    return _mlp_out(layer) if receiver.component.head is None else f"blocks.{layer}.attn.hook_{receiver.input}"
