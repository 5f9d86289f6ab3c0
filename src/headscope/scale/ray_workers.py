"""`Ray`: workers on the nodes of a Ray cluster, or of one started on this machine (`pip install 'headscope[ray]'`).

A worker is an actor that holds a run's records and its model, and nothing that was measured: that is in the run's
folder, which all nodes must see (a shared folder, or a URL). So a worker may die at any moment, with its node, and a
shard may come back twice.
"""

import importlib
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import torch

from headscope.analysis.storage.run_folder import RESULT
from headscope.analysis.storage.sharded import Engine, Receipt, ShardedRun, ShardJob
from headscope.errors import MissingDependencyError, ShardError, check_at_least
from headscope.scale.calls import write_call_for_others
from headscope.scale.models import remove_model, write_model
from headscope.scale.processes import n_cores
from headscope.scale.worker import Worker, failed_shard, raise_refusal, reply_of

__all__ = ["Ray"]

_IN_FLIGHT = 2  # shards that a worker has at most: one to measure, and the next
_LOOK = 1.0  # seconds between looks at workers that take too long


class Ray(Engine):
    """Workers of a Ray cluster.

    Each holds the model, mapped from a copy in the run's folder, or loaded from what `model` names. Shards go to the
    workers that are free, two at most to each. A worker that dies or fails is replaced; one that is late is raced by
    another, and replaced if it is later still.

    Args:
        address: The cluster: `"auto"`, or `"ray://head:10001"`; `None` or `"local"` starts one on this machine, unless
            this process is connected to one already.
        workers: How many; default: as many as the cluster has room for.
        cpus: Cores of each, and its threads.
        gpus: GPUs of each; with one, the model goes there.
        shard_tokens: Least number of tokens of a shard; default: that of the run's folder, or a 32nd of the data,
            at most 32,768.
        model: What `from_pretrained` takes on a worker's node, such as a folder on its own disk, in place of a copy.
        retries: How often a shard is tried again before the run stops.
        timeout: Seconds after which a worker is late with a shard; default: never.
        source: What `from_pretrained` takes to load the model, for `headscope merge` and others to know.
        tells_workers: Print a line for each shard that a worker has done.

    Raises:
        InvalidInputError: for a number out of range.
        MissingDependencyError: where Ray is not installed.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        cpus: int = 1,
        gpus: float = 0,
        shard_tokens: int | None = None,
        model: str | None = None,
        retries: int = 3,
        timeout: float | None = None,
        source: str | None = None,
        tells_workers: bool = False,
    ) -> None:
        check_at_least(1, cpus=cpus, workers=1 if workers is None else workers)
        check_at_least(0, retries=retries)
        try:
            self._ray = importlib.import_module("ray")
        except ImportError:
            raise MissingDependencyError(
                "a Ray cluster needs the package ray: pip install 'headscope[ray]'. Without it, Processes measures on "
                "this machine, and Part in the tasks of a SLURM array.",
                code="HS-DEPENDENCY-01",
            ) from None
        self.address = None if address == "local" else address
        self.workers, self.cpus, self.gpus = workers, cpus, gpus
        self.shard_tokens, self.model, self.retries, self.timeout = shard_tokens, model, retries, timeout
        self.source, self.tells_workers = source, tells_workers
        self._run: ShardedRun | None = None
        self._connected_here = False
        self._actors: list[_Actor] = []
        self._room = self._stillborn = 0

    def begin(self, run: ShardedRun) -> None:
        """Note the call, and write a copy of the model where workers find it.

        Raises:
            InvalidInputError: if the model has hooks, or an argument cannot be sent.
        """
        write_call_for_others(run, self.model or self.source)
        self._run = run

    def map_shards(self, jobs: Sequence[ShardJob]) -> Iterator[Receipt]:
        """Hand the shards to workers as they come free, and yield receipts as they come.

        Raises:
            ShardError: if a shard fails more often than `retries` allow; the message has the last reason.
            HeadscopeError: for what a worker refuses, as it would be here.
        """
        self._connect()
        waiting, failures = deque(jobs), dict.fromkeys(jobs, 0)
        left = set(jobs)
        while left:
            self._hand_out(waiting, left)
            for actor, job, reply in chain(self._come_back(), self._late(waiting)):
                if job not in left:
                    continue  # one raced in the pass before, or the second to bring this shard
                if "receipt" in reply:
                    left.remove(job)
                    yield Receipt(**reply["receipt"])
                    continue
                raise_refusal(reply)
                if actor in self._actors:  # what failed it may be its own: its memory, its node's disk
                    self._actors.remove(actor)
                    self._ray.kill(actor.handle)
                    waiting.extendleft(actor.jobs.values())
                failures[job] += 1
                job.run.note_failure(job, f"{actor.node}: {reply['error']}")
                if failures[job] > self.retries:
                    raise failed_shard(job, failures[job], f"on {actor.node}", reply["error"])
                waiting.appendleft(job)

    def end(self) -> None:
        """Let the workers go, and what was begun here of Ray itself; a finished run needs no copy of its model."""
        for actor in self._actors:
            self._ray.kill(actor.handle)
        self._actors.clear()
        if self._connected_here:
            self._ray.shutdown()
            self._connected_here = False
        if self._run is not None and self._run.place.has(RESULT):
            remove_model(self._run.place)
        self._run = None

    def _connect(self) -> None:
        """Connect to the cluster, and see that there are workers."""
        assert self._run is not None
        if not self._ray.is_initialized():
            quiet = {"log_to_driver": False, "logging_level": "error"}
            if self.address is None:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                # By name: without an address Ray joins a cluster that it finds here, or that RAY_ADDRESS names.
                self._ray.init("local", num_cpus=max(n_cores(), self.cpus), include_dashboard=False, **quiet)
            else:
                self._ray.init(address=self.address, **quiet)
            self._connected_here = True
        if self.model is None:
            write_model(self._run.model, self._run.place)
        self._room = self._n_workers()

    def _n_workers(self) -> int:
        if self.workers is not None:
            return self.workers
        there = self._ray.cluster_resources()
        room = int(there.get("CPU", 0) // self.cpus)
        return max(1, min(room, int(there.get("GPU", 0) // self.gpus)) if self.gpus else room)

    def _hand_out(self, waiting: deque[ShardJob], left: set[ShardJob]) -> None:
        """Start workers that are missing, and give waiting shards to those that are ready and have the fewest."""
        while len(self._actors) < min(self._room, len(left)):
            self._actors.append(self._started())
        for n_before in range(_IN_FLIGHT):
            for actor in self._actors:
                if waiting and actor.ready and not actor.is_late and len(actor.jobs) == n_before:
                    job = waiting.popleft()
                    if job in left:
                        actor.jobs[actor.handle.measure.remote(job.stage, job.number)] = job
                        actor.since = actor.since if n_before else time.monotonic()

    def _started(self) -> "_Actor":
        assert self._run is not None
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_restarts": 0}
        device = "cuda" if self.gpus else "cpu" if str(self._run.model.W_E.device) == "cpu" else None
        handle = self._ray.remote(**options)(_RayWorker).remote(self._run.place.address, self.model, device, self.cpus)
        return _Actor(handle, handle.begin.remote())

    def _come_back(self) -> "Iterator[tuple[_Actor, ShardJob, dict[str, Any]]]":
        """Wait for workers, and yield what each that replied, or died, has to say of a shard."""
        owners = {
            ref: actor for actor in self._actors for ref in (*actor.jobs, *([actor.begun] if actor.begun else []))
        }
        done, _ = self._ray.wait(list(owners), num_returns=1, timeout=_LOOK)
        for ref in done:
            actor = owners[ref]
            try:
                reply = self._ray.get(ref)
            except self._ray.exceptions.RayError as error:
                yield from self._gone(actor, " ".join(str(error).split())[:500])
                continue
            actor.since, actor.is_late = time.monotonic(), False
            if ref == actor.begun:
                raise_refusal(reply)
                if "error" in reply:
                    raise ShardError(f"a worker could not begin: {reply['error']}")
                actor.begun, actor.node = None, reply["node"]
                self._stillborn = 0
            else:
                yield actor, actor.jobs.pop(ref), reply

    def _gone(self, actor: "_Actor", reason: str) -> "Iterator[tuple[_Actor, ShardJob, dict[str, Any]]]":
        """Forget a worker that died or hung, and give back its shards."""
        if actor not in self._actors:
            return
        self._actors.remove(actor)
        self._room = self._n_workers()
        if not actor.ready:
            self._stillborn += 1
            if self._stillborn > self.retries:
                raise ShardError(f"{self._stillborn} workers could not begin, the last one because: {reason}")
        for job in actor.jobs.values():
            yield actor, job, {"error": reason}

    def _late(self, waiting: deque[ShardJob]) -> "Iterator[tuple[_Actor, ShardJob, dict[str, Any]]]":
        """Let others race the shards of workers that are late; end those that are later still, and yield theirs."""
        for actor in list(self._actors):
            seconds = time.monotonic() - actor.since
            if self.timeout is None or not actor.jobs or seconds < self.timeout:
                continue
            was_late, actor.is_late = actor.is_late, True
            # Its place is needed where nobody is left to race it.
            if seconds > 2 * self.timeout or all(other.is_late for other in self._actors):
                self._ray.kill(actor.handle)
                yield from self._gone(actor, f"it took more than {self.timeout} seconds.")
            elif not was_late:
                waiting.extendleft(actor.jobs.values())


@dataclass(eq=False)
class _Actor:
    """A worker, and the shards that it has.

    Attributes:
        handle: The actor.
        begun: What comes back when it is ready; `None` from then on.
        jobs: Its shards, by what comes back.
        since: When it last began or finished one.
        node: Where it is.
        is_late: Others race it.
    """

    handle: Any
    begun: Any
    jobs: dict[Any, ShardJob] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)
    node: str = "a node that did not answer"
    is_late: bool = False

    @property
    def ready(self) -> bool:
        """It has started, and knows where it is."""
        return self.begun is None


class _RayWorker:
    """The actor: a `Worker`, which is made where the actor is."""

    def __init__(self, run: str, model: str | None, device: str | None, threads: int) -> None:
        torch.set_num_threads(threads)
        self._run, self._model, self._device = run, model, device
        self._worker: Worker | None = None

    def begin(self) -> dict[str, Any]:
        """Load the model, and return the `node`: the host, and the number of the process."""
        return reply_of(lambda: {"node": f"{socket.gethostname()}:{os.getpid()}", "run": str(self._made().files.place)})

    def measure(self, stage: str, number: int) -> dict[str, Any]:
        """Measure a shard; return its `receipt`, or the `error` and its `kind`."""
        return reply_of(lambda: {"receipt": asdict(self._made().measure(stage, number))})

    def _made(self) -> Worker:
        if self._worker is None:
            self._worker = Worker(self._run, model=self._model, device=self._device)
        return self._worker
