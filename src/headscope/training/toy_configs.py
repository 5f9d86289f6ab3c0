"""Configs of toy models: each a plain `HookedTransformerConfig`, so that all that works on a model works on these.

Each is made for the task of the same name in `headscope.data.tasks`, and takes any field of the config by keyword, in
addition or in place of its own. Use `toy_configs.skip_trigram()` with `one_hot`, which makes embedding and unembedding
trivial, so that attention is all there is to learn.
"""

import math
from typing import Any

import torch

from headscope.errors import InvalidInputError
from headscope.model.config import HookedTransformerConfig
from headscope.model.transformer import HookedTransformer

__all__ = ["easy_positions", "induction", "modular_addition", "one_hot", "palindrome", "skip_trigram"]

_SKIP_TRIGRAM_VOCAB = 11
_FASTEST = 3.0  # radians per position
_SLOWEST = 1 / 20
_POSITION_SIZE = 0.7
_TOKEN_SIZE = 0.5


def skip_trigram(n_heads: int = 3, d_head: int = 1, **fields: Any) -> HookedTransformerConfig:
    """One layer of attention and nothing else: no MLP, no norm, no positions, `d_model` equal to `d_vocab`.

    Example:
        >>> model = one_hot(HookedTransformer(skip_trigram()))
        >>> sorted(name.split(".")[-1] for name, weight in model.named_parameters() if weight.requires_grad)
        ['W_K', 'W_O', 'W_Q', 'W_V', 'b_K', 'b_O', 'b_Q', 'b_V']
    """
    return _config(
        fields,
        n_layers=1,
        d_model=_SKIP_TRIGRAM_VOCAB,
        d_vocab=_SKIP_TRIGRAM_VOCAB,
        n_heads=n_heads,
        d_head=d_head,
        n_ctx=4,
        attn_only=True,
        normalization_type=None,
        positional_embedding_type="none",
        initializer_range=0.3,
        model_name=f"skip-trigram-{n_heads}x{d_head}",
    )


def induction(d_vocab: int = 64, n_ctx: int = 32, **fields: Any) -> HookedTransformerConfig:
    """Two layers of attention, the least that induction needs: a previous-token head, then an induction head.

    Use it with `easy_positions`: without, induction takes many times longer to form.

    Example:
        >>> cfg = induction()
        >>> cfg.n_layers, cfg.attn_only
        (2, True)
    """
    return _config(
        fields,
        n_layers=2,
        d_model=64,
        d_vocab=d_vocab,
        n_heads=4,
        d_head=16,
        n_ctx=n_ctx,
        attn_only=True,
        normalization_type="LN",
        model_name="induction",
    )


def modular_addition(p: int = 113, **fields: Any) -> HookedTransformerConfig:
    """One layer without norms, with a ReLU MLP: the architecture in which modular addition has been studied before.

    One more token than the modulus `p` stands for `=`.

    Example:
        >>> modular_addition(7).d_vocab
        8
    """
    return _config(
        fields,
        n_layers=1,
        d_model=128,
        d_vocab=p + 1,
        n_heads=4,
        d_head=32,
        d_mlp=512,
        act_fn="relu",
        n_ctx=3,
        normalization_type=None,
        model_name=f"modular-addition-{p}",
    )


def palindrome(n_symbols: int = 8, half: int = 4, **fields: Any) -> HookedTransformerConfig:
    """Two layers with an MLP each, and positions, for rows of twice `half` symbols and a query token.

    Example:
        >>> palindrome(half=3).n_ctx
        7
    """
    return _config(
        fields,
        n_layers=2,
        d_model=64,
        d_vocab=n_symbols + 1,
        n_heads=4,
        d_head=16,
        d_mlp=128,
        act_fn="relu",
        n_ctx=2 * half + 1,
        normalization_type="LN",
        model_name="palindrome",
    )


def one_hot(model: HookedTransformer) -> HookedTransformer:
    """Set embedding and unembedding to identities and freeze both; return the model, changed in place.

    Args:
        model: A model whose `d_model` is at least its `d_vocab`: token `i` becomes the `i`-th axis of the residual
            stream, and its logit is read from the same axis.

    Raises:
        InvalidInputError: If the residual stream is narrower than the vocabulary.
    """
    cfg = model.cfg
    widest = max(cfg.d_vocab, cfg.d_vocab_out)
    if cfg.d_model < widest:
        raise InvalidInputError(
            f"d_model is {cfg.d_model}; with one axis for each of the {widest} tokens it must be {widest} or more."
        )
    with torch.no_grad():
        torch.nn.init.eye_(model.embed.W_E)
        torch.nn.init.eye_(model.unembed.W_U)
        model.unembed.b_U.zero_()
    return model.freeze("embed", "unembed")


def easy_positions(model: HookedTransformer) -> HookedTransformer:
    """Initialize so that looking back is easy and induction forms in seconds; return the model, changed in place.

    Positions become frozen sinusoids with mostly high frequencies, so that "one before" is a rotation large enough to
    tell neighbors apart; token embeddings become large random codes, nearly orthogonal, which a head can match.

    Args:
        model: A model with learned positions and an even `d_model`.

    Raises:
        InvalidInputError: If it has no positions, or `d_model` is odd.
    """
    cfg = model.cfg
    if cfg.positional_embedding_type == "none" or cfg.d_model % 2:
        raise InvalidInputError(
            f"easy_positions needs positions and an even d_model; positional_embedding_type is "
            f"{cfg.positional_embedding_type!r} and d_model {cfg.d_model}."
        )
    speed = torch.logspace(math.log2(_FASTEST), math.log2(_SLOWEST), cfg.d_model // 2, base=2)
    angle = torch.arange(cfg.n_ctx)[:, None] * speed
    with torch.no_grad():
        model.embed.W_E.mul_(_TOKEN_SIZE / cfg.initializer_range)
        model.pos_embed.W_pos.copy_(_POSITION_SIZE * torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1))
    return model.freeze("pos_embed")


def _config(given: dict[str, Any], **defaults: Any) -> HookedTransformerConfig:
    return HookedTransformerConfig.from_dict({"seed": 0, **defaults, **given})
