"""Memory and time of loading a checkpoint of several shards, about 1 GB of random weights.

    python benchmarks/loading.py [--family gemma4] [--gigabytes 1] [--shards 4] [--stored bfloat16] [--dtype float32]

Loading should hold the weights once, in their final form: peak memory at most 1.15 times the converted weights, with
the pages of the mapped files counted too.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from workers.protocol import MEMORY, Side, workers

WORKER = Path(__file__).parent / "workers" / "loading.py"
LIMIT = 1.15
COMMON = {
    "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "head_dim": 64,
    "num_key_value_heads": 4, "max_position_embeddings": 2048,
}  # fmt: skip
GEMMA4 = {**COMMON, "global_head_dim": 128, "attention_k_eq_v": True, "num_global_key_value_heads": 2,
          "hidden_size_per_layer_input": 0}  # fmt: skip
# By family: its config in transformers. Where layers differ, they come round after six.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", COMMON),
    "gpt2": ("GPT2Config", {"vocab_size": 32000, "n_embd": 1024, "n_head": 16, "n_positions": 2048}),
    "mixtral": ("MixtralConfig", {**COMMON, "num_local_experts": 8, "num_experts_per_tok": 2}),
    "gemma3": ("Gemma3TextConfig", COMMON),
    "gemma4": ("Gemma4TextConfig", GEMMA4),
    "gemma4-experts": ("Gemma4TextConfig", {
        **GEMMA4, "enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 256}),
}  # fmt: skip


def config_of(family: str, n_layers: int) -> Any:
    stem, entries = FAMILIES[family]
    return getattr(transformers, stem)(**entries, num_hidden_layers=n_layers)


def shapes_of(config: Any) -> dict[str, torch.Size]:
    """Names and shapes of all tensors, read off a model without memory."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    tied = config.tie_word_embeddings
    return {name: each.shape for name, each in model.state_dict().items() if not (tied and name == "lm_head.weight")}


def write_checkpoint(folder: Path, family: str, gigabytes: float, n_shards: int, stored: torch.dtype) -> int:
    """A checkpoint of random weights in float32 of about this size; returns its number of layers."""
    of_six, of_twelve = (sum(map(math.prod, shapes_of(config_of(family, n)).values())) for n in (6, 12))
    wanted, of_layer = gigabytes * 2**30 / 4, (of_twelve - of_six) / 6
    n_layers = max(1, round((wanted - of_six) / of_layer) + 6)
    config = config_of(family, n_layers)
    shapes = shapes_of(config)
    names = list(shapes)
    generator = torch.Generator().manual_seed(0)
    shard_of: dict[str, str] = {}
    for number in range(n_shards):
        some = names[number * len(names) // n_shards : (number + 1) * len(names) // n_shards]
        file = f"model-{number + 1:05d}-of-{n_shards:05d}.safetensors"
        # A number that multiplies a stream has to be positive.
        tensors = {
            name: torch.ones(1) if name.endswith("scalar") else 0.02 * torch.randn(shapes[name], generator=generator)
            for name in some
        }
        tensors = {name: tensor.to(stored) for name, tensor in tensors.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        shard_of |= dict.fromkeys(some, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return n_layers


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--family", default="llama", choices=tuple(FAMILIES))
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of the weights in float32")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--stored", default="float32", choices=("float32", "bfloat16"), help="type in the files")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="type to load as")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        n_layers = write_checkpoint(
            folder, options.family, options.gigabytes, options.shards, getattr(torch, options.stored)
        )
        print(f"{options.family}, {n_layers} layers, {options.shards} shards of {options.stored}, as {options.dtype}:")
        print(f"{'':<14} {'seconds':>8} {'weights MB':>11} {'peak':>6} {'with mapped pages':>18}   (of the weights)")
        worst = 0.0
        for processed in (False, True):
            with workers(WORKER, [Side("headscope", sys.executable)], folder, options.threads) as [worker]:
                before = worker.memory()
                found, peaks = worker.ask_watching(0.002, folder=name, dtype=options.dtype, processed=processed)
            anonymous, resident = ((peaks[each] - before[each]) / found["weights"] for each in MEMORY)
            worst = max(worst, anonymous, resident)
            label = "processed" if processed else "as it is"
            print(
                f"{label:<14} {found['seconds']:>8.2f} {found['weights'] / 2**20:>11.0f} {anonymous:>6.2f} "
                f"{resident:>18.2f}"
            )
    print(f"limit {LIMIT}: {'holds' if worst <= LIMIT else 'BROKEN'}")


if __name__ == "__main__":
    main()
