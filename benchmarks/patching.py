"""Activation patching beside TransformerLens's `patching` and nnsight, and path patching beside three passes.

On random weights in the shape of GPT-2 small, or of SmolLM2-135M (`--model llama`: grouped heads, rotary positions,
RMSNorm, a gated MLP). Activation sweeps are `resid_pre` over all layers and positions and head outputs (all positions
at once) over all heads, each with the logit difference as a function of all logits ("opaque"), as one that says it
reads the last position, and as an `AnswerMetric`. Prompts differ at every position, so that nothing can be left out
(`everywhere`), or from the repeated name on, as those of the IOI notebooks do (`--differ name`). Each library has a
process of its own with the same weights and tokens; they are asked in turn, and the best of the repeated runs is
compared, as are the values cell by cell. A plain run costs the same whatever its cell: the peer may be asked for some
cells only (`--peer-cells`), and its time is that of as many as there are.

`paths` goes from every head into one head's values, at two thirds of the layers, beside a loop of three passes with
hooks on the same model: it shares both runs, begins the second pass at the sender's layer and the third at the
receiver's, and unembeds the last position alone.

    python benchmarks/patching.py --peer PYTHON_WITH_TRANSFORMER_LENS_3 [--nnsight PYTHON_WITH_NNSIGHT]
                                  [--model llama] [--sweep heads] [--repeats 3]

Beside nnsight, the same sweeps are written in it, on the Hugging Face model with the same weights: one cell a trace and
eight cells, of which the faster counts; the second metric keeps the last position's logits there too.

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
from safetensors.torch import load_file
from workers.protocol import Side, Worker, workers

import headscope

SCRIPT = Path(__file__).parent / "workers" / "patching.py"
SMOLLM2: dict[str, Any] = {
    "n_layers": 30, "d_model": 576, "n_ctx": 1024, "d_head": 64, "n_heads": 9, "n_key_value_heads": 3, "d_mlp": 1536,
    "d_vocab": 49152, "act_fn": "silu", "gated_mlp": True, "normalization_type": "RMSPre",
    "positional_embedding_type": "rotary", "rotary_dim": 64,
}  # fmt: skip
# The shape, its name, and how many cells the peer is asked for unless told.
MODELS: dict[str, tuple[dict[str, Any], str, int | None]] = {
    "gpt2": (GPT2_SMALL, "GPT-2 small", None),
    "llama": (SMOLLM2, "SmolLM2-135M", 16),
}
ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}
SWEEPS = ("resid_pre", "heads")
METRICS = ("opaque", "last position", "answers")
# What each library is asked for, and how: of several ways (cells in one trace), the fastest counts.
FORMS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "headscope": {metric: [{}] for metric in METRICS},
    "transformer_lens": {"opaque": [{}]},
    "nnsight": {metric: [{"at_once": 1}, {"at_once": 8}] for metric in METRICS[:2]},
}


def weights_of(shape: dict[str, Any]) -> tuple[float, float, float, float]:
    """Weights of keys and values, of a layer's attention, of its MLP, and of the unembedding."""
    width, d_head = shape["d_model"], shape["d_head"]
    heads = shape.get("n_heads", width // d_head)
    keys_and_values = 2.0 * width * d_head * shape.get("n_key_value_heads", heads)
    mlp = (3.0 if shape.get("gated_mlp") else 2.0) * width * shape.get("d_mlp", 4 * width)
    return keys_and_values, 2.0 * width * d_head * heads + keys_and_values, mlp, float(width * shape["d_vocab"])


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
    """Run the libraries in turn; a table for each sweep."""
    shape, _, peer_cells = MODELS[options.model]
    options.peer_cells = options.peer_cells or peer_cells
    sides = {"headscope": Side("headscope", sys.executable)}
    for library, python in (("transformer_lens", options.peer), ("nnsight", options.nnsight)):
        if python:
            sides[library] = Side(library, str(python.absolute()))
            print(f"beside {peer_version(sides[library], folder)}", flush=True)
    weights = folder / "weights.safetensors"
    write_weights(shape, weights)
    if options.nnsight:
        write_checkpoint(options.model, weights, folder / "checkpoint")
    name_at = 2 * options.length // 3
    differ_at = list(range(options.length)) if options.differ == "everywhere" else [name_at]
    results: dict[str, Any] = {}
    with workers(SCRIPT, list(sides.values()), folder, options.threads) as started:
        asked = dict(zip(sides, started, strict=True))
        for worker in started:
            worker.ask(task="load", shape=shape, weights=str(weights))
        question = {"rows": options.rows, "length": options.length, "differ_at": differ_at}
        for sweep in (*SWEEPS, "paths") if options.sweep is None else (options.sweep,):
            if sweep == "paths":
                results[sweep] = paths(asked["headscope"], question, options, folder)
            elif len(asked) > 1:
                results[sweep] = run(asked, {"sweep": sweep, **question}, options, folder)
    return results


def write_checkpoint(name: str, weights: Path, folder: Path) -> None:
    """Write weights as a Hugging Face checkpoint, for a library that reads those."""
    shape = {**MODELS[name][0], "original_architecture": ARCHITECTURES[name]}
    model = headscope.HookedTransformer(headscope.HookedTransformerConfig(**shape, device="cpu"))
    model.load_state_dict(load_file(weights), strict=False)
    model.to_hf().save_pretrained(folder)


def run(
    asked: dict[str, Worker], question: dict[str, Any], options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """One sweep: print, and give, the best times of each, their ratios, and the largest differences."""
    forms = {
        (library, metric): again
        for library, metrics in FORMS.items()
        if library in asked
        for metric, again in metrics.items()
    }
    seconds: dict[tuple[str, str], list[float]] = {form: [] for form in forms}
    for _ in range(options.repeats):
        for (library, metric), again in forms.items():
            cells = None if library == "headscope" else options.peer_cells
            given = {"metric": metric, "cells": cells, "save": str(folder / f"{library}, {metric}.pt"), **question}
            seconds[library, metric].append(
                min(asked[library].ask(task="measure", **given, **more)["seconds"] for more in again)
            )
    values = {form: torch.load(folder / f"{form[0]}, {form[1]}.pt", weights_only=True) for form in forms}
    peers = [form for form in forms if form[0] != "headscope"]
    known = ~values[peers[0]].isnan()
    some = "" if bool(known.all()) else f" (others: {int(known.sum())} of them)"
    print(f"\n{question['sweep']}: {known.numel()} cells{some}; prompts differ: {options.differ}")
    print(f"{'':<30} {'s, best':>8} {'by operations':>14}  times as fast as (values differ by)")
    for library, metric in peers:
        print(f"{f'{library}, {metric}':<30} {min(seconds[library, metric]):>8.2f}")
    found: dict[str, Any] = {"seconds": {", ".join(form): each for form, each in seconds.items()}}
    for metric in METRICS:
        ours = "headscope", metric
        count = expected(MODELS[options.model][0], question["sweep"], metric, options.length)
        count_text = f"{count:.2f}" if options.differ == "everywhere" else ""
        found[metric] = {}
        for library in dict.fromkeys(library for library, _ in peers):
            # Beside a peer that can spare the other positions' logits too, where ours does.
            form = next((library, each) for each in (metric, "last position", "opaque") if (library, each) in forms)
            off = float((values[ours] - values[form])[known].abs().max())
            found[metric][library] = {
                "ratio": min(seconds[form]) / min(seconds[ours]),
                "largest_difference": off,
            }
        beside = ", ".join(
            f"{library} {each['ratio']:.2f} ({each['largest_difference']:.0e})"
            for library, each in found[metric].items()
        )
        print(f"{', '.join(ours):<30} {min(seconds[ours]):>8.2f} {count_text:>14}  {beside}", flush=True)
    return found


def paths(ours: Worker, question: dict[str, Any], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Path patching from every head into one head's values, beside three passes for some of them."""
    seconds: dict[str, list[float]] = {"plain": [], "sweep": []}
    for _ in range(options.repeats):
        for kind, cells in (("plain", options.peer_cells), ("sweep", None)):
            asked = ours.ask(task="paths", kind=kind, cells=cells, save=str(folder / f"{kind}.pt"), **question)
            seconds[kind].append(asked["seconds"])
    plain, sweep = (torch.load(folder / f"{kind}.pt", weights_only=True) for kind in seconds)
    known = ~plain.isnan()
    off, ratio = float((sweep - plain)[known].abs().max()), min(seconds["plain"]) / min(seconds["sweep"])
    print(f"\npaths: {plain.numel()} senders ({int(known.sum())} by three passes); prompts differ: {options.differ}")
    print(f"{'three passes':<28} {min(seconds['plain']):>8.2f}")
    print(f"{'headscope':<28} {min(seconds['sweep']):>8.2f} {ratio:>6.2f} {'':>14} {off:>17.1e}", flush=True)
    return {"seconds": seconds, "ratio": ratio, "largest_difference": off}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=15)
    parser.add_argument("--model", choices=MODELS, default="gpt2")
    parser.add_argument("--sweep", choices=(*SWEEPS, "paths"), help="only this one")
    parser.add_argument("--peer-cells", type=int, help="how many cells plain code runs; default: all, or 16 for llama")
    parser.add_argument("--differ", choices=("everywhere", "name"), default="everywhere")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peer", type=Path, help="the Python of an environment with TransformerLens 3")
    parser.add_argument("--nnsight", type=Path, help="the Python of an environment with nnsight and transformers")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    print(
        f"{MODELS[options.model][1]}'s shape, random weights, {options.rows} prompts of {options.length} tokens, "
        f"{options.threads} threads, best of {options.repeats}"
    )
    print(f"headscope {headscope.__version__} with torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        results = compare(options, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
