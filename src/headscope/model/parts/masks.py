"""Attention by position: the keys a query may see, the place of each token, and ALiBi's penalties."""

import math

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from headscope.model.config import HookedTransformerConfig
from headscope.ops.indexing import at_positions

__all__ = ["alibi_penalties", "alibi_slopes", "allowed_by_position", "of_queries_among", "token_positions"]


def allowed_by_position(
    n_queries: int,
    n_keys: int,
    *,
    causal: bool,
    window: int | None,
    device: torch.device,
    chunked: bool = False,
    attention_mask: Tensor | None = None,
) -> Bool[Tensor, "#batch query_pos key_pos"]:
    """Return which keys each query may see; the queries are the last of the positions.

    Args:
        n_queries: Number of queries.
        n_keys: Number of keys.
        causal: No key behind the query.
        window: Only the last so many keys, the query's own among them; `None` for all.
        device: Where the mask is.
        chunked: Instead of the last `window` keys, those in the query's chunk of so many.
        attention_mask: `[batch, key_pos]`; the first chunk begins with the first token that it has.

    Example:
        >>> cpu = torch.device("cpu")
        >>> allowed_by_position(1, 5, causal=True, window=3, device=cpu, chunked=True)
        tensor([[[False, False, False,  True,  True]]])
    """
    allowed = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    if causal:
        allowed = allowed.tril(n_keys - n_queries)
    if window is None:
        return allowed[None]
    if not chunked:
        return allowed.triu(n_keys - n_queries - window + 1)[None]
    positions = torch.arange(n_keys, device=device)[None]
    chunks = (positions if attention_mask is None else token_positions(attention_mask)) // window
    return allowed & (of_queries_among(chunks, n_queries)[..., None] == chunks[:, None, :])


def token_positions(
    attention_mask: Int[Tensor, "batch pos"] | Bool[Tensor, "batch pos"],
) -> Int[Tensor, "batch pos"]:
    """Return the place of each token, padding not counted: 0 for the first real one, and for padding in front of it."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def of_queries_among(
    of_keys: Shaped[Tensor, "#batch key_pos *rest"],
    n_queries: int,
    query_at: Int[Tensor, "batch query_pos"] | None = None,
) -> Shaped[Tensor, "#batch query_pos *rest"]:
    """Return what queries have of something that each key has: the last of it, or that at their places among the keys.

    Example:
        >>> positions = torch.arange(5)[None]
        >>> of_queries_among(positions, 2), of_queries_among(positions, 1, torch.tensor([[3], [0]]))
        (tensor([[3, 4]]), tensor([[3],
                [0]]))
    """
    if query_at is None:
        return of_keys[:, of_keys.shape[1] - n_queries :]
    return at_positions(of_keys.expand(len(query_at), *of_keys.shape[1:]), query_at)


def alibi_slopes(n_heads: int) -> Float[Tensor, " head"]:
    """Return the slopes at which the scores of heads fall with distance (Press et al. 2022, arXiv 2108.12409).

    `2 ** (-8 i / n)` for head `i` of `n`, counted from one, when `n` is a power of two. Else so for the largest power
    of two below, and the other heads take every second slope of twice as many.

    Example:
        >>> alibi_slopes(3).tolist()
        [0.0625, 0.00390625, 0.25]
    """
    power = 2 ** math.floor(math.log2(n_heads))
    exponents = [8 * (i + 1) / power for i in range(power)]
    exponents += [4 * (2 * i + 1) / power for i in range(n_heads - power)]
    return torch.tensor([2**-exponent for exponent in exponents], dtype=torch.float64, device="cpu")


def alibi_penalties(
    cfg: HookedTransformerConfig,
    n_queries: int,
    n_keys: int,
    attention_mask: Tensor | None,
    like: Tensor,
    query_at: Int[Tensor, "batch query_pos"] | None = None,
) -> Float[Tensor, "#batch head query_pos key_pos"]:
    """Return what ALiBi adds to the scores: the slope times minus the distance, between tokens that are not padding.

    With `cfg.alibi_bfloat16`, slope times position is rounded for key and query before one is taken from the other, so
    that tokens at the same distance may differ, and the difference is divided by `cfg.attn_scale`.
    """
    if attention_mask is None:
        positions = torch.arange(n_keys, device=like.device)[None]
    else:
        positions = token_positions(attention_mask)
    slopes = alibi_slopes(cfg.n_heads).to(like.device, torch.promote_types(like.dtype, torch.float32))
    if cfg.alibi_bfloat16:
        by_key = (slopes.bfloat16() * positions[..., None]).to(slopes.dtype)
        by_query = of_queries_among(by_key, n_queries, query_at)
        penalties = by_key.transpose(1, 2)[:, :, None] - by_query.transpose(1, 2)[..., None]
        return (penalties / (cfg.attn_scale if cfg.use_attn_scale else 1.0)).to(like.dtype)
    distance = positions[:, None, :] - of_queries_among(positions, n_queries, query_at)[..., None]
    return (slopes[:, None, None] * distance[:, None]).to(like.dtype)
