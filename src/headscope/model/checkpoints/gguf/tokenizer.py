"""The tokenizer in a GGUF file's metadata, written as the `tokenizer.json` that it would have.

Byte-level BPE (`gpt2`) is split into words by the regular expression that `tokenizer.ggml.pre` names; one that is not
known would split them differently than the model's own tokenizer, so that there is then no tokenizer. SentencePiece
BPE (`llama`) stores scores instead of merges, which follow from them.

Source: `llama-vocab.cpp` of https://github.com/ggml-org/llama.cpp
"""

import json
import logging
from collections.abc import Container, Mapping
from typing import Any

from headscope.errors import CheckpointError

__all__ = ["read_tokenizer"]

Part = dict[str, Any]

logger = logging.getLogger("headscope")

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # values of tokenizer.ggml.token_type
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCTUATION}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCTUATION}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_TEKKEN = rf"{_CASED}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4O_WORDS = "|".join(f"{word}{_CONTRACTIONS}?" for word in _CASED.split("|"))
_GPT4O = rf"{_GPT4O_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Regular expressions in place of GPT-2's, by `tokenizer.ggml.pre`.
_SPLITS = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "smaug-bpe", "dbrx"), _LLAMA3),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan"), _QWEN2),
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
}
# A word that is itself a token is not merged from parts.
_WHOLE_WORDS = frozenset(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "tekken"))
_GPT2 = frozenset(("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "trillion", "granite-docling", "roberta-bpe"))
# GPT-2's, with each digit by itself.
_SINGLE_DIGITS = frozenset(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"))


def read_tokenizer(metadata: Mapping[str, Any], where: str) -> Any:
    """Build the tokenizer that a GGUF file's metadata describes.

    Args:
        metadata: All of the file's.
        where: The file, for messages.

    Returns:
        A `transformers.PreTrainedTokenizerFast`; `None` if the file has no tokenizer, or, with a warning, one of a kind
        that is not built.

    Raises:
        CheckpointError: If its parts do not fit together.
    """
    given = {k.removeprefix("tokenizer.ggml."): v for k, v in metadata.items() if k.startswith("tokenizer.ggml.")}
    kind, architecture = given.get("model"), str(metadata.get("general.architecture"))
    pre = given.get("pre", "gpt-2" if architecture == "gpt2" else "default")
    if kind in (None, "none", "no_vocab") or "tokens" not in given:
        return None
    try:
        if kind == "gpt2" and (pre in _SPLITS or pre in _GPT2 or pre in _SINGLE_DIGITS):
            parts, adds_bos = _byte_level(given, pre), pre in _WHOLE_WORDS
        elif kind == "llama":
            parts, adds_bos = _sentencepiece(given, architecture), True
        else:
            logger.warning(
                "the model has no tokenizer: that of %s is of kind %r (%r), which is not built from GGUF. Pass the "
                "model's own as tokenizer=.", where, kind, pre,
            )  # fmt: skip
            return None
        special = _special_tokens(given)
        parts["added_tokens"] = _added_tokens(given)
        if given.get("add_bos_token", adds_bos) and "bos_token" in special:
            parts["post_processor"] = _with_bos(special["bos_token"], given["bos_token_id"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"the tokenizer in {where} cannot be built: {type(error).__name__}: {error}. Pass the model's own as "
            "tokenizer=.",
            code="HS-CHECKPOINT-13",
        ) from None
    return _built(parts, special, metadata.get("tokenizer.chat_template"))


def _byte_level(given: Mapping[str, Any], pre: str) -> Part:
    vocabulary = {token: index for index, token in enumerate(given["tokens"])}
    steps: list[Part] = [{"type": "Digits", "individual_digits": True}] if pre in _SINGLE_DIGITS else []
    if pre in _SPLITS:
        steps += [{"type": "Split", "pattern": {"Regex": _SPLITS[pre]}, "behavior": "Isolated", "invert": False}]
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": pre not in _SPLITS}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, bytes_of]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(vocabulary, _given_merges(vocabulary, given), ignore_merges=pre in _WHOLE_WORDS),
    }


def _sentencepiece(given: Mapping[str, Any], architecture: str) -> Part:
    tokens = _respelled(given["tokens"])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = _merges(tokens, given, architecture)
    unknown = tokens[given.get("unknown_token_id", 0)]
    spelled: Part = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    plain: list[Part] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    prefix = given.get("add_space_prefix", True)
    before = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    after = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, spelled]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [*plain, *after]},
        "model": _bpe(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True),
    }


def _bpe(vocabulary: Mapping[str, int], merges: list[tuple[str, str]], **options: Any) -> Part:
    return {"type": "BPE", "vocab": vocabulary, "merges": merges, **options}


def _with_bos(bos: str, bos_id: int) -> Part:
    def text(name: str) -> list[Part]:
        return [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": name, "type_id": 0}}]

    known = {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}}
    return {"type": "TemplateProcessing", "single": text("A"), "pair": text("A") + text("B"), "special_tokens": known}


def _given_merges(vocabulary: Container[str], given: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges = []
    for merge in given["merges"]:
        left, right = merge.split(" ")
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise ValueError(f"the merge {merge!r} is not one of tokens")
        merges.append((left, right))
    return merges


def _respelled(tokens: list[str]) -> list[str]:
    """Return tokens with those that are nothing but spaces (Gemma's) spelled as SentencePiece does."""
    return [_SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]


def _merges(tokens: list[str], given: Mapping[str, Any], architecture: str) -> list[tuple[str, str]]:
    """Return the merges that SentencePiece would do, by the scores of what they make, highest first.

    Gemma's scores do not follow the order of its merges; that of its tokens does.
    """
    if "merges" in given:
        return _given_merges(dict.fromkeys(tokens), given)
    kinds = given.get("token_type") or [_NORMAL] * len(tokens)
    scores = [-index for index in range(len(tokens))] if architecture.startswith("gemma") else given["scores"]
    # Control, byte and user-defined tokens, but for runs of spaces, are found whole, never merged.
    places = {
        token: index
        for index, token in enumerate(tokens)
        if kinds[index] == _NORMAL or (kinds[index] == _USER_DEFINED and not token.strip(_SPACE))
    }
    merges = [
        (-scores[index], places[token[:cut]], places[token[cut:]])
        for token, index in places.items()
        for cut in range(1, len(token))
        if token[:cut] in places and token[cut:] in places
    ]
    return [(tokens[left], tokens[right]) for _, left, right in sorted(merges)]


def _added_tokens(given: Mapping[str, Any]) -> list[Part]:
    """Return the tokens that are found whole in a text, before it is split into words."""
    tokens, kinds = given["tokens"], given.get("token_type") or []
    if len(kinds) not in (0, len(tokens)):
        raise ValueError(f"there are {len(tokens)} tokens, and types of {len(kinds)}")
    return [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kinds[index] == _CONTROL,
        }
        for index, token in enumerate(tokens if kinds else ())
        # A run of spaces is in the vocabulary under another spelling.
        if kinds[index] == _CONTROL or (kinds[index] == _USER_DEFINED and token.strip(" "))
    ]


def _special_tokens(given: Mapping[str, Any]) -> dict[str, str]:
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {short: given.get(f"{name}_token_id") for short, name in names.items()}
    return {f"{short}_token": given["tokens"][index] for short, index in ids.items() if index is not None}


def _built(parts: Part, special: Mapping[str, str], chat_template: str | None) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    whole = {"version": "1.0", "truncation": None, "padding": None, "post_processor": None, **parts}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(whole)),
        clean_up_tokenization_spaces=False,
        chat_template=chat_template,
        **special,
    )
    if wrapped.pad_token is None:
        wrapped.pad_token = wrapped.eos_token
    return wrapped
