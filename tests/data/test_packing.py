"""Packing documents into batches."""

import itertools
import json
import logging
import random
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets_stand_in import StandInDataset, StandInStream, datasets_module
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from headscope.data import packing, read_texts, tokenize_and_concatenate
from headscope.data.text import read_chunks
from headscope.errors import InvalidInputError, UnknownNameError

SENTENCES = [
    "When Mary and John went to the store, John gave a book to Mary.",
    "Then the two of them walked home.\n\nIt rained, and it rained, and it rained.",
    "Zoë met Renée at the café — they drank tea.",
]


def make_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the sentences above."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=16, verbose=False, **special)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(bos_token="<bos>", eos_token="<eos>")


class Letters:
    """One token per letter, so that a text's tokens are known without asking."""

    bos_token_id: int | None = 0
    eos_token_id: int | None = 1

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        tokens = [ord(letter) for letter in text]
        return [0, *tokens, 1] if add_special_tokens else tokens


def counted(texts: Iterable[str], pulled: list[int]) -> Iterator[str]:
    """Pass texts on, and count in `pulled[0]` how many were asked for."""
    for text in texts:
        pulled[0] += 1
        yield text


documents = st.lists(st.text(alphabet="abcde", max_size=40), max_size=12)


@given(
    texts=documents,
    max_length=st.integers(2, 12),
    batch_size=st.integers(1, 5),
    add_bos_token=st.booleans(),
    keep_last=st.booleans(),
)
def test_batches_hold_the_documents_end_to_end(
    texts: list[str], max_length: int, batch_size: int, add_bos_token: bool, keep_last: bool
) -> None:
    stream = [ord(letter) for letter in "\x01".join(text for text in texts if text)]
    body = max_length - add_bos_token
    expected = [stream[i : i + body] for i in range(0, len(stream), body)]
    if not keep_last:
        expected = [row for row in expected if len(row) == body]

    def run() -> list[torch.Tensor]:
        return list(
            tokenize_and_concatenate(
                texts,
                Letters(),
                max_length=max_length,
                batch_size=batch_size,
                add_bos_token=add_bos_token,
                keep_last=keep_last,
            )
        )

    if not expected:
        with pytest.raises(InvalidInputError, match=f"hold {len(stream)} tokens"):
            run()
        return
    batches = run()
    rows = [row for batch in batches for row in batch.tolist()]
    assert rows == [[0, *row] if add_bos_token else row for row in expected]
    assert all(batch.dtype == torch.int64 for batch in batches)
    n_full = sum(len(row) == body for row in expected)
    sizes = [len(batch) for batch in batches if batch.shape[1] == max_length]
    assert sizes == [batch_size] * (n_full // batch_size) + [n_full % batch_size] * (n_full % batch_size > 0)


def test_tokens_are_those_of_whole_documents(tokenizer: PreTrainedTokenizerFast) -> None:
    separate = [tokenizer.encode(text, add_special_tokens=False) for text in SENTENCES]
    stream = [*separate[0], 1, *separate[1], 1, *separate[2]]
    batches = tokenize_and_concatenate(
        SENTENCES, tokenizer, max_length=7, batch_size=2, add_bos_token=False, keep_last=True
    )
    tokens = torch.cat([batch.flatten() for batch in batches]).tolist()
    assert tokens == stream
    assert tokenizer.decode(tokens) == "<eos>".join(SENTENCES)


def test_each_row_begins_with_bos_and_counts_it(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = next(tokenize_and_concatenate(SENTENCES, tokenizer, max_length=9, batch_size=3))
    assert batch.shape == (3, 9)
    assert batch[:, 0].tolist() == [0, 0, 0]
    assert 0 not in batch[:, 1:]


def test_separator_can_be_chosen() -> None:
    tokenizer = Letters()
    tokenizer.eos_token_id = None
    (batch,) = tokenize_and_concatenate(["A", "B"], tokenizer, max_length=4, separator_id=9)
    assert batch.tolist() == [[0, 65, 9, 66]]


def test_a_document_longer_than_the_context_is_no_warning(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    talkative = make_tokenizer(eos_token="<eos>", bos_token="<bos>")
    talkative.verbose = True
    logger = logging.getLogger("transformers.tokenization_utils_base")
    logger.addHandler(caplog.handler)  # transformers' loggers do not reach the root's handlers
    try:
        list(tokenize_and_concatenate(SENTENCES, talkative, max_length=8))
        assert caplog.records == []
        talkative.deprecation_warnings.clear()
        talkative.encode(SENTENCES[0])
        assert "longer than the specified maximum" in caplog.text  # what was silenced is not silenced for good
    finally:
        logger.removeHandler(caplog.handler)


def all_rows(seed: int | None, **options: int) -> list[list[int]]:
    texts = ["".join(chr(97 + (i + j) % 26) for j in range(i % 23)) for i in range(200)]
    batches = tokenize_and_concatenate(texts, Letters(), max_length=8, shuffle_seed=seed, **options)
    return [row for batch in batches for row in batch.tolist()]


@pytest.mark.parametrize("shuffle_buffer", [1, 7, 10_000])
def test_shuffling_permutes_the_rows_the_same_way_for_a_seed(shuffle_buffer: int) -> None:
    in_order = all_rows(None)
    shuffled = all_rows(3, shuffle_buffer=shuffle_buffer)
    assert sorted(shuffled) == sorted(in_order)
    assert (shuffled == in_order) is (shuffle_buffer == 1)
    assert all_rows(3, shuffle_buffer=shuffle_buffer) == shuffled
    assert (all_rows(4, shuffle_buffer=shuffle_buffer) == shuffled) is (shuffle_buffer == 1)


def test_a_kept_last_row_stays_last_when_shuffled() -> None:
    texts = ["abcdefghij", "klm", "nopq"]
    for seed in range(5):
        *full, last = tokenize_and_concatenate(
            texts, Letters(), max_length=5, batch_size=2, keep_last=True, shuffle_seed=seed, shuffle_buffer=2
        )
        assert last.shape == (1, 4)
        assert sum(len(batch) for batch in full) == 4


def test_no_global_random_state_is_read_or_written(monkeypatch: pytest.MonkeyPatch) -> None:
    # Python's own global generator cannot be compared before and after: beartype draws from it as it checks.
    monkeypatch.setattr(packing, "random", types.SimpleNamespace(Random=random.Random))
    torch.manual_seed(11)
    np.random.seed(11)
    expected = torch.rand(3).tolist(), np.random.rand(3).tolist()
    first = all_rows(5, shuffle_buffer=16)
    torch.manual_seed(11)
    np.random.seed(11)
    assert all_rows(5, shuffle_buffer=16) == first
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist()) == expected


@pytest.mark.parametrize(("seed", "ahead"), [(None, 0), (0, 12)])
def test_only_as_much_is_read_as_a_batch_and_the_shuffle_buffer_need(seed: int | None, ahead: int) -> None:
    pulled = [0]
    endless = counted(itertools.repeat("abcdefg"), pulled)  # with its separator: one row of 8 each
    batches = tokenize_and_concatenate(
        endless,
        Letters(),
        max_length=8,
        batch_size=4,
        add_bos_token=False,
        shuffle_seed=seed,
        shuffle_buffer=12,
    )
    assert pulled == [0]
    for n_batches in range(1, 6):
        next(batches)
        # One more: a row is full once the separator before the next document is there.
        assert pulled[0] <= 4 * n_batches + ahead + 1


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["abc"], {"max_length": 1}, "max_length must be at least 2; got 1"),
        (["abc"], {"max_length": 0, "add_bos_token": False}, "max_length must be at least 1; got 0"),
        (["abc"], {"max_length": 8, "batch_size": 0}, "batch_size must be at least .*; got 0"),
        (["abc"], {"max_length": 8, "shuffle_buffer": 0}, "shuffle_buffer must be at least .*; got 0"),
        ("abc", {"max_length": 8}, "the documents are one string"),
    ],
)
def test_bad_options_are_refused_at_the_call(texts: list[str] | str, options: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        tokenize_and_concatenate(texts, Letters(), **options)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "hold 0 tokens in all.*Give some text"),
        (["", ""], "hold 0 tokens in all.*Give some text"),
        (["abc", "de"], "hold 6 tokens in all, and one row takes 7 tokens besides BOS.*keep_last"),
    ],
)
def test_too_little_text_is_refused_while_iterating(texts: list[str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        list(tokenize_and_concatenate(texts, Letters(), max_length=8))


def test_missing_special_tokens_are_refused() -> None:
    bare = make_tokenizer()
    with pytest.raises(InvalidInputError, match="no EOS token.*separator_id"):
        tokenize_and_concatenate(["abc"], bare, max_length=4)
    with pytest.raises(InvalidInputError, match="no BOS token.*add_bos_token=False"):
        tokenize_and_concatenate(["abc"], bare, max_length=4, separator_id=1)
    assert list(tokenize_and_concatenate(["a"], bare, max_length=1, separator_id=1, add_bos_token=False)) == [
        torch.tensor([bare.encode("a")])
    ]


def test_documents_can_come_from_a_file(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in SENTENCES), encoding="utf-8")
    from_file = list(tokenize_and_concatenate(read_texts(path), tokenizer, max_length=6))
    from_list = list(tokenize_and_concatenate(SENTENCES, tokenizer, max_length=6))
    assert len(from_file) == len(from_list)
    assert all(torch.equal(a, b) for a, b in zip(from_file, from_list, strict=True))


def test_documents_can_come_in_parts(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(SENTENCES) * 400, encoding="utf-8")
    parts = list(read_chunks(path))
    assert len(parts) > 1
    from_parts = tokenize_and_concatenate(parts, tokenizer, max_length=64, batch_size=10_000, keep_last=True)
    whole = tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False)
    rows = [row[1:] for batch in from_parts for row in batch.tolist()]
    assert [token for row in rows for token in row] == whole


def test_a_long_string_is_tokenized_in_pieces(tokenizer: PreTrainedTokenizerFast) -> None:
    longest = [0]

    class Watched:
        bos_token_id, eos_token_id = 0, 1

        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            longest[0] = max(longest[0], len(text))
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)

    texts = [SENTENCES[0] * 2, " ".join(SENTENCES) * 500, "", SENTENCES[2]]
    batches = tokenize_and_concatenate(texts, Watched(), max_length=50, batch_size=10_000, keep_last=True)
    tokens = [token for batch in batches for row in batch.tolist() for token in row[1:]]
    separate = [tokenizer.encode(text, add_special_tokens=False) for text in texts if text]
    assert tokens == [*separate[0], 1, *separate[1], 1, *separate[2]]
    assert len(texts[1]) > 50_000 and longest[0] < 20_000


# Hugging Face datasets: the package is optional, so a stand-in with its face takes its place here


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", datasets_module())


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("kind", [StandInDataset, StandInStream])
@pytest.mark.parametrize("add_bos_token", [True, False])
def test_a_dataset_gives_a_dataset(
    tokenizer: PreTrainedTokenizerFast, kind: type[StandInDataset], add_bos_token: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_DOCUMENTS", 4)
    texts = [SENTENCES[i % 3] * (i % 4) for i in range(11)]  # some are empty
    dataset = kind({"text": texts, "id": list(range(11))})
    for some in (tokenizer, Letters()):
        found = tokenize_and_concatenate(dataset, some, max_length=9, add_bos_token=add_bos_token)
        assert isinstance(found, kind) and list(found.columns) == ["tokens"] and found.format == "torch"
        wanted = []
        for start in range(0, 11, 4):
            batches = tokenize_and_concatenate(
                texts[start : start + 4], some, max_length=9, add_bos_token=add_bos_token
            )
            wanted += [row for batch in batches for row in batch.tolist()]
        rows = found.columns["tokens"]
        assert [row.tolist() for row in rows] == wanted
        assert all(row.dtype == np.int64 for row in rows)


@pytest.mark.usefixtures("stand_in")
def test_the_fields_call(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = StandInDataset({"story": SENTENCES})
    by_position = tokenize_and_concatenate(dataset, tokenizer, False, 9, "story", True, 4, False)
    by_name = tokenize_and_concatenate(
        dataset, tokenizer, streaming=True, max_length=9, column_name="story", add_bos_token=True, num_proc=4
    )
    assert isinstance(by_position, StandInDataset) and isinstance(by_name, StandInDataset)
    assert (by_position.format, by_name.format) == (None, "torch")
    rows = [[row.tolist() for row in found.columns["tokens"]] for found in (by_position, by_name)]
    (batch,) = tokenize_and_concatenate(SENTENCES, tokenizer, max_length=9, batch_size=100)
    assert rows == [batch.tolist()] * 2


@pytest.mark.usefixtures("stand_in")
def test_a_dataset_that_cannot_be_packed_is_told(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = StandInDataset({"text": ["ab", "c"], "id": [0, 1]})
    with pytest.raises(UnknownNameError, match="Unknown column 'txt'. Did you mean 'text'"):
        tokenize_and_concatenate(dataset, tokenizer, column_name="txt")
    with pytest.raises(InvalidInputError, match="do not fill one row of 1024 tokens.*smaller max_length"):
        tokenize_and_concatenate(dataset, tokenizer)
    with pytest.raises(InvalidInputError, match="item 0: expected text .* int 0"):
        tokenize_and_concatenate(dataset, tokenizer, column_name="id")


def test_a_real_dataset(tokenizer: PreTrainedTokenizerFast) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra hf-datasets is not installed")
    dataset = datasets.Dataset.from_dict({"text": SENTENCES * 5, "id": list(range(15))})
    (wanted,) = tokenize_and_concatenate(SENTENCES * 5, tokenizer, max_length=9, batch_size=1000)
    for some in (dataset, dataset.to_iterable_dataset()):
        found = tokenize_and_concatenate(some, tokenizer, max_length=9)
        assert isinstance(found, type(some))
        assert torch.equal(torch.stack([row["tokens"] for row in found]), wanted)
