"""Next-token loss of every position, with the logits reduced tile by tile: they are never all held."""

from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.core.result import Result
from headscope.analysis.storage.accumulator import Accumulator
from headscope.analysis.storage.options import RunOptions, streaming
from headscope.analysis.storage.passes import Passes
from headscope.errors import InvalidInputError, NotFiniteError
from headscope.model.transformer import HookedTransformer
from headscope.ops.vocab import VocabSummary, summarize

__all__ = ["NextTokens", "next_token_loss", "predict_next_tokens"]


@dataclass(frozen=True)
class NextTokens(Result):
    """The prediction at each position but the last of a row, and how what came next fared.

    Attributes:
        loss: Minus the log-probability of the token that came next, in nats; NaN where either of the two is padding.
        rank: How many tokens were held more likely than it; -1 where the loss is NaN.
        top_tokens: The most likely tokens, best first; -1 where the loss is NaN.
        top_probs: Their probabilities; NaN where the loss is.
        info: What was run on what; `n_positions` is the number of losses.
    """

    kind: ClassVar[str] = "next_tokens"
    loss: Float[Tensor, "batch pos"]
    rank: Int[Tensor, "batch pos"]
    top_tokens: Int[Tensor, "batch pos k"]
    top_probs: Float[Tensor, "batch pos k"]


@streaming()
def next_token_loss(model: HookedTransformer, data: Any, **run: Unpack[RunOptions]) -> Float[Tensor, "batch pos"]:
    """Return the loss of each next token in nats, `[batch, pos - 1]`, NaN where padding is involved.

    Args:
        model: The model.
        data: Tokens `[batch, pos]` or `[pos]`, or an iterable of such batches (shorter rows end in NaN).
        **run: Options of every run; see `RunOptions`.

    Raises:
        InvalidInputError: For tokens that do not fit the model, or if no position has a next token.
        NotFiniteError: If the model's final states are not finite.

    Example:
        >>> from headscope import HookedTransformer, HookedTransformerConfig
        >>> cfg = HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=16, d_head=4, d_vocab=20, attn_only=True)
        >>> next_token_loss(HookedTransformer(cfg), torch.arange(12).view(2, 6), progress=False).shape
        torch.Size([2, 5])
    """
    return predict_next_tokens(model, data, k=0, **run).loss


@streaming()
@torch.no_grad()
def predict_next_tokens(
    model: HookedTransformer,
    data: Any,
    *,
    k: int = 5,
    **run: Unpack[RunOptions],
) -> NextTokens:
    """Return the loss of each next token, its rank, and the `k` likeliest tokens.

    Args:
        model: The model.
        data: Tokens `[batch, pos]` or `[pos]`, or an iterable of such batches (shorter rows end in NaN).
        k: How many of the likeliest tokens to keep.
        **run: Options of every run; see `RunOptions`.

    Raises:
        InvalidInputError: For tokens that do not fit the model, a `k` out of range, or if no position has a next token.
        NotFiniteError: If the model's final states are not finite.

    Example:
        >>> from headscope import HookedTransformer, HookedTransformerConfig
        >>> cfg = HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=16, d_head=4, d_vocab=20, attn_only=True)
        >>> predict_next_tokens(HookedTransformer(cfg), torch.arange(6), k=3, progress=False).top_tokens.shape
        torch.Size([1, 5, 3])
    """
    passes = Passes("next-tokens", model, data, {"k": k}, include_bos=True, **run)
    if (finished := passes.finished(NextTokens)) is not None:
        return finished
    return passes.finish("loss", _NextTokenAccumulator(model, {"k": k}, passes.described))


class _NextTokenAccumulator(Accumulator[NextTokens]):
    """The predictions of a stream of batches."""

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Predict a batch, and keep every position."""
        rows = _predict(self.model, batch, self.options["k"])
        self.add(batch, int((rows["rank"] >= 0).sum()), rows=rows)

    def summary(self, rows: dict[str, Tensor]) -> NextTokens:
        """Return the predictions, with the likeliest tokens along the last axis."""
        top = {name: rows.pop(name).movedim(0, -1).contiguous() for name in ("top_tokens", "top_probs")}
        return NextTokens(info=self.info(self.options), **rows, **top)

    def nothing(self) -> InvalidInputError:
        """The error where no position has a next token."""
        return InvalidInputError(
            "no position of the data has a next token: every row is one token long or padding, or there are none."
        )


def _predict(model: HookedTransformer, batch: Batch, k: int) -> dict[str, Shaped[Tensor, "*k batch pos"]]:
    """Return the loss and rank of each next token, and the likeliest tokens with their probabilities."""
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
    summary: VocabSummary = summarize(
        rows,
        model.W_U,
        model.b_U,
        targets=tokens[:, 1:][counted],
        k=k,
        soft_cap=max(model.cfg.output_logits_soft_cap, 0.0),
    )
    assert summary.target_log_prob is not None and summary.target_rank is not None
    at = counted.cpu()

    def spread(values: Shaped[Tensor, "n *k"], fill: float | int) -> Shaped[Tensor, "*k batch pos"]:
        out = values.new_full((*values.shape[1:], *at.shape), fill, device="cpu")
        out[..., at] = values.cpu().movedim(0, -1)
        return out

    return {
        "loss": spread(-summary.target_log_prob, torch.nan),
        "rank": spread(summary.target_rank, -1),
        "top_tokens": spread(summary.top_tokens, -1),
        "top_probs": spread(summary.top_log_probs.exp(), torch.nan),
    }
