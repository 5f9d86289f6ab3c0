"""Tokenizers in GGUF files encode and decode as those they were made of."""

from pathlib import Path
from typing import Any

import pytest
from families_table import hf_model
from gguf_files import Writer
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from headscope import HookedTransformer
from headscope.errors import CheckpointError
from headscope.model.checkpoints.gguf.tokenizer import _GPT4O, _LLAMA3, _QWEN2, _TEKKEN, read_tokenizer

TEXTS = (
    "Hello world! It's 2023, isn't it?  Two  spaces,\n\nlines\tand tabs.\r\n",
    " leading, trailing ",
    "D\u00e9j\u00e0 vu: \u4f60\u597d, \u043f\u0440\u0438\u0432\u0435\u0442 \U0001f600 12345.67",
    "x=[1,2]; // DON'T CamelCaseWords",
    "<s>not a tag</s> <extra> a<extra>b",
    "",
)  # fmt: skip
CORPUS = [f"{text} {number} the cat sat on the mat and isn't it so" for number, text in enumerate(TEXTS * 8)]


def trained(tokenizer: Tokenizer, special: list[str], **options: Any) -> Tokenizer:
    trainer = BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False, **options)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_level(pre: Any) -> tuple[Tokenizer, dict[str, Any]]:
    """A byte-level tokenizer and what llama.cpp writes of it."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
    trained(tokenizer, ["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.add_tokens([AddedToken("<extra>", normalized=False)])
    return tokenizer, written(tokenizer, "gpt2", bos=0, eos=1)


def written(tokenizer: Tokenizer, model: str, **ids: int) -> dict[str, Any]:
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    added = tokenizer.get_added_tokens_decoder()
    kinds = [1 if place not in added else 3 if added[place].special else 4 for place in range(len(tokens))]
    names = {"bos": "bos", "eos": "eos", "unk": "unknown"}
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges_of(tokenizer)],
        **{f"tokenizer.ggml.{names[name]}_token_id": place for name, place in ids.items()},
    }


def merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    import json

    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])


@pytest.mark.parametrize(("pre", "name"), [(GPT2, "gpt-2"), (DIGITS, "smollm"), (DIGITS, "starcoder")])
def test_byte_level(pre: Any, name: str) -> None:
    original, metadata = byte_level(pre)
    found = read_tokenizer({**metadata, "tokenizer.ggml.pre": name}, "here")
    for text in TEXTS:
        ids = original.encode(text).ids
        assert found.encode(text) == ids and found.decode(ids) == original.decode(ids, skip_special_tokens=False)
    assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (0, 1, 1)
    assert found.encode("a<extra>b</s>")[-3:] == original.encode("<extra>b</s>").ids


def test_splits_are_those_of_transformers() -> None:
    mapping = pytest.importorskip(
        "transformers.integrations.gguf.gguf_tokenizer_mapping",
        reason="transformers keeps its splits elsewhere",
    )
    theirs = mapping.GGUF_PRE_TOKENIZER_SPLITS
    for name, own in {"llama-bpe": _LLAMA3, "qwen2": _QWEN2, "tekken": _TEKKEN, "gpt-4o": _GPT4O}.items():
        split, wanted = (pre_tokenizers.Split(mapping.Regex(each), "isolated") for each in (own, theirs[name]))
        for text in TEXTS:
            assert split.pre_tokenize_str(text) == wanted.pre_tokenize_str(text)


def sentencepiece(prefix: bool) -> tuple[Tokenizer, dict[str, Any]]:
    """A tokenizer as SentencePiece's BPE is in `tokenizer.json`, and its file: scores are the order of the merges."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("\u2581")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained(tokenizer, pieces, limit_alphabet=60)
    vocabulary, merges = tokenizer.get_vocab(), merges_of(tokenizer)
    plain = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    plain.normalizer = tokenizer.normalizer
    plain.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
        *([decoders.Strip(" ", 1, 0)] if prefix else []),
    ])  # fmt: skip
    plain.add_special_tokens([AddedToken(each, normalized=False) for each in pieces[:3]])
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    order = {left + right: -float(rank) for rank, (left, right) in enumerate(merges)}
    metadata = written(plain, "llama", unk=0, bos=1, eos=2)
    del metadata["tokenizer.ggml.merges"]
    kinds = [2 if place == 0 else 3 if place < 3 else 6 if place < 259 else 1 for place in range(len(tokens))]
    scores = [order.get(token, -1e4) for token in tokens]
    return plain, {
        **metadata, "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": prefix, "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(prefix: bool) -> None:
    original, metadata = sentencepiece(prefix)
    found = read_tokenizer(metadata, "here")
    for text in TEXTS:
        ids = original.encode(text).ids
        assert found.encode(text) == ids
        assert found.decode(ids) == original.decode(ids, skip_special_tokens=False)
    assert found.unk_token_id == 0
    assert len(found.encode("\u6c49")) >= 3  # bytes


def test_bos_is_added_where_the_file_says_so() -> None:
    _, metadata = sentencepiece(prefix=True)
    del metadata["tokenizer.ggml.add_bos_token"]
    found = read_tokenizer(metadata, "here")
    assert found.encode("the cat")[0] == 1 and 1 not in found.encode("the cat", add_special_tokens=False)
    _, metadata = byte_level(GPT2)
    metadata["tokenizer.ggml.pre"] = "gpt-2"
    assert read_tokenizer(metadata, "here").encode("the")[0] != 0
    assert read_tokenizer({**metadata, "tokenizer.ggml.add_bos_token": True}, "here").encode("the")[0] == 0


def test_gemmas_merges_follow_the_order_of_its_tokens() -> None:
    original, metadata = sentencepiece(prefix=False)
    metadata["tokenizer.ggml.scores"] = [0.0] * len(metadata["tokenizer.ggml.tokens"])
    found = read_tokenizer({**metadata, "general.architecture": "gemma2"}, "here")
    assert all(found.encode(text) == original.encode(text).ids for text in TEXTS)


def test_a_model_with_its_tokenizer(tmp_path: Path) -> None:
    """BOS occurs once, however the tokenizer is set."""
    model = Writer(hf_model("llama"))
    model.tokenizer = {
        "ggml.model": "gpt2", "ggml.pre": "gpt-2", "ggml.tokens": [*"abcdefghijklmnopqrstuvwxyz", "<s>", "</s>", "ab"],
        "ggml.token_type": [1] * 26 + [3, 3, 1], "ggml.merges": ["a b"], "ggml.bos_token_id": 26,
        "ggml.eos_token_id": 27, "ggml.add_bos_token": True, "chat_template": "{{ messages[0].content }}",
    }  # fmt: skip
    path = model.write(tmp_path / "model.gguf")
    found = HookedTransformer.from_pretrained(path)
    assert found.to_tokens("cab").tolist() == [[26, 2, 28]] and found.to_str_tokens("cab") == ["<s>", "c", "ab"]
    assert found.cfg.tokenizer_name == str(path)
    assert found.tokenizer.apply_chat_template([{"role": "user", "content": "cab"}], tokenize=False) == "cab"
    folder = found.save_pretrained(tmp_path / "saved") or tmp_path / "saved"
    assert HookedTransformer.from_pretrained(folder).to_tokens("cab").tolist() == [[26, 2, 28]]
    model.tokenizer["ggml.pre"] = "of-the-future"
    unknown = HookedTransformer.from_pretrained(model.write(tmp_path / "unknown.gguf"))
    assert unknown.tokenizer is None


def test_unknown_kinds_say_so(caplog: pytest.LogCaptureFixture) -> None:
    _, metadata = byte_level(GPT2)
    for changed in ({"tokenizer.ggml.pre": "of-the-future"}, {"tokenizer.ggml.model": "rwkv"}, {}):
        caplog.clear()
        assert read_tokenizer({**metadata, **changed}, "here") is None
        assert "no tokenizer" in caplog.text and "here" in caplog.text
    assert read_tokenizer({"general.architecture": "llama"}, "here") is None
    # GPT-2's files of the first year do not name its words' pattern.
    assert read_tokenizer({**metadata, "general.architecture": "gpt2"}, "here") is not None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("merges", ["a b c"]),
        ("token_type", [1]),
        ("bos_token_id", 10**6),
        ("tokens", ["a", "a", "b"]),
        ("merges", ["q Q"]),
    ],
)
def test_parts_that_do_not_fit_are_refused(key: str, value: Any) -> None:
    _, metadata = byte_level(GPT2)
    with pytest.raises(CheckpointError, match="the tokenizer in here cannot be built"):
        read_tokenizer({**metadata, "tokenizer.ggml.pre": "gpt-2", f"tokenizer.ggml.{key}": value}, "here")
