"""Documents packed into batches of tokens.

Everything is lazy: one document is held at a time (with `read_chunks`, one piece of one), less than one batch of rows,
and the shuffle buffer if there is one. A long document is tokenized in pieces, cut where no token can span the cut.
"""

import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from headscope.data.cutting import PIECE_CHARS, Chunk, Cutter
from headscope.data.hub import HFDataset, keep_single_column
from headscope.data.protocols import Tokenizer
from headscope.data.text import checked_text
from headscope.differences import tell
from headscope.errors import InvalidInputError, check_at_least

__all__ = ["Packing", "batched", "shuffled", "special_tokens", "tokenize_and_concatenate"]

_DOCUMENTS = 1000  # of a dataset, packed together
_AT_ONCE = 1 << 20  # characters of a dataset, tokenized in one call


@overload
def tokenize_and_concatenate(
    dataset: HFDataset, tokenizer: Tokenizer, *args: Any, **options: Any
) -> HFDataset: ...  # the options are those below


@overload
def tokenize_and_concatenate(
    dataset: Iterable[str] | Iterable[Chunk],
    tokenizer: Tokenizer,
    streaming: bool = False,
    max_length: int = 1024,
    column_name: str = "text",
    add_bos_token: bool = True,
    num_proc: int = 10,
    set_format: bool = True,
    *,
    batch_size: int = 8,
    separator_id: int | None = None,
    keep_last: bool = False,
    shuffle_seed: int | None = None,
    shuffle_buffer: int = 1024,
) -> Iterator[Int[Tensor, "batch pos"]]: ...


def tokenize_and_concatenate(
    dataset: HFDataset | Iterable[str] | Iterable[Chunk],
    tokenizer: Tokenizer,
    streaming: bool = False,
    max_length: int = 1024,
    column_name: str = "text",
    add_bos_token: bool = True,
    num_proc: int = 10,
    set_format: bool = True,
    *,
    batch_size: int = 8,
    separator_id: int | None = None,
    keep_last: bool = False,
    shuffle_seed: int | None = None,
    shuffle_buffer: int = 1024,
) -> HFDataset | Iterator[Int[Tensor, "batch pos"]]:
    """Pack documents into rows of `max_length` tokens, without padding.

    Documents are concatenated with a separator between them, and the stream is cut into rows. A document may span
    several rows, and a row may hold several documents. Documents without tokens are dropped. Tokens are never split: a
    long document is tokenized in pieces, but gives the tokens of the whole (see `Cutter`).

    A Hugging Face dataset gives a dataset of rows; any other iterable of strings gives an iterator over batches.

    Args:
        dataset: The documents: strings, e.g. from `read_texts`; parts of them, from `read_chunks`, when a document may
            not fit in memory; or a `datasets.Dataset` or `datasets.IterableDataset`. A single string is refused.
        tokenizer: Any Hugging Face tokenizer, or any object with the same `encode`, `bos_token_id`, `eos_token_id`.
        streaming: Ignored, since a streamed dataset is recognized as one. Kept for compatibility.
        max_length: Tokens per row, including the BOS token.
        column_name: For a dataset: the column that holds the text.
        add_bos_token: Begin each row with the BOS token, which takes one of its `max_length` positions.
        num_proc: Ignored, since a fast tokenizer uses all processors. Kept for compatibility.
        set_format: For a dataset: return rows as tensors, not lists.
        batch_size: Rows per batch; the last batch may have fewer.
        separator_id: The token between documents; the tokenizer's EOS token if None.
        keep_last: Keep the tokens left over after the last full row, as a last batch with one shorter row.
        shuffle_seed: Shuffle the rows with this seed (the global generator is untouched); None keeps their order.
        shuffle_buffer: Rows held while shuffling. The shuffle is local: the next row out is drawn uniformly from the
            rows held, and the next row of the stream takes its place. A row comes out at most `shuffle_buffer` places
            early, but may be any number late (`shuffle_buffer` on average). If all rows fit in the buffer, this is a
            full, uniform shuffle. Where the order of documents matters, shuffle the file first.

    Returns:
        For strings, an iterator over int64 batches on the CPU; the same texts and options give the same batches, and
        global random state is neither read nor written. For a dataset, one of the same type with the single column
        `tokens`; it is packed a thousand documents at a time, dropping the tokens left over from each thousand.

    Raises:
        InvalidInputError: For an option out of range, a tokenizer without a special token that is needed, an item that
            is not text, or (for strings, while iterating) texts too short for even one row.
        UnknownNameError: If a dataset has no column `column_name`.

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
    check_at_least(2 if add_bos_token else 1, max_length=max_length)
    check_at_least(1, batch_size=batch_size, shuffle_buffer=shuffle_buffer)
    if isinstance(dataset, str):
        raise InvalidInputError(
            "the documents are one string; give a list of them: [text], or read_texts(path) for a file.",
            code="HS-DATA-03",
        )
    packing = Packing(tokenizer, max_length, *special_tokens(tokenizer, add_bos_token, separator_id))
    if isinstance(dataset, HFDataset):
        if not streaming and num_proc is not None and num_proc > 1:
            tell("rows")
        return _pack_dataset(dataset, packing, column_name, set_format=set_format)
    rows = packing.rows(_chunks(dataset), keep_last=keep_last)
    if shuffle_seed is not None:
        rows = shuffled(rows, max_length, seed=shuffle_seed, buffer_size=shuffle_buffer)
    return batched(rows, batch_size)


@dataclass(frozen=True)
class Packing:
    """Rule for turning documents into rows: `prefix` begins each row, `separator` stands between documents."""

    tokenizer: Tokenizer
    row_length: int
    prefix: list[int]
    separator: int
    piece_chars: int = PIECE_CHARS
    longest_piece: int | None = None

    def rows(
        self, chunks: Iterable[Chunk], *, at_once: int = 0, keep_last: bool = False, may_be_empty: bool = False
    ) -> Iterator[Int[Tensor, " pos"]]:
        """Concatenate these documents, cut them into rows, and put `prefix` before each.

        About `at_once` characters are tokenized in one call.
        """
        cutter = Cutter(self.tokenizer, piece_chars=self.piece_chars, longest=self.longest_piece)
        body_length = self.row_length - len(self.prefix)
        start = torch.tensor(self.prefix, dtype=torch.int64)
        pending: list[int] = []
        n_rows, seen_any, inside = 0, False, False
        for tokens, ends in _encode(self.tokenizer, cutter.pieces(chunks), at_once):
            if tokens:
                if seen_any and not inside:
                    pending.append(self.separator)
                seen_any = inside = True
                pending.extend(tokens)
                n_full = len(pending) // body_length
                if n_full:
                    full = torch.tensor(pending[: n_full * body_length], dtype=torch.int64)
                    pending = pending[n_full * body_length :]
                    n_rows += n_full
                    for body in full.split(body_length):
                        yield torch.cat([start, body])
            inside = inside and not ends
        if keep_last and pending:
            yield torch.tensor(self.prefix + pending, dtype=torch.int64)
        elif n_rows == 0 and not may_be_empty:
            needed = f"{body_length} tokens besides BOS" if self.prefix else f"{body_length} tokens"
            raise InvalidInputError(
                f"The texts hold {len(pending)} tokens in all, and one row takes {needed}. "
                + ("Give more text, a smaller max_length, or keep_last=True." if pending else "Give some text."),
                code="HS-DATA-02",
            )


def special_tokens(tokenizer: Tokenizer, add_bos_token: bool, separator_id: int | None) -> tuple[list[int], int]:
    """Return the tokens that begin each row, and the token between documents.

    Raises:
        InvalidInputError: If the tokenizer lacks a special token that is needed.
    """
    separator = tokenizer.eos_token_id if separator_id is None else separator_id
    if separator is None:
        raise InvalidInputError(
            "The tokenizer has no EOS token to put between documents; pass a token id as separator_id."
        )
    if not add_bos_token:
        return [], separator
    if tokenizer.bos_token_id is None:
        raise InvalidInputError(
            "The tokenizer has no BOS token to begin a row with; pass add_bos_token=False, or set its bos_token.",
            code="HS-TOKENS-08",
        )
    return [tokenizer.bos_token_id], separator


def _chunks(documents: Iterable[Any]) -> Iterator[Chunk]:
    for index, item in enumerate(documents):
        yield item if isinstance(item, Chunk) else Chunk(checked_text(item, f"item {index}"), ends=True)


@contextmanager
def _no_length_warning() -> Iterator[None]:
    """Silence transformers' warning that a document exceeds the context: its rows will not."""
    logger = logging.getLogger("transformers.tokenization_utils_base")

    def keep(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Token indices sequence length is longer")

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _encode(tokenizer: Tokenizer, pieces: Iterable[Chunk], at_once: int) -> Iterator[tuple[list[int], bool]]:
    """Yield the tokens of each piece, and True if it ends its document.

    Hugging Face tokenizers can be called with many texts at once, and then use all processors.
    """
    if not at_once or not callable(tokenizer):
        for piece in pieces:
            with _no_length_warning():
                tokens = tokenizer.encode(piece.text, add_special_tokens=False)
            yield tokens, piece.ends
        return
    for group in _grouped(pieces, at_once):
        with _no_length_warning():
            encoded = tokenizer([piece.text for piece in group], add_special_tokens=False, return_attention_mask=False)
        yield from zip(encoded["input_ids"], [piece.ends for piece in group], strict=True)


def _grouped(pieces: Iterable[Chunk], n_chars: int) -> Iterator[list[Chunk]]:
    """Group pieces until each group has `n_chars` characters."""
    group: list[Chunk] = []
    held = 0
    for piece in pieces:
        group.append(piece)
        held += len(piece.text) + 1  # one more, so that groups of empty pieces end too
        if held >= n_chars:
            yield group
            group, held = [], 0
    if group:
        yield group


def _pack_dataset(dataset: HFDataset, packing: Packing, column_name: str, *, set_format: bool) -> HFDataset:
    import datasets

    rows = keep_single_column(dataset, column_name).map(
        partial(_pack_some, packing=packing, column_name=column_name),
        batched=True,
        batch_size=_DOCUMENTS,
        remove_columns=[column_name],
        features=datasets.Features({"tokens": datasets.Sequence(datasets.Value("int64"))}),
    )
    # A streamed dataset has no length.
    if isinstance(rows, Sized) and len(rows) == 0:
        raise InvalidInputError(
            f"The dataset's texts do not fill one row of {packing.row_length} tokens. "
            "Give more text, or a smaller max_length.",
            code="HS-DATA-02",
        )
    return rows.with_format("torch") if set_format else rows


def _pack_some(texts: Mapping[str, list[Any]], *, packing: Packing, column_name: str) -> dict[str, list[np.ndarray]]:
    rows = packing.rows(_chunks(texts[column_name]), at_once=_AT_ONCE, may_be_empty=True)
    return {"tokens": [row.numpy() for row in rows]}


def shuffled(
    rows: Iterable[Int[Tensor, " pos"]], row_length: int, *, seed: int, buffer_size: int
) -> Iterator[Int[Tensor, " pos"]]:
    """Shuffle full rows through a buffer (see `tokenize_and_concatenate`); a shorter last row stays last."""
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


def batched(rows: Iterable[Int[Tensor, " pos"]], batch_size: int) -> Iterator[Int[Tensor, "batch pos"]]:
    """Stack consecutive rows of equal length, `batch_size` at a time."""
    for _, same_length in groupby(rows, key=len):
        while batch := list(islice(same_length, batch_size)):
            yield torch.stack(batch)
