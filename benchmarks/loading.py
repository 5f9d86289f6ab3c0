"""Memory and time of loading a checkpoint of several shards: Llama's shape, about 1 GB, random weights.

    python benchmarks/loading.py [--gigabytes 1] [--shards 4] [--stored bfloat16] [--dtype float32]

Loading should hold the weights once, in their final form: peak memory at most 1.15 times the converted weights, with
the pages of the mapped files counted too.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from workers.protocol import MEMORY, Side, workers

WORKER = Path(__file__).parent / "workers" / "loading.py"
LIMIT = 1.15
D_MODEL, D_MLP, HEADS, GROUPS, D_HEAD, VOCABULARY = 1024, 2816, 16, 4, 64, 32000


def write_checkpoint(folder: Path, gigabytes: float, n_shards: int, stored: torch.dtype) -> int:
    """A Llama checkpoint of random weights in float32 of about this size; returns its number of layers."""
    of_layer = D_MODEL * (2 * D_HEAD * (HEADS + GROUPS) + 3 * D_MLP)
    n_layers = max(1, round((gigabytes * 2**30 / 4 - 2 * VOCABULARY * D_MODEL) / of_layer))
    shapes = {"model.embed_tokens.weight": (VOCABULARY, D_MODEL), "lm_head.weight": (VOCABULARY, D_MODEL)}
    for layer in range(n_layers):
        name = f"model.layers.{layer}."
        shapes |= {
            f"{name}self_attn.q_proj.weight": (HEADS * D_HEAD, D_MODEL),
            f"{name}self_attn.k_proj.weight": (GROUPS * D_HEAD, D_MODEL),
            f"{name}self_attn.v_proj.weight": (GROUPS * D_HEAD, D_MODEL),
            f"{name}self_attn.o_proj.weight": (D_MODEL, HEADS * D_HEAD),
            f"{name}mlp.gate_proj.weight": (D_MLP, D_MODEL),
            f"{name}mlp.up_proj.weight": (D_MLP, D_MODEL),
            f"{name}mlp.down_proj.weight": (D_MODEL, D_MLP),
            f"{name}input_layernorm.weight": (D_MODEL,),
            f"{name}post_attention_layernorm.weight": (D_MODEL,),
        }
    shapes["model.norm.weight"] = (D_MODEL,)
    names = list(shapes)
    generator = torch.Generator().manual_seed(0)
    shard_of: dict[str, str] = {}
    for number in range(n_shards):
        some = names[number * len(names) // n_shards : (number + 1) * len(names) // n_shards]
        file = f"model-{number + 1:05d}-of-{n_shards:05d}.safetensors"
        tensors = {name: (0.02 * torch.randn(shapes[name], generator=generator)).to(stored) for name in some}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        shard_of |= dict.fromkeys(some, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": n_layers,
        "hidden_size": D_MODEL, "intermediate_size": D_MLP, "num_attention_heads": HEADS, "head_dim": D_HEAD,
        "num_key_value_heads": GROUPS, "vocab_size": VOCABULARY, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return n_layers


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of the weights in float32")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--stored", default="float32", choices=("float32", "bfloat16"), help="type in the files")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="type to load as")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        n_layers = write_checkpoint(folder, options.gigabytes, options.shards, getattr(torch, options.stored))
        print(f"Llama's shape, {n_layers} layers, {options.shards} shards of {options.stored}, as {options.dtype}:")
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
