"""Next-token loss of every position, with the logits reduced tile by tile: they are never all held."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.batches import Batch, iterate_batches
from headscope.errors import InvalidInputError, NotFiniteError
from headscope.model.transformer import HookedTransformer
from headscope.ops.vocab import VocabSummary, summarize

__all__ = ["NextTokens", "next_token_loss", "predict_next_tokens"]


@dataclass(frozen=True)
class NextTokens:
    """What the model predicts at each position but the last of a row, and how what came next fared.

    Attributes:
        loss: Minus the log-probability of the token that came next, in nats; NaN where either of the two is padding.
        rank: How many tokens were held more likely than it; -1 where the loss is NaN.
        top_tokens: The most likely tokens, best first; -1 where the loss is NaN.
        top_probs: Their probabilities; NaN where the loss is.
    """

    loss: Float[Tensor, "batch pos"]
    rank: Int[Tensor, "batch pos"]
    top_tokens: Int[Tensor, "batch pos k"]
    top_probs: Float[Tensor, "batch pos k"]


def next_token_loss(
    model: HookedTransformer, data: Any, *, attention_mask: Tensor | None = None, progress: bool = True
) -> Float[Tensor, "batch pos"]:
    """The loss of each next token in nats, `[batch, pos - 1]`, NaN where padding is involved.

    Args:
        model: The model.
        data: Tokens `[batch, pos]` or `[pos]`, or an iterable of such batches (shorter rows end in NaN).
        attention_mask: For one tensor of tokens: 1 for real tokens. Default: found from the padding token.
        progress: Show a progress bar.

    Raises:
        InvalidInputError: For tokens that do not fit the model, or if no position has a next token.
        NotFiniteError: If the model's final states are not finite.

    Example:
        >>> from headscope import HookedTransformer, HookedTransformerConfig
        >>> cfg = HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=16, d_head=4, d_vocab=20, attn_only=True)
        >>> next_token_loss(HookedTransformer(cfg), torch.arange(12).view(2, 6), progress=False).shape
        torch.Size([2, 5])
    """
    return predict_next_tokens(model, data, k=0, attention_mask=attention_mask, progress=progress).loss


@torch.no_grad()
def predict_next_tokens(
    model: HookedTransformer,
    data: Any,
    *,
    k: int = 5,
    attention_mask: Tensor | None = None,
    progress: bool = True,
) -> NextTokens:
    """The loss of each next token, its rank, and the `k` likeliest tokens; see `next_token_loss`.

    Raises:
        InvalidInputError: For tokens that do not fit the model, a `k` out of range, or if no position has a next token.
        NotFiniteError: If the model's final states are not finite.

    Example:
        >>> from headscope import HookedTransformer, HookedTransformerConfig
        >>> cfg = HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=16, d_head=4, d_vocab=20, attn_only=True)
        >>> predict_next_tokens(HookedTransformer(cfg), torch.arange(6), k=3, progress=False).top_tokens.shape
        torch.Size([1, 5, 3])
    """
    batches = iterate_batches(
        model, data, attention_mask=attention_mask, include_bos=True, progress=progress, description="loss"
    )
    parts = [_predict(model, batch, k) for batch in batches]
    if not any(part.loss.numel() for part in parts):
        raise InvalidInputError(
            "no position of the data has a next token: every row is one token long, or there are none."
        )
    width = max(part.loss.shape[1] for part in parts)
    return NextTokens(
        torch.cat([_widened(part.loss, width, torch.nan) for part in parts]),
        torch.cat([_widened(part.rank, width, -1) for part in parts]),
        torch.cat([_widened(part.top_tokens, width, -1) for part in parts]),
        torch.cat([_widened(part.top_probs, width, torch.nan) for part in parts]),
    )


def _predict(model: HookedTransformer, batch: Batch, k: int) -> NextTokens:
    tokens = batch.tokens
    final = model(tokens, attention_mask=batch.attention_mask, stop_at_layer=model.cfg.n_layers)
    states = model.ln_final(final)[:, :-1]
    counted = torch.ones_like(tokens[:, 1:], dtype=torch.bool)
    if batch.attention_mask is not None:
        counted = batch.attention_mask[:, 1:] & batch.attention_mask[:, :-1]
    rows = states[counted]
    if not bool(rows.isfinite().all()):
        raise NotFiniteError(
            "the model's final states hold NaN or infinite values. Check its weights, and any hooks on it."
        )
    found: VocabSummary = summarize(
        rows,
        model.W_U,
        model.b_U,
        targets=tokens[:, 1:][counted],
        k=k,
        soft_cap=max(model.cfg.output_logits_soft_cap, 0.0),
    )
    assert found.target_log_prob is not None and found.target_rank is not None
    shape = counted.shape
    loss = torch.full(shape, torch.nan, dtype=rows.dtype)
    rank = torch.full(shape, -1)
    top_tokens = torch.full((*shape, k), -1)
    top_probs = torch.full((*shape, k), torch.nan, dtype=rows.dtype)
    counted = counted.cpu()
    loss[counted] = -found.target_log_prob.cpu()
    rank[counted] = found.target_rank.cpu()
    top_tokens[counted] = found.top_tokens.cpu()
    top_probs[counted] = found.top_log_probs.exp().cpu()
    return NextTokens(loss, rank, top_tokens, top_probs)


def _widened(values: Tensor, width: int, fill: float | int) -> Tensor:
    missing = width - values.shape[1]
    return torch.cat([values, values.new_full((len(values), missing, *values.shape[2:]), fill)], dim=1)
