"""`measure_entropy` against the same formula written out naively, on GPT-2 small's shape.

The naive form is what a notebook does: for every head, its output through `W_O` and `W_U` to logits
[batch, pos, d_vocab], and `Categorical(...).entropy()`. Both run on the same model and tokens, each in a process of its
own so that peak memory is its own, one after the other; values are compared with a float64 run of the naive form.

    python benchmarks/entropy.py [--tokens 256] [--repeats 3]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor
from torch.distributions import Categorical

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis import measure_entropy

GPT2_SMALL = HookedTransformerConfig(
    n_layers=12,
    d_model=768,
    n_ctx=1024,
    d_head=64,
    d_vocab=50257,
    act_fn="gelu_new",
    normalization_type="LNPre",
    initializer_range=0.05,  # far enough from zero that predictions are not flat
    seed=0,
)


@torch.no_grad()
def naive_entropy(model: HookedTransformer, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`resid`, `diff` and `marginal` as means over positions, one component at a time."""
    logits, cache = model.run_with_cache(tokens)
    scale = cache["scale"]

    def entropy(state_logits: Tensor) -> Tensor:
        return Categorical(logits=state_logits).entropy()

    def lens(state: Tensor) -> Tensor:
        return (state - state.mean(-1, keepdim=True)) / scale @ model.W_U

    final = entropy(logits)
    resid, diff, marginal = [], [], []
    for layer in range(model.cfg.n_layers):
        pre, mid = cache["resid_pre", layer], cache["resid_mid", layer]
        heads = [
            cache["z", layer][:, :, head] @ model.blocks[layer].attn.W_O[head] for head in range(model.cfg.n_heads)
        ]
        for state, outputs in ((pre, heads), (mid, [cache["mlp_out", layer]])):
            before = entropy(lens(state) + model.b_U)
            resid.append(before)
            diff += [entropy(lens(state + output) + model.b_U) - before for output in outputs]
            marginal += [final - entropy(logits - lens(output)) for output in outputs]
    means = [torch.stack(values).mean((-2, -1)) for values in (resid + [final], diff, marginal)]
    return means[0], means[1].view(model.cfg.n_layers, -1), means[2].view(model.cfg.n_layers, -1)


def headscope_entropy(model: HookedTransformer, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same, by the library."""
    result = measure_entropy(model, tokens, progress=False)
    return result.resid, result.diff, result.marginal


METHODS = {"naive": naive_entropy, "headscope": headscope_entropy}


def run_once(method: str, n_tokens: int) -> dict[str, float]:
    """Seconds and peak memory of one run in this process, above the loaded model."""
    model = HookedTransformer(GPT2_SMALL)
    tokens = torch.randint(0, 50257, (1, n_tokens), generator=torch.Generator().manual_seed(1))
    with open("/proc/self/statm") as memory:  # what is resident now, not the peak of making the model
        loaded = int(memory.read().split()[1]) * resource.getpagesize() / 2**20
    start = time.perf_counter()
    METHODS[method](model, tokens)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - loaded}


def largest_difference(n_tokens: int = 8) -> dict[str, float]:
    """Each method's largest difference in nats from the naive form in float64."""
    model = HookedTransformer(GPT2_SMALL)
    tokens = torch.randint(0, 50257, (1, n_tokens), generator=torch.Generator().manual_seed(1))
    found = {name: method(model, tokens) for name, method in METHODS.items()}
    exact = naive_entropy(model.double(), tokens)
    return {
        name: max(float((mine - true).abs().max()) for mine, true in zip(values, exact, strict=True))
        for name, values in found.items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run_once(options.run, options.tokens)))
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for _ in range(options.repeats):
        for name in METHODS:
            command = [sys.executable, __file__, "--run", name, "--tokens", str(options.tokens)]
            runs[name].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    differences = largest_difference()
    print(f"GPT-2 small's shape, random weights, {options.tokens} tokens, {torch.get_num_threads()} threads, float32")
    print(f"{'':<10} {'ms/token':>9} {'peak MB':>9} {'max |difference| from float64, nats':>36}")
    for name, results in runs.items():
        per_token = statistics.median(result["seconds"] for result in results) / options.tokens * 1e3
        peak = statistics.median(result["peak_mb"] for result in results)
        print(f"{name:<10} {per_token:>9.1f} {peak:>9.0f} {differences[name]:>36.1e}")
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(runs["naive"], runs["headscope"], strict=True)]
    print(f"naive / headscope, pair by pair: {', '.join(f'{ratio:.1f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
