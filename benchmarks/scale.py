"""What sharding costs: in one process, from one worker to two, for each shard, and for the merge of many.

    python benchmarks/scale.py [--ray] [--only overhead,efficiency,merge,schedule]

- overhead: CPU seconds of a run in shards over those of one without, both in this process, in turn.
- efficiency: the rate of two workers over twice that of one, each with one thread: of the whole run, start and merge
  included, and of the measuring alone, from the first shard's start to the last one's end. Needs a machine that does
  nothing else.
- merge: time and memory for a thousand simulated shards.
- schedule: all that is paid for a shard beside its tokens, of ten thousand with next to nothing in them.

The bits of sharded runs are compared. A model (`--models`) is what `from_pretrained` takes, or `gpt2-small-shape` for
random weights. Less than four minutes on two cores.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis import measure_entropy
from headscope.analysis.storage.merging import merge_states
from headscope.analysis.storage.places import place_of
from headscope.analysis.storage.run_folder import Progress, Stage
from headscope.ops.devices import budget
from headscope.scale import InProcess, Part, Processes, Ray, status

LENGTH = 128


def loaded(name: str) -> HookedTransformer:
    if name != "gpt2-small-shape":
        return HookedTransformer.from_pretrained(name, device="cpu")
    shape: dict[str, Any] = {"n_layers": 12, "d_model": 768, "d_head": 64, "n_ctx": 256, "d_vocab": 50257}
    return HookedTransformer(HookedTransformerConfig(**shape, act_fn="gelu_new", seed=0, device="cpu"))


def seconds(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result of a run, its wall time, and its CPU seconds with those of processes that it waited for."""

    def cpu() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)

    began, before = time.monotonic(), cpu()
    found = run()
    return found, time.monotonic() - began, cpu() - before


def tokens_of(model: HookedTransformer, rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, model.cfg.d_vocab - 5, (rows, LENGTH), generator=generator)


def one_run(model: HookedTransformer, rows: int, engine: Any) -> tuple[Any, float, float, float]:
    """The result, the wall time, the CPU seconds, and the tokens a second while shards were measured."""
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"out": Path(folder) / "run", "engine": engine, "progress": False}
        found, wall, cpu = seconds(lambda: measure_entropy(model, tokens_of(model, rows), **options))
        rate = 0.0 if engine is None else status(options["out"]).passes[-1].tokens_per_second
    return found, wall, cpu, rate


def same_bits(found: Any, wanted: Any) -> bool:
    return all(torch.equal(getattr(found, name), getattr(wanted, name)) for name in ("resid", "diff", "marginal"))


def overhead(repeats: int) -> None:
    """Compare CPU seconds with and without shards of the default size, in this process."""
    model = loaded("headscope-demo")
    one_run(model, 16, None)  # compiles
    used: dict[str, list[float]] = {"plain": [], "in shards": []}
    for repeat in range(repeats):
        for name in sorted(used, reverse=bool(repeat % 2)):
            used[name].append(one_run(model, 512, None if name == "plain" else InProcess())[2])
    plain, sharded = map(min, used.values())
    print(
        f"{512 * LENGTH} tokens of the demo: {plain:.2f} CPU s, in shards {sharded:.2f}: overhead of shards in one "
        f"process {100 * (sharded / plain - 1):+.1f} % (least of {repeats} each)",
        flush=True,
    )


def efficiency(name: str, ray: bool) -> None:
    """Compare one worker with two."""
    model = loaded(name)
    # Batches, and so shards, that are many beside two workers, of some seconds each.
    rows, sizes = (1024, {"batch_tokens": 2048}) if name == "headscope-demo" else (8, {"batch_tokens": 256})
    shard = {"shard_tokens": 8192 if name == "headscope-demo" else 256}
    engines: dict[str, Callable[[int], Any]] = {"processes": lambda n: Processes(n, threads=1, **shard)}
    if ray:
        engines["Ray"] = lambda n: Ray("local", workers=n, **shard)
    wanted = None
    with budget(**sizes):
        for kind, make in engines.items():
            walls, rates = {}, {}
            for n in (1, 2):
                found, walls[n], _, rates[n] = one_run(model, rows, make(n))
                wanted = wanted or found
                assert same_bits(found, wanted), f"{kind}: other bits"
            print(
                f"{name}, {rows * LENGTH} tokens, {kind}: one worker {rates[1]:,.0f} tokens/s, two {rates[2]:,.0f}: "
                f"efficiency {rates[2] / rates[1] / 2:.2f}; of the whole run, {walls[1]:.1f} s and {walls[2]:.1f} s, "
                f"{walls[1] / walls[2] / 2:.2f}",
                flush=True,
            )


def merge_many(n: int, numbers: int) -> None:
    """Time the merge of simulated shards, each with so many numbers in its state."""
    with tempfile.TemporaryDirectory() as folder:
        place = place_of(Path(folder))
        fsync, os.fsync = os.fsync, lambda _: None
        for number in range(n):
            Stage(place, f"{number:06d}").write(
                Progress(finished=True), {"sum": torch.full((numbers,), 1.0 / (1 + number))}
            )
        os.fsync = fsync
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _, wall, cpu = seconds(lambda: merge_states(Stage(place, f"{number:06d}").state or {} for number in range(n)))
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"merge of {n} shards of {numbers * 8 / 2**20:.1f} MiB: {wall:.1f} s, {cpu:.1f} CPU s, {more:.0f} MB more")


def schedule(n: int) -> None:
    """Time shards with next to nothing to measure: all that is paid for a shard, beside its tokens."""
    shape: dict[str, Any] = {"n_layers": 1, "d_model": 8, "d_head": 4, "n_ctx": 8, "d_vocab": 50}
    model = HookedTransformer(HookedTransformerConfig(**shape, attn_only=True, seed=0, device="cpu"))
    tokens = torch.randint(0, 50, (n, 8), generator=torch.Generator().manual_seed(0))
    batches = list(tokens.split(1))
    with tempfile.TemporaryDirectory() as folder:
        fsync, os.fsync = os.fsync, lambda _: None
        options: dict[str, Any] = {"out": Path(folder) / "run", "progress": False, "resume": True}
        _, wall, cpu = seconds(lambda: measure_entropy(model, batches, engine=Part(0, 1, shard_tokens=8), **options))
        print(f"{n} shards of 8 tokens in this process: {1e3 * wall / n:.2f} ms, {1e3 * cpu / n:.2f} CPU ms each")
        os.fsync = fsync


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="overhead,efficiency,merge,schedule")
    parser.add_argument("--models", default="headscope-demo,gpt2-small-shape")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs for the overhead")
    parser.add_argument("--ray", action="store_true", help="measure the efficiency of Ray workers too")
    parser.add_argument("--merge", type=int, default=1000, help="simulated shards to merge")
    parser.add_argument("--schedule", type=int, default=10_000, help="shards with next to nothing in them")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load average {os.getloadavg()[0]:.1f}", flush=True)
    for part in args.only.split(","):
        if part == "overhead":
            overhead(args.repeats)
        elif part == "efficiency":
            for name in args.models.split(","):
                efficiency(name, args.ray and name == "headscope-demo")
        elif part == "merge":
            merge_many(args.merge, 100_000)
        else:
            schedule(args.schedule)


if __name__ == "__main__":
    main()
