"""TransformerLens on one task: activation patching and attribution patching of every head and MLP, as JSON.

    python benchmarks/workers/scoreboard.py FOLDER

FOLDER holds the model's configuration (`config.json`), and its weights and the task's tensors (`task.safetensors`).
Written in plain hooks of TransformerLens, at all positions together; imports nothing of headscope.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig


def main() -> None:
    folder = Path(sys.argv[1])
    cfg = HookedTransformerConfig(**json.loads((folder / "config.json").read_text()), device="cpu")
    held = load_file(folder / "task.safetensors")
    model = HookedTransformer(cfg)
    weights = {name.removeprefix("model."): value for name, value in held.items() if name.startswith("model.")}
    missing, unknown = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith(("mask", "IGNORE"))]
    if missing or unknown:
        raise SystemExit(f"weights do not fit: {missing}, {unknown}")
    rows = torch.arange(len(held["clean"]))

    def metric(logits: Any) -> Any:
        read = logits[rows, held["at"]].gather(-1, held["tokens"])
        return (read * held["weights"]).sum(-1).mean()

    names = [f"blocks.{layer}.attn.hook_z" for layer in range(cfg.n_layers)]
    names += [] if cfg.attn_only else [f"blocks.{layer}.hook_mlp_out" for layer in range(cfg.n_layers)]
    _, other = model.run_with_cache(held["corrupted"], names_filter=lambda name: name in names)

    kept: dict[str, Any] = {}

    def keep(value: Any, hook: Any) -> Any:
        value.retain_grad()
        kept[hook.name] = value

    logits = model.run_with_hooks(held["clean"], fwd_hooks=[(name, keep) for name in names])
    clean = metric(logits)
    clean.backward()
    patched, estimated = {}, {}
    for name in names:
        layer = int(name.split(".")[1])
        change = other[name] - kept[name]
        for head in range(cfg.n_heads) if name.endswith("hook_z") else [None]:
            label = f"mlp{layer}" if head is None else f"{layer}.{head}"
            part = (...,) if head is None else (slice(None), slice(None), head)

            def put(value: Any, hook: Any, part: Any = part) -> Any:
                value = value.clone()
                value[part] = other[hook.name][part]
                return value

            with torch.no_grad():
                after = metric(model.run_with_hooks(held["clean"], fwd_hooks=[(name, put)]))
            patched[label] = abs(float(after - clean))
            estimated[label] = abs(float((change * kept[name].grad)[part].sum()))
    print(json.dumps({"activation patching": patched, "attribution patching": estimated}))


if __name__ == "__main__":
    main()
