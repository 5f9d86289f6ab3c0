"""A model of two layers with weights set by hand that does induction and nothing else.

Attention only, no norm, no BOS. The residual stream has four parts: the token, the token before it, the token predicted
next (which the unembedding reads), and the position.

| head | looks for                                     | writes                                 |
|------|-----------------------------------------------|----------------------------------------|
| 0.0  | nothing: all positions alike                  | a little of the mean token             |
| 0.1  | the position before                           | its token, as "the token before"       |
| 1.0  | a position whose token before is this token   | its token, as a prediction (induction) |
| 1.1  | nothing: all positions alike                  | a little of the mean token             |
"""

import torch

from headscope import HookedTransformer, HookedTransformerConfig

D_VOCAB = 40
N_CTX = 48
PREVIOUS = (0, 1)
INDUCTION = (1, 0)
_SHARP = 30.0
_TOKEN = slice(0, D_VOCAB)
_BEFORE = slice(D_VOCAB, 2 * D_VOCAB)
_PREDICTED = slice(2 * D_VOCAB, 3 * D_VOCAB)
_POSITION = slice(3 * D_VOCAB, 3 * D_VOCAB + N_CTX)


def induction_model() -> HookedTransformer:
    """Two layers of two heads; see above."""
    cfg = HookedTransformerConfig(
        n_layers=2, n_heads=2, d_model=3 * D_VOCAB + N_CTX, d_head=N_CTX, n_ctx=N_CTX, d_vocab=D_VOCAB, attn_only=True,
        normalization_type=None, use_attn_scale=False, device="cpu", model_name="induction by hand", init_weights=False,
    )  # fmt: skip
    model = HookedTransformer(cfg)
    tokens, positions = torch.eye(D_VOCAB), torch.eye(N_CTX)
    previous, finder = model.blocks[0].attn, model.blocks[1].attn
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[:, _TOKEN] = tokens
        model.pos_embed.W_pos[:, _POSITION] = positions
        model.unembed.W_U[_PREDICTED] = tokens
        previous.W_Q[1, _POSITION] = _SHARP * positions
        previous.W_K[1, _POSITION] = positions.roll(1, dims=1)
        previous.W_V[1, _TOKEN, :D_VOCAB] = tokens
        previous.W_O[1, :D_VOCAB, _BEFORE] = tokens
        finder.W_Q[0, _TOKEN, :D_VOCAB] = _SHARP * tokens
        finder.W_K[0, _BEFORE, :D_VOCAB] = tokens
        finder.W_V[0, _TOKEN, :D_VOCAB] = tokens
        finder.W_O[0, :D_VOCAB, _PREDICTED] = 6.0 * tokens
        for attn, head in ((previous, 0), (finder, 1)):
            attn.W_V[head, _TOKEN, :D_VOCAB] = 0.1 * tokens
            attn.W_O[head, :D_VOCAB, _PREDICTED] = 0.1 * tokens
    return model
