"""`measure_sequences`: the patterns of each head on the sequences that it is shown on, sparse and in thousandths."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.result import Array, Result
from headscope.analysis.recording.record import record
from headscope.analysis.storage.accumulator import Accumulator
from headscope.analysis.storage.manifest import fingerprint
from headscope.analysis.storage.options import StreamOptions, streaming
from headscope.analysis.storage.passes import Passes
from headscope.explorer.measuring.activity import HeadActivity, output_factors
from headscope.explorer.measuring.pattern_sums import Places
from headscope.explorer.measuring.rows import PickedRows
from headscope.model.names import post_scale_name
from headscope.model.transformer import HookedTransformer

__all__ = ["KEYS", "N_INTERVALS", "HeadSequences", "Shown", "chosen_sequences", "measure_sequences"]

N_INTERVALS = 10
KEYS = 8
"""The most keys that are kept of each query."""

_LEAST = 5  # thousandths
_READ = 24  # of the sampled sequences


@dataclass(frozen=True, order=True)
class Shown:
    """A sequence that a head is shown on.

    Attributes:
        layer: The head's layer.
        head: Its number there.
        interval: From 1 to `N_INTERVALS`, which holds the tenth of sequences in which the head is most active.
        is_top: It is one of those with the largest activation of all.
        sequence: Its number in the data.
    """

    layer: int
    head: int
    interval: int
    is_top: bool
    sequence: int


@dataclass(frozen=True, repr=False)
class HeadSequences(Result):
    """Patterns of heads on some sequences; an entry is a head on one of them.

    Attributes:
        entries: Layer, head, interval, 1 for one of the top, and the sequence's number, of each entry.
        keys: The keys that each query gives most, best first; -1 behind the last that gets `_LEAST` or more.
        thousandths: The attention they are given.
        norms: The norm of what the head writes at each position.
        activations: The largest of these, BOS and padding aside.
        largest: The largest attention to another token that is not the first.
        info: What was run on what.
    """

    kind: ClassVar[str] = "head_sequences"
    arrays: ClassVar[Mapping[str, Array]] = {
        "activations": Array("entry"),
        "norms": Array("entry pos"),
        "largest": Array("entry"),
        "entries": Array("entry field"),
        "keys": Array("key entry pos"),
        "thousandths": Array("key entry pos"),
    }
    columns: ClassVar[tuple[str, ...]] = ("activations", "largest")
    ranked: ClassVar[tuple[str, ...]] = ("activations",)
    entries: Int[Tensor, "entry field"]
    keys: Int[Tensor, "key entry pos"]
    thousandths: Int[Tensor, "key entry pos"]
    norms: Float[Tensor, "entry pos"]
    activations: Float[Tensor, " entry"]
    largest: Float[Tensor, " entry"]

    def of_head(self, layer: int, head: int) -> list[int]:
        """The entries of a head: the top ones first, then from the most active interval down."""
        found = (self.entries[:, :2] == torch.tensor([layer, head], device=self.entries.device)).all(-1)
        order = {at: tuple(self.entries[at, 2:].tolist()) for at in found.nonzero()[:, 0].tolist()}
        return sorted(order, key=lambda at: (-order[at][1], -order[at][0], -float(self.activations[at]), order[at][2]))


def chosen_sequences(activity: HeadActivity, n_top: int, n_typical: int) -> list[Shown]:
    """Choose the sequences that each head is shown on.

    Args:
        activity: What is known of all sequences.
        n_top: How many of the largest activation.
        n_typical: How many of each interval: those in its middle, of the sampled ones that are not among the top. Of
            those, the first `_READ` and the top ones of any head come before others, since each sequence that is shown
            has to be run again.
    """
    found: list[Shown] = []
    sampled = activity.sampled_sequences.tolist()
    first = {*sampled[:_READ], *activity.top_sequences[..., :n_top].flatten().tolist()}
    n_layers, n_heads = activity.top_norms.shape[:2]
    for layer in range(n_layers):
        for head in range(n_heads):
            top = [each for each in activity.top_sequences[layer, head].tolist() if each >= 0][:n_top]
            norms = activity.sampled_norms[:, layer, head].tolist()
            known = [(norm, number) for norm, number in zip(norms, sampled, strict=True) if norm == norm]
            ranked = [number for _, number in sorted(known)]
            found += [Shown(layer, head, N_INTERVALS, True, number) for number in top]
            for interval in range(1, N_INTERVALS + 1):
                within = ranked[len(ranked) * (interval - 1) // N_INTERVALS : len(ranked) * interval // N_INTERVALS]
                typical = [number for number in _from_the_middle(within, first) if number not in top][:n_typical]
                found += [Shown(layer, head, interval, False, number) for number in typical]
    return found


def _from_the_middle(numbers: list[int], first: set[int]) -> list[int]:
    """The same, those nearest the middle first; but some numbers before all others."""
    middle = (len(numbers) - 1) / 2
    order = sorted(range(len(numbers)), key=lambda at: (numbers[at] not in first, abs(at - middle), at))
    return [numbers[at] for at in order]


@streaming()
def measure_sequences(
    model: HookedTransformer, rows: PickedRows, shown: list[Shown], **run: Unpack[StreamOptions]
) -> HeadSequences:
    """Measure the patterns of heads on the sequences they are shown on.

    Cost: a forward pass over these rows, with patterns.

    Args:
        model: The model; hooks on it stay in force.
        rows: The sequences, and others.
        shown: Which head is shown on which.
        **run: Options of every run; see `StreamOptions`. The mask is that of the rows.
    """
    run["attention_mask"] = None
    wanted = torch.tensor(
        [[each.layer, each.head, each.interval, int(each.is_top), each.sequence] for each in shown], device="cpu"
    ).view(-1, 5)
    rows = rows.at(wanted[:, 4].tolist())
    options = {"shown": fingerprint({"shown": wanted}), "include_bos": run["include_bos"]}
    passes = Passes("head-sequences", model, rows.data, options, **run)
    if (finished := passes.finished(HeadSequences)) is not None:
        return finished
    return passes.finish("sequences", _SequenceAccumulator(model, options, passes.described, rows=rows, wanted=wanted))


class _SequenceAccumulator(Accumulator[HeadSequences]):
    """The patterns of some heads on each row; its rows are the entries, not those of the data."""

    def __init__(
        self,
        model: HookedTransformer,
        options: Any,
        data: str,
        *,
        rows: PickedRows,
        wanted: Int[Tensor, "entry 5"],
        **part: Any,
    ) -> None:
        super().__init__(model, options, data, **part)
        self.wanted = wanted
        self._row = torch.searchsorted(rows.numbers, wanted[:, 4].contiguous())
        self._factors = output_factors(model)

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Run a batch, and keep what the heads that are shown on its rows do there."""
        cfg = self.model.cfg
        row = self._row - self.n_before
        here = ((row >= 0) & (row < len(batch.tokens))).nonzero()[:, 0]
        kind = torch.promote_types(self.model.W_U.dtype, torch.float32)
        both_ways = cfg.attention_dir != "causal"
        places = Places(batch, self.n_before, cfg.n_ctx, both_ways=both_ways, dtype=kind)
        of_layer = {layer: here[self.wanted[here, 0] == layer] for layer in cfg.layers_with("attn")}
        of_layer = {layer: entries for layer, entries in of_layer.items() if len(entries)}
        readings: dict[str, Any] = {}
        for layer, entries in of_layer.items():
            at = row[entries].to(batch.tokens.device), self.wanted[entries, 1].to(batch.tokens.device)
            readings[f"blocks.{layer}.attn.hook_pattern"] = lambda pattern, at=at: _sparse(pattern, places, *at)
            readings[f"blocks.{layer}.attn.hook_z"] = lambda z, at=at, layer=layer: _norms(z, self._factors[layer], *at)
            readings[post_scale_name(layer)] = lambda scale, at=at: scale[at[0], :, 0]
        kept = record(self.model, batch.tokens, readings, attention_mask=batch.attention_mask).kept
        parts = []
        for layer, entries in of_layer.items():
            keys, thousandths, largest = kept[f"blocks.{layer}.attn.hook_pattern"]
            norms = kept[f"blocks.{layer}.attn.hook_z"]
            behind = kept.get(post_scale_name(layer))
            norms = norms if behind is None else norms / behind
            counted = batch.counted[row[entries].to(norms.device)]
            numbers = torch.stack([norms.masked_fill(~counted, 0).amax(-1), largest], -1)
            found = {"keys": keys, "thousandths": thousandths, "norms": norms, "numbers": numbers.float()}
            parts.append({**{name: each.cpu() for name, each in found.items()}, "entries": self.wanted[entries]})
        along = {"keys": 1, "thousandths": 1}
        rows = {name: torch.cat([each[name] for each in parts], along.get(name, 0)) for name in parts[0]}
        self.add(batch, int(batch.counted.sum()), rows=rows)

    def summary(self, rows: dict[str, Tensor]) -> HeadSequences:
        """Return all entries."""
        activations, largest = rows.pop("numbers").T.contiguous()
        return HeadSequences(self.info({}), activations=activations.clone(), largest=largest.clone(), **rows)


def _sparse(
    pattern: Float[Tensor, "row head query_pos key_pos"], places: Places, row: Tensor, head: Tensor
) -> tuple[Int[Tensor, "key entry pos"], Int[Tensor, "key entry pos"], Float[Tensor, " entry"]]:
    """The keys that each query gives most, in thousandths, and the largest attention to others."""
    weights = pattern[row, head].to(places.dtype)
    largest = (weights * places.to_others[row]).amax((-2, -1))
    n_missing = max(0, KEYS - weights.shape[-1])
    best, keys = torch.nn.functional.pad(weights, (0, n_missing)).topk(KEYS, -1)
    thousandths = (1000 * best).round().to(torch.int16)
    keys = keys.to(torch.int32).masked_fill(thousandths < _LEAST, -1)
    return keys.movedim(-1, 0), thousandths.masked_fill(keys < 0, 0).movedim(-1, 0), largest


def _norms(z: Tensor, factors: Tensor, row: Tensor, head: Tensor) -> Float[Tensor, "entry pos"]:
    """Norms of what the heads write on their rows."""
    return torch.einsum("npe,nef->npf", z[row, :, head].to(factors.dtype), factors[head]).norm(dim=-1).float()
