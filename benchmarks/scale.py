"""What sharding costs: one process against several, in wall time and CPU seconds, and the merge of many shards.

    python benchmarks/scale.py headscope-demo --tokens 65536 --shard-tokens 8192 --workers 2 [--ray]

Runs of the same data are made in turn, `--repeats` times, each by one thread a worker: without shards, with shards in
this process, and with workers. On a machine that does other work too, only CPU seconds say something: those of workers
count from their start, imports included. The bits of sharded runs are compared each time. `MODEL` is what
`from_pretrained` takes, or `gpt2-small-shape` for random weights.
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
from headscope.scale import InProcess, Part, Processes, Ray


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


def compare(model: HookedTransformer, args: argparse.Namespace) -> None:
    """Time runs without shards, in shards, and by workers."""
    rows = args.tokens // args.length
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, model.cfg.d_vocab - 5, (rows, args.length), generator=generator)
    size = {"shard_tokens": args.shard_tokens}
    engines: dict[str, Callable[[], Any]] = {
        "no shards": lambda: None,
        "shards in this process": lambda: InProcess(**size),
        "1 worker": lambda: Processes(1, threads=1, **size),
        f"{args.workers} workers": lambda: Processes(args.workers, threads=1, **size),
    }
    if args.ray:
        engines[f"Ray, {args.workers} workers"] = lambda: Ray("local", workers=args.workers, **size)
    measure_entropy(model, tokens[:1], progress=False)  # compiles
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    sharded = None
    for _ in range(args.repeats):
        for name, make in engines.items():
            with tempfile.TemporaryDirectory() as folder:
                options = {"out": Path(folder) / "run", "engine": make(), "progress": False}
                found, wall, cpu = seconds(lambda options=options: measure_entropy(model, tokens, **options))
            times[name].append((wall, cpu))
            if name != "no shards":
                sharded = sharded or found
                same = all(
                    torch.equal(getattr(found, of), getattr(sharded, of)) for of in ("resid", "diff", "marginal")
                )
                assert same, f"{name}: other bits"
    print(f"entropy of {model.cfg.model_name}, {tokens.numel()} tokens, load average {os.getloadavg()[0]:.1f}")
    base_wall, base_cpu = (min(each[at] for each in times["no shards"]) for at in (0, 1))
    for name, each in times.items():
        wall, cpu = min(wall for wall, _ in each), min(cpu for _, cpu in each)
        rates = f"{base_wall / wall:5.2f} of the rate; {cpu:7.1f} CPU s, {cpu / base_cpu:5.2f} of the work"
        print(f"{name:24} {wall:7.1f} s, {rates}")


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
    parser.add_argument("model", nargs="?", default="headscope-demo")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--shard-tokens", type=int, default=8192)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--merge", type=int, default=1000, help="simulated shards to merge")
    parser.add_argument("--schedule", type=int, default=1000, help="shards with next to nothing in them")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.tokens:
        compare(loaded(args.model), args)
    if args.merge:
        merge_many(args.merge, 100_000)
    if args.schedule:
        schedule(args.schedule)


if __name__ == "__main__":
    main()
