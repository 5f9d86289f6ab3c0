"""Rows of tokens that a report runs on, from documents."""

import itertools
from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor

from headscope.analysis.core.batches import iterate_batches
from headscope.data.cutting import Chunk
from headscope.data.packing import tokenize_and_concatenate
from headscope.errors import InvalidInputError, MissingTokenizerError
from headscope.model.transformer import HookedTransformer

__all__ = ["MAX_TOKENS", "token_rows"]

MAX_TOKENS = 4096
_SEQ_LEN = 256


def token_rows(
    model: HookedTransformer,
    texts: Iterable[str] | Iterable[Chunk] | Tensor,
    *,
    max_tokens: int = MAX_TOKENS,
    seq_len: int | None = None,
) -> Int[Tensor, "batch pos"]:
    """Pack documents into full rows, as few as are needed; tokens are passed on, cut to the limits.

    Args:
        model: The model, for its tokenizer and context length.
        texts: Documents, or tokens `[batch, pos]`. No more documents are read than the rows take.
        max_tokens: Largest number of tokens (but one row at least).
        seq_len: Tokens per row, BOS included; default: the model's context, at most 256.

    Raises:
        InvalidInputError: For an option out of range, tokens of a wrong shape, or a text of less than two tokens.
        MissingTokenizerError: For text and a model without a tokenizer.

    Example:
        >>> from headscope import HookedTransformerConfig
        >>> model = HookedTransformer(HookedTransformerConfig(1, 8, 32, 4, d_vocab=20, attn_only=True))
        >>> token_rows(model, torch.zeros(9, 32, dtype=torch.int64), max_tokens=100).shape
        torch.Size([3, 32])
    """
    if max_tokens < 1:
        raise InvalidInputError(f"max_tokens must be at least 1; got {max_tokens}.")
    if seq_len is None:
        seq_len = min(model.cfg.n_ctx, _SEQ_LEN)
    if not 2 <= seq_len <= model.cfg.n_ctx:
        raise InvalidInputError(
            f"seq_len must be between 2 and the model's context n_ctx = {model.cfg.n_ctx}; got {seq_len}."
        )
    if isinstance(texts, Tensor):
        if texts.ndim not in (1, 2) or texts.shape[-1] < 2:
            raise InvalidInputError(f"tokens must be [batch, pos], with 2 positions or more; got {list(texts.shape)}.")
        cut = torch.atleast_2d(texts)[:, : model.cfg.n_ctx]
        next(iterate_batches(model, cut, progress=False))  # refuses tokens that are not the model's
        return cut[: max(1, max_tokens // cut.shape[1])]
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise MissingTokenizerError(
            f"model {model.cfg.model_name!r} has no tokenizer, so it takes no text: give tokens [batch, pos], or a "
            "tokenizer (--tokenizer on the command line).",
            code="HS-TOKENIZER-01",
        )
    with_bos = tokenizer.bos_token_id is not None
    batches = tokenize_and_concatenate(
        texts, tokenizer, max_length=seq_len, batch_size=1, add_bos_token=with_bos, keep_last=True
    )
    rows = [batch[0] for batch in itertools.islice(batches, max(1, max_tokens // seq_len))]
    # A shorter last row is dropped, unless there is no other.
    whole = [row for row in rows if len(row) == seq_len] or rows
    if not whole or len(whole[0]) < 2 + with_bos:
        raise InvalidInputError("the text is at most one token long; two at least are needed, better some hundreds.")
    return torch.stack(whole)
