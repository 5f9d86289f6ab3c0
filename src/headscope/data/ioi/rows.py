"""Indirect-object sentences as rows of tokens, with the positions of their names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headscope.data.ioi.prompts import Prompt
from headscope.data.protocols import Tokenizer
from headscope.errors import InvalidInputError

__all__ = ["Rows", "tokenized"]


@dataclass(frozen=True)
class Rows:
    """Sentences as tokens.

    Attributes:
        toks: Padded on the right.
        attention_mask: True for real tokens.
        word_idx: Positions of `IO`, `S1`, `S1+1`, `S2`, `end`, `starts`, and `punct` where every sentence has one.
    """

    toks: Int[Tensor, "prompt pos"]
    attention_mask: Bool[Tensor, "prompt pos"]
    word_idx: dict[str, Int[Tensor, " prompt"]]


def tokenized(
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    name_ids: Mapping[str, int],
    first_ids: Mapping[str, int],
    *,
    prepend_bos: bool,
    width: int = 0,
) -> Rows:
    """Tokenize sentences.

    Args:
        prompts: The sentences.
        tokenizer: A tokenizer for which each name is one token.
        name_ids: The token of each name inside a sentence.
        first_ids: The token of each name at the start of a text.
        prepend_bos: Begin each row with BOS.
        width: Least length of a row.

    Raises:
        InvalidInputError: If a name merges with its neighbors, or a special token is needed and missing.
    """
    bos = [_bos(tokenizer)] if prepend_bos else []
    known: dict[tuple[str, ...], tuple[dict[str, int], tuple[int, ...]]] = {}
    rows, places = [], []
    for prompt in prompts:
        row = [*bos, *tokenizer.encode(prompt.text(), add_special_tokens=False)]
        if prompt.pieces not in known:
            known[prompt.pieces] = _places(prompt, tokenizer, len(bos))
        words, mentions = known[prompt.pieces]
        ids = [name_ids[name] for name in prompt.names]
        if not prompt.pieces[0]:
            ids[0] = first_ids[prompt.names[0]]
        if mentions[-1] != len(row) - 1 or [row[position] for position in mentions] != ids:
            raise InvalidInputError(
                f"this tokenizer merges names in {prompt.text()!r} with their neighbors, so sentences with other names "
                "would not be aligned. Rephrase the template.",
                code="HS-DATA-06",
            )
        rows.append(row)
        places.append(words)
    length = max(width, *map(len, rows))
    pad = _pad(tokenizer) if min(map(len, rows)) < length else 0
    lengths = torch.tensor([len(row) for row in rows])
    everywhere = [name for name in places[0] if all(name in at for at in places)]
    return Rows(
        toks=torch.tensor([row + [pad] * (length - len(row)) for row in rows]),
        attention_mask=torch.arange(length) < lengths[:, None],
        word_idx={name: torch.tensor([at[name] for at in places]) for name in everywhere},
    )


def _places(prompt: Prompt, tokenizer: Tokenizer, first: int) -> tuple[dict[str, int], tuple[int, ...]]:
    """Return the positions of words and of mentions; they do not depend on which single-token names are used."""

    def tokens_in(text: str) -> int:
        return first + len(tokenizer.encode(text, add_special_tokens=False))

    mentions = tuple(tokens_in(prompt.before(k)) for k in range(len(prompt.names)))
    io, s1, s2 = (mentions[prompt.place(role)] for role in ("IO", "S1", "S2"))
    words = {"IO": io, "S1": s1, "S1+1": s1 + 1, "S2": s2, "end": mentions[-1] - 1, "starts": 0}
    until = prompt.before(prompt.place("S2"))
    mark = max(until.rfind(","), until.rfind("."))
    if mark >= 0:
        words["punct"] = tokens_in(until[: mark + 1]) - 1
    return words, mentions


def _bos(tokenizer: Tokenizer) -> int:
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if bos is None:
        raise InvalidInputError(
            "the tokenizer has neither BOS nor EOS to begin a row with: pass prepend_bos=False.", code="HS-TOKENS-08"
        )
    return bos


def _pad(tokenizer: Tokenizer) -> int:
    pad: int | None = getattr(tokenizer, "pad_token_id", None)  # which not every `Tokenizer` has
    pad = tokenizer.eos_token_id if pad is None else pad
    if pad is None:
        raise InvalidInputError(
            "the sentences differ in length, and the tokenizer has no padding or EOS token to pad them with. "
            "Give one template.",
            code="HS-TOKENS-07",
        )
    return pad
