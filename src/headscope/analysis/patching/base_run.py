"""`SuffixRuns`: the end of a text run again from somewhere in the middle, with what stands before it kept.

Where no position looks ahead, a change at a position leaves everything before it as it was: of those positions later
ones need keys and values alone, which the unpatched run gave.
"""

import copy
from collections.abc import Collection, Iterable
from functools import cached_property
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.recording.record import Reading, record
from headscope.model.block import TransformerBlock
from headscope.model.hooks import is_own, is_plain
from headscope.model.transformer import HookedTransformer
from headscope.ops.indexing import at_positions

__all__ = ["BaseRun", "SuffixRuns", "obstacle", "way_of_running"]


def obstacle(model: HookedTransformer) -> str | None:
    """Return what keeps a model's runs from being taken up in the middle; `None` if every block and the rest allow it.

    Example:
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> obstacle(model)
        >>> with model.hooks([("blocks.1.attn.hook_z", lambda z, hook: None)]):
        ...     obstacle(model)
        'hooks on attn.hook_z of layer 1'
    """
    if model.cfg.n_devices > 1:
        return f"the model is spread over {model.cfg.n_devices} devices"
    for name, module in model.named_modules():
        if name.count(".") < 2 and not is_own(module):
            found = f"{type(module).__name__} in" if is_plain(module, type(module)) else "hooks on"
            return f"{found} {name or 'the model'}"
    for layer, block in enumerate(model.blocks):
        in_block = cast(TransformerBlock, block).obstacle
        if in_block is not None:
            return f"{in_block} of layer {layer}"
    return None


def way_of_running(model: HookedTransformer) -> str:
    """Return how patched runs of a model are made, in the words of results: `"suffix"`, or `"whole, for ..."`."""
    found = obstacle(model)
    return "suffix" if found is None else f"whole, for {found}"


class BaseRun:
    """One run, nothing patched, and what of it runs of later positions need.

    Args:
        model: One without an `obstacle`.
        tokens: `[batch, pos]`.
        names: The activations to keep.
        from_layer: The lowest layer that will be run again.
        watched: Hook points to watch as the other run's were: kernels may round otherwise when somebody looks, and what
            is equal in both runs is not run again if it is equal to the last bit.
        options: See `HookedTransformer.forward`: `attention_mask`, `padding_side`.

    Attributes:
        kept: The activations, by name.
        final: The final residual stream.
        is_causal: No position sees one behind it.
    """

    def __init__(
        self,
        model: HookedTransformer,
        tokens: Tensor,
        names: Collection[str],
        from_layer: int,
        *,
        watched: Iterable[str] = (),
        **options: Any,
    ) -> None:
        self.model = model
        first, _, self.positions, self.mask = model.input_to_embed(tokens, **options)
        self.batch, self.length = first.shape[:2]
        self.blocks = [cast(TransformerBlock, block) for block in model.blocks]
        self.is_causal = not any(block.looks_ahead(self.length) for block in self.blocks)
        layers = range(from_layer, len(self.blocks))
        before = {layer: self.blocks[layer].reads_before for layer in layers}
        wanted = {*names, *(f"blocks.{layer}.{name}" for layer in layers for name in before[layer])}
        # What is only watched is reduced to nothing.
        readings: dict[str, Reading] = {
            name: None if name in wanted else (lambda _: None) for name in wanted.union(watched)
        }
        self.kept, self.final = record(model, tokens, readings, **options)
        self._before = {layer: self.blocks[layer].before(self.of_block(layer, before[layer])) for layer in layers}

    @property
    def nbytes(self) -> int:
        """The bytes of all that is kept."""
        held = [self.final, *self.kept.values(), *(each for before in self._before.values() for each in before)]
        return sum(each.nbytes for each in held if each is not None)

    def of(self, rows: Int[Tensor, " row"]) -> "BaseRun":
        """Return the same of some rows of the batch."""
        part = copy.copy(self)
        part.batch, part.final = len(rows), self.final[rows]
        part.positions, part.mask = (None if each is None else each[rows] for each in (self.positions, self.mask))
        part.kept = {name: each[rows] for name, each in self.kept.items() if each is not None}
        part._before = {layer: tuple(each[rows] for each in before) for layer, before in self._before.items()}
        return part

    def of_block(self, layer: int, names: Iterable[str]) -> dict[str, Tensor]:
        """Return kept activations of a layer, by their names in the block."""
        return {name: self.kept[f"blocks.{layer}.{name}"] for name in names}

    def before(self, layer: int) -> tuple[Tensor, ...]:
        """Return what a layer's runs of later positions need of earlier ones."""
        return self._before[layer]


class SuffixRuns:
    """Runs from the middle of a `BaseRun` on, several of them one behind the other as rows of one batch.

    Args:
        base: The unpatched run.
        places: `[batch, read]`, the positions whose final states are wanted; `None` for all from the start of a run on.

    Attributes:
        stop: Positions from here on count for nothing that is read.
    """

    def __init__(self, base: BaseRun, places: Int[Tensor, "batch read"] | None) -> None:
        self.base, self.places = base, places
        self.n_layers = len(base.blocks)
        reads_to = base.length if places is None else int(places.max()) + 1
        # Of a padded text no more than one token may be left, and angles may depend on how many there are.
        shortest = reads_to if base.mask is None else 1
        cut = base.is_causal and not any(block.depends_on_length(shortest, base.length) for block in base.blocks)
        self.stop = reads_to if cut else base.length

    def through(
        self, layer: int, start: int, stream: Tensor, *, queries: bool = False
    ) -> Float[Tensor, "row position d_model"]:
        """Streams that begin at `start` through a layer; behind the last one, only what is read of them.

        Args:
            layer: The layer.
            start: The first position.
            stream: The streams before it.
            queries: Make the last layer's queries and MLP at all positions, for hooks there that set them.
        """
        base, times = self.base, len(stream) // self.base.batch
        is_last = layer == self.n_layers - 1
        query_at = self._read_at(start, times) if is_last and not queries and self._reads_fewer(start) else None
        stream = base.blocks[layer].suffix(
            stream,
            start,
            base.before(layer),
            shortformer_pos_embed=None
            if base.positions is None
            else base.positions[:, start : self.stop].repeat(times, 1, 1),
            attention_mask=None if base.mask is None else base.mask[:, : self.stop].repeat(times, 1),
            query_at=query_at,
        )
        if not is_last:
            return stream
        return self.read(start, stream) if query_at is None else self._unless_before(start, stream)

    def through_mlp(self, layer: int, start: int, stream: Tensor) -> Float[Tensor, "row position d_model"]:
        """The same from between attention and MLP."""
        if layer < self.n_layers - 1:
            return self.base.blocks[layer].after_mid(stream)
        return self._unless_before(start, self.base.blocks[layer].after_mid(self._taken(start, stream)))

    def read(self, start: int, stream: Tensor) -> Float[Tensor, "row position d_model"]:
        """The positions of final states from `start` on that are read; all of them, if nobody says which."""
        return self._unless_before(start, self._taken(start, stream))

    def finals(
        self, stage: int, start: int, stream: Tensor, *, queries: bool = False
    ) -> Float[Tensor, "row position d_model"]:
        """Final states where they are read, from `2 * layer` (before it) on, or one more (behind its attention)."""
        layer = stage // 2
        if stage % 2:
            stream, layer = self.through_mlp(layer, start, stream), layer + 1
        elif layer == self.n_layers:
            return self.read(start, stream)
        for each in range(layer, self.n_layers):
            stream = self.through(each, start, stream, queries=queries)
        return stream

    @cached_property
    def unpatched(self) -> Float[Tensor, "batch position d_model"]:
        """The unpatched run's final states where they are read."""
        return self._taken(0, self.base.final)

    def _reads_fewer(self, start: int) -> bool:
        return self.places is not None and self.places.shape[1] < self.stop - start

    def _taken(self, start: int, stream: Tensor) -> Float[Tensor, "row position d_model"]:
        """The positions that are read of streams that begin at `start`; the first for those before it."""
        if self.places is None:
            return stream
        return at_positions(stream, self._read_at(start, len(stream) // self.base.batch) - start)

    def _read_at(self, start: int, times: int) -> Int[Tensor, "row read"]:
        assert self.places is not None
        return self.places.clamp(min=start).repeat(times, 1)

    def _unless_before(self, start: int, states: Tensor) -> Float[Tensor, "row position d_model"]:
        """Final states that were read, those before `start` from the unpatched run."""
        if self.places is None or bool((self.places >= start).all()):
            return states
        times = len(states) // self.base.batch
        return torch.where(
            (self.places < start).repeat(times, 1)[..., None], self.unpatched.repeat(times, 1, 1), states
        )
