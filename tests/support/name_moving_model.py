"""A model of four layers with weights set by hand that tells the indirect object as GPT-2 does (Wang et al. 2022).

Attention only, no norm. The stream has five parts: the token, a note that the name is here again ("named twice"), one
at the end of whom not to look at ("inhibited"), the token predicted next (which the unembedding reads), and the
position. Tokens: 0 begins a row, 1 asks at the end of it, 2 to 5 are words, the rest are names. Heads that find nothing
rest at the beginning.

| head | looks for                                           | writes                                          |
|------|-----------------------------------------------------|-------------------------------------------------|
| 0.0  | an earlier copy of this token (duplicate token)     | its name, as "named twice"                      |
| 1.0  | from the end, a place that is "named twice"         | who that is, as "inhibited" (S-inhibition)      |
| 2.0  | from the end, names, but not the inhibited one      | for that name (name mover)                      |
| 2.1  | the same, less surely                               | a little against that name (negative name mover)|
| 3.0  | the same, but not what is predicted already either  | for that name (backup name mover)               |

All others attend to everything alike, and write next to nothing.
"""

import torch
from torch import Tensor

from headscope import HookedTransformer, HookedTransformerConfig
from headscope.analysis.prompts.task import Task

N_NAMES = 12
FIRST_NAME = 6
D_VOCAB = FIRST_NAME + N_NAMES
N_CTX = 24
DUPLICATE, INHIBITION, MOVER, NEGATIVE, BACKUP = (0, 0), (1, 0), (2, 0), (2, 1), (3, 0)
_SHARP = 30.0
_TOKEN, _TWICE, _INHIBITED, _PREDICTED = (slice(part * D_VOCAB, (part + 1) * D_VOCAB) for part in range(4))
_POSITION = slice(4 * D_VOCAB, 4 * D_VOCAB + N_CTX)
_WIDTH = D_VOCAB + N_CTX + 2  # of a head: tokens, positions, a rest, names in general


def name_moving_model() -> HookedTransformer:
    """Four layers of two heads; see above."""
    cfg = HookedTransformerConfig(
        n_layers=4, n_heads=2, d_model=4 * D_VOCAB + N_CTX, d_head=_WIDTH, n_ctx=N_CTX, d_vocab=D_VOCAB, attn_only=True,
        normalization_type=None, use_attn_scale=False, device="cpu", model_name="name moving by hand",
        init_weights=False,
    )  # fmt: skip
    model = HookedTransformer(cfg)
    tokens = torch.eye(D_VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[:, _TOKEN] = tokens
        model.pos_embed.W_pos[:, _POSITION] = torch.eye(N_CTX)
        model.unembed.W_U[_PREDICTED] = tokens
        names = torch.diag((torch.arange(D_VOCAB) >= FIRST_NAME).float())
        for block in model.blocks:
            for head in range(2):
                block.attn.W_V[head, _TOKEN, :D_VOCAB] = 0.01 * names
                block.attn.W_O[head, :D_VOCAB, _PREDICTED] = 0.01 * tokens
        _duplicates(model, names)
        attn = model.blocks[1].attn
        attn.W_Q[0, 1, -1] = _SHARP
        attn.W_K[0, _TWICE, -1] = names.sum(0)
        _rest(model, 1, 0, 0.3)
        _copy(model, 1, 0, names, _TWICE, _INHIBITED, 1.0)
        for layer, head, strength in ((2, 0, 6.0), (2, 1, -2.0), (3, 0, 6.0)):
            _move(model, layer, head, names, strength)
        model.blocks[3].attn.W_Q[0, _PREDICTED, :D_VOCAB] = -_SHARP * tokens
    return model


def _duplicates(model: HookedTransformer, names: Tensor) -> None:
    """Every token looks for itself, but not at its own position."""
    attn = model.blocks[0].attn
    attn.W_Q[0, _TOKEN, :D_VOCAB] = _SHARP * torch.eye(D_VOCAB)
    attn.W_K[0, _TOKEN, :D_VOCAB] = torch.eye(D_VOCAB)
    places = slice(D_VOCAB, D_VOCAB + N_CTX)
    attn.W_Q[0, _POSITION, places] = -2 * _SHARP * torch.eye(N_CTX)
    attn.W_K[0, _POSITION, places] = torch.eye(N_CTX)
    _rest(model, 0, 0, 0.5)
    _copy(model, 0, 0, names, _TOKEN, _TWICE, 1.0)


def _rest(model: HookedTransformer, layer: int, head: int, strength: float) -> None:
    """Let a head attend to the beginning where nothing is found as strong."""
    attn = model.blocks[layer].attn
    attn.b_Q[head, -2] = _SHARP * strength
    attn.W_K[head, 0, -2] = 1.0


def _copy(
    model: HookedTransformer, layer: int, head: int, what: Tensor, source: slice, to: slice, strength: float
) -> None:
    attn = model.blocks[layer].attn
    attn.W_V[head].zero_()
    attn.W_O[head].zero_()
    attn.W_V[head, source, :D_VOCAB] = what
    attn.W_O[head, :D_VOCAB, to] = strength * torch.eye(D_VOCAB)


def _move(model: HookedTransformer, layer: int, head: int, names: Tensor, strength: float) -> None:
    attn = model.blocks[layer].attn
    attn.W_Q[head, 1, -1] = _SHARP
    attn.W_Q[head, _INHIBITED, :D_VOCAB] = -2 * _SHARP * torch.eye(D_VOCAB)
    attn.W_K[head, _TOKEN, :D_VOCAB] = names
    attn.W_K[head, _TOKEN, -1] = names.sum(0)
    _rest(model, layer, head, 0.5)
    _copy(model, layer, head, names, _TOKEN, _PREDICTED, strength)


def name_task(n: int = 40, *, seed: int = 0, swap: bool = True, corrupted: bool = True) -> Task:
    """Prompts `0 A 2 B 3 S 4 1` of both orders in turn; corrupted: with the other one as subject, or with others."""
    generator = torch.Generator().manual_seed(seed)
    rows, others, answers = [], [], []
    for number in range(n):
        io, s, *strange = (FIRST_NAME + torch.randperm(N_NAMES, generator=generator)[:5]).tolist()
        first, second = (io, s) if number % 2 == 0 else (s, io)
        rows.append([0, first, 2, second, 3, s, 4, 1])
        a, b, c = strange
        others.append([0, first, 2, second, 3, io, 4, 1] if swap else [0, a, 2, b, 3, c, 4, 1])
        answers.append((io, s))
    io, s = (torch.tensor(each)[:, None] for each in zip(*answers, strict=True))
    return Task(
        clean_tokens=torch.tensor(rows),
        correct=io,
        incorrect=s,
        attention_mask=torch.ones(n, 8, dtype=torch.bool),
        positions=torch.full((n,), 7),
        corrupted_tokens=torch.tensor(others) if corrupted else None,
        prompts=tuple(" ".join(map(str, row)) for row in rows),
        str_tokens=tuple(tuple(f" {token}" for token in row) for row in rows),
        answers=tuple((f" {right}", f" {wrong}") for right, wrong in answers),
        labels=tuple("ABBA" if number % 2 == 0 else "BABA" for number in range(n)),
    )
