"""Activation patching against TransformerLens's `patching`, on GPT-2 small's shape with random weights.

Two sweeps, `resid_pre` over all layers and positions and head outputs (all positions at once) over all heads, each
with the logit difference as a function of all logits ("opaque"), as one that says it reads the last position, and as an
`AnswerMetric`. Prompts differ at every position, so that nothing can be left out (`everywhere`), or from the repeated
name on, as those of the IOI notebooks do (`--differ name`). Each library has a process of its own with the same
weights and tokens; they are asked in turn, and the best of the repeated runs is compared, as are the values cell by
cell.

    python benchmarks/patching.py --peer PYTHON_WITH_TRANSFORMER_LENS_3 [--sweep heads] [--repeats 3]

What to expect, in operations: `L` layers of `n` weights, `P` positions, `U` weights of the unembedding. A plain run of
a cell multiplies by `P (L n + U)` weights. Patching the residual stream before layer `l` at `p` needs
`(P - p) (L - l) n`, less most of the last layer, and `P - p` (or one) of `P` unembeddings; a head's output needs an MLP
and the layers behind it at all positions. The ratios of these are printed beside those measured; the peer's own
overhead comes on top.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from entropy import GPT2_SMALL, peer_version, write_weights
from workers.protocol import Side, Worker, workers

import headscope

SCRIPT = Path(__file__).parent / "workers" / "patching.py"
SWEEPS = ("resid_pre", "heads")
METRICS = ("opaque", "last position", "answers")


def weights_of(shape: dict[str, Any]) -> tuple[float, float, float, float]:
    """Weights of keys and values, of a layer's attention, of its MLP, and of the unembedding."""
    width, heads = shape["d_model"], shape["d_model"] // shape["d_head"]
    projection = width * heads * shape["d_head"]
    return 2.0 * projection, 4.0 * projection, 8.0 * width**2, float(width * shape["d_vocab"])


def expected(shape: dict[str, Any], sweep: str, metric: str, length: int) -> float:
    """How many times fewer multiplications a sweep takes than plain runs, where no cell can be left out."""
    keys_and_values, attention, mlp, unembedding = weights_of(shape)
    layers, one = shape["n_layers"], attention + mlp
    plain = length * (layers * one + unembedding)
    reads_last = metric != "opaque"
    read = {"opaque": unembedding, "last position": unembedding, "answers": 0.0}[metric]

    def cell(layer: int, start: int, rest: float) -> float:
        """From the start of a layer, or from inside it: `rest` is what is left of that layer."""
        positions = length - start
        costs = [rest, *[one] * (layers - layer - 1)]
        total = positions * sum(costs)
        if reads_last:
            spared = one - keys_and_values if costs[-1] == one else costs[-1]
            total -= (positions - 1) * spared
        return total + (1 if reads_last else positions) * read

    if sweep == "heads":
        ours = [cell(layer, 0, mlp) for layer in range(layers)]
    else:
        ours = [cell(layer, start, one) for layer in range(layers) for start in range(length)]
    return plain * len(ours) / sum(ours)


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run both libraries in turn; a table for each sweep."""
    sides = [Side("headscope", sys.executable), Side("transformer_lens", str(options.peer.absolute()))]
    print(f"beside {peer_version(sides[1], folder)}", flush=True)
    weights = folder / "weights.safetensors"
    write_weights(GPT2_SMALL, weights)
    name_at = 2 * options.length // 3
    differ_at = list(range(options.length)) if options.differ == "everywhere" else [name_at]
    results: dict[str, Any] = {}
    with workers(SCRIPT, sides, folder, options.threads) as (ours, theirs):
        for worker in (ours, theirs):
            worker.ask(task="load", shape=GPT2_SMALL, weights=str(weights))
        for sweep in SWEEPS if options.sweep is None else (options.sweep,):
            question = {"sweep": sweep, "rows": options.rows, "length": options.length, "differ_at": differ_at}
            results[sweep] = run(ours, theirs, question, options, folder)
    return results


def run(
    ours: Worker, theirs: Worker, question: dict[str, Any], options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """One sweep: print, and give, the best times of each and the largest difference."""
    seconds: dict[str, list[float]] = {name: [] for name in ("peer", *METRICS)}
    for _ in range(options.repeats):
        for name in METRICS:
            save = str(folder / f"{name}.pt")
            seconds[name].append(ours.ask(task="measure", metric=name, save=save, **question)["seconds"])
        save = str(folder / "peer.pt")
        seconds["peer"].append(theirs.ask(task="measure", metric="opaque", save=save, **question)["seconds"])
    peer = torch.load(folder / "peer.pt", weights_only=True)
    print(f"\n{question['sweep']}: {peer.numel()} cells; prompts differ: {options.differ}")
    print(f"{'':<28} {'s, best':>8} {'ratio':>6} {'by operations':>14} {'values differ by':>17}")
    print(f"{'TransformerLens':<28} {min(seconds['peer']):>8.2f}")
    found: dict[str, Any] = {"seconds": seconds}
    for name in METRICS:
        off = float((torch.load(folder / f"{name}.pt", weights_only=True) - peer).abs().max())
        ratio = min(seconds["peer"]) / min(seconds[name])
        count = expected(GPT2_SMALL, question["sweep"], name, options.length)
        count_text = f"{count:.2f}" if options.differ == "everywhere" else ""
        print(
            f"{'headscope, ' + name:<28} {min(seconds[name]):>8.2f} {ratio:>6.2f} {count_text:>14} {off:>17.1e}",
            flush=True,
        )
        found[name] = {"ratio": ratio, "largest_difference": off}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=15)
    parser.add_argument("--sweep", choices=SWEEPS, help="only this one")
    parser.add_argument("--differ", choices=("everywhere", "name"), default="everywhere")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peer", type=Path, required=True, help="the Python of an environment with TransformerLens 3")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    print(
        f"GPT-2 small's shape, random weights, {options.rows} prompts of {options.length} tokens, {options.threads} "
        f"threads, best of {options.repeats}"
    )
    print(f"headscope {headscope.__version__} with torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        results = compare(options, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
