"""Small models and the numbers that their random weights are known by; records those of TransformerLens.

In an environment with transformer-lens 3.9.0 and torch 2.13 (headscope is not needed there):

    python tests/support/drawn_weights.py tests/model/weights/weights_of_seeds.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

__all__ = ["CASES", "SIZES", "WITH_MLP", "shown"]

SIZES = {"n_layers": 2, "d_model": 24, "n_ctx": 7, "d_head": 6, "n_heads": 4, "d_vocab": 11, "seed": 5, "device": "cpu"}
WITH_MLP = {**SIZES, "d_mlp": 20, "act_fn": "gelu"}
GATED = {**WITH_MLP, "gated_mlp": True, "n_key_value_heads": 2, "positional_embedding_type": "rotary"}
EXPERTS = {**GATED, "num_experts": 3, "experts_per_token": 2, "normalization_type": "RMS"}
MODES = ["gpt2", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "muP"]

CASES: dict[str, dict[str, Any]] = {
    **{mode: {**WITH_MLP, "init_mode": mode} for mode in MODES},
    **{f"experts, {mode}": {**EXPERTS, "init_mode": mode} for mode in MODES},
    "given range": {**WITH_MLP, "initializer_range": 0.3},
    "given gain": {**GATED, "init_mode": "kaiming_uniform", "initializer_range": 0.3},
    "attention only": {**SIZES, "attn_only": True, "positional_embedding_type": "shortformer", "d_vocab_out": 3},
    "gated": GATED,
    "alibi": {**WITH_MLP, "positional_embedding_type": "alibi", "post_embedding_ln": True},
    "parallel": {**WITH_MLP, "parallel_attn_mlp": True, "normalization_type": None, "seed": 2**31},
    "float64": {**WITH_MLP, "dtype": "float64"},
    "bfloat16": {**GATED, "dtype": "bfloat16"},
    "small": {**SIZES, "d_model": 3, "n_ctx": 2, "d_head": 2, "n_heads": 1, "d_vocab": 3, "attn_only": True, "seed": 0},
}  # fmt: skip


def shown(model: Any) -> dict[str, list[float]]:
    """Return, for each kind of drawn weight, its last entry in the last layer, and the mean over all layers."""
    stacked = {
        "W_E": model.W_E,
        "W_U": model.W_U,
        "W_Q": model.W_Q,
        "W_K": model.W_K,
        "W_V": model.W_V,
        "W_O": model.W_O,
    }
    if model.cfg.positional_embedding_type in ("standard", "shortformer"):
        stacked["W_pos"] = model.W_pos
    if model.cfg.num_experts:
        for name in ("W_in", "W_gate", "W_out", "W_router"):
            stacked[name] = torch.stack([of_experts(block.mlp, name) for block in model.blocks])
    elif not model.cfg.attn_only:
        stacked.update({"W_in": model.W_in, "W_out": model.W_out})
        if model.cfg.gated_mlp:
            stacked["W_gate"] = model.W_gate
    return {name: [rounded(weight.flatten()[-1]), rounded(weight.double().mean())] for name, weight in stacked.items()}


def rounded(number: torch.Tensor) -> float:
    """Return nine significant digits, all that float32 has."""
    return float(f"{number.item():.9g}")


def of_experts(mlp: Any, name: str) -> torch.Tensor:
    """Return a weight of a mixture of experts, as it is here, from either library."""
    if isinstance(mlp.W_gate, torch.Tensor):
        return getattr(mlp, name)
    if name == "W_router":
        return mlp.W_gate.weight.T
    return torch.stack([getattr(expert, name).weight.T for expert in mlp.experts])


if __name__ == "__main__":
    import transformer_lens

    recorded = {}
    for case, fields in CASES.items():
        dtype = {"dtype": getattr(torch, fields["dtype"])} if "dtype" in fields else {}
        config = transformer_lens.HookedTransformerConfig(**{**fields, **dtype})
        recorded[case] = shown(transformer_lens.HookedTransformer(config))
    rows = ",\n".join(f"{json.dumps(case)}: {json.dumps(numbers)}" for case, numbers in recorded.items())
    Path(sys.argv[1]).write_text(f"{{\n{rows}\n}}\n", encoding="utf-8")
