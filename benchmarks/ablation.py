"""`ablate_heads` against the notebooks' way, on GPT-2 small's shape with random weights.

The notebooks' way turns on every head's result, runs the model whole for each head and value, makes the direct effect's
logits [batch, pos, d_vocab], and keeps all logits until the losses are taken. It runs on headscope's model and, with
`--peer`, on that of TransformerLens in its own environment. Every method has a process of its own
(`workers/ablation.py`) with the same weights and tokens; they are asked in turn, so that all meet the same moods of the
machine, and ratios are taken pair by pair. Zero and mean, patched and direct; values are compared token by token.
Memory is read from `/proc` (Linux).

    python benchmarks/ablation.py [--rows 8] [--length 128] [--repeats 3]
        [--ours-only] [--peer PYTHON_WITH_TRANSFORMER_LENS_3]

Two comparisons: heads 10.7 and 11.10; and all 144 heads by headscope, beside one head of each layer the naive way
(144 would take it an hour), by the time for each head.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from entropy import GPT2_SMALL, WATCH, peer_version, write_weights
from workers.protocol import MEMORY, Side, Worker, workers

import headscope

SCRIPT = Path(__file__).parent / "workers" / "ablation.py"
TWO = [(10, 7), (11, 10)]
ALL = [(layer, head) for layer in range(12) for head in range(12)]
ONE_EACH = [(layer, (7 * layer + 5) % 12) for layer in range(12)]
LABELS = {"transformer_lens": "naive, TransformerLens", "naive": "naive, headscope", "headscope": "headscope"}


def measure(
    worker: Worker,
    side: Side,
    loaded: dict[str, int],
    heads: list[tuple[int, int]],
    options: argparse.Namespace,
    folder: Path,
) -> dict[str, Any]:
    """Seconds for each head, bytes above the loaded model, and the values."""
    path = folder / f"{side.library}.pt"
    answer, peak = worker.ask_watching(
        WATCH, task="measure", rows=options.rows, length=options.length, heads=heads, save=str(path)
    )
    memory = {name: peak[name] - loaded[name] for name in MEMORY}
    return {
        "seconds": answer["seconds"],
        "per_head": answer["seconds"] / len(heads),
        "memory": memory,
        "values": torch.load(path, weights_only=True),
    }


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all methods in turn; a table for each comparison."""
    sides = [Side("headscope", sys.executable), Side("naive", sys.executable)]
    if options.ours_only:
        del sides[1]
    elif options.peer:
        sides[1] = Side("transformer_lens", str(options.peer.absolute()))
        print(f"beside {peer_version(sides[1], folder)}", flush=True)
    weights = folder / "weights.safetensors"
    write_weights(GPT2_SMALL, weights)
    results: dict[str, Any] = {}
    with workers(SCRIPT, sides, folder, options.threads) as asked:
        loaded = []
        for worker in asked:
            worker.ask(task="load", shape=GPT2_SMALL, weights=str(weights))
            loaded.append(worker.memory())
            worker.ask(task="measure", rows=1, length=16, heads=TWO, save=str(folder / "warm-up.pt"))
        plans = [("heads 10.7 and 11.10", TWO, TWO)] + ([] if options.two_only else [("all 144 heads", ALL, ONE_EACH)])
        for name, ours, theirs in plans:
            found: dict[str, list[dict[str, Any]]] = {side.library: [] for side in sides}
            for _ in range(options.repeats):
                for worker, side, before in zip(asked, sides, loaded, strict=True):
                    heads = ours if side.library == "headscope" else theirs
                    found[side.library].append(measure(worker, side, before, heads, options, folder))
            results[name] = show(name, ours, theirs, found)
    return results


def show(
    name: str, ours: list[tuple[int, int]], theirs: list[tuple[int, int]], found: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Print one comparison, and give its numbers."""
    print(f"\n{name}")
    print(f"{'':<24} {'heads':>6} {'s/head':>8} {'seconds':>9} {'peak MB':>8} {'total MB':>9}")
    peaks = {}
    for library, runs in found.items():
        anonymous, total = (max(run["memory"][kind] for run in runs) / 2**20 for kind in MEMORY)
        peaks[library] = anonymous
        print(
            f"{LABELS[library]:<24} {len(ours if library == 'headscope' else theirs):>6} "
            f"{statistics.median(run['per_head'] for run in runs):>8.2f} "
            f"{statistics.median(run['seconds'] for run in runs):>9.1f} {anonymous:>8.0f} {total:>9.0f}"
        )
    mine = found.pop("headscope")
    if not found:
        return {"peak_MB": peaks}
    ((library, other),) = found.items()
    places = [ours.index(head) for head in theirs]
    off = float((mine[0]["values"][:, :, places] - other[0]["values"]).abs().max())
    ratios = [slow["per_head"] / quick["per_head"] for slow, quick in zip(other, mine, strict=True)]
    memory = peaks["headscope"] / peaks[library]
    print(
        f"{LABELS[library]} / headscope, time per head: {statistics.median(ratios):.2f} (pair by pair "
        f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}); headscope's peak memory: {memory:.2f} of theirs; values "
        f"differ by at most {off:.1e} nats",
        flush=True,
    )
    return {"ratios": ratios, "peak_MB": peaks, "largest_difference": off}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--two-only", action="store_true", help="only heads 10.7 and 11.10")
    parser.add_argument("--ours-only", action="store_true", help="only headscope's time and memory")
    parser.add_argument("--peer", type=Path, help="the Python of an environment with TransformerLens 3")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    n_tokens = options.rows * options.length
    print(
        f"GPT-2 small's shape, random weights, {options.rows} x {options.length} = {n_tokens:,} tokens, "
        f"{options.threads} threads, medians of {options.repeats}"
    )
    print(f"headscope {headscope.__version__} with torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        results = compare(options, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
