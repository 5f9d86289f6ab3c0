"""A corpus is gone through again and again, in bounded memory."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets_stand_in import StandInDataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import headscope
from headscope.analysis.core.batches import check_repeatable
from headscope.data import documents, read_texts
from headscope.data.corpus import Corpus
from headscope.errors import InvalidInputError, UnknownNameError

DEMO = Path(headscope.__file__).parent / "assets" / "demo"
TEXTS = list(itertools.islice(documents(5), 60))


@cache
def tokenizer() -> object:
    return AutoTokenizer.from_pretrained(DEMO, verbose=False)


def corpus_of(source: object, **options: object) -> Corpus:
    return Corpus(source, tokenizer(), **{"row_length": 32, "batch_size": 4, **options})


def rows_of(corpus: Corpus) -> list[list[int]]:
    return [row for batch in corpus for row in batch.tolist()]


def packed(texts: list[str], row_length: int = 32) -> list[list[int]]:
    """The rows of documents tokenized whole and at once."""
    separate = [tokenizer().encode(text, add_special_tokens=False) for text in texts]
    stream = [token for tokens in separate if tokens for token in [0, *tokens]][1:]
    body = row_length - 1
    return [[0, *stream[i : i + body]] for i in range(0, len(stream) - body + 1, body)]


def write(folder: Path, kind: str, texts: list[str]) -> Path:
    path = folder / f"a.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=7)
    else:
        path.write_bytes("".join(texts).encode())
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_rows_of_a_file_are_those_of_whole_documents(tmp_path: Path, kind: str) -> None:
    long = " ".join(TEXTS)
    texts = [long] if kind == "txt" else [TEXTS[0], long, TEXTS[1], long[::-1]]
    corpus = corpus_of(write(tmp_path, kind, texts), piece_chars=100)
    rows = rows_of(corpus)
    assert rows == packed(texts) and len(rows) > 40
    assert rows_of(corpus) == rows  # a second time
    assert all(batch.dtype == torch.int64 for batch in corpus)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.lists(
        st.sampled_from(["a", "Mary ", " ", "\r\n", "\n", "\n\n", "'s", "Zoë", "今", "🙂", "17", "...", "x " * 50]),
        max_size=300,
    ).map("".join),
    read_bytes=st.integers(4, 60),
    piece_chars=st.integers(1, 200),
)
def test_hostile_text_in_small_buffers(
    text: str, read_bytes: int, piece_chars: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headscope.data.text._READ_BYTES", read_bytes)
    whole = text.replace("\r\n", "\n")
    expected = packed([whole], row_length=4)
    if not text.strip() or not expected:
        return
    assert rows_of(corpus_of(write(tmp_path, "txt", [text]), row_length=4, piece_chars=piece_chars)) == expected


def test_folders_patterns_and_lists_of_files(tmp_path: Path) -> None:
    for name, text in (("b.txt", TEXTS[1]), ("a.txt", TEXTS[0]), ("c.jsonl", json.dumps({"text": TEXTS[2]}))):
        (tmp_path / name).write_text(text)
    (tmp_path / "notes.md").write_text("no")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "d.txt").write_text(TEXTS[3])
    expected = {
        str(tmp_path): [0, 1, 2],
        str(tmp_path / "*.txt"): [0, 1],
        str(tmp_path / "**" / "*.txt"): [0, 1, 3],
        (tmp_path / "c.jsonl", tmp_path / "a.txt"): [2, 0],
        (tmp_path / "deeper", tmp_path / "a.txt"): [3, 0],
    }
    for source, which in expected.items():
        texts = [TEXTS[i] for i in which]
        assert list(read_texts(source)) == texts
        assert rows_of(corpus_of(source, row_length=8)) == packed(texts, row_length=8)
    assert corpus_of(tmp_path).name == "a.txt and 2 more files"


def test_analyses_may_go_through_it_twice() -> None:
    check_repeatable(corpus_of(TEXTS), "baseline='mean'")  # raises for what can be gone through only once


def test_strings_functions_and_datasets() -> None:
    expected = packed(TEXTS)
    assert rows_of(corpus_of(TEXTS)) == rows_of(corpus_of(lambda: iter(TEXTS))) == expected
    dataset = StandInDataset({"text": TEXTS, "id": list(range(60))})
    assert rows_of(corpus_of(dataset)) == expected
    with pytest.raises(UnknownNameError, match="Unknown column 'txt'. Did you mean 'text'"):
        corpus_of(dataset, column="txt")


def test_a_limit_of_tokens_reads_no_more_than_it_needs() -> None:
    read = [0]

    def endless() -> Iterator[str]:
        for text in itertools.cycle(TEXTS):
            read[0] += len(text)
            yield text

    corpus = corpus_of(endless, max_tokens=200, piece_chars=64)
    assert rows_of(corpus) == packed(TEXTS)[:6]
    assert 0 < read[0] < 10_000
    assert sorted(rows_of(corpus_of(endless, max_tokens=200, seed=1))) == sorted(packed(TEXTS)[:6])


def test_shuffling_is_seeded_local_and_leaves_global_generators_alone() -> None:
    in_order = rows_of(corpus_of(TEXTS))
    corpus = corpus_of(TEXTS, seed=3, shuffle_buffer=4)
    torch.manual_seed(1)
    np.random.seed(1)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    shuffled = rows_of(corpus)
    assert torch.equal(torch.get_rng_state(), state[0]) and np.random.get_state()[1].tolist() == state[1]
    assert shuffled != in_order and sorted(shuffled) == sorted(in_order)
    assert rows_of(corpus) == shuffled
    assert rows_of(corpus_of(TEXTS, seed=4, shuffle_buffer=4)) != shuffled
    places = {tuple(row): i for i, row in enumerate(in_order)}
    assert len(places) == len(in_order)
    assert max(places[tuple(row)] - i for i, row in enumerate(shuffled)) <= 4  # none comes earlier than that


def test_the_fingerprint_tells_what_the_batches_depend_on(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", TEXTS)
    base = corpus_of(path)
    json.dumps(base.describe())
    same = [corpus_of(path), corpus_of(str(path)), corpus_of(path, piece_chars=200)]
    assert {corpus.fingerprint() for corpus in same} == {base.fingerprint()}
    others = [
        corpus_of(path, row_length=31),
        corpus_of(path, batch_size=5),
        corpus_of(path, seed=0),
        corpus_of(path, max_tokens=500),
        corpus_of(path, separator_id=7),
        corpus_of(path, keep_last=True),
        corpus_of(TEXTS),
        corpus_of(TEXTS[:-1]),
        corpus_of(["".join(TEXTS)]),
        corpus_of(StandInDataset({"text": TEXTS})),
    ]
    prints = {corpus.fingerprint() for corpus in others}
    assert len(prints) == len(others) and base.fingerprint() not in prints
    os.utime(path, ns=(1, 1))
    assert corpus_of(path).fingerprint() != base.fingerprint()


def test_a_file_that_changes_between_passes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "txt", [" ".join(TEXTS)])
    corpus = corpus_of(path)
    assert rows_of(corpus)
    path.write_text("something else")
    with pytest.raises(InvalidInputError, match=r"a\.txt has changed .* 14 now\), .*Make a new Corpus"):
        list(corpus)
    path.unlink()
    with pytest.raises(InvalidInputError, match=r"Cannot open .*a\.txt"):
        list(corpus)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (TEXTS, {"row_length": 1}, "row_length must be at least 2; got 1"),
        (TEXTS, {"batch_size": 0}, "batch_size must be at least .*; got 0"),
        (TEXTS, {"piece_chars": 0}, "piece_chars must be at least .*; got 0"),
        (TEXTS, {"piece_chars": 9, "longest_piece": 8}, "longest_piece must be at least 9; got 8"),
        (TEXTS, {"max_tokens": 31}, "max_tokens is 31, less than one row"),
        (iter(TEXTS), {}, "an iterator is exhausted.*lambda: read_texts"),
        ("nowhere.txt", {}, "No such file"),
    ],
)
def test_bad_options_are_refused_at_the_call(source: object, options: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        corpus_of(source, **options)


def test_bad_items_are_refused_while_iterating() -> None:
    with pytest.raises(InvalidInputError, match="item 1: expected text .* int 3"):
        list(corpus_of(lambda: iter(["a", 3])))
    with pytest.raises(InvalidInputError, match="holds no text"):
        list(corpus_of([" ", ""]))
    with pytest.raises(InvalidInputError, match="one row takes 31 tokens"):
        list(corpus_of(["too short"]))


# Memory: a process of its own, whose peak is its own

MEASURE = """
import json, os, resource, sys
import torch
from transformers import AutoTokenizer
from headscope.data.corpus import Corpus
from headscope.data.text import read_chunks

def peak():  # MB; of this process, not of the one it was forked from
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024

path, small, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained({demo!r}, verbose=False)
for batch in Corpus(small, tokenizer, row_length=256, batch_size=8, **options):
    pass  # what is loaded and allocated once
before = peak()
n_tokens = sum(batch.numel() for batch in Corpus(path, tokenizer, row_length=256, batch_size=8, **options))
print(n_tokens, peak() - before)
"""


def measured(tmp_path: Path, kind: str, megabytes: int, **options: int) -> tuple[int, float]:
    """Tokens, and growth of the peak memory (MB) over that for a hundred thousand characters."""
    line = " ".join(TEXTS).replace("\n", " ")
    path, small = tmp_path / f"big.{kind}", tmp_path / f"small.{kind}"
    for file, size in ((small, 100_000), (path, megabytes * 1_000_000)):
        piece = json.dumps({"text": line}) + "\n" if kind == "jsonl" else line + " "
        with file.open("w", encoding="utf-8") as out:
            for _ in range(size // len(piece) + 1):
                out.write(piece)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = MEASURE.replace("{demo!r}", repr(str(DEMO)))
    command = [sys.executable, "-c", code, str(path), str(small), json.dumps(options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    n_tokens, growth = done.stdout.split()
    return int(n_tokens), float(growth)


on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")


@on_linux
def test_one_long_document_is_not_held(tmp_path: Path) -> None:
    n_tokens, growth = measured(tmp_path, "txt", 5, piece_chars=4096)
    assert n_tokens > 800_000
    # Its text is 5 MB, its tokens in a list 32 MB or more, and a tokenizer's record of them several times that.
    assert growth < 12


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_memory_is_flat_over_a_hundred_megabytes(tmp_path: Path, kind: str) -> None:
    n_tokens, growth = measured(tmp_path, kind, 100)
    assert n_tokens > 16_000_000
    assert growth < 100
