"""CPU seconds of the long analyses on one model, by one thread, for a comparison of two versions of headscope.

Each analysis is asked by name, on few tokens or prompts, so that one takes seconds to a minute on a model of 135M
parameters. CPU seconds hardly depend on what else a machine does; still, run two checkouts in turn and take the best:

    for tree in ../old .; do PYTHONPATH=$tree/src OMP_NUM_THREADS=1 python benchmarks/analyses.py MODEL entropy64; done

`MODEL` is what `from_pretrained` takes, with a tokenizer. `--save FILE` keeps the numbers found, and `--against FILE`
prints the largest difference from those of another run.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import headscope
from headscope import HookedTransformer
from headscope.analysis import (
    Task,
    ablate_heads,
    activation_patch,
    detect_heads,
    find_circuit,
    measure_entropy,
    weights_circuit_ranks,
)
from headscope.data.ioi import IOIDataset


def text(model: HookedTransformer, rows: int, length: int) -> Tensor:
    """Random tokens."""
    return torch.randint(5, model.cfg.d_vocab - 5, (rows, length), generator=torch.Generator().manual_seed(0))


def names(model: HookedTransformer, n_prompts: int) -> Task:
    """Prompts about indirect objects."""
    prompts = IOIDataset(N=n_prompts, tokenizer=model.tokenizer, prepend_bos=True)
    return Task.from_ioi(prompts, "ABB->ABA, BAB->BAA")


def analyses(model: HookedTransformer, n_prompts: int) -> dict[str, Callable[[], dict[str, Tensor | None]]]:
    """The analyses by name, each giving the numbers that two versions must agree on."""
    cfg = model.cfg
    middle, third = (cfg.n_layers // 2, 0), [(layer, 0) for layer in range(0, cfg.n_layers, 3)]

    def entropy(rows: int, length: int) -> dict[str, Tensor | None]:
        return {"diff": measure_entropy(model, text(model, rows, length), include_bos=True, progress=False).diff}

    def ranks() -> dict[str, Tensor | None]:
        found = weights_circuit_ranks(model, [middle], progress=False)
        return {"ov": found.ov, "qk": found.qk}

    def ablation() -> dict[str, Tensor | None]:
        options: dict[str, Any] = {"heads": third, "values": ["mean"], "effects": ["patched"], "progress": False}
        return {"loss": ablate_heads(model, text(model, 4, 128), **options).loss_diff}

    def types(task: Task | None) -> dict[str, Tensor | None]:
        return {"scores": detect_heads(model, task=task, n_sequences=8, progress=False).scores}

    def patching() -> dict[str, Tensor | None]:
        options: dict[str, Any] = {"positions": ["S2", "end"], "by_position": True, "progress": False}
        return {"values": activation_patch(model, names(model, n_prompts), ["resid_pre", "z"], **options).values}

    def circuit() -> dict[str, Tensor | None]:
        return {"effects": find_circuit(model, names(model, n_prompts), max_receivers=1, progress=False).effects}

    return {
        "entropy64": lambda: entropy(1, 64),
        "entropy512": lambda: entropy(4, 128),
        "ranks": ranks,
        "ablation": ablation,
        "types": lambda: types(None),
        "task_types": lambda: types(names(model, n_prompts)),
        "patching": patching,
        "circuit": circuit,
    }


def main() -> None:
    """Print the CPU seconds of each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("names", nargs="+", metavar="analysis")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"headscope {headscope.__version__} in {Path(headscope.__file__).parent}, torch {torch.__version__}")
    known, found = analyses(HookedTransformer.from_pretrained(options.model), options.prompts), {}
    for name in options.names:
        times = []
        for _ in range(options.repeats):
            start = time.process_time()
            found[name] = known[name]()
            times.append(time.process_time() - start)
        print(
            f"{name:<12} {min(times):8.2f} s of CPU, best of {', '.join(f'{each:.2f}' for each in times)}", flush=True
        )
    if options.save:
        torch.save(found, options.save)
    for name, values in torch.load(options.against, weights_only=True).items() if options.against else ():
        for of, theirs in values.items() if name in found else ():
            off = (found[name][of].double() - theirs.double()).abs().nan_to_num(nan=0.0).max()
            print(f"{name}: {of} differ by at most {off:.1e}")


if __name__ == "__main__":
    main()
