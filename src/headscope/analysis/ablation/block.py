"""The predictions of one batch with components ablated: the work behind `ablate_heads`.

One clean run keeps what enters each layer and what each component writes. A direct effect changes the final state
only. A patched run resumes at the first layer it changes, several runs side by side, and all of a batch's changed
predictions are reduced over the vocabulary beside the clean one, which is made once for them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.components import Component
from headscope.analysis.core.costs import run_operations
from headscope.analysis.core.progress import progress_bar
from headscope.analysis.recording.by_hand import check_heads_add_up, check_readout, layers_between
from headscope.analysis.recording.record import CleanRun, Replacement, clean_prediction, hook_name, record
from headscope.errors import NotFiniteError
from headscope.model.activations.readout import readout_of
from headscope.model.hooks import is_listening
from headscope.model.names import post_scale_name
from headscope.model.transformer import HookedTransformer
from headscope.ops.arrays import stack_padded
from headscope.ops.changed_predictions import ChangedPredictions, HeadChanges, RowChanges, compare
from headscope.ops.devices import Budget, give_back_freed, sums_device

__all__ = ["AblatedBatch", "BatchAblation", "Plan"]

# Value, effect and set, by number.
Cell = tuple[int, int, int]


@dataclass(frozen=True)
class Plan:
    """The ablations to measure.

    Attributes:
        sets: Components that are ablated together.
        values: What is put in their place.
        effects: Along which paths.
        excluded: Heads that keep their clean output in indirect effects.
        frozen: Whether direct and indirect effects keep the clean final norm's scale. That of a norm behind attention
            they always keep.
    """

    sets: tuple[tuple[Component, ...], ...]
    values: tuple[str, ...]
    effects: tuple[str, ...]
    excluded: tuple[Component, ...]
    frozen: bool

    @property
    def parts(self) -> frozenset[Component]:
        """All components that are ablated."""
        return frozenset(component for together in self.sets for component in together)

    @property
    def reads(self) -> frozenset[Component]:
        """All components whose clean output is needed."""
        return self.parts | (frozenset(self.excluded) if "indirect" in self.effects else frozenset())

    @property
    def resumes(self) -> tuple[int, ...]:
        """Layers at which patched runs resume."""
        return () if self.effects == ("direct",) else tuple(sorted({min(each).layer for each in self.sets}))


@dataclass(frozen=True)
class AblatedBatch:
    """Losses at the positions that predict, in nats.

    Attributes:
        loss: Of the model as it is.
        loss_diff: Ablated minus original.
        kl: From the clean prediction to the ablated one.
    """

    loss: Float[Tensor, " n"]
    loss_diff: Float[Tensor, "value effect set n"]
    kl: Float[Tensor, "value effect set n"]


class BatchAblation:
    """One batch, and everything that is done to it.

    Args:
        model: The model.
        batch: The batch.
        plan: What to measure.
        run: What the batch gave, of all that the plan's `reads` and `resumes` name.
        instead: What takes the place of each component's output, for each value.
    """

    def __init__(
        self,
        model: HookedTransformer,
        batch: Batch,
        plan: Plan,
        run: CleanRun,
        instead: Mapping[str, Mapping[Component, Tensor]],
    ) -> None:
        self.model, self.batch, self.plan, self.run, self.instead = model, batch, plan, run, instead
        self.budget = Budget.of(batch.tokens.device)
        # Places rather than a mask, which the host would wait for at every use.
        rows, columns = batch.predicting().nonzero(as_tuple=True)
        self.where = rows, columns
        self.readout = readout_of(model)
        layers = {part.layer for part in plan.parts if part.head is not None}
        self.weights = {layer: model.output_weight(layer) for layer in layers}
        self.kind = torch.promote_types(run.final.dtype, torch.float32)
        self.final = run.final[self.where].to(self.kind)
        self.scale = self.readout.scale(self.final)
        check_readout(model, run.final, self.where)
        if set(plan.effects) & {"direct", "indirect"}:
            self._check_heads()
        self.clean = clean_prediction(self.readout, batch, self.where, self.final)
        shape = len(plan.values), len(plan.effects), len(plan.sets), len(self.final)
        self.loss = torch.zeros(shape[-1], dtype=torch.float64, device=sums_device(self.final.device))
        self.changed_loss = torch.zeros_like(self.loss).expand(shape).clone()
        self.kl = torch.zeros_like(self.changed_loss)

    def measure(self, progress: bool) -> AblatedBatch:
        """Measure every value, effect and set of the plan, with a progress bar of the patched runs if asked for."""
        heads = self._direct_heads()
        for cells, rows in self._held(self._changed_rows(progress)):
            # A few heads' direct effects go through the vocabulary beside the first rows; many would take their room.
            is_few = len(heads) == 1 and len(heads[0]) * len(self.plan.values) <= len(rows)
            beside = [self._head_changes(heads.pop())] if is_few else []
            compared = compare(self.clean, RowChanges(self.clean.rows, rows), *(changes for _, changes in beside))
            for some, changed in zip([cells, *(each for each, _ in beside)], compared, strict=True):
                self._note(some, changed)
            del rows, beside
        for sets in heads:
            direct, change = self._head_changes(sets)
            self._note(direct, compare(self.clean, change)[0])
        if not bool(self.changed_loss.isfinite().all()):
            raise NotFiniteError(
                "an ablated prediction is not finite, though the clean final state is. Check the weights after the "
                "ablated components, the final norm and the unembedding.",
                code="HS-FINITE-02",
            )
        return AblatedBatch(self.loss, self.changed_loss - self.loss, self.kl)

    def _changed_rows(self, progress: bool) -> Iterator[tuple[Cell, Tensor]]:
        """Final states that are changed as a whole, normalized, each with the cell of the result it belongs to."""
        effects = self.plan.effects
        if effects != ("direct",):
            yield from self._patched_rows(progress)
        if "direct" in effects:
            effect, sets, values = effects.index("direct"), self.plan.sets, self.plan.values
            for at, together in enumerate(sets):
                if not self._is_low_rank(together):
                    for value, name in enumerate(values):
                        yield (value, effect, at), self._normalized(self.final - self._contribution(together, name))

    def _note(self, cells: Sequence[Cell], found: ChangedPredictions) -> None:
        self.loss = found.loss
        # All cells at once: each of its own is a launch on a GPU.
        at = tuple(torch.tensor(axis, device=self.kl.device) for axis in zip(*cells, strict=True))
        self.changed_loss[at] = found.changed_loss
        self.kl[at] = found.kl

    def _held(self, cells: Iterable[tuple[Cell, Tensor]]) -> Iterator[tuple[list[Cell], Tensor]]:
        """Yield rows of some cells together, each time in the same memory."""
        n_values, n_effects, n_sets, n = self.kl.shape
        at_once = max(1, min(n_values * n_effects * n_sets, self.budget.held_rows // max(n, 1)))
        held: list[Cell] = []
        room = self.final.new_empty(at_once, *self.final.shape)
        for cell, rows in cells:
            room[len(held)] = rows
            held.append(cell)
            if len(held) == at_once:
                give_back_freed()
                yield held, room
                held = []
        if held:
            yield held, room[: len(held)]

    # Direct effects

    def _check_heads(self) -> None:
        """Refuse layers of which the stream gets something else than `z W_O` of each head."""
        for layer in layers_between(self.model, self.weights):
            z, attn_out = (self.run.written[f"blocks.{layer}.{name}"] for name in ("attn.hook_z", "hook_attn_out"))
            scale = self.run.written.get(post_scale_name(layer))
            scale = None if scale is None else scale[self.where]
            check_heads_add_up(self.model, layer, z[self.where].transpose(0, 1), attn_out[self.where], scale)

    def _taken(self, component: Component, value: str) -> Float[Tensor, "n width"]:
        """Return what a component's output loses where it is ablated, at the positions that predict."""
        left = self.run.output(component) - self.instead[value][component]
        return self.run.onto_stream(component, left)[self.where].to(self.kind)

    def _contribution(self, together: Iterable[Component], value: str) -> Float[Tensor, "n d_model"]:
        """Return what the stream loses."""
        total = torch.zeros_like(self.final)
        for component in together:
            taken = self._taken(component, value)
            total += taken if component.head is None else taken @ self._W_O(component)
        return total

    def _W_O(self, component: Component) -> Float[Tensor, "d_head d_model"]:
        assert component.head is not None
        return self.weights[component.layer][component.head].to(self.kind)

    def _normalized(self, state: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """A changed final state as the unembedding reads it."""
        if not self.plan.frozen:
            return self.readout.normalize(state)
        return self.clean.rows + self.readout.direction(state - self.final) / self.scale

    def _is_low_rank(self, together: tuple[Component, ...]) -> bool:
        return len(together) == 1 and together[0].head is not None and self.plan.frozen

    def _direct_heads(self) -> list[list[int]]:
        """Return the sets that are one head whose direct effect has low rank, as many together as can be held."""
        if "direct" not in self.plan.effects:
            return []
        low_rank = [at for at, together in enumerate(self.plan.sets) if self._is_low_rank(together)]
        step = max(1, self.budget.held_rows * 12 // max(1, len(self.plan.values) * len(self.final)))
        return [low_rank[start : start + step] for start in range(0, len(low_rank), step)]

    def _head_changes(self, some: Sequence[int]) -> tuple[list[Cell], HeadChanges]:
        """Return the direct effects of some of these sets, with their cells."""
        values, effect = self.plan.values, self.plan.effects.index("direct")
        heads = [self.plan.sets[at][0] for at in some]
        W_O = self.readout.direction(stack_padded([self._W_O(head) for head in heads]))
        # In the order of memory that the products read, as they would else be copied.
        taken = self.final.new_zeros(len(heads), len(values), len(self.final), W_O.shape[1]).transpose(0, 1)
        for value, name in enumerate(values):
            for into, head in zip(taken[value], heads, strict=True):
                part = self._taken(head, name)
                torch.div(part, self.scale, out=into[:, : part.shape[1]])
        cells = [(value, effect, at) for value in range(len(values)) for at in some]
        return cells, HeadChanges(taken, W_O)

    # Patched runs

    def _patched_rows(self, progress: bool) -> Iterator[tuple[Cell, Tensor]]:
        """Final states of patched runs, normalized."""
        plan = self.plan
        apart = bool(plan.excluded) and "indirect" in plan.effects
        runs = [
            (at, value, excluding)
            for at in sorted(range(len(plan.sets)), key=lambda at: min(plan.sets[at]).layer)
            for value in range(len(plan.values))
            for excluding in ((False,) if "patched" in plan.effects or not apart else ()) + ((True,) if apart else ())
        ]
        n_tokens = self.batch.tokens.numel()
        listeners = any(is_listening(point) for point in self.model.hook_points())
        # A hook of the user's may count on the batch it was made for.
        together = 1 if listeners else max(1, self.budget.batch_tokens // n_tokens)
        starts = [min(plan.sets[at]).layer for at, _, _ in runs]
        costs = [run_operations(self.model, layer) for layer in range(self.model.cfg.n_layers)]
        with progress_bar(sum(costs[start] for start in starts), "patched runs", shown=progress) as bar:
            at = 0
            while at < len(runs):
                start = starts[at]
                group = [run for run in runs[at : at + together] if min(plan.sets[run[0]]).layer == start]
                for run, final in zip(group, self._patched_finals(start, group), strict=True):
                    yield from self._cells(run, final[self.where].to(self.kind), apart)
                at += len(group)
                bar.update(len(group) * costs[start])

    def _cells(self, run: tuple[int, int, bool], final: Tensor, apart: bool) -> Iterator[tuple[Cell, Tensor]]:
        at, value, excluding = run
        effects = self.plan.effects
        if "patched" in effects and not excluding:
            yield (value, effects.index("patched"), at), self.readout.normalize(final)
        if "indirect" in effects and excluding == apart:
            restored = final + self._contribution(self.plan.sets[at], self.plan.values[value])
            yield (value, effects.index("indirect"), at), self._normalized(restored)

    def _patched_finals(self, start: int, group: list[tuple[int, int, bool]]) -> Sequence[Tensor]:
        """Final states of runs that resume at the same layer, made side by side."""
        n_rows = len(self.batch.tokens)
        replaced: dict[str, list[Replacement]] = {}
        for number, (at, value, excluding) in enumerate(group):
            rows = slice(number * n_rows, (number + 1) * n_rows)
            chosen = {component: self.instead[self.plan.values[value]][component] for component in self.plan.sets[at]}
            kept = {head: self.run.output(head) for head in self.plan.excluded if excluding and head.layer >= start}
            for component, instead in {**kept, **chosen}.items():
                replacement = Replacement(instead, component.head, rows)
                replaced.setdefault(hook_name(component), []).append(replacement)
        mask = self.batch.attention_mask
        run = record(
            self.model,
            self.run.resid[start].repeat(len(group), 1, 1),
            replaced=replaced,
            start_at_layer=start,
            tokens=self.batch.tokens.repeat(len(group), 1),
            attention_mask=None if mask is None else mask.repeat(len(group), 1),
        )
        return run.final.split(n_rows)
