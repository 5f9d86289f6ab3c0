"""Edge attribution and runs of circuits beside plain implementations, on random weights in a model's shape.

EAP-IG of all edges, beside the same computed the plain way: each head reads a copy of the stream for its queries, keys
and values (`hook_q_input`, ...), each sender's change is kept, and a backward hook at every input multiplies the two.
And the run of a circuit of edges beside a forward pass of the model. Each side has a process of its own, of which the
benchmark prints the processor seconds (best of the repeated runs, which alternate) and the largest memory.

    python benchmarks/edges.py [--model llama] [--rows 8] [--length 16] [--steps 5] [--repeats 3] [--threads 1]
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
from entropy import GPT2_SMALL
from patching import SMOLLM2
from torch import Tensor

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis import CircuitRuns, Graph, Task, edge_attribution

MODELS = {"gpt2": GPT2_SMALL, "llama": SMOLLM2}
SIDES = ("plain", "headscope")
INPUTS = ("hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in")


def model_of(name: str) -> HookedTransformer:
    """Random weights, the same in every process."""
    model = HookedTransformer(HookedTransformerConfig(**{"seed": 0, "device": "cpu", **MODELS[name]}))
    return model.requires_grad_(False)


def task_of(d_vocab: int, rows: int, length: int) -> Task:
    """Prompts that differ from the middle on, as those of indirect objects do."""
    generator = torch.Generator().manual_seed(0)
    clean, corrupted = (torch.randint(0, d_vocab, (rows, length), generator=generator) for _ in range(2))
    corrupted[:, : length // 2] = clean[:, : length // 2]
    answers = torch.randint(0, d_vocab, (rows, 2), generator=generator)
    return Task.from_tokens(clean, corrupted, correct=answers[:, :1], incorrect=answers[:, 1:])


def plain_attribution(model: HookedTransformer, task: Task, steps: int) -> Tensor:
    """The mean over prompts of each edge's score, `[sender, receiver]`; zero where there is no edge."""
    graph, cfg = Graph.of(model.cfg), model.cfg
    final = f"blocks.{cfg.n_layers - 1}.hook_resid_post"
    outputs = ("attn.hook_result", "hook_mlp_out")
    cfg.ungroup_grouped_query_attention = cfg.n_key_value_heads is not None
    runs = []
    with torch.no_grad():
        for tokens in (task.clean_tokens, task.corrupted_tokens):
            names = [name for name in model.hook_dict if name.endswith(outputs) or name == "blocks.0.hook_resid_pre"]
            cache = model.run_with_cache(tokens, names_filter=names, return_cache_object=False)[1]
            sent = [cache["blocks.0.hook_resid_pre"][:, :, None]]
            for layer in range(cfg.n_layers):
                sent.append(cache[f"blocks.{layer}.attn.hook_result"])
                if not cfg.attn_only:
                    sent.append(cache[f"blocks.{layer}.hook_mlp_out"][:, :, None])
            runs.append(torch.cat(sent, dim=2))
    changes = runs[1] - runs[0]
    scores = torch.zeros(graph.allowed.shape)

    def reads(gradient: Tensor, hook: Any) -> None:
        if hook.name == final:
            where, gradient = slice(-1, None), gradient[:, :, None]
        else:
            part, read = ("mlp", "") if hook.name.endswith("mlp_in") else ("attn", hook.name.rsplit("_", 2)[1])
            where = graph.readers(hook.layer(), part, read)
            gradient = gradient if part == "attn" else gradient[:, :, None]
        before = int(graph.allowed[:, where][:, 0].sum())
        scores[:before, where] += torch.einsum("npud,nprd->ur", changes[:, :, :before], gradient)

    def copied(value: Tensor, hook: Any) -> Tensor:
        return value.clone()

    points = [name for name in model.hook_dict if name.endswith(INPUTS) or name == final]
    forward, backward = [(name, copied) for name in points], [(name, reads) for name in points]
    for step in range(steps):
        start = runs[0][:, :, 0] + (step + 0.5) / steps * changes[:, :, 0]
        with model.hooks(fwd_hooks=forward, bwd_hooks=backward):
            logits = model(start.requires_grad_(), start_at_layer=0, tokens=task.clean_tokens)
            task.logit_difference(logits).backward()
    cfg.ungroup_grouped_query_attention = False
    return scores / steps


def attribution(model: HookedTransformer, task: Task, steps: int) -> Tensor:
    """The same by `edge_attribution`."""
    return edge_attribution(model, task, "eap_ig", steps=steps, scale="metric", progress=False).values.nan_to_num()


def one_side(options: argparse.Namespace) -> None:
    """Measure one side, and print what was found as JSON."""
    torch.set_num_threads(options.threads)
    model = model_of(options.model)
    task = task_of(model.cfg.d_vocab, options.rows, options.length)
    found: dict[str, Any] = {}
    run = plain_attribution if options.side == "plain" else attribution
    seconds, scores = best(lambda: run(model, task, options.steps))
    torch.save(scores, options.save)
    found["attribution"], found["memory"] = seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if options.side == "plain":
        with torch.no_grad():
            found["circuit"] = min(best(lambda: model(task.clean_tokens))[0] for _ in range(3))
    else:
        runs = CircuitRuns(model, task)
        kept = runs.graph.allowed & (torch.rand(runs.graph.allowed.shape) < 0.5)
        runs.measure(kept)  # the other run is kept
        found["circuit"] = min(best(lambda: runs.measure(kept))[0] for _ in range(3))
    print(json.dumps(found))


def best(run: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of one run, and what it gave."""
    begin = time.process_time()
    given = run()
    return time.process_time() - begin, given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="gpt2")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--save", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        one_side(options)
        return
    print(
        f"{options.model}'s shape, random weights, {options.rows} prompts of {options.length} tokens, "
        f"{Graph.of(model_config(options.model)).n_edges:,} edges, {options.steps} steps, {options.threads} threads"
    )
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repeats):
            for side in SIDES:
                command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--save", f"{folder}/{side}.pt"]
                given = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[side].append(json.loads(given.splitlines()[-1]))
        plain, ours = (torch.load(Path(folder) / f"{side}.pt", weights_only=True) for side in SIDES)
    print(f"{'':<12} {'attribution, s':>15} {'memory, GiB':>12}")
    for side, runs in found.items():
        print(f"{side:<12} {least(runs, 'attribution'):>15.2f} {max(run['memory'] for run in runs):>12.2f}")
    ratio = least(found["plain"], "attribution") / least(found["headscope"], "attribution")
    print(f"{ratio:.2f} times less; scores up to {plain.abs().max():.2e} differ by {(plain - ours).abs().max():.1e}")
    passes = least(found["headscope"], "circuit") / least(found["plain"], "circuit")
    print(f"a circuit of half the edges costs {passes:.2f} forward passes (with logits at all positions)")


def least(runs: list[dict[str, float]], name: str) -> float:
    """The best of the repeated runs."""
    return min(run[name] for run in runs)


def model_config(name: str) -> HookedTransformerConfig:
    """The config of a shape."""
    return HookedTransformerConfig(**MODELS[name])


if __name__ == "__main__":
    main()
