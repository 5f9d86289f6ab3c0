"""Documents from files, iterables of strings and Hugging Face datasets.

Everything is lazy: `read_texts` holds one document at a time, and `read_chunks` less: a small part of a `.txt` file, a
line of a `.jsonl` file, about a megabyte of rows (at least one) of a `.parquet` file.
"""

import codecs
import glob
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from headscope.data.cutting import Chunk
from headscope.data.hub import check_column, load_hf_dataset
from headscope.errors import InvalidInputError

__all__ = ["checked_strings", "checked_text", "hf_dataset_texts", "read_chunks", "read_texts", "text_files", "text_of"]

_SUFFIXES = (".txt", ".jsonl", ".parquet")
_READ_BYTES = 1 << 16
_PARQUET_BYTES = 1 << 20  # of one column, decoded at a time
_LONGEST_LINE = 1 << 28  # bytes of a .jsonl line, which is read whole
_LONGEST_PATTERN = 4096
_ALLOWED = f"Allowed: a file ending in {', '.join(_SUFFIXES)}, a folder of them, or an iterable of strings."
_LONGEST_BLANK = 1 << 24  # whitespace characters at the start of a document


def read_texts(
    source: str | os.PathLike[str] | Iterable[str] | Iterable[os.PathLike[str]],
    *,
    column: str = "text",
    split_on_blank_lines: bool = False,
) -> Iterator[str]:
    """Stream the documents of files, or of an iterable of strings.

    Args:
        source: A path (a plain string is one too) to a `.txt`, `.jsonl` or `.parquet` file in UTF-8, to a folder of
            them, or a pattern (`"books/**/*.txt"`); a list of paths (`pathlib.Path`); or an iterable of strings, one
            document each.
        column: Key or column of the text in each `.jsonl` object or `.parquet` row.
        split_on_blank_lines: Cut a `.txt` file at its blank lines; by default the whole file is one document.

    Returns:
        An iterator over documents. Documents with only whitespace are dropped.

    Raises:
        InvalidInputError: For a missing file, another suffix, an empty file, a broken line (with its number), bytes
            that are not UTF-8 (with their position), or an item that is not text. Anything that shows without reading
            the file is raised at the call, the rest while iterating.
        UnknownNameError: If there is no such column; the message lists the columns.

    Example:
        >>> list(read_texts(["Mary gave a book to John.", "  ", "Then John left."]))
        ['Mary gave a book to John.', 'Then John left.']
    """
    return _joined(read_chunks(source, column=column, split_on_blank_lines=split_on_blank_lines))


def read_chunks(
    source: str | os.PathLike[str] | Iterable[str] | Iterable[os.PathLike[str]],
    *,
    column: str = "text",
    split_on_blank_lines: bool = False,
) -> Iterator[Chunk]:
    """Stream the documents of `read_texts` in parts, so that a long one is never held in memory.

    `tokenize_and_concatenate` takes these in place of documents. The arguments are those of `read_texts`.

    Returns:
        An iterator over the parts of all documents in order; the last part of each has `ends=True`.

    Raises:
        InvalidInputError: As for `read_texts`; and for a `.jsonl` line of more than 256 MiB.
        UnknownNameError: If there is no such column.

    Example:
        >>> list(read_chunks(["one", " ", "two"]))
        [Chunk(text='one', ends=True), Chunk(text='two', ends=True)]
    """
    if isinstance(source, (str, os.PathLike)):
        files: Sequence[Path] = text_files(source)
    else:
        items: Iterator[Any] = iter(source)
        first = next(items, "")
        if not isinstance(first, os.PathLike):
            return _non_empty(_whole(checked_strings(chain([first], items))), "the iterable of texts")
        files = [file for path in chain([first], items) for file in text_files(path)]
    name = str(files[0]) if len(files) == 1 else f"{len(files)} files, {files[0]} to {files[-1]},"
    chunks = (chunk for file in files for chunk in _read_file(file, column, split_on_blank_lines))
    return _non_empty(chunks, name)


def text_files(source: str | os.PathLike[str]) -> list[Path]:
    """List the files of a path, sorted by name: itself, those in a folder, or those a pattern matches.

    Args:
        source: A file, a folder (whose readable files are taken, without subfolders), or a pattern with `*`, `?`,
            `[...]`, `**`.

    Raises:
        InvalidInputError: If there is none, or one cannot be opened or has another suffix.

    Example:
        >>> text_files("stories")  # doctest: +SKIP
        [PosixPath('stories/a.txt'), PosixPath('stories/b.jsonl')]
    """
    path = Path(source)
    pattern = os.fspath(path)
    if os.path.isdir(path):  # unlike Path.is_dir, does not raise for a string that cannot be a path
        files = [file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES and not os.path.isdir(file)]
        if not files:
            raise InvalidInputError(f"{_shown(path)} is a directory without a file ending in {', '.join(_SUFFIXES)}.")
    elif (
        "\0" not in pattern and len(pattern) < _LONGEST_PATTERN and glob.has_magic(pattern) and not os.path.exists(path)
    ):
        files = [Path(match) for match in glob.glob(pattern, recursive=True) if not os.path.isdir(match)]
        if not files and path.suffix.lower() in _SUFFIXES:
            raise InvalidInputError(f"No file matches {_shown(path)}. {_ALLOWED}", code="HS-DATA-01")
    else:
        files = []
    for file in files or [path]:
        _check_readable(file)
    return sorted(files) or [path]


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
        split: The split to read, possibly sliced (`"train[:100]"`).
        column: The column that holds the text.
        config: The dataset's configuration, where it has several.
        streaming: Read over the network row by row instead of downloading the dataset first.

    Returns:
        An iterator over documents. Documents with only whitespace are dropped.

    Raises:
        MissingDependencyError: If the `datasets` package is not installed.
        UnknownNameError: If there is no such column; the message lists the columns.
        InvalidInputError: For a missing dataset or split, a row whose column does not hold text, or no text at all.
    """
    dataset = load_hf_dataset(name, config, split=split, streaming=streaming)
    check_column(column, dataset.column_names, f"the dataset {name!r}")
    texts = (text_of(row, column, f"dataset {name!r}, row {i}") for i, row in enumerate(dataset))
    return _joined(_non_empty(_whole(texts), f"dataset {name!r}, split {split!r}"))


# Reading


def _check_readable(path: Path) -> None:
    if path.suffix.lower() not in _SUFFIXES:
        raise InvalidInputError(
            f"Cannot read texts from {_shown(path)}: unknown suffix {path.suffix!r:.20}. {_ALLOWED} "
            "To use a string itself as the text, put it in a list.",
            code="HS-DATA-01",
        )
    try:
        path.open("rb").close()
    except FileNotFoundError as error:
        raise InvalidInputError(f"No such file: {_shown(path)}. {_ALLOWED}", code="HS-DATA-01") from error
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"Cannot open {_shown(path)}: {error}. {_ALLOWED}", code="HS-DATA-01") from error


def _shown(path: Path) -> str:
    """Quote a path, shortened in case a whole text was passed by mistake."""
    text = repr(str(path))
    return text if len(text) <= 200 else f"{text[:200]}..."


def _read_file(path: Path, column: str, split_on_blank_lines: bool) -> Iterator[Chunk]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _whole(_read_parquet(path, column))
    if suffix == ".jsonl":
        return _whole(_read_jsonl(path, column))
    return _read_paragraphs(path) if split_on_blank_lines else _read_whole(path)


def _whole(texts: Iterable[str]) -> Iterator[Chunk]:
    return (Chunk(text, ends=True) for text in texts)


def _read_whole(path: Path) -> Iterator[Chunk]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line = 0, 1  # of the first byte of `data`
    pending = b""  # the first bytes of a character, or of a line end, that the last read cut in two
    with path.open("rb") as file:
        if not file.peek(3).startswith(codecs.BOM_UTF8):
            file.seek(0)
        else:
            offset = file.seek(len(codecs.BOM_UTF8))
        while block := file.read(_READ_BYTES):
            data = pending + block
            decoder.reset()
            try:
                text = decoder.decode(data)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, data, error, offset=offset, line=line) from error
            pending = decoder.getstate()[0]
            if text.endswith("\r"):  # perhaps half of a line end
                text, pending = text[:-1], b"\r" + pending
            used = len(data) - len(pending)
            offset, line = offset + used, line + data.count(b"\n", 0, used)
            if text:
                yield Chunk(text.replace("\r\n", "\n"), ends=False)
    yield Chunk(_decoded(pending, path, line=line, offset=offset), ends=True)


def _read_paragraphs(path: Path) -> Iterator[Chunk]:
    inside = False
    for _, line in _lines(path):
        if line.strip():
            yield Chunk("\n" + line if inside else line, ends=False)
            inside = True
        elif inside:
            yield Chunk("", ends=True)
            inside = False
    if inside:
        yield Chunk("", ends=True)


def _read_jsonl(path: Path, column: str) -> Iterator[str]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(
                f"{where}: not JSON ({error}); a .jsonl file has one JSON object on each line.", code="HS-DATA-04"
            ) from error
        if not isinstance(row, dict):
            raise InvalidInputError(
                f'{where}: a JSON {type(row).__name__}; each line must be an object like {{"{column}": "some text"}}.',
                code="HS-DATA-04",
            )
        yield text_of(row, column, where)


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        # With a buffer, a column is read page by page instead of a whole row group at once.
        with pyarrow.parquet.ParquetFile(path, buffer_size=_PARQUET_BYTES) as file:
            check_column(column, file.schema_arrow.names, str(path))
            index = 0
            for batch in file.iter_batches(batch_size=_parquet_rows(file), columns=[column], use_threads=False):
                for cell in batch.column(column):
                    yield checked_text(cell.as_py(), f"{path}, row {index}, column {column!r}")
                    index += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"{path} cannot be read as parquet ({error}); it is damaged or in another format."
        ) from error


def _parquet_rows(file: Any) -> int:
    """Number of rows to decode at a time: about `_PARQUET_BYTES`, if all row groups were like the largest."""
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    widest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1.0)
    return max(1, min(1024, int(_PARQUET_BYTES / max(1.0, widest))))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file with their numbers from 1, without line ends."""
    offset, number = 0, 0
    with path.open("rb") as file:
        while raw := file.readline(_LONGEST_LINE + 1):
            number += 1
            if len(raw) > _LONGEST_LINE:
                raise InvalidInputError(
                    f"{path}, line {number} has more than {_LONGEST_LINE} bytes, too long to read in one piece; "
                    "split the document into several lines."
                )
            data = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            offset += len(raw) - len(data)
            yield number, _decoded(data, path, line=number, offset=offset).rstrip("\r\n")
            offset += len(data)


def _decoded(data: bytes, path: Path, *, line: int, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, data, error, offset=offset, line=line) from error


def _not_utf8(path: Path, data: bytes, error: UnicodeDecodeError, *, offset: int, line: int) -> InvalidInputError:
    """Make the error, with its position, for data that begins at this byte and line of the file."""
    line += data.count(b"\n", 0, error.start)
    return InvalidInputError(
        f"{path} is not UTF-8: byte {offset + error.start} (line {line}) is 0x{data[error.start]:02x}. "
        "Convert it to UTF-8 first."
    )


# Checking


def text_of(row: Mapping[str, object], column: str, where: str) -> str:
    """Return the text in a column of a row.

    Raises:
        UnknownNameError: If there is no such column; the message lists the columns.
        InvalidInputError: If it holds no text.
    """
    check_column(column, row, where)
    return checked_text(row[column], f"{where}, column {column!r}")


def checked_strings(texts: Iterable[object]) -> Iterator[str]:
    """Yield the strings, and raise at anything else.

    Raises:
        InvalidInputError: For an item that is not a string, or that no tokenizer can read (with its index).

    Example:
        >>> list(checked_strings(["one", "two"]))
        ['one', 'two']
    """
    for index, text in enumerate(texts):
        yield checked_text(text, f"item {index}")


def checked_text(text: object, where: str) -> str:
    """Raise unless this is a string without lone surrogates, which no tokenizer can read.

    Raises:
        InvalidInputError: Saying `where` the text was.
    """
    if not isinstance(text, str):
        raise InvalidInputError(f"{where}: expected text (a str), got {type(text).__name__} {text!r:.80}.")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidInputError(
                f"{where}: character {error.start} is {text[error.start]!r}, half of a surrogate pair, which "
                "is not text; decode the source with the right encoding."
            ) from error
    return text


def _non_empty(chunks: Iterable[Chunk], name: str) -> Iterator[Chunk]:
    """Drop documents with only whitespace, and raise if there are no others."""
    any_text, inside = False, False
    blank: list[str] = []  # whitespace at the beginning of a document, held until other text follows
    n_blank = 0
    for chunk in chunks:
        if inside:
            yield chunk
        elif chunk.text and not chunk.text.isspace():
            any_text = True
            yield Chunk("".join([*blank, chunk.text]), chunk.ends) if blank else chunk
        elif not chunk.ends:
            blank.append(chunk.text)
            n_blank += len(chunk.text)
            if n_blank > _LONGEST_BLANK:
                raise InvalidInputError(
                    f"{name} has a document that begins with more than {_LONGEST_BLANK} whitespace characters; "
                    "remove them, or split the file."
                )
            continue
        inside = not chunk.ends
        blank, n_blank = [], 0
    if not any_text:
        raise InvalidInputError(f"{name} holds no text; give at least one document that is not blank.")


def _joined(chunks: Iterable[Chunk]) -> Iterator[str]:
    """Join the parts of each document."""
    parts: list[str] = []
    for chunk in chunks:
        if chunk.ends and not parts:
            yield chunk.text
            continue
        parts.append(chunk.text)
        if chunk.ends:
            yield "".join(parts)
            parts = []
