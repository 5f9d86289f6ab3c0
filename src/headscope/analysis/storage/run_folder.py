"""Runs that outlive their process: an accumulator's state on disk, and the way back to it.

A folder (`Passes(out=...)`) holds one run of one analysis:

- `manifest.json`: what is run on what. Nothing else is ever continued in this folder.
- `<stage>.safetensors`: for each pass over the data, the accumulator's state after the last flush, how many batches it
  counts, and a chained hash of their tokens.
- `<stage>-rows-000000-000004.safetensors`, ...: results per position of batches 0 to 3, one file for each flush, until
  the result is whole.
- `result.safetensors`: the result.

Every file appears whole or not at all, and a state is written after the rows it counts, which it lists with their
hashes: a process may die at any moment, and what it leaves is the run as it was at a flush. Rows that it did not live
to count are removed by one that goes on with the run an hour later, or with the result. Two processes that do the
same work in the same folder, because one was thought dead, do not harm each other: a name of rows says all that is in
them. To resume, the data is gone through again from its start; what was counted is hashed and compared instead of
measured.

The analysis brings an `Accumulator`; `accumulate` drives it, with a folder or without.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.progress import mark_safe
from headscope.analysis.storage.accumulator import Accumulator, join_rows
from headscope.analysis.storage.manifest import START_ANEW, fingerprint
from headscope.analysis.storage.places import Place, place_of
from headscope.errors import CheckpointError, InvalidInputError
from headscope.model.checkpoints.files import TensorFiles, read_metadata, write_tensors
from headscope.ops.devices import Budget

__all__ = ["RESULT", "Progress", "Stage", "accumulate", "check_folder"]

A = TypeVar("A", bound=Accumulator[Any])

RESULT = "result.safetensors"
_SECONDS = 30.0  # the longest that is measured without a write, and so lost to a kill
_FIRST = 1.0  # a process is written down after a second, in case it is not let live for thirty
_SHARE = 0.01  # of the time, that writes may take


def accumulate(
    batches: Iterable[Batch], accumulator: A, *, stage: "Stage | None" = None, flush_every: int | None = None
) -> A:
    """Go through batches with an accumulator, keeping its state on disk where there is a `stage`.

    Args:
        batches: The data, from its start. Untouched if the stage is finished.
        accumulator: A new one, which is returned.
        stage: Where the state is kept; its rows are then found there too, not in the accumulator.
        flush_every: Write after so many batches too; default: by time and memory alone (see `_Pace`).

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
    most_bytes = Budget.of(accumulator.model.W_E.device).unwritten_bytes
    trail, n_done, pace = _Trail(), stage.done.n_batches, _Pace(most_bytes)
    rows: list[dict[str, Tensor]] = []
    held: tuple[Progress, dict[str, Any], list[dict[str, Tensor]]] | None = None
    try:
        for batch in batches:
            trail.add(batch)
            stage.check(trail)
            if trail.n_batches <= n_done:
                pace = _Pace(most_bytes)
                mark_safe(stage.done.n_tokens)
                continue
            accumulator.update(batch)
            rows = [*rows, accumulator.take_rows()]
            # In one assignment, so that an interrupt finds all of a batch or nothing of it.
            held = trail.noted(), accumulator.state(), rows
            n_bytes = sum(tensor.nbytes for tensor in rows[-1].values())
            if pace.is_due(n_bytes) or trail.n_batches - stage.done.n_batches == flush_every:
                with pace.writing():
                    stage.flush(*held)
                held, rows = None, []
                mark_safe(stage.done.n_tokens)
    except KeyboardInterrupt:
        if held is not None:
            stage.flush(*held)
        raise
    stage.check_end(trail)
    stage.flush(trail.noted(finished=True), accumulator.state(), rows)
    return accumulator


class _Pace:
    """The times at which a pass is written: within 30 seconds, and sooner while a process is young or holds much.

    The first write is due after a second, and each later one after as long as the process had measured at the one
    before: a process that is killed loses half of what it did, at most, so that a run gets on however short-lived its
    processes are. Where writes are slow they are fewer, to cost a hundredth of the time, but never later than in 30
    seconds; where a batch takes longer than that, each is written. Results per position take as long to write in few
    pieces as in many, so they may cost more than a hundredth; they are written before they exceed `most_bytes`.

    Args:
        most_bytes: Of results per position that may be held (of one batch, if that has more).
    """

    def __init__(self, most_bytes: int) -> None:
        self._began = self._written = self._batch = time.monotonic()
        self._cost = 0.0
        self._most_bytes, self._bytes = most_bytes, 0

    def is_due(self, n_bytes: int) -> bool:
        """Tell whether it is time to write: whether another batch like the last would come too late, or be too much.

        Args:
            n_bytes: Of results per position that the last batch gave.
        """
        now = time.monotonic()
        took, self._batch = now - self._batch, now
        self._bytes += n_bytes
        wait = min(_SECONDS, max(_FIRST, self._written - self._began, self._cost / _SHARE))
        return now - self._written + took > wait or self._bytes + n_bytes > self._most_bytes

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Note how long a write takes."""
        began = time.monotonic()
        yield
        self._written = self._batch = time.monotonic()
        self._cost, self._bytes = self._written - began, 0


@dataclass(frozen=True)
class Progress:
    """Progress of a pass over the data.

    Attributes:
        n_batches: Batches gone through.
        n_tokens: Tokens in them.
        rows: The files of results per position, in order, and the hash of each.
        marks: The hash of all tokens after some numbers of batches: the powers of two, and the last.
        finished: The data ends here.
    """

    n_batches: int = 0
    n_tokens: int = 0
    rows: Mapping[str, str] = field(default_factory=dict)
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

    def noted(self, *, finished: bool = False) -> Progress:
        marks = {**self._marks, **({self.n_batches: self.digest} if self.n_batches else {})}
        return Progress(self.n_batches, self.n_tokens, {}, marks, finished)


class Stage:
    """One pass over the data, as it is on disk.

    Args:
        folder: The run's folder.
        name: Of the pass; its files begin with it.
        after: An earlier pass over the same data.
        identity: What it is a part of, which is written beside the state; a state of something else is refused.

    Attributes:
        done: How far it has come.
        state: The accumulator's state at that point; `None` if nothing was flushed yet.
        checksum: The hash of what is on disk; empty if there is nothing.

    Raises:
        CheckpointError: if the state on disk is damaged.
        InvalidInputError: if it is of another identity.
    """

    def __init__(
        self,
        folder: Place | Path,
        name: str,
        *,
        after: "Stage | None" = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.place = place_of(folder)
        self.name = name
        self.file = f"{name}.safetensors"
        self.identity = dict(identity or {})
        self.done = Progress()
        self.state: dict[str, Any] | None = None
        self.checksum = ""
        if self.place.has(self.file):
            self._read()
        self._length = after.done.n_batches if after is not None else None
        self._expected = {**(after.done.marks if after is not None else {}), **self.done.marks}

    def check(self, trail: _Trail) -> None:
        """Refuse data that is not what an earlier pass, or process, went through."""
        if self._expected.get(trail.n_batches, trail.digest) != trail.digest:
            raise InvalidInputError(
                f"the data is not that of the run in {str(self.place)!r}: the first {trail.n_batches} batches hash to "
                f"{trail.digest[:12]} now and to {self._expected[trail.n_batches][:12]} there. Give the same data in "
                "the same order and batches (no shuffling), or another folder.",
                code="HS-RUN-03",
            )

    def check_end(self, trail: _Trail) -> None:
        """Refuse data that is shorter than what was gone through before, or not as long as in an earlier pass."""
        wanted = self.done.n_batches if self._length is None else self._length
        if trail.n_batches < wanted or (self._length is not None and trail.n_batches != wanted):
            raise InvalidInputError(
                f"the data is not that of the run in {str(self.place)!r}: it ends after {trail.n_batches} batches, "
                f"and {wanted} were gone through there. Give the same data, or another folder.",
                code="HS-RUN-03",
            )

    def flush(self, done: Progress, state: Mapping[str, Any], rows: Sequence[dict[str, Tensor]]) -> None:
        """Write rows, then the state that counts them."""
        if (done.n_batches, done.finished) == (self.done.n_batches, self.done.finished):
            return
        joined = join_rows([each for each in rows if each])
        written = dict(self.done.rows)
        if joined:
            name = f"{self.name}-rows-{self.done.n_batches:06d}-{done.n_batches:06d}.safetensors"
            with self.place.new_file(name) as path:
                write_tensors(path, joined, {"kind": "rows", "stage": self.name})
            written[name] = fingerprint(joined)
        self.write(replace(done, rows=written), state)

    def write(self, done: Progress, state: Mapping[str, Any]) -> None:
        """Write a state, which counts rows that are written already."""
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        numbers = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
        header = json.dumps({"done": asdict(done), "numbers": numbers, "identity": self.identity})
        checksum = fingerprint(tensors, header)
        with self.place.new_file(self.file) as path:
            write_tensors(path, tensors, {"kind": "state", "header": header, "checksum": checksum})
        self.done, self.checksum = done, checksum

    def rows(self) -> dict[str, Tensor]:
        """Results per position of all flushes, joined in memory; empty if there are none.

        Raises:
            CheckpointError: if a file of them is damaged or gone.
        """
        with ExitStack() as opened:
            try:
                files = [TensorFiles([opened.enter_context(self.place.file(name))]) for name in self.done.rows]
                joined = join_rows(files)
                # Those of one file are still mapped from it, and it may be a copy that goes away.
                return {name: rows.clone() for name, rows in joined.items()} if len(files) == 1 else joined
            except CheckpointError as error:
                raise CheckpointError(f"{error.message} {START_ANEW}", code=error.code) from None

    def check_rows(self) -> None:
        """Compare each file of rows with its hash.

        Raises:
            CheckpointError: if one is damaged or gone.
        """
        for name, wanted in self.done.rows.items():
            with self.place.file(name) as path:
                if fingerprint(TensorFiles([path])) != wanted:
                    raise CheckpointError(
                        f"{self.place}/{name} is damaged: its content does not match its checksum.",
                        code="HS-CHECKPOINT-15",
                    )

    def clear_uncounted(self) -> None:
        """Remove rows that the state does not count, if they are too old for another process to be about to count them.

        For a run that is one process's: the rows of shards go with the result.
        """
        for name in self.place.names():
            if name.startswith(f"{self.name}-rows-") and name not in self.done.rows:
                self.place.remove_abandoned(name)

    def remove(self) -> None:
        """Remove the state and the rows it counts."""
        for name in (self.file, *self.done.rows):
            self.place.remove(name)

    def _read(self) -> None:
        where = f"{self.place}/{self.file}"
        try:
            with self.place.file(self.file) as path:
                metadata = read_metadata(path)
                tensors = {name: tensor.clone() for name, tensor in TensorFiles([path]).items()}
            if metadata["checksum"] != fingerprint(tensors, metadata["header"]):
                raise CheckpointError(
                    f"{where} is damaged: its content does not match its checksum.", code="HS-CHECKPOINT-15"
                )
            header = json.loads(metadata["header"])
            done = header["done"]
            done["marks"] = {int(number): mark for number, mark in done["marks"].items()}
            self.done, self.state = Progress(**done), {**header["numbers"], **tensors}
            self.checksum = metadata["checksum"]
        except CheckpointError as error:
            raise CheckpointError(f"{error.message} {START_ANEW}", code=error.code) from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{where} holds no state of a run: {error!r}. {START_ANEW}", code="HS-CHECKPOINT-15"
            ) from None
        there = header.get("identity", {})
        differing = [name for name in self.identity if there.get(name) != self.identity[name]]
        if differing:
            found = ", ".join(f"{name} {there.get(name)!r} (here {self.identity[name]!r})" for name in differing)
            raise InvalidInputError(
                f"{where} belongs to another run: it has {found}. Remove it, and it is done again.", code="HS-RUN-02"
            )


def check_folder(place: Place, manifest: str, resume: bool) -> None:
    """Refuse a folder that holds other files, or a run that is not to be resumed.

    Raises:
        InvalidInputError: if it does, or is a file.
    """
    names = place.names()
    if names and manifest not in names:
        raise InvalidInputError(
            f"{str(place)!r} is no run's folder: it has no {manifest}, and holds {names[0]!r}. "
            "Give an empty folder, or one that does not exist yet.",
            code="HS-RUN-05",
        )
    # A manifest alone is a run that had not come to its first flush: nothing is lost by starting again.
    if not resume and any(name != manifest for name in names):
        raise InvalidInputError(
            f"{str(place)!r} holds a run already. Go on with it by resume=True (--resume), or give another folder.",
            code="HS-RUN-01",
        )
