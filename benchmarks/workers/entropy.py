"""One way to measure entropy in a process of its own, answering what `benchmarks/entropy.py` asks.

It runs under the Python of the library's own environment. The naive form is one function for both libraries, which
name their weights and hook points alike.

    python benchmarks/workers/entropy.py (headscope | headscope-bfloat16 | headscope-before | naive | naive-float64 |
                                          transformer_lens)
"""

import gc
import importlib
import importlib.metadata
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from protocol import serve
from torch import Tensor
from torch.distributions import Categorical

READ = ("hook_resid_pre", "hook_resid_mid", "hook_z", "hook_mlp_out", "ln_final.hook_scale")
RATE_SECONDS = 0.15

# `resid` [state, batch, pos], `diff` and `marginal` [layer, component, batch, pos], in nats.
Entropies = tuple[Tensor, Tensor, Tensor]


def naive_entropy(model: Any, tokens: Tensor, positions: slice = slice(None)) -> Entropies:
    """The formula as a notebook writes it: all logits of one component at a time.

    The final norm must be without weights. As in the notebook, `b_U` is in the final logits only.
    """
    logits, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith(READ))
    logits = logits[:, positions]
    scale = cache["scale"][:, positions]

    def entropy(state_logits: Tensor) -> Tensor:
        return Categorical(logits=state_logits).entropy()

    def lens(state: Tensor) -> Tensor:
        return (state - state.mean(-1, keepdim=True)) / scale @ model.W_U

    final = entropy(logits)
    resid, diff, marginal = [], [], []
    for layer in range(model.cfg.n_layers):
        pre, mid, z, mlp = (cache[name, layer][:, positions] for name in ("resid_pre", "resid_mid", "z", "mlp_out"))
        heads = [z[:, :, head] @ model.blocks[layer].attn.W_O[head] for head in range(model.cfg.n_heads)]
        for state, outputs in ((pre, heads), (mid, [mlp])):
            before = entropy(lens(state))
            resid.append(before)
            for output in outputs:
                diff.append(entropy(lens(state + output)) - before)
                marginal.append(final - entropy(logits - lens(output)))
    shape = (model.cfg.n_layers, -1, *final.shape)
    return torch.stack([*resid, final]), torch.stack(diff).view(shape), torch.stack(marginal).view(shape)


def naive_means(model: Any, tokens: Tensor) -> Entropies:
    """Means over positions, of one row at a time: a row of 1,024 tokens already takes several tensors of 200 MB."""
    rows = [naive_entropy(model, row[None]) for row in tokens]
    resid, diff, marginal = (torch.cat(parts, -2).mean((-2, -1)) for parts in zip(*rows, strict=True))
    return resid, diff, marginal


class Naive:
    """The naive form, on the `HookedTransformer` of one library or the other."""

    def __init__(self, library: str, dtype: torch.dtype = torch.float32) -> None:
        self.library = importlib.import_module(library)
        self.dtype = dtype

    def load(self, shape: dict[str, Any], weights: str) -> None:
        config = self.library.HookedTransformerConfig(**shape, device="cpu")
        self.model = self.library.HookedTransformer(config)
        found = importlib.import_module("safetensors.torch").load_file(weights)
        expected = dict(self.model.named_parameters()).keys()
        assert found.keys() == expected, f"other weights than the model's: {sorted(found.keys() ^ expected)}"
        self.model.load_state_dict(found, strict=False)  # which may have buffers besides
        self.model.to(self.dtype)

    def means(self, tokens: Tensor) -> Entropies:
        return naive_means(self.model, tokens)

    def at(self, tokens: Tensor, positions: slice) -> Entropies:
        return naive_entropy(self.model, tokens, positions)


class Headscope(Naive):
    """`measure_entropy`."""

    def __init__(self, precision: str) -> None:
        super().__init__("headscope")
        self.options = {"lens_bias": False, "precision": precision, "progress": False}
        self.measure = importlib.import_module("headscope.analysis").measure_entropy

    def means(self, tokens: Tensor) -> Entropies:
        result = self.measure(self.model, tokens, **self.options)
        return result.resid, result.diff, result.marginal

    def at(self, tokens: Tensor, positions: slice) -> Entropies:
        result = self.measure(self.model, tokens, reduce="none", **self.options)
        return result.resid[..., positions], result.diff[..., positions], result.marginal[..., positions]


METHODS: dict[str, Callable[[], Naive]] = {
    "headscope": lambda: Headscope("float32"),
    "headscope-bfloat16": lambda: Headscope("bfloat16"),
    "headscope-before": lambda: Headscope("float32"),
    "naive": lambda: Naive("headscope"),
    "naive-float64": lambda: Naive("headscope", torch.float64),
    "transformer_lens": lambda: Naive("transformer_lens"),
}


def machine_rates() -> dict[str, float]:
    """Operations a second, all threads together, each on tiles of its own that fit its cache.

    Products by the kernels that headscope takes here; exponentials by theirs, with the two sums made on the way.
    """
    chosen = importlib.import_module("headscope.ops.kernels.dispatch").kernels_for(torch.device("cpu"), torch.float32)
    state, unembed = torch.randn(64, 768), chosen.prepared(torch.randn(768, 1024))
    z, rank = torch.randn(12, 64, 64), torch.randn(12, 64, 1024)
    half_z, half_rank, right = z.bfloat16(), rank.bfloat16(), chosen.prepared(rank)
    # Name: operations of one call, its result's shape and kind, the call with a thread's own kernels.
    calls: dict[str, tuple[float, Tensor, Callable[[Any, Tensor], Any]]] = {
        "mm": (
            2.0 * 64 * 768 * 1024,
            torch.empty(64, 1024),
            lambda kernels, out: kernels.product(state, unembed, out),
        ),
        "bmm": (
            2.0 * 12 * 64 * 64 * 1024,
            torch.empty(12, 64, 1024),
            lambda kernels, out: [kernels.product(z[head], right[head], out[head]) for head in range(12)],
        ),
        "bmm_bfloat16": (
            2.0 * 12 * 64 * 64 * 1024,
            torch.empty(12, 64, 1024, dtype=torch.bfloat16),
            lambda kernels, out: torch.bmm(half_z, half_rank, out=out),
        ),
        "exp2": (64.0 * 1024, torch.zeros(64, 1024), lambda kernels, out: kernels.factors(out, "rate")),
    }
    n_threads = torch.get_num_threads()
    rates = {}
    with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for name, (amount, like, call) in calls.items():

            def rate(_: int, amount: float = amount, like: Tensor = like, call: Any = call) -> float:
                kernels, out, done = chosen(), torch.zeros_like(like), 0
                call(kernels, out)  # the first may compile
                start = time.thread_time()  # of this thread alone, whatever else the machine does
                while (passed := time.thread_time() - start) < RATE_SECONDS:
                    call(kernels, out)
                    done += 1
                return amount * done / passed

            rates[name] = sum(pool.map(rate, range(n_threads)))
    torch.set_num_threads(n_threads)  # new threads begin with what was set last
    return rates


def prepare(name: str) -> Callable[..., dict[str, Any]]:
    """What answers questions about the method of that name."""
    torch.set_grad_enabled(False)
    method = METHODS[name]()

    def tokens(n_tokens: int) -> Tensor:
        cfg = method.model.cfg
        drawn = torch.randint(0, cfg.d_vocab, (n_tokens,), generator=torch.Generator().manual_seed(1))
        return drawn.view(-1, min(n_tokens, cfg.n_ctx))

    def answer(task: str, **question: Any) -> dict[str, Any]:
        if task == "load":
            method.load(**question)
        elif task == "rates":
            return machine_rates()
        elif task == "check":
            found = method.at(tokens(question["n_tokens"]), slice(None, None, question["every"]))
            torch.save(found, question["save"])
        else:
            assert task == "measure", task
            given = tokens(question["n_tokens"])
            start = time.perf_counter()
            method.means(given)
            return {"seconds": time.perf_counter() - start}
        found = None
        gc.collect()
        return {}

    return answer


if __name__ == "__main__":
    serve(prepare)
