"""Documents to packed batches of tokens.

Lazy: what is held at a time is one document, less than one batch of rows, and the shuffle buffer where one
was asked for.
"""

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
from jaxtyping import Int
from torch import Tensor

from headscope.data.protocols import Tokenizer
from headscope.data.text import checked_strings
from headscope.errors import InvalidInputError

__all__ = ["tokenize_and_concatenate"]


def tokenize_and_concatenate(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    batch_size: int = 8,
    add_bos_token: bool = True,
    separator_id: int | None = None,
    keep_last: bool = False,
    shuffle_seed: int | None = None,
    shuffle_buffer: int = 1024,
) -> Iterator[Int[Tensor, "batch pos"]]:
    """Pack documents into batches of rows of `max_length` tokens, with nothing wasted on padding.

    Documents are tokenized whole, so no token is cut in half, and laid end to end with one separator between
    two of them; the stream is then cut into rows. A document may run over several rows, and a row may hold
    several documents. Documents without a token are left out.

    Args:
        texts: The documents, e.g. from `read_texts`; a single string is refused.
        tokenizer: Any Hugging Face tokenizer, or what else has its `encode`, `bos_token_id`, `eos_token_id`.
        max_length: Tokens per row, the BOS token included.
        batch_size: Rows per batch; the last batch may have fewer.
        add_bos_token: Begin each row with the BOS token, which takes one of its `max_length` positions.
        separator_id: The token between documents; the tokenizer's EOS token if None.
        keep_last: Keep the tokens left over after the last full row, as a last batch with one shorter row.
        shuffle_seed: Shuffle the rows under a generator of their own with this seed; None keeps their order.
        shuffle_buffer: Rows held while shuffling: more of them mix better and take more memory.

    Returns:
        An iterator over int64 batches on the CPU. The same texts and options give the same batches; no global
        random state is read or written.

    Raises:
        InvalidInputError: An option out of range, a tokenizer without the special token that is needed, an
            item that is not text, or (while iterating) texts too short for even one row.

    Example:
        >>> class Letters:
        ...     bos_token_id, eos_token_id = 0, 1
        ...     def encode(self, text, *, add_special_tokens=True):
        ...         return [ord(letter) for letter in text]
        >>> batches = tokenize_and_concatenate(["AB", "CDE"], Letters(), max_length=4, batch_size=2)
        >>> next(batches)
        tensor([[ 0, 65, 66,  1],
                [ 0, 67, 68, 69]])
    """
    smallest = 2 if add_bos_token else 1
    for option, value, least in (
        ("max_length", max_length, smallest),
        ("batch_size", batch_size, 1),
        ("shuffle_buffer", shuffle_buffer, 1),
    ):
        if value < least:
            raise InvalidInputError(f"{option} is {value}; it must be at least {least}.")
    if isinstance(texts, str):
        raise InvalidInputError(
            "texts is one string; give a list of documents: [text], or read_texts(path) for a file."
        )
    separator = tokenizer.eos_token_id if separator_id is None else separator_id
    if separator is None:
        raise InvalidInputError(
            "The tokenizer has no EOS token to set between documents; pass separator_id, any token's id."
        )
    prefix: list[int] = []
    if add_bos_token:
        if tokenizer.bos_token_id is None:
            raise InvalidInputError(
                "The tokenizer has no BOS token to begin a row with; pass add_bos_token=False, or set its bos_token."
            )
        prefix = [tokenizer.bos_token_id]

    documents = (_encode(tokenizer, text) for text in checked_strings(texts))
    rows = _packed_rows(documents, max_length, prefix=prefix, separator=separator, keep_last=keep_last)
    if shuffle_seed is not None:
        rows = _shuffled(rows, max_length, seed=shuffle_seed, buffer_size=shuffle_buffer)
    return _batched(rows, batch_size)


@contextmanager
def _no_length_warning() -> Iterator[None]:
    """Silence transformers' warning that a document is longer than the context: its rows will not be."""
    logger = logging.getLogger("transformers.tokenization_utils_base")

    def keep(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Token indices sequence length is longer")

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    with _no_length_warning():
        return tokenizer.encode(text, add_special_tokens=False)


def _packed_rows(
    documents: Iterable[Sequence[int]], row_length: int, *, prefix: list[int], separator: int, keep_last: bool
) -> Iterator[Int[Tensor, " pos"]]:
    """Lay tokenized documents end to end, cut the stream into rows, put `prefix` before each."""
    body_length = row_length - len(prefix)
    start = torch.tensor(prefix, dtype=torch.int64)
    pending: list[int] = []
    n_rows, seen_any = 0, False
    for document in documents:
        if not document:
            continue
        if seen_any:
            pending.append(separator)
        seen_any = True
        pending.extend(document)
        n_full = len(pending) // body_length
        if n_full:
            full = torch.tensor(pending[: n_full * body_length], dtype=torch.int64)
            pending = pending[n_full * body_length :]
            n_rows += n_full
            for body in full.split(body_length):
                yield torch.cat([start, body])
    if keep_last and pending:
        yield torch.tensor(prefix + pending, dtype=torch.int64)
    elif n_rows == 0:
        wanted = f"{body_length} tokens besides BOS" if prefix else f"{body_length} tokens"
        raise InvalidInputError(
            f"The texts hold {len(pending)} tokens in all, and one row takes {wanted}. "
            + ("Give more text, a smaller max_length, or keep_last=True." if pending else "Give some text.")
        )


def _shuffled(
    rows: Iterable[Int[Tensor, " pos"]], row_length: int, *, seed: int, buffer_size: int
) -> Iterator[Int[Tensor, " pos"]]:
    """Shuffle full rows through a buffer; a shorter last row stays last."""
    generator = random.Random(seed)
    buffer: list[Tensor] = []
    last: list[Tensor] = []
    for row in rows:
        if len(row) < row_length:
            last.append(row)
        elif len(buffer) < buffer_size:
            buffer.append(row)
        else:
            chosen = generator.randrange(buffer_size)
            buffer[chosen], row = row, buffer[chosen]
            yield row
    generator.shuffle(buffer)
    yield from buffer
    yield from last


def _batched(rows: Iterable[Int[Tensor, " pos"]], batch_size: int) -> Iterator[Int[Tensor, "batch pos"]]:
    """Stack rows of one length, `batch_size` at a time."""
    for _, same_length in groupby(rows, key=len):
        batch: list[Tensor] = []
        for row in same_length:
            batch.append(row)
            if len(batch) == batch_size:
                yield torch.stack(batch)
                batch = []
        if batch:
            yield torch.stack(batch)
