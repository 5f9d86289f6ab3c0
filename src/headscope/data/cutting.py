"""Cuts in long documents where no token can span them, so that documents can be tokenized piece by piece.

A cut is made before a space or a newline that follows a non-whitespace character. GPT-2's pre-tokenizer and its
descendants allow whitespace only at the beginning of a word, so every such place lies between two words, and the text
left of the cut splits into words as if it ended there. Both are checked: once per tokenizer, at which of these places
its words end, and at each cut, that the tokens around it are the same with and without the cut; where they are not, the
cut moves back. A tokenizer without word boundaries at spaces gets whole documents, unless its vocabulary shows that no
token continues past a space.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from headscope.data.protocols import Tokenizer
from headscope.errors import InvalidInputError, check_at_least

__all__ = ["LONGEST_PIECE", "PIECE_CHARS", "Chunk", "Cutter"]

PIECE_CHARS = 1 << 14
LONGEST_PIECE = 1 << 24

_WINDOW = 64  # characters on either side of a cut that are tokenized to check it
_TRIES = 64  # places to check before reading on
_AT = " \n"
_LETTERS, _OTHERS = ("a", "1", "é", "字"), (".", "。", "!", "=")
# A space of some kind after something else, as the vocabularies of byte-level, SentencePiece and plain tokenizers
# write them.
_ACROSS = re.compile(r"[^\s▁ĠĊĉč][\s▁ĠĊ]")


@dataclass(frozen=True)
class Chunk:
    """Part of a document.

    Attributes:
        text: The text of the part; all parts joined are the document.
        ends: True for the last part.
    """

    text: str
    ends: bool


@runtime_checkable
class _FastTokenizer(Protocol):
    """A Hugging Face tokenizer that exposes its individual steps."""

    @property
    def backend_tokenizer(self) -> Any: ...

    def get_vocab(self) -> dict[str, int]:
        """Return the tokens as the vocabulary spells them."""
        ...


class Cutter:
    """Cuts documents into pieces whose tokens, joined, are those of the whole document.

    Args:
        tokenizer: The tokenizer whose tokens must not be cut.
        piece_chars: Approximate characters per piece; a piece is longer where there is no place to cut.
        longest: Most characters a piece may have before the document is refused; None for no limit.

    Example:
        >>> class Letters:
        ...     bos_token_id, eos_token_id = 0, 1
        ...     def encode(self, text, *, add_special_tokens=True):
        ...         return [ord(letter) for letter in text]
        >>> cutter = Cutter(Letters(), piece_chars=8)
        >>> pieces = cutter.pieces([Chunk("one two three four five ", False), Chunk("six " * 20, True)])
        >>> [piece.text for piece in pieces][:3]
        ['one two', ' three', ' four']
    """

    def __init__(
        self, tokenizer: Tokenizer, *, piece_chars: int = PIECE_CHARS, longest: int | None = LONGEST_PIECE
    ) -> None:
        check_at_least(1, piece_chars=piece_chars)
        check_at_least(piece_chars, longest=piece_chars if longest is None else longest)
        self._tokenizer = tokenizer
        self._piece_chars = piece_chars
        self._longest = longest
        self._places = _word_boundaries(tokenizer)

    def pieces(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Cut documents again: turn their chunks into pieces that can be tokenized separately.

        Raises:
            InvalidInputError: If a document has no place to cut within `longest` characters.
        """
        held, start = "", 0
        size, tried = self._piece_chars, 0
        document = 1
        for chunk in chunks:
            if start:
                held, start = held[start:], 0
            held = held + chunk.text if held else chunk.text
            while len(held) - start >= size + _WINDOW:
                at = self._last_place(held, start + tried + 1, start + size)
                if at is not None:
                    yield Chunk(held[start:at], ends=False)
                    start, size, tried = at, self._piece_chars, 0
                elif self._longest is not None and size >= self._longest:
                    raise self._too_long(document, held[start : start + 40])
                else:
                    size, tried = size + self._piece_chars, size
            if chunk.ends:
                yield Chunk(held[start:] if start else held, ends=True)
                held, start = "", 0
                size, tried = self._piece_chars, 0
                document += 1

    def _last_place(self, text: str, low: int, high: int) -> int | None:
        """Return the last place to cut in `[low, high)`."""
        if not self._places:
            return None
        tries = 0
        while tries < _TRIES:
            at = max(text.rfind(mark, low, high) for mark in _AT)
            if at < 0:
                return None
            high = at
            before = text[at - 1]
            if before.isspace():
                # Skip back to the first character of this run of whitespace, in one step however long it is.
                high = min(at, low + len(text[low:at].rstrip()) + 1)
            elif (before.isalnum(), text[at]) in self._places:
                tries += 1
                if self._same_tokens(text[max(0, at - _WINDOW) : at], text[at : at + _WINDOW]):
                    return at
        return None

    def _same_tokens(self, left: str, right: str) -> bool:
        # If the window is all whitespace, what follows it is unknown.
        return bool(right.strip()) and self._encode(left) + self._encode(right) == self._encode(left + right)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _too_long(self, document: int, begins: str) -> InvalidInputError:
        why = (
            "there is no place between two words where this tokenizer's tokens are sure to be separate"
            if self._places
            else "this tokenizer does not split text at spaces, so its documents are tokenized whole"
        )
        return InvalidInputError(
            f"document {document} has more than {self._longest} characters from {begins!r} on that cannot be cut: "
            f"{why}. Split the document (split_on_blank_lines=True does, for a .txt file), or raise longest_piece, "
            "which costs memory."
        )


def _word_boundaries(tokenizer: Tokenizer) -> set[tuple[bool, str]]:
    """Pairs (alphanumeric before?, space or newline after) at which the tokenizer always ends a word."""
    places = {(is_letter, mark) for is_letter in (True, False) for mark in _AT}
    if not isinstance(tokenizer, _FastTokenizer):
        return places  # only its tokens can be inspected, which happens at every cut
    backend = tokenizer.backend_tokenizer

    def words(text: str) -> list[str]:
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        if backend.pre_tokenizer is None:
            return [text]
        return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]

    def ends_before(mark: str, letter: str) -> bool:
        alone, together = words(letter), words(f"{letter}{mark}b")
        return len(together) > len(alone) and together[: len(alone)] == alone

    boundaries = {
        (is_letter, mark)
        for is_letter, mark in places
        if all(ends_before(mark, letter) for letter in (_LETTERS if is_letter else _OTHERS))
    }
    if boundaries or any(_ACROSS.search(token) for token in tokenizer.get_vocab()):
        return boundaries
    return places
