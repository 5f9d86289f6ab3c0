"""Sharded runs: one analysis over data that was cut, measured shard by shard by whoever comes, and merged.

A pass over the data (`gather`) is a barrier: it ends when every shard has been measured, and what all of them come to
is then written as the state of the pass, as if one process had gone through it. So the next pass, and the result, are
those of any run. Beside the files of a run (see `run_folder`) the folder holds

- `cut-data.json` and `tokens/`: the shards, and their tokens (see `shards`);
- `shards/<stage>/000003.safetensors`: the state of a shard, which resumes as a whole run does;
- `shards/<stage>/000003.json`: its receipt, written when it is finished. A shard is done when its receipt is there.
- `shards/<stage>/000003.failure`: why it failed last, where it did.
- `pass-<stage>.json`: which data a pass goes through, when it began, and which passes come then.

Measuring a shard changes no file but its own, and always in the same way: it may be done twice, or by two at once.

Who measures is an `Engine`, which `headscope.scale` has; this module only says what it is asked.
"""

import copy
import json
import math
import os
import socket
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from headscope.analysis.core.batches import count_tokens, iterate_batches
from headscope.analysis.core.progress import Bar, progress_bar, say
from headscope.analysis.storage.accumulator import Accumulator
from headscope.analysis.storage.manifest import fingerprint
from headscope.analysis.storage.merging import merge_states
from headscope.analysis.storage.places import Place
from headscope.analysis.storage.run_folder import RESULT, Progress, Stage, accumulate
from headscope.analysis.storage.shards import Cut
from headscope.errors import CheckpointError, IncompleteRunError, InvalidInputError, StorageError
from headscope.model.transformer import HookedTransformer

__all__ = [
    "Call",
    "Engine",
    "Receipt",
    "RunFiles",
    "ShardJob",
    "ShardMeasured",
    "ShardedRun",
    "Sharding",
    "map_shards",
    "shard_size",
]

A = TypeVar("A", bound=Accumulator[Any])
T = TypeVar("T")

_SHARD_TOKENS, _SEVERAL = 2**15, 32
_SHARDS = "shards"
_ROUNDS = 3  # of measuring again what turned out damaged


def shard_size(data: Any) -> int:
    """Return the least number of tokens of a shard, so that little text keeps several workers busy: a 32nd of the data.

    At most 32,768, and that where nobody knows how much there is.
    """
    total = count_tokens(data)
    return _SHARD_TOKENS if total is None else max(1, min(_SHARD_TOKENS, math.ceil(total / _SEVERAL)))


@dataclass(frozen=True)
class Receipt:
    """The proof that a shard is done.

    Attributes:
        stage: The pass over the data.
        number: Which shard.
        n_tokens: Tokens in it.
        seconds: How long it took the process that finished it.
        worker: That process: its host and number.
        ended: When it did, in seconds since 1970.
        checksum: The hash of the state that it left.
    """

    stage: str
    number: int
    n_tokens: int
    seconds: float
    worker: str
    ended: float
    checksum: str

    def __str__(self) -> str:
        rate = self.n_tokens / max(self.seconds, 1e-3)
        return f"{self.worker}: shard {self.number} of {self.stage}, {self.n_tokens:,} tokens at {rate:,.0f} tokens/s"


@dataclass(frozen=True)
class ShardJob:
    """A shard that is to be measured in one pass over the data.

    Attributes:
        stage: The pass.
        number: Which shard.
        n_tokens: Tokens in it.
        run: The run, in whose folder the result is written; `run.measure(stage, number)` measures it in this process.
    """

    stage: str
    number: int
    n_tokens: int
    run: "ShardedRun" = field(repr=False, compare=False)

    def measure(self) -> Receipt:
        """Measure the shard in this process."""
        return self.run.measure(self.stage, self.number)


class Engine(ABC):
    """Whoever measures shards: this process, others on this machine, a cluster.

    Attributes:
        shard_tokens: Least number of tokens of a shard; `None` for that of the run's folder, or `shard_size`.
        tells_workers: Print a line for each shard that a worker has done.
    """

    shard_tokens: int | None = None
    tells_workers: bool = False

    def begin(self, run: "ShardedRun") -> None:  # noqa: B027 - an engine may have nothing to make ready
        """Make ready for a run."""

    @abstractmethod
    def map_shards(self, jobs: Sequence[ShardJob]) -> Iterable[Receipt]:
        """Measure shards in any order, and give the receipt of each as it comes; it may leave some to others."""

    def end(self) -> None:  # noqa: B027
        """Let workers go, whether the run came to its end or not."""


@dataclass(frozen=True)
class Call:
    """The call of an analysis, which a worker repeats.

    Attributes:
        function: Where the function is: `"module:name"`.
        arguments: All but the model, and those of the process: its folder, its progress bar.
    """

    function: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Sharding:
    """The way in which a call is sharded, as `streaming` hands it to the function for its `engine`.

    Attributes:
        engine: Who measures; `None` in a worker, which measures the shard that is wanted of it.
        call: The call.
        files: The run's records, where they are read already.
        wanted: The stage and number of the shard that is wanted of a worker.
    """

    engine: Engine | None
    call: Call
    files: "RunFiles | None" = None
    wanted: tuple[str, int] | None = None


class ShardMeasured(Exception):
    """Ends a worker's call at the shard that was wanted of it.

    Attributes:
        receipt: Its receipt.
    """

    def __init__(self, receipt: Receipt) -> None:
        super().__init__(receipt)
        self.receipt = receipt


@dataclass(frozen=True)
class RunFiles:
    """A sharded run as its folder records it.

    Attributes:
        place: The folder.
        manifest: What is run on what.
        cuts: The shards, by data.
    """

    place: Place
    manifest: Mapping[str, Any]
    cuts: Mapping[str, Cut]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The marks that every state of this run bears."""
        shown = {name: value for name, value in self.manifest.items() if name != "software"}
        cuts = [cut.hash for _, cut in sorted(self.cuts.items())]
        return {"run": fingerprint({}, json.dumps(shown, sort_keys=True), *cuts), **self.manifest["software"]}

    def done(self, stage: str, cut: Cut) -> set[int]:
        """Return the shards that have receipts.

        Raises:
            InvalidInputError: for receipts of shards that the run does not have.
        """
        numbers = {number for number, kinds in self.shard_files(stage).items() if "json" in kinds}
        foreign = sorted(number for number in numbers if number >= len(cut.shards))
        if foreign:
            raise InvalidInputError(
                f"{self.place}/{_SHARDS}/{stage} holds shard {foreign[0]}, and this run has {len(cut.shards)} shards, "
                "from 0: it belongs to another run. Remove it, or give another folder."
            )
        return numbers

    def passes(self) -> dict[str, dict[str, Any]]:
        """Return the passes that were begun, in that order, with the `data`, the time (`begun`), and what comes `then`.

        Raises:
            CheckpointError: if the file of one is damaged.
        """
        names = [name for name in self.place.names() if name.startswith("pass-")]
        found = {name[len("pass-") : -len(".json")]: _read_json(self.place, name, _pass) for name in names}
        return dict(sorted(found.items(), key=lambda each: each[1]["begun"]))

    def shard_files(self, stage: str) -> dict[int, set[str]]:
        """Return the kinds of files that there are of each shard: `safetensors`, `json`, `failure`."""
        files: dict[int, set[str]] = {}
        for name in (self.place / _SHARDS / stage).names():
            number, _, kind = name.partition(".")
            if number.isdecimal():
                files.setdefault(int(number), set()).add(kind)
        return files

    def receipt(self, stage: str, number: int) -> Receipt:
        """Return the receipt of a shard.

        Raises:
            CheckpointError: if it is damaged.
        """
        return _read_json(self.place / _SHARDS / stage, f"{_name(number)}.json", lambda fields: Receipt(**fields))

    def failure(self, stage: str, number: int) -> str:
        """Return why a shard failed last."""
        return (self.place / _SHARDS / stage).read(f"{_name(number)}.failure").decode(errors="replace")

    def stage(self, stage: str, number: int) -> Stage:
        """Return the state of a shard.

        Raises:
            CheckpointError: if it is damaged.
            InvalidInputError: if it is of another run, or was made by another version.
        """
        identity = {**self.identity, "stage": stage, "shard": number}
        return Stage(self.place / _SHARDS / stage, _name(number), identity=identity)

    def discard(self, stage: str, number: int) -> None:
        """Forget what was measured of a shard."""
        for name in (f"{_name(number)}.json", f"{_name(number)}.safetensors"):
            (self.place / _SHARDS / stage).remove(name)


class ShardedRun:
    """A sharded run in this process: the one that drives it, or a worker of it.

    Args:
        files: The run's records.
        model: The model.
        sharding: Who measures, or what is wanted.
        described: What the data is.
        order: The passes over the data, where there are several.
        flush_every: Batches between two writes; `None`: by time alone.
        progress: Show a progress bar.
    """

    def __init__(
        self,
        files: RunFiles,
        model: HookedTransformer,
        sharding: Sharding,
        *,
        described: str,
        order: tuple[str, ...],
        flush_every: int | None,
        progress: bool,
    ) -> None:
        self.files, self.model, self.sharding, self.described = files, model, sharding, described
        self._order, self._flush_every, self._progress = order, flush_every, progress
        self._passes: dict[str, tuple[Cut, Accumulator[Any], bool]] = {}
        self._bar = Bar(None, "")
        if sharding.engine is not None:
            sharding.engine.begin(self)

    @property
    def place(self) -> Place:
        """The run's folder."""
        return self.files.place

    def gather(self, name: str, accumulator: A, *, data: str, include_bos: bool) -> tuple[A, Stage]:
        """See that every shard is measured in one pass over the data, and merge what they come to.

        Args:
            name: The name of the pass.
            accumulator: A new one, which is returned.
            data: Which of the run's data it goes through.
            include_bos: Let BOS positions count.

        Raises:
            ShardMeasured: in a worker, when it has measured the shard that is wanted.
            IncompleteRunError: if shards are left to others; the message says which.
            InvalidInputError: if there are shards of another run, or of another version.
        """
        stage_name = name.replace(" ", "-")
        merged = self._merged(stage_name)
        if merged.done.finished:
            return accumulator.restore(merged.state or {}), merged
        cut = self.files.cuts[data]
        self._passes[stage_name] = cut, accumulator, include_bos
        if self.sharding.wanted is not None:
            stage, number = self.sharding.wanted
            if stage != stage_name:
                raise IncompleteRunError(f"a shard of {stage!r} is wanted, and {stage_name!r} comes first.")
            raise ShardMeasured(self.measure(stage, number))
        if not self.place.has(f"pass-{stage_name}.json"):
            rest = self._order[self._order.index(name) + 1 :] if name in self._order else ()
            self.place.write(
                f"pass-{stage_name}.json", json.dumps({"data": data, "begun": time.time(), "then": rest}).encode()
            )
        with progress_bar(cut.n_tokens, name, shown=self._progress, unit="tok") as self._bar:
            for _ in range(_ROUNDS):
                self._measure_missing(stage_name, cut)
                damaged = self._merge(merged, stage_name, cut)
                if not damaged:
                    return accumulator.restore(merged.state or {}), merged
                self.check_unfinished()
                for number, reason in damaged:
                    warnings.warn(f"shard {number} of {stage_name!r} is done again: {reason}", stacklevel=2)
                    self.files.discard(stage_name, number)
        raise CheckpointError(f"shards of {stage_name!r} in {str(self.place)!r} are damaged whenever they are read.")

    def measure(self, stage: str, number: int) -> Receipt:
        """Measure a shard in this process, or go on with it, and write its receipt."""
        cut, accumulator, include_bos = self._passes[stage]
        shard, started = cut.shards[number], time.monotonic()
        part = copy.copy(accumulator).restore({})
        part.begins_at = shard.first_row
        self._bar.step = shard.n_tokens
        try:
            kept = self.files.stage(stage, number)
        except CheckpointError:
            self.files.discard(stage, number)
            kept = self.files.stage(stage, number)
        if not kept.done.finished:
            batches = iterate_batches(
                self.model,
                cut.batches(number),
                include_bos=include_bos,
                progress=self._progress,
                description=stage,
                done=kept.done.n_tokens,
            )
            accumulate(batches, part, stage=kept, flush_every=self._flush_every)
        worker = f"{socket.gethostname()}:{os.getpid()}"
        seconds = time.monotonic() - started
        receipt = Receipt(stage, number, shard.n_tokens, seconds, worker, time.time(), kept.checksum)
        (self.place / _SHARDS / stage).write(f"{_name(number)}.json", json.dumps(asdict(receipt)).encode())
        return receipt

    def check_unfinished(self) -> None:
        """Tell a file that is damaged from one that another process, which has finished the run, removed.

        Raises:
            IncompleteRunError: if the result is there.
        """
        if self.place.has(RESULT):
            raise IncompleteRunError(
                f"another process has just finished the run in {str(self.place)!r}: the same call gives its result."
            )

    def note_failure(self, job: ShardJob, reason: str) -> None:
        """Note that a shard failed, for `headscope status` to tell."""
        with suppress(StorageError):  # which may be why
            (self.place / _SHARDS / job.stage).write(f"{_name(job.number)}.failure", reason.encode())

    def tidy(self) -> None:
        """Remove what a run that has its result needs no more: tokens, results per position, files half written."""
        stages = (self.place / _SHARDS).names()
        for stage in stages:
            for name in (self.place / _SHARDS / stage).names():
                if "-rows-" in name:
                    (self.place / _SHARDS / stage).remove(name)
            (self.place / _SHARDS / stage).clear_partial()
        for cut in self.files.cuts.values():
            cut.remove_tokens()

    def _merged(self, stage: str) -> Stage:
        """Return what the shards came to, if they are merged; a damaged one is removed, as its shards are there."""
        try:
            return Stage(self.place, stage, identity=self.files.identity)
        except CheckpointError as error:
            if self.sharding.wanted is not None:  # a worker changes no file but those of its shard
                raise
            warnings.warn(f"the shards of {stage!r} are merged again: {error.message}", stacklevel=2)
            self.place.remove(f"{stage}.safetensors")
            return Stage(self.place, stage, identity=self.files.identity)

    def _measure_missing(self, stage: str, cut: Cut) -> None:
        done = self.files.done(stage, cut)
        self._bar.done = self._bar.safe = sum(cut.shards[number].n_tokens for number in done)
        self._bar.update(0)
        jobs = [ShardJob(stage, shard.number, shard.n_tokens, self) for shard in cut.shards if shard.number not in done]
        engine = self.sharding.engine
        assert engine is not None
        for receipt in map_shards(jobs, engine):
            self._bar.safe = self._bar.done + receipt.n_tokens
            self._bar.update(receipt.n_tokens)
            if engine.tells_workers:
                say(str(receipt))
        missing = sorted({shard.number for shard in cut.shards} - self.files.done(stage, cut)) if jobs else []
        if missing:
            shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            raise IncompleteRunError(
                f"{len(cut.shards) - len(missing)} of {len(cut.shards)} shards of {stage!r} in {str(self.place)!r} are "
                f"measured; {shown} {'is' if len(missing) == 1 else 'are'} not. When all are, merge them: headscope "
                f"merge {self.place}",
                code="HS-INCOMPLETE-01",
            )

    def _merge(self, merged: Stage, stage: str, cut: Cut) -> list[tuple[int, str]]:
        """Write what the shards come to as the state of the pass; or return those that are damaged, with the reason."""
        damaged: list[tuple[int, str]] = []
        rows: dict[str, str] = {}
        n_batches = n_tokens = 0

        def states() -> Iterator[Mapping[str, Any]]:
            nonlocal n_batches, n_tokens
            for shard in cut.shards:
                try:
                    kept = self.files.stage(stage, shard.number)
                    if not kept.done.finished or kept.done.n_tokens != shard.n_tokens:
                        raise CheckpointError(f"{kept.file} is not finished.")
                    kept.check_rows()
                except CheckpointError as error:
                    damaged.append((shard.number, error.message))
                    continue
                rows.update({f"{_SHARDS}/{stage}/{name}": found for name, found in kept.done.rows.items()})
                n_batches, n_tokens = n_batches + kept.done.n_batches, n_tokens + kept.done.n_tokens
                yield kept.state or {}

        state = merge_states(states())
        if not damaged:
            merged.write(Progress(n_batches, n_tokens, rows, finished=True), state)
            merged.state = state
        return damaged


def map_shards(jobs: Sequence[ShardJob], engine: Engine) -> Iterator[Receipt]:
    """Let an engine measure shards, and yield one receipt for each that it does, in the order they come.

    A shard that comes back twice, because its worker was thought dead, counts once.

    Args:
        jobs: The shards that are to be measured, all of one pass over the data.
        engine: Who measures them.
    """
    wanted = {(job.stage, job.number) for job in jobs}
    if not jobs:
        return
    for receipt in engine.map_shards(jobs):
        if (receipt.stage, receipt.number) in wanted:
            wanted.remove((receipt.stage, receipt.number))
            yield receipt


def _name(number: int) -> str:
    return f"{number:06d}"


def _read_json(place: Place, name: str, make: Callable[[Any], T]) -> T:
    """Make something of what a file of JSON holds; damage is told by the file's name."""
    try:
        return make(json.loads(place.read(name)))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{place}/{name} is damaged: {error!r}. Delete that file, and resume=True makes it again.",
            code="HS-CHECKPOINT-15",
        ) from None


def _pass(fields: Any) -> dict[str, Any]:
    # The first folders of format 3 do not say what comes then.
    return {"data": str(fields["data"]), "begun": float(fields["begun"]), "then": tuple(fields.get("then", ()))}
