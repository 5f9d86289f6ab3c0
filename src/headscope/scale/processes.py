"""`Processes`: workers on this machine, each with its share of the cores and all with one copy of the weights."""

import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from headscope.analysis.storage.sharded import Engine, Receipt, ShardedRun, ShardJob
from headscope.errors import check_at_least
from headscope.scale.calls import write_call_for_others
from headscope.scale.models import ModelCopy
from headscope.scale.worker import failed_shard, raise_refusal

__all__ = ["Processes", "n_cores"]

_PATIENCE = 10.0  # seconds in which a worker that is to stop writes what it has
_LOADING = 600.0  # more than the timeout of a shard, for a worker that has to load the model first
_TAIL = 2000  # bytes of a worker's last words


def n_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes(Engine):
    """Processes on this machine.

    Each loads the model once, memory-mapped from one copy, so that they share its weights in memory, and computes with
    its share of the cores. They are started apart: a script that uses this needs no `if __name__ == "__main__"`. One
    that dies or fails is replaced, and its shard goes on where it was written last.

    Args:
        workers: How many; default: one for each core.
        threads: Threads of each; default: the cores divided among them.
        shard_tokens: Least number of tokens of a shard; default: that of the run's folder, or a 32nd of the data,
            at most 32,768.
        model: What `from_pretrained` takes, to load in place of a copy of the model.
        devices: Devices; a worker takes the first of those that the fewest others have; default: the model's.
        retries: How often a shard is tried again before the run stops.
        timeout: Seconds after which a worker is held to hang on a shard, and is replaced; default: never.
        source: What `from_pretrained` takes to load the model, for `headscope merge` and others to know.
        tells_workers: Print a line for each shard that a worker has done.

    Raises:
        InvalidInputError: for a number below 1.

    Example:
        >>> Processes(2, shard_tokens=4096)
        Processes(workers=2, threads=...)
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        threads: int | None = None,
        shard_tokens: int | None = None,
        model: str | None = None,
        devices: Sequence[str] | None = None,
        retries: int = 3,
        timeout: float | None = None,
        source: str | None = None,
        tells_workers: bool = False,
    ) -> None:
        self.workers = n_cores() if workers is None else workers
        check_at_least(1, workers=self.workers)
        self.threads = max(1, n_cores() // self.workers) if threads is None else threads
        check_at_least(1, threads=self.threads)
        check_at_least(0, retries=retries)
        self.shard_tokens, self.model, self.retries, self.timeout = shard_tokens, model, retries, timeout
        self.source, self._devices, self.tells_workers = source, devices, tells_workers
        self._started: list[_Process] = []
        self._replies: queue.SimpleQueue[tuple[_Process, dict[str, Any] | None]] = queue.SimpleQueue()
        self._copy: ModelCopy | None = None
        self._arguments: tuple[str, str, Sequence[str]] = ("", "", ())

    def __repr__(self) -> str:
        return f"Processes(workers={self.workers}, threads={self.threads})"

    def begin(self, run: ShardedRun) -> None:
        """Note the call and copy the model, for the workers, which start when there is a shard to measure.

        Raises:
            InvalidInputError: if the model has hooks, or an argument cannot be sent.
        """
        write_call_for_others(run, self.model or self.source)
        source = self.model
        if source is None:
            self._copy = ModelCopy(run.model)
            source = str(self._copy.path)
        devices = self._devices or [str(run.model.W_E.device)]
        self._arguments = run.place.address, source, devices

    def map_shards(self, jobs: Sequence[ShardJob]) -> Iterator[Receipt]:
        """Hand the shards to workers as they come free, and yield receipts as they come.

        Raises:
            ShardError: if a shard fails more often than `retries` allow; the message has the last reason.
            HeadscopeError: for what a worker refuses, as it would be here.
        """
        waiting, failures = deque(jobs), dict.fromkeys((job.number for job in jobs), 0)
        running: dict[_Process, tuple[ShardJob, float]] = {}  # with the time by which it should be done
        while waiting or running:
            while waiting and len(running) < self.workers:
                process = self._free(running)
                running[process] = waiting[0], self._deadline(process)
                process.ask(waiting.popleft())
            process, reply, reason = self._next(running)
            if process not in running:
                continue  # the end of one that had nothing to do
            if reply == {"ready": True}:
                process.ready = True
                running[process] = running[process][0], self._deadline(process)
                continue
            job, _ = running.pop(process)
            if "receipt" in reply:
                yield Receipt(**reply["receipt"])
                continue
            raise_refusal(reply)
            self._let_go(process)  # what failed it may be its own: its memory, its disk
            failures[job.number] += 1
            job.run.note_failure(job, f"process {process.pid}: {reason}")
            if failures[job.number] > self.retries:
                where = f"in process {process.pid} of this machine"
                raise failed_shard(job, failures[job.number], where, reason)
            waiting.appendleft(job)

    def end(self) -> None:
        """Stop the workers, which write what they have, and remove the copy of the model."""
        for process in self._started:
            process.stop()
        deadline = time.monotonic() + _PATIENCE
        for process in self._started:
            process.wait(max(0.0, deadline - time.monotonic()))
        self._started.clear()
        if self._copy is not None:
            self._copy.remove()
            self._copy = None

    def _let_go(self, process: "_Process") -> None:
        """Stop a worker that failed; another takes its place."""
        if process in self._started:
            self._started.remove(process)
            process.wait(0.0)

    def _free(self, running: "dict[_Process, tuple[ShardJob, float]]") -> "_Process":
        """Return a worker without a shard, started if need be."""
        for process in self._started:
            if process not in running:
                return process
        run, model, devices = self._arguments
        n_there = Counter(process.slot for process in self._started)
        slot = min(range(len(devices)), key=lambda each: n_there[each])
        process = _Process([run, model, devices[slot], str(self.threads)], self.threads, self._replies, slot)
        self._started.append(process)
        return process

    def _next(self, running: "dict[_Process, tuple[ShardJob, float]]") -> "tuple[_Process, dict[str, Any], str]":
        """Wait for a worker to reply, to end, or to take too long; one that failed comes with the reason."""
        first = min(running, key=lambda each: running[each][1])
        deadline, reason = running[first][1], ""
        try:
            wait = None if deadline == math.inf else max(0.01, deadline - time.monotonic())
            process, reply = self._replies.get(timeout=wait)
        except queue.Empty:
            process, reply, reason = first, None, f"it took more than {self.timeout} seconds."
            process.kill()
        if reply is None and process in self._started:
            self._started.remove(process)
            said = process.last_words()
            reason = reason or said
        reply = reply or {}
        return process, reply, reason or str(reply.get("error", ""))

    def _deadline(self, process: "_Process") -> float:
        """Return the time by which a shard that a worker begins now should be done."""
        if self.timeout is None:
            return math.inf
        return time.monotonic() + self.timeout + (0 if process.ready else _LOADING)


class _Process:
    """A worker process: jobs go in, replies come out on a queue, `None` when it has ended.

    Attributes:
        pid: Its number.
        slot: Which of the engine's devices it computes on.
        ready: The model is loaded.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        threads: int,
        replies: "queue.SimpleQueue[tuple[_Process, dict[str, Any] | None]]",
        slot: int,
    ) -> None:
        self.slot = slot
        self._errors = tempfile.TemporaryFile()
        # Threads are set before torch is imported. Paths of this process are those of the worker, but for the current
        # folder (-P), whose files may have the names of modules.
        sizes = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        paths = os.pathsep.join([*filter(None, sys.path), str(Path(__file__).parents[2])])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "headscope.scale.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **sizes, "PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C is for the process that drives the run
        )
        self.pid = self._process.pid
        self.ready = False
        threading.Thread(target=self._listen, args=(replies,), daemon=True).start()

    def ask(self, job: ShardJob) -> None:
        """Send a shard to be measured."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it died: the reply says so
            self._process.stdin.write(json.dumps({"stage": job.stage, "number": job.number}) + "\n")
            self._process.stdin.flush()

    def stop(self) -> None:
        """Ask it to stop when it has written what it has."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it died
            self._process.stdin.close()

    def wait(self, seconds: float) -> None:
        """Wait until it has stopped, and end it if it does not."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        self._close()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def last_words(self) -> str:
        """Return how it ended, and what it said last."""
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - _TAIL))
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        self._close()
        return f"it ended with {how}" + (f": {said[-1]}" if said else ".")

    def _close(self) -> None:
        self.stop()
        self._errors.close()

    def _listen(self, replies: "queue.SimpleQueue[tuple[_Process, dict[str, Any] | None]]") -> None:
        assert self._process.stdout is not None
        try:
            with self._process.stdout as lines:
                for line in lines:
                    replies.put((self, json.loads(line)))
        except ValueError:  # half a line
            self._process.kill()
        finally:
            replies.put((self, None))
