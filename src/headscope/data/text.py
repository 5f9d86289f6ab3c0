"""Documents from files, iterables of strings and Hugging Face datasets.

Lazy: one document is held at a time (of a parquet file, one row group).
"""

import codecs
import json
import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from headscope.errors import InvalidInputError, MissingDependencyError, UnknownNameError, unknown_name

__all__ = ["checked_strings", "hf_dataset_texts", "read_texts"]

_SUFFIXES = (".txt", ".jsonl", ".parquet")
_PARQUET_ROWS = 1024  # rows turned into Python strings at a time


def read_texts(
    source: str | os.PathLike[str] | Iterable[str],
    *,
    column: str = "text",
    split_on_blank_lines: bool = False,
) -> Iterator[str]:
    """Stream the documents of a file, or of an iterable of strings.

    Args:
        source: A path (a plain string is one too) to a `.txt`, `.jsonl` or `.parquet` file in UTF-8, or an
            iterable of strings, one document each.
        column: Where the text is in each `.jsonl` object or `.parquet` row.
        split_on_blank_lines: Cut a `.txt` file at its blank lines, and stream it; by default the whole file
            is one document.

    Returns:
        An iterator over documents. Documents of whitespace only are left out.

    Raises:
        InvalidInputError: No such file, a directory, another suffix, an empty file, a broken line (with its
            number), bytes that are not UTF-8 (with their position), or an item that is not text. What can be
            told without reading the file is told at the call, the rest while iterating.
        UnknownNameError: No such column (with those there are).

    Example:
        >>> list(read_texts(["Mary gave a book to John.", "  ", "Then John left."]))
        ['Mary gave a book to John.', 'Then John left.']
    """
    if not isinstance(source, (str, os.PathLike)):
        return _non_empty(checked_strings(source), "the iterable of texts")
    path = Path(source)
    _check_readable(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        documents = _read_parquet(path, column)
    elif suffix == ".jsonl":
        documents = _read_jsonl(path, column)
    elif split_on_blank_lines:
        documents = _read_paragraphs(path)
    else:
        documents = _read_whole(path)
    return _non_empty(documents, str(path))


def hf_dataset_texts(
    name: str,
    split: str = "train",
    *,
    column: str = "text",
    config: str | None = None,
    streaming: bool = False,
) -> Iterator[str]:
    """Stream the documents of a Hugging Face dataset; needs the extra `headscope[hf-datasets]`.

    Args:
        name: A dataset's name on the hub, or the path of a local one.
        split: Which split to read, slices included (`"train[:100]"`).
        column: The column that holds the text.
        config: The dataset's configuration, where it has several.
        streaming: Read over the network row by row instead of downloading the dataset first.

    Returns:
        An iterator over documents. Documents of whitespace only are left out.

    Raises:
        MissingDependencyError: The `datasets` package is not installed.
        UnknownNameError: No such column (with those there are).
        InvalidInputError: No such dataset or split, a row whose column does not hold text, or no text at all.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingDependencyError(
            f"Reading the Hugging Face dataset {name!r} needs the `datasets` package, which cannot be "
            f"imported ({error}). Run: pip install 'headscope[hf-datasets]'"
        ) from error
    try:
        dataset = load_dataset(name, config, split=split, streaming=streaming)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"The dataset {name!r} (config {config!r}, split {split!r}) cannot be loaded: {error}"
        ) from error
    # A streamed dataset need not know its columns before its first row.
    if dataset.column_names is not None and column not in dataset.column_names:
        raise _unknown_column(column, dataset.column_names, f"the dataset {name!r}")
    texts = (_text_of(row, column, f"dataset {name!r}, row {i}") for i, row in enumerate(dataset))
    return _non_empty(texts, f"dataset {name!r}, split {split!r}")


# Reading


def _check_readable(path: Path) -> None:
    allowed = f"Allowed: a file ending in {', '.join(_SUFFIXES)}, or an iterable of strings."
    if os.path.isdir(path):  # unlike Path.is_dir, quiet about a name that can be no path
        raise InvalidInputError(f"{_shown(path)} is a directory. {allowed}")
    if path.suffix.lower() not in _SUFFIXES:
        raise InvalidInputError(
            f"Cannot read texts from {_shown(path)}: unknown suffix {path.suffix!r:.20}. {allowed} "
            "To use a string itself as the text, put it in a list."
        )
    try:
        path.open("rb").close()
    except FileNotFoundError as error:
        raise InvalidInputError(f"No such file: {_shown(path)}. {allowed}") from error
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"Cannot open {_shown(path)}: {error}. {allowed}") from error


def _shown(path: Path) -> str:
    """The path quoted, and short even if it is a whole text given by mistake."""
    text = repr(str(path))
    return text if len(text) <= 200 else f"{text[:200]}..."


def _read_whole(path: Path) -> Iterator[str]:
    data = path.read_bytes()
    text = data.removeprefix(codecs.BOM_UTF8)
    yield _decoded(text, path, offset=len(data) - len(text)).replace("\r\n", "\n")


def _read_paragraphs(path: Path) -> Iterator[str]:
    lines = (line for _, line in _lines(path))
    for is_blank, group in groupby(lines, key=lambda line: not line.strip()):
        if not is_blank:
            yield "\n".join(group)


def _read_jsonl(path: Path, column: str) -> Iterator[str]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(
                f"{where}: not JSON ({error}); a .jsonl file has one JSON object on each line."
            ) from error
        if not isinstance(row, dict):
            raise InvalidInputError(
                f'{where}: a JSON {type(row).__name__}; each line must be an object like {{"{column}": "some text"}}.'
            )
        yield _text_of(row, column, where)


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise _unknown_column(column, names, str(path))
            index = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[column]):
                for text in batch.column(column).to_pylist():
                    yield _checked_text(text, f"{path}, row {index}, column {column!r}")
                    index += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"{path} cannot be read as parquet ({error}); it is damaged or of another format."
        ) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file with their numbers from 1, without line ends."""
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            data = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            offset += len(raw) - len(data)
            yield number, _decoded(data, path, line=number, offset=offset).rstrip("\r\n")
            offset += len(data)


def _decoded(data: bytes, path: Path, *, line: int | None = None, offset: int = 0) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte {offset + error.start}"
        if line is None:
            line = data.count(b"\n", 0, error.start) + 1
        raise InvalidInputError(
            f"{path} is not UTF-8: {place} (line {line}) is 0x{data[error.start]:02x}. Convert it to UTF-8 first."
        ) from error


# Checking


def _text_of(row: dict[str, object], column: str, where: str) -> str:
    if column not in row:
        raise _unknown_column(column, row, where)
    return _checked_text(row[column], f"{where}, column {column!r}")


def _unknown_column(column: str, names: Iterable[str], where: str) -> UnknownNameError:
    columns = list(names)
    return unknown_name("column", column, columns, hint=f"The columns of {where}: {columns}.")


def checked_strings(texts: Iterable[object]) -> Iterator[str]:
    """Pass strings on, and refuse anything else.

    Raises:
        InvalidInputError: An item that is not a string, or is one no tokenizer can read (with its index).

    Example:
        >>> list(checked_strings(["one", "two"]))
        ['one', 'two']
    """
    for index, text in enumerate(texts):
        yield _checked_text(text, f"item {index}")


def _checked_text(text: object, where: str) -> str:
    """Refuse what is not a string, and the lone surrogates that no tokenizer can read."""
    if not isinstance(text, str):
        raise InvalidInputError(f"{where}: expected text (a str), got {type(text).__name__} {text!r:.80}.")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidInputError(
                f"{where}: character {error.start} is {text[error.start]!r}, half of a surrogate pair, which "
                "is not text; decode the source with its right encoding."
            ) from error
    return text


def _non_empty(documents: Iterator[str], name: str) -> Iterator[str]:
    """Leave out documents of whitespace only, and refuse a source with nothing else."""
    found = False
    for text in documents:
        if text.strip():
            found = True
            yield text
    if not found:
        raise InvalidInputError(f"{name} holds no text; give at least one document with some.")
