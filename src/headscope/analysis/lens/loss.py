"""Next-token loss of every position, with the logits reduced tile by tile: they are never all held."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from headscope.analysis.core.batches import Batch, spread
from headscope.analysis.core.result import Array, Result
from headscope.analysis.recording.by_hand import check_unembedding
from headscope.analysis.storage.accumulator import Accumulator
from headscope.analysis.storage.options import StreamOptions, streaming
from headscope.analysis.storage.passes import Passes
from headscope.errors import NotFiniteError
from headscope.model.transformer import HookedTransformer
from headscope.ops.vocab import summarize

__all__ = ["NextTokens", "next_token_loss", "predict_next_tokens"]


@dataclass(frozen=True, repr=False)
class NextTokens(Result):
    """Predictions at each position but the last of a row, beside the tokens that came next.

    Attributes:
        loss: Minus the log-probability of the token that came next, in nats; NaN where a position does not count: one
            of the two is padding, or the first is BOS and BOS was not asked for.
        rank: How many tokens were held more likely than it; -1 where the loss is NaN.
        top_tokens: The most likely tokens, best first; -1 where the loss is NaN.
        top_probs: Their probabilities; NaN where the loss is.
        info: What was run on what; `n_positions` is the number of losses.
    """

    kind: ClassVar[str] = "next_tokens"
    arrays: ClassVar[Mapping[str, Array]] = {
        "loss": Array("batch pos", unit="nats"),
        "rank": Array("batch pos"),
        "top_tokens": Array("batch pos k"),
        "top_probs": Array("batch pos k"),
    }
    columns: ClassVar[tuple[str, ...]] = ("loss", "rank")
    ranked: ClassVar[tuple[str, ...]] = ("loss",)
    sampled: ClassVar[tuple[str, ...]] = ()
    loss: Float[Tensor, "batch pos"]
    rank: Int[Tensor, "batch pos"]
    top_tokens: Int[Tensor, "batch pos k"]
    top_probs: Float[Tensor, "batch pos k"]


@streaming()
def next_token_loss(model: HookedTransformer, data: Any, **run: Unpack[StreamOptions]) -> Float[Tensor, "batch pos"]:
    """Return the loss of each next token in nats, `[batch, pos - 1]`; NaN where a position does not count.

    The positions that count are those of `ablate_heads` and `measure_calibration`, so that their means agree.

    Args:
        model: The model.
        data: Tokens `[batch, pos]` or `[pos]`, or an iterable of such batches (shorter rows end in NaN).
        **run: Options of every run; see `StreamOptions`.

    Raises:
        InvalidInputError: For tokens that do not fit the model, or if no position counts.
        NotFiniteError: If the model's final states are not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> from headscope.analysis.core.stats import estimate
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> tokens = model.to_tokens(["Mary and John went to the park."] * 2, prepend_bos=True)
        >>> loss = next_token_loss(model, tokens, progress=False)
        >>> loss.shape, estimate(loss).n
        (torch.Size([2, 9]), 16)
    """
    return predict_next_tokens(model, data, k=0, **run).loss


@streaming()
@torch.no_grad()
def predict_next_tokens(model: HookedTransformer, data: Any, *, k: int = 5, **run: Unpack[StreamOptions]) -> NextTokens:
    """Return the loss of each next token, its rank, and the `k` likeliest tokens.

    Args:
        model: The model.
        data: Tokens `[batch, pos]` or `[pos]`, or an iterable of such batches (shorter rows end in NaN).
        k: How many of the likeliest tokens to keep.
        **run: Options of every run; see `StreamOptions`.

    Raises:
        InvalidInputError: For tokens that do not fit the model, a `k` out of range, or if no position counts.
        NotFiniteError: If the model's final states are not finite.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> tokens = model.to_tokens("Mary and John went to the park.", prepend_bos=True)
        >>> predictions = predict_next_tokens(model, tokens, k=2, progress=False)
        >>> for position in (3, 6):
        ...     print(model.to_str_tokens(predictions.top_tokens[0, position]), int(predictions.rank[0, position]))
        [' thanked', ' at'] 8
        [' the', ' give'] 0
    """
    options = {"k": k, "include_bos": run["include_bos"]}
    passes = Passes("next-tokens", model, data, options, **run)
    if (finished := passes.finished(NextTokens)) is not None:
        return finished
    return passes.finish("loss", _NextTokenAccumulator(model, options, passes.described))


class _NextTokenAccumulator(Accumulator[NextTokens]):
    """The predictions of a stream of batches."""

    predicting = True

    def update(self, batch: Batch) -> None:
        """Predict a batch, and keep every position."""
        rows = _predict(self.model, batch, self.options["k"])
        self.add(batch, int((rows["rank"] >= 0).sum()), rows=rows)

    def summary(self, rows: dict[str, Tensor]) -> NextTokens:
        """Return the predictions, with the likeliest tokens along the last axis."""
        top = {name: rows.pop(name).movedim(0, -1).contiguous() for name in ("top_tokens", "top_probs")}
        return NextTokens(info=self.info(self.options), **rows, **top)


def _predict(model: HookedTransformer, batch: Batch, k: int) -> dict[str, Shaped[Tensor, "*k batch pos"]]:
    """Return the loss and rank of each next token, and the likeliest tokens with their probabilities."""
    tokens = batch.tokens
    final = model(tokens, attention_mask=batch.attention_mask, stop_at_layer=model.cfg.n_layers)
    check_unembedding(model, final, batch.predicting())
    states = model.ln_final(final)[:, :-1]
    counted = batch.predicting()[:, :-1]
    rows = states[counted]
    if not bool(rows.isfinite().all()):
        raise NotFiniteError(
            "the model's final states hold NaN or infinite values. Check its weights, and any hooks on it.",
            code="HS-FINITE-02",
        )
    soft_cap = max(model.cfg.output_logits_soft_cap, 0.0)
    summary = summarize(rows, model.W_U, model.b_U, targets=tokens[:, 1:][counted], k=k, soft_cap=soft_cap)
    assert summary.target_log_prob is not None and summary.target_rank is not None
    predictions = {
        "loss": -summary.target_log_prob,
        "rank": summary.target_rank,
        "top_tokens": summary.top_tokens,
        "top_probs": summary.top_log_probs.exp(),
    }
    return {name: spread(values.cpu().movedim(0, -1), counted.cpu()) for name, values in predictions.items()}
