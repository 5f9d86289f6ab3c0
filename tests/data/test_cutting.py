"""Cutting documents: the tokens of the pieces are those of the whole."""

import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import headscope
from headscope.data.cutting import Chunk, Cutter
from headscope.errors import InvalidInputError

STORY = (
    "When Mary and John went to the store, John gave a book to Mary.\n\nThen, at 17:30, they'd left...   Zoë  said:\n"
    "\t“It's 1,000 drinks!!”\r\n  — don't —\n今日は。\n雨です。\n"
) * 4
# Much of what pre-tokenizers look at: runs of spaces and newlines, contractions, digits, punctuation, a special token,
# an unusual space, combining marks, text without spaces.
ALPHABET = st.sampled_from(
    ["a", "the", "Mary", " ", "  ", "\n", "\n\n", "\r\n", "\t", "'s", "'", "'ll", "7", "2024", ".", "...", "!?", "<|"]
    + [
        "<|endoftext|>",
        "\u00a0",
        "\u2028",
        "\x1c",
        "\x85",
        "é",
        "e\u0301",
        "\u0308",
        "今日は",
        "🙂",
        "\u200b",
        "½",
        "=" * 70,
    ]
)
HOSTILE = st.lists(ALPHABET, max_size=400).map("".join)
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def trained(model: object, trainer: object, pre_tokenizer: object = None, normalizer: object = None) -> object:
    backend = Tokenizer(model)
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.train_from_iterator([STORY], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, verbose=False)


@cache
def tokenizer_like(kind: str) -> object:
    if kind == "demo":
        return AutoTokenizer.from_pretrained(Path(headscope.__file__).parent / "assets" / "demo", verbose=False)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    options = {"show_progress": False, "initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet())}
    if kind == "gpt4":
        split = pre_tokenizers.Split(Regex(GPT4), "isolated")
        sequence = pre_tokenizers.Sequence([split, bytes_])
        return trained(models.BPE(), trainers.BpeTrainer(vocab_size=400, **options), sequence)
    if kind == "across words":  # no words: tokens go over spaces
        return trained(models.BPE(), trainers.BpeTrainer(vocab_size=500, **options), bytes_)
    spaces = normalizers.Replace(" ", "▁")
    plain = trainers.BpeTrainer(vocab_size=200, show_progress=False, special_tokens=["<unk>"])
    if kind == "letters":  # no words either, and a vocabulary of single characters
        bare = Tokenizer(models.BPE({c: i for i, c in enumerate("▁abcdefgh")}, []))
        bare.normalizer = spaces
        return PreTrainedTokenizerFast(tokenizer_object=bare, verbose=False)
    if kind == "metaspace":
        return trained(models.BPE(unk_token="<unk>"), plain, pre_tokenizers.Metaspace(prepend_scheme="first"))
    assert kind == "prefixed"
    prefixed = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    return trained(models.BPE(unk_token="<unk>"), plain, None, prefixed)


def encode(tokenizer: object, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def pieces_of(text: str, tokenizer: object, chunk_chars: int, **options: int) -> list[Chunk]:
    parts = [text[i : i + chunk_chars] for i in range(0, len(text), chunk_chars)] or [""]
    chunks = [Chunk(part, i == len(parts) - 1) for i, part in enumerate(parts)]
    return list(Cutter(tokenizer, **options).pieces(chunks))


@pytest.mark.parametrize("kind", ["demo", "gpt4", "metaspace", "letters", "across words", "prefixed"])
@given(text=HOSTILE, piece_chars=st.integers(1, 300), chunk_chars=st.integers(1, 500))
def test_pieces_have_the_tokens_of_the_whole(kind: str, text: str, piece_chars: int, chunk_chars: int) -> None:
    tokenizer = tokenizer_like(kind)
    pieces = pieces_of(text, tokenizer, chunk_chars, piece_chars=piece_chars)
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert [token for piece in pieces for token in encode(tokenizer, piece.text)] == encode(tokenizer, text)


@pytest.mark.parametrize(
    ("kind", "cut"),
    [
        ("demo", True),
        ("gpt4", True),
        ("metaspace", True),
        ("letters", True),
        ("across words", False),
        ("prefixed", False),
    ],
)
def test_a_long_story_is_cut_into_short_pieces_where_it_can_be(kind: str, cut: bool) -> None:
    text = STORY * 20
    pieces = pieces_of(text, tokenizer_like(kind), 1000, piece_chars=300)
    assert (len(pieces) > len(text) / 400) is cut
    assert (max(len(piece.text) for piece in pieces) < 500) is cut


def test_a_cut_that_would_change_tokens_moves() -> None:
    class PairsAcross:
        """Single characters, but "b c" is one token, which only the text can show."""

        bos_token_id, eos_token_id = 0, 1

        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            return [7 if c == "*" else ord(c) for c in text.replace("b c", "*")]

    text = "x a " + "b c" * 60 + " d" * 60
    pieces = pieces_of(text, PairsAcross(), 7, piece_chars=20)
    assert len(pieces) > 3
    tokens = [token for piece in pieces for token in encode(PairsAcross(), piece.text)]
    assert tokens == encode(PairsAcross(), text)


def test_no_cut_in_or_before_whitespace_whose_end_is_out_of_sight() -> None:
    class AcrossAnyGap:
        """Single characters, but b, any whitespace and c are one token: no short look at the text can show it."""

        bos_token_id, eos_token_id = 0, 1

        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            return [7 if c == "*" else ord(c) for c in re.sub(r"b\s+c", "*", text)]

    text = ("b" + " " * 150 + "c") * 10 + " d" * 60
    for piece_chars in (10, 100, 160, 310):
        pieces = pieces_of(text, AcrossAnyGap(), 50, piece_chars=piece_chars)
        tokens = [token for piece in pieces for token in encode(AcrossAnyGap(), piece.text)]
        assert tokens == encode(AcrossAnyGap(), text)


def test_runs_of_whitespace_longer_than_pieces_stay_whole() -> None:
    text = "one" + " " * 5000 + "two" + "\n" * 3000 + "three " + "four " * 100
    tokenizer = tokenizer_like("demo")
    pieces = pieces_of(text, tokenizer, 64, piece_chars=100)
    assert [token for piece in pieces for token in encode(tokenizer, piece.text)] == encode(tokenizer, text)
    assert len(pieces) > 4


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("demo", "x" * 10_000, r"document 2 has more than 1000 characters from 'x+' .*no place between two words"),
        ("prefixed", "one two " * 1000, "document 2 .*does not split text at spaces.*raise longest_piece"),
    ],
)
def test_a_document_that_cannot_be_cut_is_refused_at_the_limit(kind: str, text: str, message: str) -> None:
    chunks = [Chunk("short", True), Chunk(text, True)]
    cutter = Cutter(tokenizer_like(kind), piece_chars=100, longest=1000)
    with pytest.raises(InvalidInputError, match=message):
        list(cutter.pieces(chunks))
    assert len(list(Cutter(tokenizer_like(kind), piece_chars=100, longest=None).pieces(chunks))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"piece_chars": 0}, "piece_chars must be at least .*; got 0"),
        ({"piece_chars": 9, "longest": 8}, "longest must be at least 9; got 8"),
    ],
)
def test_bad_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Cutter(tokenizer_like("demo"), **options)
