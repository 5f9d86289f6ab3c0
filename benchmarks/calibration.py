"""The likeliest tokens without each head (`measure_calibration`'s work), beside a notebook's way and other versions.

GPT-2 small's width, heads and vocabulary with fewer layers, random states and weights. The notebook's way makes the
logits [row, d_vocab] of the prediction without each head, through d_model, their softmax, its top k and the next
token's rank, head by head. One thread, seconds of processor time. With `--before`, the same is done by another
checkout's `src` in a process of its own, in turn with this one, and ratios are taken pair by pair.

    python benchmarks/calibration.py [--layers 2] [--rows 512] [--k 1] [--repeats 3] [--before OLDER_CHECKOUT/src]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from headscope.ops.lens_top import LensTop, TopProblem, lens_top

HEADS, D_HEAD, D_MODEL, D_VOCAB = 12, 64, 768, 50257


def make(layers: int, rows: int) -> TopProblem:
    """Predictions far from uniform, and heads that change them."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return TopProblem(
        rows=random(rows, D_MODEL),
        W_U=0.12 * random(D_MODEL, D_VOCAB),
        offset=torch.zeros(D_VOCAB),
        targets=torch.randint(D_VOCAB, (rows,), generator=generator),
        heads=0.3 * random(layers, HEADS, rows, D_HEAD),
        W_O=0.1 * random(layers, HEADS, D_HEAD, D_MODEL),
    )


def naive(problem: TopProblem, k: int) -> LensTop:
    """The notebook's way: all logits of one prediction after the other."""
    assert problem.heads is not None
    log_probs, places = [], []
    outputs = [torch.zeros_like(problem.rows)]
    outputs += [
        z @ W_O for layer in zip(problem.heads, problem.W_O, strict=True) for z, W_O in zip(*layer, strict=True)
    ]
    for output in outputs:
        every = ((problem.rows - output) @ problem.W_U + problem.offset).log_softmax(-1)
        log_probs.append(every.topk(k, dim=-1).values)
        own = every.gather(-1, problem.targets[:, None])
        places.append((every > own).sum(-1).clamp(max=k))
    return LensTop(torch.stack(log_probs).double(), torch.stack(places))


def elsewhere(source: Path, options: argparse.Namespace, folder: str) -> tuple[float, LensTop]:
    """Seconds and results of another checkout."""
    path = Path(folder) / "found.pt"
    numbers = [f"--{name}={getattr(options, name)}" for name in ("layers", "rows", "k")]
    environment = {**os.environ, "PYTHONPATH": str(source.absolute())}
    subprocess.run([sys.executable, __file__, *numbers, f"--save={path}"], env=environment, check=True)
    seconds, *found = torch.load(path, weights_only=True)
    return seconds, LensTop(*found)


def timed(problem: TopProblem, k: int) -> tuple[float, LensTop]:
    """Seconds and results; what compiles has compiled before."""
    few = TopProblem(**{**vars(problem), "rows": problem.rows[:300], "targets": problem.targets[:300]})
    assert problem.heads is not None
    lens_top(TopProblem(**{**vars(few), "heads": problem.heads[:1, :, :300], "W_O": problem.W_O[:1]}), k=k)
    begun = time.process_time()
    found = lens_top(problem, k=k)
    return time.process_time() - begun, found


def difference(one: LensTop, other: LensTop) -> str:
    off = float((one.log_probs - other.log_probs).abs().max())
    return f"differ by at most {off:.1e} nats, {int((one.place != other.place).sum())} places by any"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 2), ("rows", 512), ("k", 1), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--save", type=Path, help="only this version's seconds and results, into a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    problem = make(options.layers, options.rows)
    if options.save:
        seconds, found = timed(problem, options.k)
        torch.save([seconds, found.log_probs, found.place], options.save)
        return
    ratios: dict[str, list[float]] = {"naive": [], "before": []}
    for _ in range(options.repeats):
        mine, found = timed(problem, options.k)
        begun = time.process_time()
        wanted = naive(problem, options.k)
        others = {"naive": (time.process_time() - begun, wanted)}
        if options.before:
            with tempfile.TemporaryDirectory() as folder:
                others["before"] = elsewhere(options.before, options, folder)
        print(f"headscope {mine:.2f} s of processor time", flush=True)
        for name, (seconds, other) in others.items():
            ratios[name].append(seconds / mine)
            print(f"{name:9} {seconds:.2f} s, {seconds / mine:.2f} times; {difference(found, other)}", flush=True)
    for name, each in ratios.items():
        if each:
            print(
                f"{name} / headscope: {statistics.median(each):.2f} (pair by pair {min(each):.2f} to {max(each):.2f})"
            )


if __name__ == "__main__":
    main()
