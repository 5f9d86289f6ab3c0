"""Random kills of drivers and workers, of every engine, until there were enough: does a run still come out to the bit?

    python benchmarks/scale_kills.py --kills 500 [--ray]

A driver process runs an analysis in shards, is killed or loses a worker after a random time, and is started again with
another engine, until the result is there; then a new run begins. Every result is compared with that of one process.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis import measure_entropy
from headscope.analysis.lens.entropy import EntropyResult
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


def disturb(driver: subprocess.Popen[bytes], chance: random.Random, patience: float) -> int:
    """Kill a driver or its workers after random times, until it ends; the number of kills."""
    kills = 0
    while True:
        try:
            driver.wait(chance.uniform(0.0, patience))
            return kills
        except subprocess.TimeoutExpired:
            workers = children(driver.pid)
            victim = chance.choice(workers) if workers and chance.random() < 0.7 else driver.pid
            try:
                os.kill(victim, signal.SIGKILL)
                kills += 1
            except ProcessLookupError:
                continue
            if victim == driver.pid:
                driver.wait()
                return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=8.0, help="the longest time between two kills, in seconds")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--drive", nargs=2, metavar=("ENGINE", "RUN"), help="what a driver does")
    args = parser.parse_args()
    if args.drive:
        measure(Path(args.drive[1]), engine(args.drive[0]))
        return
    chance = random.Random(args.seed)
    names = ["in process", "processes", *(["ray"] if args.ray else [])]
    kills, runs, began = dict.fromkeys(names, 0), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        wanted = measure(Path(temporary) / "wanted", engine("in process"))
        while sum(kills.values()) < args.kills:
            folder, left = Path(temporary) / str(runs), 20
            while not (folder / "result.safetensors").exists():
                name = chance.choice(names)
                driver = subprocess.Popen([sys.executable, __file__, "--drive", name, str(folder)])
                # After some kills a run may come to its end.
                kills[name] += disturb(driver, chance, args.patience if left > 0 else 600.0)
                left -= 1
            found = EntropyResult.load(folder / "result.safetensors")
            for of in ARRAYS:
                assert torch.equal(getattr(found, of).nan_to_num(), getattr(wanted, of).nan_to_num()), f"{folder}: {of}"
            assert found.info == wanted.info, folder
            runs += 1
            shown = ", ".join(f"{number} of {name}" for name, number in kills.items())
            print(
                f"{runs} runs with the same bits, after {shown} killed, in {time.monotonic() - began:.0f} s", flush=True
            )


if __name__ == "__main__":
    main()
