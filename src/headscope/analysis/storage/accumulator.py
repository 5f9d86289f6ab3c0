"""`Accumulator`: sums, counts, summaries and rows over a stream of batches, the same for every analysis.

An analysis says what a batch gives (`update`) and what becomes of it all (`summary`). Stopping, going on, and adding
up what several processes measured is the base's, and so the same for all: sums are kept in float64 and never changed in
place, so that a `state()` that was handed out stays what it was.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.result import RunInfo
from headscope.analysis.core.summaries import SUMMARIES, Summary
from headscope.analysis.storage.manifest import fingerprint
from headscope.errors import InvalidInputError
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import wide
from headscope.ops.kernels.dispatch import kernels_of

__all__ = [
    "Accumulator",
    "Measure",
    "Totals",
    "added",
    "as_mapping",
    "flat_summaries",
    "join_rows",
    "joined_summaries",
    "split_summaries",
]

T = TypeVar("T")
Measure = Callable[[Batch, int], Mapping[str, Tensor]]
_KINDS = {kind: name for name, kind in SUMMARIES.items()}


class Accumulator(ABC, Generic[T]):
    """Adds up what an analysis measures, batch by batch.

    Args:
        model: The model.
        options: The options that the numbers depend on, as a dataclass or a mapping.
        data: What the data is, in words.
        against: Tensors that the numbers depend on besides, such as component means from a pass before.
        begins_at: Number of rows of the data that come before this part of it, where it is one part of several.

    Attributes:
        n_sequences: Rows gone through.
        n_positions: Positions that count, of which there must be some for a result.
        sums: Sums over batches, by name; new tensors after each batch.
        summaries: What is kept of all batches in a bounded size, such as the largest values, by name.
    """

    predicting: ClassVar[bool] = False  # a position counts if a token comes next

    def __init__(
        self,
        model: HookedTransformer,
        options: Any,
        data: str = "",
        *,
        against: Mapping[str, Tensor] | None = None,
        begins_at: int = 0,
    ) -> None:
        self.model, self.options, self.data = model, options, data
        self.against = against or {}
        self.begins_at = begins_at
        self.n_sequences = self.n_positions = 0
        self.sums: dict[str, Tensor] = {}
        self.summaries: dict[str, Summary] = {}
        self._kept: list[Mapping[str, Tensor]] = []

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Measure a batch, and `add` what it gives."""

    @abstractmethod
    def summary(self, rows: dict[str, Tensor]) -> T:
        """Return what the sums and the joined rows come to; at least one position counted."""

    def result(self, rows: Mapping[str, Tensor] | None = None) -> T:
        """Return what was measured so far.

        Args:
            rows: What `take_rows` gave out before, joined.

        Raises:
            InvalidInputError: if no position counted.
        """
        if self.n_positions == 0:
            why = "each is padding, BOS, or the last of its row" if self.predicting else "every token is padding or BOS"
            raise InvalidInputError(
                f"no position counts: {why}. Give longer rows, or include_bos=True.", code="HS-RUN-09"
            )
        return self.summary(join_rows([rows, *self._kept] if rows else self._kept))

    @property
    def n_before(self) -> int:
        """Number of rows of the data before the next batch."""
        return self.begins_at + self.n_sequences

    def add(
        self,
        batch: Batch,
        n_positions: int,
        sums: Mapping[str, Tensor] | None = None,
        rows: Mapping[str, Tensor] | None = None,
        summaries: Mapping[str, Summary] | None = None,
    ) -> None:
        """Add what a batch gave.

        Args:
            batch: The batch.
            n_positions: How many of its positions count.
            sums: By name; floating-point ones are added in float64.
            rows: Results `[..., batch, pos]`, kept as they are.
            summaries: What is kept of it, with rows counted from the start of the data (`n_before`).
        """
        self.sums = added(self.sums, sums or {})
        self.summaries = joined_summaries(self.summaries, summaries or {})
        if rows:
            self._kept.append(rows)
        self.n_sequences += len(batch.tokens)
        self.n_positions += n_positions

    def merge(self, other: Self) -> None:
        """Add what another accumulator has seen, as if it came after.

        Raises:
            InvalidInputError: if the other measured something else, with other options, or against other means.
        """
        if type(other) is not type(self) or as_mapping(self.options) != as_mapping(other.options):
            raise InvalidInputError(
                f"only parts of one run are merged; these are {type(self).__name__} with {self.options} and "
                f"{type(other).__name__} with {other.options}."
            )
        if self.against is not other.against and fingerprint(self.against) != fingerprint(other.against):
            raise InvalidInputError(
                f"only parts of one run are merged, and these {type(self).__name__}s were measured against different "
                f"{' and '.join(sorted({*self.against, *other.against})[:3])}, ... Make these once, for all parts."
            )
        self.sums = added(self.sums, other.sums)
        self.summaries = joined_summaries(self.summaries, other.summaries)
        self._kept += other._kept
        self.n_sequences += other.n_sequences
        self.n_positions += other.n_positions

    def state(self) -> dict[str, Any]:
        """Return all that was accumulated and not taken, flat: tensors, and numbers that JSON keeps."""
        rows = {f"rows.{name}": values for name, values in join_rows(self._kept).items()}
        return {
            "n_sequences": self.n_sequences,
            "n_positions": self.n_positions,
            **self.sums,
            **flat_summaries(self.summaries),
            **rows,
        }

    def restore(self, state: Mapping[str, Any]) -> Self:
        """Go on from a `state()`; an empty one is the start. Returns itself."""
        self.n_sequences, self.n_positions = state.get("n_sequences", 0), state.get("n_positions", 0)
        self.summaries, state = split_summaries(state)
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        rows = {name.removeprefix("rows."): value for name, value in tensors.items() if name.startswith("rows.")}
        self.sums = {name: value for name, value in tensors.items() if not name.startswith("rows.")}
        self._kept = [rows] if rows else []
        return self

    @classmethod
    def from_state(cls, state: Mapping[str, Any], *args: Any, **options: Any) -> Self:
        """Make an accumulator, with the arguments of the class, that goes on from a `state()`."""
        return cls(*args, **options).restore(state)

    def take_rows(self) -> dict[str, Tensor]:
        """Hand over the rows since the last time, `[..., batch, pos]` each, and forget them."""
        rows, self._kept = join_rows(self._kept), []
        return rows

    @property
    def kernels(self) -> str:
        """The name of the kernels that reduce this model's logits over the vocabulary: see `ops.kernels`."""
        return kernels_of(self.model.W_U)

    def info(self, options: Mapping[str, Any]) -> RunInfo:
        """Return what was run on what, for a result, with the options that it shows."""
        shown = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
        processing = self.model.weight_processing
        return RunInfo(self.model.cfg.model_name, processing, self.data, self.n_sequences, self.n_positions, shown)


class Totals(Accumulator[dict[str, Tensor]]):
    """Sums of what a function measures, given a batch and the number of rows before it."""

    def __init__(self, model: HookedTransformer, measure: Measure) -> None:
        super().__init__(model, {})
        self.measure = measure

    def update(self, batch: Batch) -> None:
        """Measure a batch and add it in."""
        self.add(batch, int(batch.counted.sum()), self.measure(batch, self.n_before))

    def summary(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums."""
        return self.sums


def added(sums: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add tensors to those of the same names, floating-point ones in float64, without changing any in place."""
    totals = dict(sums)
    for name, values in more.items():
        values = wide(values) if values.is_floating_point() else values
        totals[name] = totals[name].to(values.device) + values if name in totals else values
    return totals


def joined_summaries(summaries: Mapping[str, Summary], more: Mapping[str, Summary]) -> dict[str, Summary]:
    """Merge the summaries of the same names."""
    before: Mapping[str, Any] = summaries
    return {**summaries, **{name: before[name].merged(each) if name in before else each for name, each in more.items()}}


def flat_summaries(summaries: Mapping[str, Summary]) -> dict[str, Tensor]:
    """Return summaries as tensors of a state, with their kinds in the names."""
    return {
        f"{_KINDS[type(summary)]}.{name}.{of}": value
        for name, summary in summaries.items()
        for of, value in summary.tensors().items()
    }


def split_summaries(state: Mapping[str, Any]) -> tuple[dict[str, Summary], dict[str, Any]]:
    """Return the summaries of a state, and the rest of it."""
    rest = {name: value for name, value in state.items() if name.partition(".")[0] not in SUMMARIES}
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for path in state.keys() - rest.keys():
        kind, _, place = path.partition(".")
        name, _, of = place.rpartition(".")
        found.setdefault((name, kind), {})[of] = state[path]
    return {name: SUMMARIES[kind](**tensors) for (name, kind), tensors in sorted(found.items())}, rest


def as_mapping(options: Any) -> dict[str, Any]:
    """Options, given as a dataclass or a mapping, by name."""
    return asdict(options) if is_dataclass(options) and not isinstance(options, type) else dict(options)


def join_rows(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join results per position one after another: tensors `[..., batch, pos]`, shorter ones filled up with NaN.

    Whole numbers, such as tokens, are filled up with -1.

    Example:
        >>> join_rows([{"a": torch.zeros(1, 2)}, {"a": torch.ones(2, 3)}])["a"]
        tensor([[0., 0., nan],
                [1., 1., 1.],
                [1., 1., 1.]])
    """
    if len(parts) < 2:
        return {name: tensor for part in parts for name, tensor in part.items()}
    joined = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        longest = max(tensor.shape[-1] for tensor in tensors)
        n_rows = sum(tensor.shape[-2] for tensor in tensors)
        fill = torch.nan if tensors[0].is_floating_point() else -1
        joined[name] = tensors[0].new_full((*tensors[0].shape[:-2], n_rows, longest), fill)
        at = 0
        for tensor in tensors:
            joined[name][..., at : at + tensor.shape[-2], : tensor.shape[-1]] = tensor
            at += tensor.shape[-2]
    return joined
