"""Random kills of drivers and workers, of every engine, until there were enough: does a run still come out to the bit?

    python benchmarks/scale_kills.py --kills 500 [--ray] [--folder kills]

A driver process runs an analysis in shards, is killed or loses a worker after a random time, and is started again with
another engine, until the result is there; then a new run begins. Every result is compared with that of one process.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis import measure_entropy
from headscope.analysis.lens.entropy import EntropyResult
from headscope.model.checkpoints.files import write_bytes
from headscope.ops.devices import budget
from headscope.scale import InProcess, Processes, Ray

ARRAYS = ("resid", "diff", "marginal")


def measure(folder: Path, engine: Any) -> EntropyResult:
    """Measure a small model on small batches: sixty-four shards in each of two passes."""
    torch.set_num_threads(1)
    shape: dict[str, Any] = {"n_layers": 2, "d_model": 16, "d_head": 4, "n_ctx": 16, "d_vocab": 101}
    model = HookedTransformer(HookedTransformerConfig(**shape, act_fn="gelu_new", seed=0, device="cpu"))
    tokens = torch.randint(0, 101, (256, 16), generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"baseline": "mean", "reduce": "none", "flush_every": 1, "progress": False}
    with budget(batch_tokens=32):
        return measure_entropy(model, tokens, engine=engine, out=folder, resume=True, **options)


def engine(name: str) -> Any:
    if name == "in process":
        return InProcess(shard_tokens=64)
    if name == "processes":
        return Processes(2, threads=1, shard_tokens=64, retries=10**6)
    return Ray("local", workers=2, shard_tokens=64, retries=10**6)


def drive(name: str, folder: Path) -> None:
    """Be a driver, in a process of its own."""
    measure(folder, engine(name))


def children(pid: int) -> list[int]:
    """The processes below one, from /proc."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
    below, found = [pid], []
    while below:
        new = [each for each, parent in parents.items() if parent in below]
        found += new
        below = new
    return found


def disturb(driver: Any, chance: random.Random, patience: float) -> int:
    """Kill a driver or its workers after random times, until it ends; the number of kills."""
    kills = 0
    while True:
        driver.join(chance.uniform(0.0, patience))
        if driver.exitcode is not None:
            return kills
        workers = children(driver.pid)
        victim = chance.choice(workers) if workers and chance.random() < 0.7 else driver.pid
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
        kills += 1
        if victim == driver.pid:
            driver.join()
            return kills


class Tally:
    """Kills and runs so far, kept in a folder, so that a count that is itself stopped goes on."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.path = folder / "tally.json"
        kept = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.kills = {**dict.fromkeys(names, 0), **kept.get("kills", {})}
        self.runs, self.seconds = kept.get("runs", 0), kept.get("seconds", 0.0)

    def add(self, name: str, kills: int, seconds: float) -> None:
        self.kills[name] += kills
        self.seconds += seconds
        self.write()

    def write(self) -> None:
        write_bytes(self.path, json.dumps({"kills": self.kills, "runs": self.runs, "seconds": self.seconds}).encode())

    def __str__(self) -> str:
        shown = ", ".join(f"{number} of {name}" for name, number in self.kills.items())
        return f"{self.runs} runs with the same bits, after {shown} killed, in {self.seconds:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--patience",
        type=float,
        default=5.0,
        help="the longest time between two kills of a run in one process, in seconds",
    )
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the count is kept, to go on with it; default: nowhere")
    args = parser.parse_args()
    multiprocessing.set_start_method("forkserver")  # which imports once: kills shall hit runs, not imports
    multiprocessing.set_forkserver_preload(["headscope.analysis", "headscope.scale"])
    names = ["in process", "processes", *(["ray"] if args.ray else [])]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        tally = Tally(folder, names)
        chance = random.Random(f"{args.seed} {tally}")
        wanted = measure(folder / "wanted", engine("in process"))
        while sum(tally.kills.values()) < args.kills:
            run_to_its_end(folder / str(tally.runs), names, tally, chance, args.patience)
            found = EntropyResult.load(folder / str(tally.runs) / "result.safetensors")
            for of in ARRAYS:
                same = torch.equal(getattr(found, of).nan_to_num(), getattr(wanted, of).nan_to_num())
                assert same, f"{folder / str(tally.runs)}: other bits of {of}"
            assert found.info == wanted.info, folder / str(tally.runs)
            shutil.rmtree(folder / str(tally.runs))
            tally.runs += 1
            tally.write()
            print(tally, flush=True)


def run_to_its_end(folder: Path, names: list[str], tally: Tally, chance: random.Random, patience: float) -> None:
    """Start drivers of a run, one after another, and disturb them, until its result is there."""
    left = 20
    while not (folder / "result.safetensors").exists():
        name, began = chance.choice(names), time.monotonic()
        driver = multiprocessing.Process(target=drive, args=(name, folder))
        driver.start()
        # Workers take seconds to start. After some kills a run may come to its end.
        kills = disturb(driver, chance, (1 if name == "in process" else 3) * patience if left > 0 else 600.0)
        tally.add(name, kills, time.monotonic() - began)
        left -= 1


if __name__ == "__main__":
    main()
