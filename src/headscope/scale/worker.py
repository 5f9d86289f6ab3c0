"""`Worker`: a model and a run, and any shard of it on demand. As a module it is the process that `Processes` starts.

A worker repeats the call of the analysis up to the shard that is wanted of it, which costs milliseconds: whatever the
analysis prepares is made as in the process that drives the run, from the same options and the same merged passes.

`python -m headscope.scale.worker RUN MODEL DEVICE THREADS` reads jobs from its standard input, one JSON object a line,
and writes a receipt or an error for each to its standard output. When its input ends it writes what it has, and stops.
"""

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import IO, Any

import torch

from headscope import errors
from headscope.analysis.storage.manifest import describe_config, fingerprint, headscope_version, read_manifest
from headscope.analysis.storage.places import Place, place_of
from headscope.analysis.storage.sharded import Call, Receipt, RunFiles, Sharding, ShardJob, ShardMeasured
from headscope.analysis.storage.shards import Cut
from headscope.errors import HeadscopeError, IncompleteRunError, InvalidInputError, ShardError, StorageError
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import budget
from headscope.ops.kernels.dispatch import kernels_of
from headscope.scale.calls import read_call
from headscope.scale.models import load_model

__all__ = ["Worker", "failed_shard", "raise_refusal", "read_run", "reply_of"]


# Where a model comes from and what it was before it had weights: a copy of it may say something else.
_NOT_OF_NUMBERS = {"model_name", "tokenizer_name", "init_weights", "init_mode", "initializer_range", "n_devices"}


def read_run(place: Place) -> RunFiles:
    """Read the records of a sharded run.

    Raises:
        CheckpointError: if they are damaged.
        InvalidInputError: if there are none, or they were written by another version.
    """
    if not place.has("manifest.json"):
        raise InvalidInputError(f"{str(place)!r} is no run's folder: it has no manifest.json.", code="HS-RUN-05")
    manifest = read_manifest(place, "manifest.json")
    if not manifest.get("shards"):
        raise InvalidInputError(f"the run in {str(place)!r} is not in shards.")
    here = {"headscope": headscope_version(), "torch": torch.__version__}
    if manifest["software"] != here:
        raise InvalidInputError(
            f"the run in {str(place)!r} was begun with {manifest['software']}, and this process has {here}: shards of "
            "two versions are not merged. Use the same everywhere.",
            code="HS-RUN-04",
        )
    cuts = {name: Cut.read(place, name) for name in ("data", "reference")}
    if cuts["data"] is None:
        raise IncompleteRunError(f"the data of the run in {str(place)!r} is not cut yet.")
    return RunFiles(place, manifest, {name: cut for name, cut in cuts.items() if cut is not None})


class Worker:
    """A model and a run.

    Args:
        run: The run's folder, or its URL.
        model: What `from_pretrained` takes, in place of what the run names.
        device: Where the model goes.
        loaded: The model, where it is loaded already.

    Attributes:
        files: The run's records.

    Raises:
        InvalidInputError: for a model with other weights or another config than the run's, or other kernels.
    """

    def __init__(
        self,
        run: str | Place,
        *,
        model: str | None = None,
        device: str | None = None,
        loaded: HookedTransformer | None = None,
    ) -> None:
        place = place_of(run)
        self.files = read_run(place)
        self.call = read_call(place)
        there, options = self.files.manifest["model"], self.files.manifest["options"]
        self.model = loaded or load_model(
            model, self.call.model, place, there["weights"], dtype=there["config"]["dtype"], device=device
        )
        if fingerprint(self.model.state_dict()) != there["weights"]:
            raise InvalidInputError(
                f"the weights of {model or self.call.model or self.model.cfg.model_name!r} are not those of the run in "
                f"{str(place)!r}, whose model is {there['name']!r}. Give the same, loaded with the same options.",
                code="HS-RUN-08",
            )
        if there.get("put_on"):
            raise InvalidInputError(
                f"the run in {str(self.files.place)!r} was begun on a model with {there['put_on'][0]}, which no worker "
                "has. Go on with it in a process that puts it there: InProcess()."
            )
        self._check_config(there["config"])
        self.model.weight_processing = tuple(there["weight_processing"])
        self.model.cfg.model_name = there["name"]
        kernels = kernels_of(self.model.W_U)
        if kernels != options["kernels"]:
            raise InvalidInputError(
                f"this worker has the kernels {kernels!r}, and the run was begun with {options['kernels']!r}, whose "
                f"last digits differ. Set HEADSCOPE_KERNELS={options['kernels']} for both, or install the same."
            )

    def _check_config(self, there: Mapping[str, Any]) -> None:
        here = describe_config(self.model)
        names = sorted({*here, *there} - _NOT_OF_NUMBERS)
        differing = [name for name in names if here.get(name) != there.get(name)]
        if differing:
            values = "; ".join(f"{name} is {there.get(name)!r} there and {here.get(name)!r} here" for name in differing)
            raise InvalidInputError(
                f"the config of the worker's model is not that of the run in {str(self.files.place)!r}: {values}. Load "
                "it with the same options; or leave out model=, and workers get a copy of the model as it is.",
                code="HS-RUN-08",
            )

    def measure(self, stage: str, number: int) -> Receipt:
        """Measure a shard, or go on with it, and return its receipt.

        Raises:
            IncompleteRunError: if a pass before this one is not merged.
            InvalidInputError: if there is no such pass.
        """
        try:
            self.repeat(Sharding(None, Call("", {}), self.files, (stage, number)))
        except ShardMeasured as measured:
            return measured.receipt
        raise InvalidInputError(f"the run in {str(self.files.place)!r} has no pass {stage!r} to measure.")

    def repeat(self, engine: Any, *, progress: bool = False) -> Any:
        """Call the analysis as the run was begun, with another engine."""
        process = {"out": self.files.place, "resume": True, "progress": progress, "engine": engine}
        with budget(**self.call.budget):
            return self.call.function(self.model, **self.call.arguments, **process)


def reply_of(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a function does, or the `error` that it raises, its `kind` and `code`, for another process."""
    try:
        return measure()
    except HeadscopeError as error:
        return {"error": error.message, "kind": type(error).__name__, "code": error.code}
    except (RuntimeError, OSError, MemoryError) as error:
        return {"error": str(error), "kind": type(error).__name__}


def raise_refusal(reply: Mapping[str, Any]) -> None:
    """Raise what a worker refused on purpose, which trying again does not change."""
    kind = getattr(errors, reply.get("kind", ""), None)
    if isinstance(kind, type) and issubclass(kind, HeadscopeError) and kind not in (StorageError, ShardError):
        raise kind(reply["error"], code=reply.get("code"))


def failed_shard(job: ShardJob, times: int, where: str, reason: str) -> ShardError:
    """Return the error of a shard that failed wherever it was tried, with the last reason."""
    stop = "" if reason.endswith((".", "!", "?")) else "."
    return ShardError(
        f"shard {job.number} of {job.stage!r} failed {times} times, last {where}: {reason}{stop} The other shards are "
        "kept; resume=True (--resume) goes on with the run.",
        code="HS-SHARD-01",
    )


def _serve(jobs: IO[str], replies: IO[str], run: str, model: str, device: str, threads: str) -> None:
    """Measure what is asked on one stream, and answer on the other."""
    torch.set_num_threads(int(threads))
    wanted: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    busy = threading.Event()

    def listen() -> None:
        for line in jobs:
            wanted.put(json.loads(line))
        wanted.put(None)
        if busy.is_set():  # whoever asked has gone: keep what there is, and stop
            os.kill(os.getpid(), signal.SIGINT)

    def answer(reply: dict[str, Any]) -> None:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    made: list[Worker] = []

    def worker() -> Worker:
        if not made:
            made.append(Worker(run, model=model or None, device=device or None))
            answer({"ready": True})
        return made[0]

    threading.Thread(target=listen, daemon=True).start()
    while (job := wanted.get()) is not None:
        busy.set()
        reply = reply_of(lambda: {"receipt": asdict(worker().measure(job["stage"], job["number"]))})
        busy.clear()
        answer(reply)


def _main(arguments: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if by whoever started us (nohup, `&`)
    # Nothing but replies goes where replies go, whatever a library prints.
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        try:
            _serve(sys.stdin, replies, *arguments)
        except KeyboardInterrupt:
            sys.exit(130)


if __name__ == "__main__":
    _main(sys.argv[1:])
