"""Text larger than memory, as batches that can be iterated over any number of times."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from jaxtyping import Int
from torch import Tensor

from headscope.data.cutting import LONGEST_PIECE, PIECE_CHARS, Chunk
from headscope.data.hub import HFDataset, check_column
from headscope.data.packing import Packing, batched, shuffled, special_tokens
from headscope.data.protocols import Tokenizer
from headscope.data.text import read_chunks, text_files, text_of
from headscope.errors import InvalidInputError, check_at_least

__all__ = ["Corpus", "CorpusSource"]

CorpusSource = (
    str | os.PathLike[str] | Iterable[str] | Iterable[os.PathLike[str]] | HFDataset | Callable[[], Iterable[str]]
)

_PIECES_AT_ONCE = 16  # tokenized together
_PROBE = "When Mary and John went to the store, John gave 17 drinks to Zoë.\n\n\tThen they'd left — 🙂"


class Corpus:
    """Batches of packed tokens, read from the text again on every pass.

    Memory use does not depend on the length of the text or its documents: a few pieces of text, their tokens, one batch
    and the shuffle buffer are held. Every pass gives the same batches, so a corpus suits analyses that need two passes
    (`measure_entropy` with `baseline="mean"`) or resume where they stopped.

    Args:
        source: A `.txt`, `.jsonl` or `.parquet` file, a folder of them or a pattern (`"books/*.txt"`); a list of
            `pathlib.Path`; a list of strings, one document each; a `datasets.Dataset` or `datasets.IterableDataset`; or
            a function that returns the documents afresh at each call, such as
            `lambda: hf_dataset_texts("wikitext", config="wikitext-2-v1", streaming=True)`.
        tokenizer: Any Hugging Face tokenizer, or any object with the same `encode`, `bos_token_id`, `eos_token_id`.
        row_length: Tokens per row, including the BOS token.
        batch_size: Rows per batch; the last batch may have fewer.
        seed: Shuffle the rows with this seed (the global generator is untouched); None keeps their order.
        max_tokens: Stop after as many whole rows as fit in this many tokens.
        add_bos_token: Begin each row with the BOS token.
        separator_id: The token between documents; the tokenizer's EOS token if None.
        column: Key or column of the text in each `.jsonl` object, `.parquet` row or row of a dataset.
        split_on_blank_lines: Cut a `.txt` file at its blank lines; by default the whole file is one document.
        keep_last: Keep the tokens left over after the last full row, as a last batch with one shorter row.
        shuffle_buffer: Rows held while shuffling; see `tokenize_and_concatenate` for the kind of shuffle.
        piece_chars: Characters tokenized at a time; the tokens do not depend on it.
        longest_piece: Longest stretch without a place to cut, in characters, before a document is refused. For a
            tokenizer that does not split at spaces, this limits the length of a document.

    Raises:
        InvalidInputError: For an option out of range, a tokenizer without a special token that is needed, an iterator
            (which allows only one pass), or a missing file; while iterating, for anything `read_chunks` and `Cutter`
            refuse, texts too short for one row, or files that have changed since.
        UnknownNameError: If there is no such column.

    Example:
        >>> class Letters:
        ...     bos_token_id, eos_token_id = 0, 1
        ...     def encode(self, text, *, add_special_tokens=True):
        ...         return [ord(letter) for letter in text]
        >>> corpus = Corpus(["AB", "CDE"], Letters(), row_length=4)
        >>> list(corpus)
        [tensor([[ 0, 65, 66,  1],
                [ 0, 67, 68, 69]])]
        >>> [batch.shape for batch in corpus]  # a second pass
        [torch.Size([2, 4])]
    """

    def __init__(
        self,
        source: CorpusSource,
        tokenizer: Tokenizer,
        *,
        row_length: int,
        batch_size: int = 8,
        seed: int | None = None,
        max_tokens: int | None = None,
        add_bos_token: bool = True,
        separator_id: int | None = None,
        column: str = "text",
        split_on_blank_lines: bool = False,
        keep_last: bool = False,
        shuffle_buffer: int = 1024,
        piece_chars: int = PIECE_CHARS,
        longest_piece: int = LONGEST_PIECE,
    ) -> None:
        check_at_least(2 if add_bos_token else 1, row_length=row_length)
        check_at_least(1, batch_size=batch_size, shuffle_buffer=shuffle_buffer, piece_chars=piece_chars)
        check_at_least(piece_chars, longest_piece=longest_piece)
        if max_tokens is not None and max_tokens < row_length:
            raise InvalidInputError(
                f"max_tokens is {max_tokens}, less than one row of row_length = {row_length} tokens."
            )
        if isinstance(source, Iterator):
            raise InvalidInputError(
                "a corpus is read more than once, and an iterator is exhausted after the first pass. Give a path, a "
                "list, or a function that makes the iterator: Corpus(lambda: read_texts(path), ...).",
                code="HS-RUN-07",
            )
        prefix, separator = special_tokens(tokenizer, add_bos_token, separator_id)
        self._packing = Packing(tokenizer, row_length, prefix, separator, piece_chars, longest_piece)
        # Everything the batches depend on besides the text and the tokenizer.
        self._options: dict[str, Any] = {
            "row_length": row_length,
            "batch_size": batch_size,
            "add_bos_token": add_bos_token,
            "separator_id": separator_id,
            "column": column,
            "split_on_blank_lines": split_on_blank_lines,
            "keep_last": keep_last,
            "seed": seed,
            "shuffle_buffer": shuffle_buffer,
            "max_tokens": max_tokens,
        }
        self._source, self._files = _resolved(source)
        if isinstance(self._source, HFDataset):
            check_column(column, self._source.column_names, "the dataset")
        self._stamps = _stamps(self._files)

    def __iter__(self) -> Iterator[Int[Tensor, "batch pos"]]:
        options, row_length = self._options, self._packing.row_length
        self._check_unchanged()
        at_once = _PIECES_AT_ONCE * self._packing.piece_chars
        rows = self._packing.rows(self._chunks(), at_once=at_once, keep_last=options["keep_last"])
        if options["max_tokens"] is not None:
            # Before the shuffle, so that the sample consists of the same rows whatever the seed.
            rows = itertools.islice(rows, options["max_tokens"] // row_length)
        if options["seed"] is not None:
            rows = shuffled(rows, row_length, seed=options["seed"], buffer_size=options["shuffle_buffer"])
        return batched(rows, options["batch_size"])

    def __repr__(self) -> str:
        return f"Corpus({self.name}, row_length={self._packing.row_length})"

    @property
    def name(self) -> str:
        """A name for titles: the file's name, or a description of the source."""
        if self._files:
            more = f" and {len(self._files) - 1} more files" if len(self._files) > 1 else ""
            return self._files[0].name + more
        if isinstance(self._source, list):
            return f"{len(self._source)} documents"
        return f"documents of a {type(self._source).__name__}"

    def describe(self) -> dict[str, Any]:
        """Describe everything the batches depend on, in JSON values, without reading the text.

        Files are described by path, size and modification time when the corpus was made; strings by their number and a
        digest; a dataset by its repr; a function by its name alone; a tokenizer by the tokens of one sentence.
        """
        packing = self._packing
        source: dict[str, Any]
        if self._files:
            source = {"files": [list(stamp) for stamp in self._stamps]}
        elif isinstance(self._source, list):
            digest = hashlib.sha256()
            for text in self._source:
                data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else repr(text).encode()
                digest.update(len(data).to_bytes(8, "little") + data)
            source = {"documents": len(self._source), "sha256": digest.hexdigest()}
        elif isinstance(self._source, HFDataset):
            source = {"dataset": repr(self._source)}
        else:
            source = {"function": getattr(self._source, "__qualname__", type(self._source).__name__)}
        probe = list(packing.tokenizer.encode(_PROBE, add_special_tokens=False))
        tokens = {"prefix": packing.prefix, "separator": packing.separator, "probe": probe}
        return {"source": source, "tokenizer": tokens, "options": self._options.copy()}

    def fingerprint(self) -> str:
        """Return the SHA-256 digest of `describe()`: a different one means different batches, or touched files."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()

    @property
    def has_fixed_text(self) -> bool:
        """True for files and lists of strings, for whose text `fingerprint` stands; a function may return another."""
        is_list = isinstance(self._source, list)
        return bool(self._files) or (is_list and all(isinstance(text, str) for text in self._source))

    def _chunks(self) -> Iterator[Chunk]:
        source, column = self._source, self._options["column"]
        texts: Any
        if isinstance(source, HFDataset):
            rows = enumerate(cast(Iterable[Any], source))
            texts = (text_of(row, column, f"row {i}") for i, row in rows)
        elif callable(source):
            texts = source()
        else:
            texts = self._files or source
        return read_chunks(texts, column=column, split_on_blank_lines=self._options["split_on_blank_lines"])

    def _check_unchanged(self) -> None:
        for before, now in zip(self._stamps, _stamps(self._files), strict=True):
            if before != now:
                raise InvalidInputError(
                    f"{before[0]} has changed since this corpus was made ({before[1]} bytes then, {now[1]} now), so "
                    "its batches would differ. Make a new Corpus."
                )


def _resolved(source: CorpusSource) -> tuple[Any, list[Path]]:
    """Return the source to read on every pass, and its files, if it consists of files."""
    if isinstance(source, (str, os.PathLike)):
        return None, text_files(source)
    if isinstance(source, HFDataset) or callable(source):
        return source, []
    items: list[Any] = list(source)
    if items and isinstance(items[0], os.PathLike):
        return None, [file for path in items for file in text_files(path)]
    return items, []


def _stamps(files: list[Path]) -> list[tuple[str, int, int]]:
    """Path, size in bytes and modification time (ns) of each file."""
    stamps = []
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise InvalidInputError(f"Cannot open {str(file)!r}: {error}.") from error
        stamps.append((str(file.absolute()), status.st_size, status.st_mtime_ns))
    return stamps
