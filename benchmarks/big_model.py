"""Peak memory of analyses of a model larger than the memory they get: its weights are mapped, a block at a time.

    python benchmarks/big_model.py [--gigabytes 3] [--analyses "entropy;loss"] [--folder models] [--no-whole]

Writes a model of random weights, and then measures in processes of their own: with the weights mapped from its file
(`from_pretrained(folder, mapped=True)`), and with all of them in memory. The numbers must be the same to the bit. The
peak is the largest resident set of a process, as the system counts it: all its pages, those of files too.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis import (
    ablate_heads,
    attribute,
    copy_suppression_preserving_ablation,
    detect_heads,
    dynamic_ov,
    head_scores,
    logit_lens,
    measure_calibration,
    measure_entropy,
    next_token_loss,
    predict_next_tokens,
    suppression_scores,
)
from headscope.analysis.storage.manifest import fingerprint
from headscope.ops.devices import budget

WIDTH, VOCABULARY, LENGTH = 1536, 32768, 128

ANALYSES: dict[str, Callable[..., Any]] = {
    "entropy": measure_entropy,
    "entropy, mean": lambda *a, **o: measure_entropy(*a, baseline="mean", **o),
    "entropy, own scale": lambda *a, **o: measure_entropy(*a, scale="own", **o),
    "calibration": measure_calibration,
    "loss": next_token_loss,
    "next tokens": predict_next_tokens,
    "logit lens": logit_lens,
    "ablation": lambda model, *a, **o: ablate_heads(model, *a, heads=heads_of(model), **o),
    "copy suppression": copy_suppression_preserving_ablation,
    "dynamic OV": lambda model, *a, **o: dynamic_ov(model, *a, heads=heads_of(model), **o),
    "head scores": head_scores,
    "head types": detect_heads,
    "suppression scores": lambda model, tokens, **o: suppression_scores(model, n_sequences=2, length=32, **o),
    "attribution": lambda model, tokens, **o: attribute(
        model, tokens[:, :32], answer_tokens=tokens[:, 32:34], sources=False, **o
    ),
}


def heads_of(model: HookedTransformer) -> list[str]:
    return ["0.1", f"{model.cfg.n_layers - 1}.0"]


def write(folder: Path, gigabytes: float) -> None:
    """Write a model of random weights of about this size, as one process of its own."""
    layers = max(1, round((gigabytes * 1e9 / 4 - 2 * WIDTH * VOCABULARY) / (12 * WIDTH**2)))
    shape: dict[str, Any] = {"n_layers": layers, "d_model": WIDTH, "d_head": 128, "n_ctx": LENGTH}
    shape |= {"d_vocab": VOCABULARY, "act_fn": "gelu_new", "seed": 0, "device": "cpu", "normalization_type": "LNPre"}
    HookedTransformer(HookedTransformerConfig(**shape)).save_pretrained(folder)


def measure(folder: Path, name: str, n_tokens: int, *, mapped: bool) -> None:
    """Load the model, measure, and print the peak, the time and a hash of the numbers."""
    torch.set_num_threads(1)
    model = HookedTransformer.from_pretrained(folder, mapped=mapped, device="cpu")
    tokens = torch.randint(0, VOCABULARY, (n_tokens // LENGTH, LENGTH), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as out, budget(batch_tokens=256):
        began = time.process_time()
        result = ANALYSES[name](model, tokens, progress=False, out=Path(out) / "run")
        seconds = time.process_time() - began
    values = {"values": result} if isinstance(result, torch.Tensor) else vars(result)
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "seconds": seconds, "numbers": fingerprint(tensors)}))


def in_a_process(*arguments: str) -> dict[str, Any]:
    run = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1]) if run.stdout else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--analyses", default="entropy", help=f"separated by semicolons: {'; '.join(ANALYSES)}; or all")
    parser.add_argument("--folder", type=Path, help="where the model is kept, or is already; default: nowhere")
    parser.add_argument("--whole", action=argparse.BooleanOptionalAction, default=True, help="with all weights, too")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        write(args.write, args.gigabytes)
        return
    if args.measure:
        folder, name, way = args.measure
        measure(Path(folder), name, args.tokens, mapped=way == "mapped")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "model"
        if not (folder / "config.json").exists():
            in_a_process("--write", str(folder), "--gigabytes", str(args.gigabytes))
        size = (folder / "model.safetensors").stat().st_size
        print(f"a model of {size / 1e9:.2f} GB in float32, {args.tokens} tokens in batches of 256, one thread")
        for name in ANALYSES if args.analyses == "all" else args.analyses.split(";"):
            tokens = ["--tokens", str(args.tokens)]
            ways = {way: in_a_process("--measure", str(folder), name, way, *tokens) for way in ways_of(args.whole)}
            shown = "; ".join(
                f"{way}: peak {each['peak'] / 1e9:.2f} GB, {each['seconds']:.0f} CPU s" for way, each in ways.items()
            )
            same = len({each["numbers"] for each in ways.values()}) == 1
            print(f"{name:20} {shown}{'; the same bits' if same and len(ways) > 1 else ''}", flush=True)
            assert same, f"{name}: other bits"


def ways_of(whole: bool) -> list[str]:
    return ["mapped", "whole"] if whole else ["mapped"]


if __name__ == "__main__":
    main()
