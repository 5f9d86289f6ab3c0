"""A program of one layer, as a compiler would write it: each output is the token before.

Tokens 0 to 3, and 4 which begins every row. The stream has the token, the output, and the position; head 0.0 looks at
the position before and copies its token to the output; head 0.1 and the MLP give nothing.
"""

from typing import Any

import torch

from headscope import HookedTransformer, HookedTransformerConfig

N_CTX, BOS = 7, 4
_TOKEN, _OUTPUT, _POSITION = slice(0, 5), slice(5, 9), slice(9, 9 + N_CTX)
CFG = HookedTransformerConfig(
    n_layers=1, n_heads=2, d_model=9 + N_CTX, d_head=N_CTX, d_mlp=2, act_fn="relu", n_ctx=N_CTX, d_vocab=5,
    d_vocab_out=4, normalization_type=None, use_attn_scale=False, device="cpu", model_name="previous token",
    init_weights=False,
)  # fmt: skip


def previous_token_program() -> HookedTransformer:
    """The model; see above."""
    model = HookedTransformer(CFG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[:, _TOKEN] = torch.eye(5)
        model.pos_embed.W_pos[:, _POSITION] = torch.eye(N_CTX)
        model.unembed.W_U[_OUTPUT] = torch.eye(4)
        attn = model.blocks[0].attn
        attn.W_Q[0, _POSITION] = 30.0 * torch.eye(N_CTX)
        attn.W_K[0, _POSITION] = torch.eye(N_CTX).roll(1, dims=1)
        attn.W_V[0, :4, :4] = torch.eye(4)
        attn.W_O[0, :4, _OUTPUT] = torch.eye(4)
    return model


def _examples() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    found: list[dict[str, Any]] = []
    while len(found) < 12:
        rows = torch.randint(4, (2, N_CTX - 1), generator=generator).tolist()
        clean, corrupted = ([BOS, *row] for row in rows)
        if clean[3] != corrupted[3]:
            # Nothing is said of the place behind BOS, which has no token before it.
            output, other = ([0, 0, *row[:-1]] for row in rows)
            found.append(
                {"clean": clean, "corrupted": corrupted, "position": 4, "output": output, "corrupted_output": other}
            )
    return found


TRUTH: dict[str, Any] = {
    "name": "program",
    "output": "categorical",
    "roles": {"0.0": {"q": ["indices"], "k": ["indices"], "v": ["tokens"], "writes": ["previous_token_1"]}},
    "idle": ["0.1", "MLP 0"],
    "edges": [["0.0", "final"]],
    "vocab_in": {"a": 0, "b": 1, "c": 2, "d": 3, "compiler_bos": BOS},
    "vocab_out": {"a": 0, "b": 1, "c": 2, "d": 3},
    "examples": _examples(),
}
