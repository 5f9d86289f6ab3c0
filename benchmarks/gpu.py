"""headscope on a GPU beside the naive forms, on GPT-2 small's shape with random weights, in under four minutes.

Entropy of every head and MLP by the notebooks' formula on headscope's model, by `measure_entropy` with the torch
kernels, and with the triton kernels in each precision; ablation of heads; activation patching of every head; and the
forward pass. Ways take turns in one process. Each is run once to warm up; of the other runs the median is printed, how
many times as fast as the first way it is, pair by pair, the peak of memory above the model, the largest difference from
the first way, and the operations that the work needs over the time it took, beside what the device was measured to do
in the same run.

    python benchmarks/gpu.py [--tokens 1024] [--repeats 3] [--json FILE]
    python benchmarks/gpu.py --device cpu --small     # runs anywhere; its times say nothing about a GPU

It needs only the checkout: after `pip install -e '.[gpu]'`, or with `PYTHONPATH=src` where its dependencies are.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent / "workers"))

from workers.ablation import naive_ablation
from workers.entropy import naive_means
from workers.patching import answers, logit_difference, prompts, task_of

import headscope
from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis import ablate_heads, activation_patch, measure_entropy
from headscope.ops.devices import budget
from headscope.ops.kernels.dispatch import kernels_of
from headscope.ops.kernels.interface import PRECISIONS

GPT2_SMALL: dict[str, Any] = {
    "n_layers": 12, "d_model": 768, "n_ctx": 1024, "d_head": 64, "d_vocab": 50257, "act_fn": "gelu_new",
    "normalization_type": "LNPre",
}  # fmt: skip
SMALL: dict[str, Any] = {**GPT2_SMALL, "n_layers": 2, "d_model": 64, "n_ctx": 32, "d_head": 16, "d_vocab": 500}
SPREAD = 0.05  # of the weights: far enough from zero that predictions are not flat
SECONDS = 150.0  # after which nothing is repeated
PROMPTS, LENGTH = 8, 16  # of patching

# What to run, and the operations that takes; `None` where nobody counted them.
Way = tuple[Callable[[], Tensor], float | None]


class Bench:
    """The model, and the clock.

    Args:
        device: Where.
        shape: Of the model.
        n_tokens: Tokens of entropy, ablation and the forward pass: one row, or whole rows.
        repeats: Runs of each way, besides the first.
    """

    def __init__(self, device: str, shape: dict[str, Any], n_tokens: int, repeats: int) -> None:
        self.device, self.repeats, self.begun = torch.device(device), repeats, time.perf_counter()
        self.model = HookedTransformer(
            HookedTransformerConfig(**shape, initializer_range=SPREAD, seed=0, device=device)
        )
        length = min(n_tokens, shape["n_ctx"])
        tokens = torch.randint(
            shape["d_vocab"], (n_tokens // length, length), generator=torch.Generator().manual_seed(0)
        )
        self.tokens = tokens.to(self.device)
        self.results: list[dict[str, Any]] = []

    def compare(self, what: str, ways: dict[str, Way]) -> None:
        """Run all ways in turn and print them; each is what returns the numbers, and the operations that takes."""
        times: dict[str, list[float]] = {name: [] for name in ways}
        found, peaks = {}, {}
        for repeat in range(self.repeats + 1):
            if repeat > 1 and time.perf_counter() - self.begun > SECONDS:
                break
            for name, (work, _) in ways.items():
                took, peaks[name], found[name] = self._timed(work)
                if repeat:
                    times[name].append(took)
        first = next(iter(ways))
        print(f"\n{what}")
        print(f"{'':<24} {'ms':>10} {'times as fast':>14} {'TFLOP/s':>9} {'peak MB':>9} {'off by':>9}")
        for name, (_, operations) in ways.items():
            seconds = statistics.median(times[name])
            ratio = statistics.median(one / other for one, other in zip(times[first], times[name], strict=True))
            rate = operations / seconds / 1e12 if operations is not None else None
            shown = "-" if rate is None else f"{rate:.3f}"
            off = float((found[name] - found[first]).abs().max())
            print(f"{name:<24} {1e3 * seconds:>10.2f} {ratio:>14.2f} {shown:>9} {peaks[name]:>9.0f} {off:>9.1e}")
            self.results.append(
                {"work": what, "way": name, "seconds": seconds, "ratio": ratio, "tflops": rate,
                 "peak_mb": peaks[name], "off": off}
            )  # fmt: skip
        sys.stdout.flush()

    def _timed(self, work: Callable[[], Tensor]) -> tuple[float, float, Tensor]:
        """Seconds, peak of memory above what was there before (MB; 0 where nobody counts it), and the numbers."""
        on_gpu = self.device.type == "cuda"
        before = 0
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.synchronize(self.device)
        begun = time.perf_counter()
        found = work()
        if on_gpu:
            torch.cuda.synchronize(self.device)
        took = time.perf_counter() - begun
        peak = torch.cuda.max_memory_allocated(self.device) - before if on_gpu else 0
        return took, peak / 2**20, found.detach().double().cpu()

    def rates(self, size: int) -> None:
        """What the device does: products in float32 and with TF32, and copies."""
        a, b = torch.randn(2, size, size, device=self.device)
        allowed = torch.backends.cuda.matmul.allow_tf32
        print(f"\n{'this device':<24} {'':>10}")
        for name, tf32 in (("float32", False), ("tf32", True)):
            if tf32 and self.device.type != "cuda":
                continue
            torch.backends.cuda.matmul.allow_tf32 = tf32
            seconds = min(self._timed(lambda: (a @ b)[:1, :1])[0] for _ in range(4))
            print(f"products in {name:<12} {2 * size**3 / seconds / 1e12:>10.3f} TFLOP/s")
        torch.backends.cuda.matmul.allow_tf32 = allowed
        seconds = min(self._timed(lambda: b.copy_(a)[:1, :1])[0] for _ in range(4))
        print(f"{'copies, read and written':<24} {2 * a.nbytes / seconds / 1e9:>10.1f} GB/s")

    def entropy(self) -> None:
        cfg, n = self.model.cfg, self.tokens.numel()
        column = 2 * cfg.d_model * cfg.d_vocab
        parts = cfg.n_layers * (2 * cfg.n_heads + 4)
        needed = n * (cfg.n_layers + 1) * column + cfg.n_layers * cfg.n_heads * cfg.d_head * (
            2 * n * cfg.d_vocab + column
        )
        ways: dict[str, Way] = {"naive": (lambda: joined(*naive_means(self.model, self.tokens)), n * parts * column)}
        ways["torch"] = (self._ours("torch"), needed)
        if kernels("triton", self.model) == "triton":
            ways |= {f"triton, {each}": (self._ours("triton", each), needed) for each in PRECISIONS}
        self.compare(f"entropy of every head and MLP, {n} tokens", ways)

    def _ours(self, name: str, precision: Any = "float32") -> Callable[[], Tensor]:
        def measure() -> Tensor:
            os.environ["HEADSCOPE_KERNELS"] = name
            found = measure_entropy(
                self.model, self.tokens, lens_bias=False, include_bos=True, precision=precision, progress=False
            )
            assert found.info.options["kernels"] == name, found.info.options["kernels"]
            return joined(found.resid, found.diff, found.marginal)

        return measure

    def ablation(self) -> None:
        cfg, n = self.model.cfg, self.tokens.numel()
        heads = [(layer, layer % cfg.n_heads) for layer in range(0, cfg.n_layers, max(1, cfg.n_layers // 4))]
        column = 2 * cfg.d_model * cfg.d_vocab
        layers = sum(2 * (cfg.n_layers - layer) for layer, _ in heads)  # those that are run again
        block = 2 * 12 * cfg.d_model**2
        needed = n * (len(heads) * 2 * (column + 2 * cfg.d_head * cfg.d_vocab) + layers * block)

        def naive() -> Tensor:
            found = naive_ablation(self.model, self.tokens, heads)
            self.model.set_use_attn_result(False)
            return found.flatten()

        def ours(name: str) -> Callable[[], Tensor]:
            def measure() -> Tensor:
                os.environ["HEADSCOPE_KERNELS"] = name
                found = ablate_heads(self.model, self.tokens, heads=heads, include_bos=True, progress=False)
                return found.loss_diff[..., : self.tokens.shape[1] - 1].flatten()

            return measure

        ways: dict[str, Way] = {"naive": (naive, None), "torch": (ours("torch"), needed)}
        if kernels("triton", self.model) == "triton":
            ways["triton"] = (ours("triton"), needed)
        self.compare(f"ablation of {len(heads)} heads, zero and mean, patched and direct, {n} tokens", ways)

    def patching(self) -> None:
        cfg = self.model.cfg
        clean, corrupted = prompts(cfg.d_vocab, PROMPTS, LENGTH, [3])
        wanted = answers(cfg.d_vocab, PROMPTS)
        task = task_of(clean, corrupted, wanted)
        on_device, right = corrupted.to(self.device), wanted.to(self.device)
        block, runs = 2 * 12 * cfg.d_model**2, cfg.n_layers * cfg.n_heads
        needed = PROMPTS * LENGTH * block * cfg.n_heads * cfg.n_layers * (cfg.n_layers + 1) / 2

        def naive() -> Tensor:
            _, cache = self.model.run_with_cache(clean.to(self.device), names_filter=lambda name: "hook_z" in name)
            found = []
            for layer in range(cfg.n_layers):
                name = f"blocks.{layer}.attn.hook_z"
                for head in range(cfg.n_heads):

                    def put(z: Tensor, hook: Any, name: str = name, head: int = head) -> Tensor:
                        z[:, :, head] = cache[name][:, :, head]
                        return z

                    logits = self.model.run_with_hooks(on_device, fwd_hooks=[(name, put)])
                    found.append(logit_difference(logits, right))
            return torch.stack(found) - logit_difference(self.model(on_device), right)

        def ours() -> Tensor:
            return activation_patch(self.model, task, "z", scale="metric", progress=False)["z"].flatten()

        ways: dict[str, Way] = {"naive": (naive, None), "activation_patch": (ours, needed)}
        self.compare(f"patching of {runs} heads' outputs, {PROMPTS} prompts of {LENGTH} tokens", ways)

    def forward(self) -> None:
        cfg, n = self.model.cfg, self.tokens.numel()
        operations = n * (cfg.n_layers * 2 * 12 * cfg.d_model**2 + 2 * cfg.d_model * cfg.d_vocab)
        self.compare(f"forward pass, {n} tokens", {"logits": (lambda: self.model(self.tokens)[:, -1], operations)})


def joined(*parts: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def kernels(name: str, model: HookedTransformer) -> str:
    """Those that compute on this model where `name` is asked for; empty where they are not installed."""
    os.environ["HEADSCOPE_KERNELS"] = name
    try:
        return kernels_of(model.W_U)
    except headscope.errors.MissingDependencyError:
        return ""


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Print the tables, and return their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="two narrow layers, to see that it runs")
    parser.add_argument("--tokens", type=int, help="at most 1,024 or whole rows of them; default 1024, or 32 (--small)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every number here")
    options = parser.parse_args(arguments)
    shape = SMALL if options.small else GPT2_SMALL
    n_tokens = options.tokens or shape["n_ctx"]
    torch.set_grad_enabled(False)
    name = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else "the order of a GPU"
    print(f"headscope {headscope.__version__} with torch {torch.__version__} on {options.device}: {name}")
    before = os.environ.get("HEADSCOPE_KERNELS")
    try:
        with budget("cuda" if options.device == "cpu" else None):  # on a CPU, the sizes and the order of a GPU
            bench = Bench(options.device, shape, n_tokens, options.repeats)
            bench.rates(256 if options.small else 8192)
            bench.forward()
            bench.entropy()
            bench.ablation()
            bench.patching()
    finally:
        os.environ.pop("HEADSCOPE_KERNELS")
        if before is not None:
            os.environ["HEADSCOPE_KERNELS"] = before
    print(f"\n{time.perf_counter() - bench.begun:.0f} seconds in all")
    if options.json:
        options.json.write_text(json.dumps(bench.results, indent=1))
    return bench.results


if __name__ == "__main__":
    main()
