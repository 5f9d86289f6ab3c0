"""Reading documents from files, iterables and datasets."""

import codecs
import itertools
import json
import re
import sys
import types
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headscope.data import hf_dataset_texts, read_texts
from headscope.data.text import read_chunks
from headscope.errors import InvalidInputError, MissingDependencyError, UnknownNameError

SENTENCES = [
    "When Mary and John went to the store, John gave a book to Mary.",
    "Zoë met Renée at the café — they drank tea.",
]


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def write_parquet(path: Path, columns: dict[str, list[object]], **options: int) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def test_a_txt_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "story.TXT"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(SENTENCES).encode() + b"\n")
    (text,) = read_texts(path)
    assert text == "\n\n".join(SENTENCES) + "\n"
    assert list(read_texts(str(path))) == [text]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_txt_file_can_be_cut_at_blank_lines(tmp_path: Path, end: str) -> None:
    path = tmp_path / "story.txt"
    lines = ["", "one", "  two", " \t", "", "", "three", ""]
    path.write_bytes(end.join(lines).encode())
    assert list(read_texts(path, split_on_blank_lines=True)) == ["one\n  two", "three"]


def test_jsonl_and_parquet_give_back_their_documents(tmp_path: Path) -> None:
    texts = [f"{sentence} {i}" for i in range(50) for sentence in SENTENCES]
    jsonl = write_jsonl(tmp_path / "a.jsonl", [{"id": i, "text": text} for i, text in enumerate(texts)])
    parquet = write_parquet(tmp_path / "a.parquet", {"id": list(range(100)), "text": texts}, row_group_size=16)
    assert list(read_texts(jsonl)) == texts
    assert list(read_texts(parquet)) == texts
    body = write_jsonl(tmp_path / "b.jsonl", [{"body": "x\u2028y"}, {"body": " "}, {"body": "z"}])
    assert list(read_texts(body, column="body")) == ["x\u2028y", "z"]


def test_parquet_string_types(tmp_path: Path) -> None:
    plain = pyarrow.array(["one", "two", "one"])
    kinds = {"large": plain.cast(pyarrow.large_string()), "dictionary": plain.dictionary_encode()}
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(kinds), path)
    for kind in kinds:
        assert list(read_texts(path, column=kind)) == ["one", "two", "one"]


def test_files_are_read_as_they_are_needed(tmp_path: Path) -> None:
    lines = '{"text": "good"}\n' * 3 + "broken\n"
    path = tmp_path / "a.jsonl"
    path.write_text(lines)
    texts = read_texts(path)
    assert list(itertools.islice(texts, 3)) == ["good"] * 3
    with pytest.raises(InvalidInputError, match=r"a\.jsonl, line 4: not JSON"):
        next(texts)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.txt", r"No such file: .*absent\.txt.*Allowed: a file ending in \.txt, \.jsonl, \.parquet"),
        ("notes.md", r"unknown suffix '\.md'.*Allowed"),
        ("bare", r"unknown suffix ''"),
        ("folder.txt", r"folder\.txt' is a directory without a file ending in \.txt"),
        ("*.jsonl", r"No file matches .*\*\.jsonl.*Allowed"),
        ("nul\0.txt", "Cannot open .*null"),
        ("n" * 5000 + ".txt", "Cannot open 'n+|Cannot open .*too long"),
        ("Mary had a book. " * 1000, "unknown suffix.*put it in a list"),
    ],
)
def test_paths_that_cannot_be_read_are_refused_at_the_call(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "bare").write_text("x")
    source = name if name.startswith("Mary") else f"{tmp_path}/{name}"
    with pytest.raises(InvalidInputError, match=message) as caught:
        read_texts(source)
    assert len(str(caught.value)) < 6000


def test_a_file_that_may_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    (tmp_path / "a.txt").write_text("x")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InvalidInputError, match=r"Cannot open .*a\.txt.*Permission denied"):
        read_texts(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.txt", b"", InvalidInputError, r"a\.txt holds no text"),
        ("a.txt", b"\xef\xbb\xbf \n\n\t", InvalidInputError, r"a\.txt holds no text"),
        ("a.jsonl", b"", InvalidInputError, r"a\.jsonl holds no text"),
        ("a.jsonl", b'\n{"text": ""}\n', InvalidInputError, r"a\.jsonl holds no text"),
        ("a.txt", b"ab\ncd\xe9f", InvalidInputError, r"not UTF-8: byte 5 \(line 2\) is 0xe9"),
        ("a.txt", b"\xef\xbb\xbfcd\xe9f", InvalidInputError, r"not UTF-8: byte 5 \(line 1\) is 0xe9"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', InvalidInputError, r"byte 24 \(line 2\) is 0xff"),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n\n"\xff"', InvalidInputError, r"byte 19 \(line 3\) is 0xff"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', InvalidInputError, "line 3: not JSON"),
        ("a.jsonl", b"[" * 200_000, InvalidInputError, "line 1: not JSON"),
        ("a.jsonl", b"9" * 5000, InvalidInputError, "line 1: not JSON"),
        ("a.jsonl", b'["text"]', InvalidInputError, "line 1: a JSON list; each line must be an object"),
        ("a.jsonl", b'{"txt": "a"}', UnknownNameError, r"'text'\. Did you mean 'txt'\?.* line 1: \['txt'\]"),
        ("a.jsonl", b'{"text": null}', InvalidInputError, "line 1, column 'text': expected text .* NoneType"),
        ("a.jsonl", b'{"text": ["a"]}', InvalidInputError, r"got list \['a'\]"),
        ("a.jsonl", b'{"text": "a\\ud800"}', InvalidInputError, "line 1.*character 1 .*surrogate"),
        ("a.parquet", b"PAR1 but not really", InvalidInputError, "cannot be read as parquet"),
        ("a.parquet", b"", InvalidInputError, "cannot be read as parquet"),
    ],
)
def test_bad_files_say_what_and_where(
    tmp_path: Path, name: str, content: bytes, error: type[Exception], message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(error, match=message):
        list(read_texts(path))
    if name == "a.txt" and "UTF-8" in message:
        with pytest.raises(error, match=message):
            list(read_texts(path, split_on_blank_lines=True))


@given(
    parts=st.lists(st.sampled_from(["a", "Zoë", "\r", "\n", "\r\n", "今", "🙂", "\ufeff", " "]), max_size=40),
    bad_at=st.none() | st.integers(0, 60),
    read_bytes=st.integers(1, 9),
    mark=st.booleans(),
)
def test_reading_in_parts_is_reading_at_once(
    parts: list[str], bad_at: int | None, read_bytes: int, mark: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = "".join(parts).encode()
    if bad_at is not None and bad_at < len(data):
        data = data[:bad_at] + b"\xff" + data[bad_at:]
    data = codecs.BOM_UTF8 * mark + data
    path = tmp_path_factory.mktemp("parts") / "a.txt"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headscope.data.text._READ_BYTES", read_bytes)
        try:
            whole = data.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            at = error.start + 3 * data.startswith(codecs.BOM_UTF8)
            place = re.escape(f"byte {at} (line {data.count(bytes([10]), 0, at) + 1}) is 0x{data[at]:02x}")
            with pytest.raises(InvalidInputError, match=place):
                list(read_chunks(path))
            return
        if not whole.strip():
            with pytest.raises(InvalidInputError, match="holds no text"):
                list(read_chunks(path))
            return
        chunks = list(read_chunks(path))
        assert list(read_texts(path)) == [whole]
    assert "".join(chunk.text for chunk in chunks) == whole
    assert [chunk.ends for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    if not whole[:3].isspace():
        assert (
            max(len(chunk.text) for chunk in chunks) <= len(whole[: len(whole) - len(whole.lstrip())]) + read_bytes + 4
        )


def test_paragraphs_come_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\n\nthree\n")
    chunks = [(chunk.text, chunk.ends) for chunk in read_chunks(path, split_on_blank_lines=True)]
    assert chunks == [("one", False), ("\ntwo", False), ("", True), ("three", False), ("", True)]


def test_what_would_have_to_be_held_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headscope.data.text._LONGEST_LINE", 20)
    monkeypatch.setattr("headscope.data.text._LONGEST_BLANK", 20)
    monkeypatch.setattr("headscope.data.text._READ_BYTES", 4)
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "short!!"}\n{"text": "too long for it"}\n')
    with pytest.raises(InvalidInputError, match=r"a\.jsonl, line 2 has more than 20 bytes.*several lines"):
        list(read_texts(lines))
    lines.write_text('{"text": "short!!"}\n' * 3)
    assert list(read_texts(lines)) == ["short!!"] * 3
    blank = tmp_path / "a.txt"
    blank.write_text(" " * 30 + "x")
    with pytest.raises(InvalidInputError, match=r"a\.txt has a document that begins with more than 20 whitespace"):
        list(read_texts(blank))


def test_long_parquet_cells_are_decoded_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    decode = pyarrow.parquet.ParquetFile.iter_batches

    def spy(self: object, **options: object) -> object:
        sizes.append(options["batch_size"])
        return decode(self, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", spy)
    long = [f"{i} " * 200_000 for i in range(3)]
    assert list(read_texts(write_parquet(tmp_path / "long.parquet", {"text": long}))) == long
    short = [f"document {i}" for i in range(5000)]
    assert list(read_texts(write_parquet(tmp_path / "short.parquet", {"text": short}))) == short
    assert 1 <= sizes[0] <= 5 and sizes[1] == 1024


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (
            {"txt": ["a"], "id": [1]},
            UnknownNameError,
            r"Unknown column 'text'.*'txt'.*a\.parquet: \['txt', 'id'\]",
        ),
        ({"text": ["a", None]}, InvalidInputError, "row 1, column 'text': expected text .* NoneType"),
        ({"text": [1, 2]}, InvalidInputError, "row 0, column 'text': expected text .* int 1"),
        ({"text": ["", " "]}, InvalidInputError, "holds no text"),
    ],
)
def test_bad_parquet_columns_say_what_and_where(
    tmp_path: Path, columns: dict[str, list[object]], error: type[Exception], message: str
) -> None:
    path = write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(error, match=message):
        list(read_texts(path))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "holds no text"),
        (["a", 3], "item 1: expected text .* int 3"),
        ([b"bytes"], "item 0: expected text .* bytes"),
        (["ok", "x\udc80"], "item 1: character 1"),
    ],
)
def test_bad_items_are_refused(items: list[object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        list(read_texts(iter(items)))


# hf_dataset_texts: the package is optional, so a stand-in with its face takes its place here


class StandInDataset(list[dict[str, object]]):
    column_names = ["id", "text"]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    calls: list[tuple[object, ...]] = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> StandInDataset:
        calls.append((name, config, split, streaming))
        if split == "nonsense":
            raise ValueError('Unknown split "nonsense".')
        return StandInDataset([{"id": 0, "text": "one"}, {"id": 1, "text": "two"}])

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_a_dataset_is_read_by_column(stand_in: list[tuple[object, ...]]) -> None:
    assert list(hf_dataset_texts("who/what", "test[:2]", config="en", streaming=True)) == ["one", "two"]
    assert stand_in == [("who/what", "en", "test[:2]", True)]
    with pytest.raises(UnknownNameError, match=r"'txt'\. .*'who/what': \['id', 'text'\]"):
        hf_dataset_texts("who/what", column="txt")
    with pytest.raises(InvalidInputError, match="row 0, column 'id': expected text"):
        list(hf_dataset_texts("who/what", column="id"))
    with pytest.raises(InvalidInputError, match="'who/what' .*'nonsense'.* cannot be loaded: Unknown split"):
        hf_dataset_texts("who/what", "nonsense")


def test_without_the_datasets_package_the_command_to_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'headscope\[hf-datasets\]'"):
        hf_dataset_texts("stas/openwebtext-10k")
