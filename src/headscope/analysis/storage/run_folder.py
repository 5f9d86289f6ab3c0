"""Runs that outlive their process: an accumulator's state on disk, and the way back to it.

A folder (`Passes(out=...)`) holds one run of one analysis:

- `manifest.json`: what is run on what. Nothing else is ever continued in this folder.
- `<stage>.safetensors`: for each pass over the data, the accumulator's state after the last flush, how many batches it
  counts, and a chained hash of their tokens.
- `<stage>-rows-000000.safetensors`, ...: results per position, one file for each flush, until the result is whole.
- `result.safetensors`: the result.

Every file is written beside its place, forced to the disk and renamed, and a state is written after the rows it
counts: a process may die at any moment, and what it leaves is the run as it was at a flush. To resume, the data is
gone through again from its start; what was counted is hashed and compared instead of measured.

The analysis brings an `Accumulator`; `accumulate` drives it, with a folder or without.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.storage.accumulator import Accumulator, join_rows
from headscope.analysis.storage.manifest import START_ANEW, fingerprint
from headscope.errors import CheckpointError, InvalidInputError, StorageError
from headscope.model.checkpoints.files import TensorFiles, read_metadata, write_tensors

__all__ = ["Stage", "accumulate", "check_folder", "writing"]

A = TypeVar("A", bound=Accumulator[Any])

# The longest that is measured without a write, and so lost to a kill: well within 30 seconds with a slow batch.
_SECONDS = 20.0


def accumulate(batches: Iterable[Batch], accumulator: A, *, stage: "Stage | None" = None, flush_every: int = 20) -> A:
    """Go through batches with an accumulator, keeping its state on disk where there is a `stage`.

    Args:
        batches: The data, from its start. Untouched if the stage is finished.
        accumulator: A new one, which is returned.
        stage: Where the state is kept; its rows are then found there too, not in the accumulator.
        flush_every: How many batches are measured between two writes; 20 seconds after one there is another anyway.

    Raises:
        InvalidInputError: if the data is not that of the run that is resumed.
        StorageError: if the state cannot be written. The one before stands.
    """
    if stage is None:
        for batch in batches:
            accumulator.update(batch)
        return accumulator
    accumulator.restore(stage.state or {})
    if stage.done.finished:
        return accumulator
    trail, n_done, written = _Trail(), stage.done.n_batches, time.monotonic()
    rows: list[dict[str, Tensor]] = []
    held: tuple[_Done, dict[str, Any], list[dict[str, Tensor]]] | None = None
    try:
        for batch in batches:
            trail.add(batch)
            stage.check(trail)
            if trail.n_batches <= n_done:
                continue
            accumulator.update(batch)
            rows = [*rows, accumulator.take_rows()]
            # In one assignment, so that an interrupt finds all of a batch or nothing of it.
            held = trail.noted(), accumulator.state(), rows
            due = trail.n_batches - stage.done.n_batches >= flush_every
            if due or time.monotonic() - written > _SECONDS:
                stage.flush(*held)
                held, rows, written = None, [], time.monotonic()
    except KeyboardInterrupt:
        if held is not None:
            stage.flush(*held)
        raise
    stage.check_end(trail)
    stage.flush(trail.noted(finished=True), accumulator.state(), rows)
    return accumulator


@dataclass(frozen=True)
class _Done:
    """Progress of a pass over the data.

    Attributes:
        marks: The hash of all tokens after some numbers of batches: the powers of two, and the last.
    """

    n_batches: int = 0
    n_tokens: int = 0
    n_shards: int = 0
    marks: Mapping[int, str] = field(default_factory=dict)
    finished: bool = False


class _Trail:
    """A hash that chains the batches gone through."""

    def __init__(self) -> None:
        self.n_batches = self.n_tokens = 0
        self.digest = ""
        self._marks: dict[int, str] = {}

    def add(self, batch: Batch) -> None:
        tensors = {"tokens": batch.tokens, "counted": batch.counted}
        if batch.attention_mask is not None:
            tensors["attention_mask"] = batch.attention_mask
        self.digest = fingerprint(tensors, self.digest)
        self.n_batches += 1
        self.n_tokens += batch.tokens.numel()
        if self.n_batches & (self.n_batches - 1) == 0:
            self._marks[self.n_batches] = self.digest

    def noted(self, *, finished: bool = False) -> _Done:
        marks = {**self._marks, **({self.n_batches: self.digest} if self.n_batches else {})}
        return _Done(self.n_batches, self.n_tokens, 0, marks, finished)


class Stage:
    """One pass over the data, as it is on disk.

    Args:
        folder: The run's folder.
        name: Of the pass; its files begin with it.
        after: An earlier pass over the same data.

    Attributes:
        done: How far it has come.
        state: The accumulator's state at that point; `None` if nothing was flushed yet.

    Raises:
        CheckpointError: if the state on disk is damaged.
    """

    def __init__(self, folder: Path, name: str, *, after: "Stage | None" = None) -> None:
        self.folder = folder
        self.name = name
        self.path = folder / f"{name}.safetensors"
        self.done = _Done()
        self.state: dict[str, Any] | None = None
        if self.path.exists():
            self.done, self.state = _read_state(self.path)
        self._length = after.done.n_batches if after is not None else None
        self._expected = {**(after.done.marks if after is not None else {}), **self.done.marks}

    def check(self, trail: _Trail) -> None:
        """Refuse data that is not what an earlier pass, or process, went through."""
        if self._expected.get(trail.n_batches, trail.digest) != trail.digest:
            raise InvalidInputError(
                f"the data is not that of the run in {str(self.folder)!r}: the first {trail.n_batches} batches hash to "
                f"{trail.digest[:12]} now and to {self._expected[trail.n_batches][:12]} there. Give the same data in "
                "the same order and batches (no shuffling), or another folder."
            )

    def check_end(self, trail: _Trail) -> None:
        """Refuse data that is shorter than what was gone through before, or not as long as in an earlier pass."""
        wanted = self.done.n_batches if self._length is None else self._length
        if trail.n_batches < wanted or (self._length is not None and trail.n_batches != wanted):
            raise InvalidInputError(
                f"the data is not that of the run in {str(self.folder)!r}: it ends after {trail.n_batches} batches, "
                f"and {wanted} were gone through there. Give the same data, or another folder."
            )

    def flush(self, done: _Done, state: Mapping[str, Any], rows: Sequence[dict[str, Tensor]]) -> None:
        """Write rows, then the state that counts them."""
        if (done.n_batches, done.finished) == (self.done.n_batches, self.done.finished):
            return
        shard = self._shard(self.done.n_shards)
        joined = join_rows([each for each in rows if each])
        if joined:
            with writing(shard):
                write_tensors(shard, joined, {"kind": "rows", "stage": self.name})
        done = replace(done, n_shards=self.done.n_shards + bool(joined))
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        numbers = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
        header = json.dumps({"done": asdict(done), "numbers": numbers})
        with writing(self.path):
            metadata = {"kind": "state", "header": header, "checksum": fingerprint(tensors, header)}
            write_tensors(self.path, tensors, metadata)
        self.done = done

    def rows(self) -> dict[str, Tensor]:
        """Results per position of all flushes, joined in memory; empty if there are none.

        Raises:
            CheckpointError: if a file of them is damaged or gone.
        """
        shards = [self._shard(number) for number in range(self.done.n_shards)]
        try:
            return join_rows([TensorFiles([shard]) for shard in shards])
        except CheckpointError as error:
            raise CheckpointError(f"{error} {START_ANEW}") from None

    def _shard(self, number: int) -> Path:
        return self.folder / f"{self.name}-rows-{number:06d}.safetensors"


def check_folder(folder: Path, manifest: Path, resume: bool) -> None:
    """Refuse a folder that holds other files, or a run that is not to be resumed.

    Raises:
        InvalidInputError: if it does, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"{str(folder)!r} is a file; a run is kept in a folder.")
    names = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    names = [name for name in names if not name.endswith(".partial")]
    if names and not manifest.exists():
        raise InvalidInputError(
            f"{str(folder)!r} is no run's folder: it has no manifest.json, and holds {names[0]!r}. "
            "Give an empty folder, or one that does not exist yet."
        )
    # A manifest alone is a run that had not come to its first flush: nothing is lost by starting again.
    if not resume and any(name != manifest.name for name in names):
        raise InvalidInputError(
            f"{str(folder)!r} holds a run already. Go on with it by resume=True (--resume), or give another folder."
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what stands, and what to do, where a file cannot be written.

    Raises:
        StorageError: for an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} could not be written: {error.strerror or error}. What was there before stands: make room, or mend "
            "what is in the way, and go on with resume=True (--resume)."
        ) from error


def _read_state(path: Path) -> tuple[_Done, dict[str, Any]]:
    try:
        metadata = read_metadata(path)
        tensors = {name: tensor.clone() for name, tensor in TensorFiles([path]).items()}
        if metadata["checksum"] != fingerprint(tensors, metadata["header"]):
            raise CheckpointError(f"{path} is damaged: its content does not match its checksum.")
        header = json.loads(metadata["header"])
        done = header["done"]
        done["marks"] = {int(number): mark for number, mark in done["marks"].items()}
        return _Done(**done), {**header["numbers"], **tensors}
    except CheckpointError as error:
        raise CheckpointError(f"{error} {START_ANEW}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds no state of a run: {error!r}. {START_ANEW}") from None
