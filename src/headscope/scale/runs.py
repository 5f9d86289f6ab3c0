"""Sharded runs from their folders alone: `merge`, and `status`."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headscope.analysis.core.progress import duration
from headscope.analysis.storage.places import place_of
from headscope.analysis.storage.run_folder import RESULT
from headscope.analysis.storage.sharded import Call, Receipt, RunFiles, Sharding
from headscope.model.transformer import HookedTransformer
from headscope.scale.engines import MergeOnly
from headscope.scale.worker import Worker, read_run

__all__ = ["PassStatus", "RunStatus", "WorkerStatus", "merge", "status"]


def merge(
    run: str | Path,
    *,
    model: str | None = None,
    device: str | None = None,
    loaded: HookedTransformer | None = None,
    progress: bool = True,
) -> Any:
    """Merge the shards of a run that are measured, and return its result, which the folder then holds too.

    Where an analysis takes two passes, the first has to be merged before shards of the second can be measured.

    Args:
        run: The run's folder, or its URL.
        model: What `from_pretrained` takes, where the run does not say or it lies elsewhere now.
        device: Where it goes, of the kind that measured the run; default: a GPU with CUDA, if there is one.
        loaded: The model, where it is loaded already.
        progress: Show a progress bar.

    Raises:
        IncompleteRunError: if shards are missing; the message says which.
        InvalidInputError: if there are shards of another run or version; or no run, or another model.
        CheckpointError: if what the folder holds is damaged.
    """
    worker = Worker(place_of(run), model=model, device=device, loaded=loaded)
    return worker.repeat(Sharding(MergeOnly(), Call("", {}), worker.files), progress=progress)


@dataclass(frozen=True)
class WorkerStatus:
    """The part of a process in a pass over the data.

    Attributes:
        worker: Its host and number.
        n_shards: Shards that it finished.
        n_tokens: Tokens in them.
        seconds: How long it took.
        ended: When it finished the last, in seconds since 1970.
    """

    worker: str
    n_shards: int
    n_tokens: int
    seconds: float
    ended: float

    def __str__(self) -> str:
        rate, ago = self.n_tokens / max(self.seconds, 1e-3), duration(max(0.0, time.time() - self.ended))
        return f"  {self.worker}: {self.n_shards} shards, {rate:,.0f} tokens/s, the last one {ago} ago"


@dataclass(frozen=True)
class PassStatus:
    """The state of a pass over the data.

    Attributes:
        name: The pass.
        n_shards: Shards in all.
        done: How many are measured.
        running: Those that were begun and are not done, now or by a process that is gone.
        failed: Those that failed last time, with the reason.
        n_tokens: Tokens in all.
        tokens_done: Tokens of the shards that are done.
        tokens_per_second: From the first shard's start to the last one's end; 0 before there is one.
        merged: What the shards come to is written.
        workers: Who measured the shards that are done.
        then: The passes that come after it, which are not begun.
    """

    name: str
    n_shards: int
    done: int
    running: tuple[int, ...]
    failed: dict[int, str]
    n_tokens: int
    tokens_done: int
    tokens_per_second: float
    merged: bool
    workers: tuple[WorkerStatus, ...] = ()
    then: tuple[str, ...] = ()

    @property
    def seconds_left(self) -> float | None:
        """The time that the rest takes at this rate; `None` where nobody knows yet."""
        left = self.n_tokens - self.tokens_done
        return left / self.tokens_per_second if self.tokens_per_second else None

    def __str__(self) -> str:
        parts = [f"{self.name}: {self.done} of {self.n_shards} shards done"]
        if self.merged:
            return f"{parts[0]}, merged"
        parts += [f"{len(self.running)} under way"] if self.running else []
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        if self.seconds_left is not None:
            parts += [f"{self.tokens_per_second:,.0f} tokens/s", f"{duration(self.seconds_left)} left"]
        lines = [", ".join(parts)]
        lines += [f"  shard {number} failed: {reason}" for number, reason in list(self.failed.items())[:5]]
        return "\n".join(lines)


@dataclass(frozen=True)
class RunStatus:
    """The state of a sharded run.

    Attributes:
        analysis: Its name.
        model: The model's name.
        data: What it runs on.
        passes: The passes that were begun.
        finished: The result is there.
    """

    analysis: str
    model: str
    data: str
    passes: tuple[PassStatus, ...]
    finished: bool

    def __str__(self) -> str:
        return self.told()

    def told(self, *, workers: bool = False) -> str:
        """Return the state in words, with a line for each worker where asked for."""
        lines = [f"{self.analysis} of {self.model} on {self.data}"]
        for each in self.passes:
            lines += [str(each), *(map(str, each.workers) if workers else ())]
        lines += [f"{name}: not begun" for name in (self.passes[-1].then if self.passes else ())]
        lines += ["Nothing is measured yet."] if not self.passes else []
        return "\n".join([*lines, *(["The result is there."] if self.finished else [])])


def status(run: str | Path) -> RunStatus:
    """Return how far a sharded run is, from its folder.

    Raises:
        InvalidInputError: if there is no sharded run, or it is of another version.
        IncompleteRunError: if its data is not cut yet.
    """
    files = read_run(place_of(run))
    passes = tuple(_pass(files, name, begun) for name, begun in files.passes().items())
    manifest = files.manifest
    finished = files.place.has(RESULT)
    return RunStatus(manifest["analysis"], manifest["model"]["name"], manifest["data"]["description"], passes, finished)


def _pass(files: RunFiles, name: str, begun: Mapping[str, Any]) -> PassStatus:
    cut, of_shards = files.cuts[begun["data"]], files.shard_files(name)
    done = files.done(name, cut)
    receipts = [files.receipt(name, number) for number in done]
    began, ended = (
        min((each.ended - each.seconds for each in receipts), default=time.time()),
        max((each.ended for each in receipts), default=0.0),
    )
    tokens = sum(each.n_tokens for each in receipts)
    waiting = [(number, kinds) for number, kinds in sorted(of_shards.items()) if "json" not in kinds]
    return PassStatus(
        name=name,
        n_shards=len(cut.shards),
        done=len(done),
        running=tuple(number for number, kinds in waiting if "failure" not in kinds),
        failed={number: files.failure(name, number) for number, kinds in waiting if "failure" in kinds},
        n_tokens=cut.n_tokens,
        tokens_done=tokens,
        tokens_per_second=tokens / max(ended - began, 1e-3) if receipts else 0.0,
        merged=files.place.has(f"{name}.safetensors"),
        workers=_workers(receipts),
        then=begun["then"],
    )


def _workers(receipts: Sequence[Receipt]) -> tuple[WorkerStatus, ...]:
    of_each: dict[str, list[Receipt]] = {}
    for receipt in sorted(receipts, key=lambda each: each.ended):
        of_each.setdefault(receipt.worker, []).append(receipt)
    return tuple(
        WorkerStatus(
            worker,
            len(each),
            sum(receipt.n_tokens for receipt in each),
            sum(receipt.seconds for receipt in each),
            each[-1].ended,
        )
        for worker, each in sorted(of_each.items())
    )
