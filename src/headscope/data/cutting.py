"""Long documents cut where no token can span the cut, so that they are tokenized piece by piece.

A cut is made before a space or a newline that follows a character which is not whitespace. GPT-2's pre-tokenizer, and
those made after it, take whitespace only at the beginning of a word, so every such place is between two of its words,
and what is left of the cut is split into words as if the text ended there. Nothing of this is taken on trust: a
tokenizer is asked once which of these places its words end at, and at each cut whether the tokens around it are the
same with and without the cut; where they are not, the cut moves back. A tokenizer without a word boundary at spaces is
given documents whole, unless its vocabulary shows that no token goes on past a space.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from headscope.data.protocols import Tokenizer
from headscope.errors import InvalidInputError

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
    """Some of a document.

    Attributes:
        text: A part of the document's text; the parts laid end to end are the document.
        ends: Whether this is its last part.
    """

    text: str
    ends: bool


@runtime_checkable
class _FastTokenizer(Protocol):
    """A Hugging Face tokenizer whose steps can be called one by one."""

    @property
    def backend_tokenizer(self) -> Any: ...

    def get_vocab(self) -> dict[str, int]:
        """The tokens as the vocabulary writes them."""
        ...


class Cutter:
    """Cuts documents into pieces whose tokens, laid end to end, are those of the whole document.

    Args:
        tokenizer: Whose tokens are not to be cut.
        piece_chars: Characters per piece, about; a piece is longer where there is no place to cut.
        longest: Characters a piece may have at most before the document is refused; None for no limit.

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
        if piece_chars < 1:
            raise InvalidInputError(f"piece_chars is {piece_chars}; it must be at least 1.")
        if longest is not None and longest < piece_chars:
            raise InvalidInputError(f"longest is {longest}; it must be at least piece_chars = {piece_chars}.")
        self._tokenizer = tokenizer
        self._piece_chars = piece_chars
        self._longest = longest
        self._places = _word_boundaries(tokenizer)

    def pieces(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Cut documents anew: the chunks of each come out as pieces that can be tokenized apart.

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
        """The last place to cut from `low` to `high`, itself not included."""
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
                # To the first of these whitespace characters, however many there are.
                high = min(at, low + len(text[low:at].rstrip()) + 1)
            elif (before.isalnum(), text[at]) in self._places:
                tries += 1
                if self._same_tokens(text[max(0, at - _WINDOW) : at], text[at : at + _WINDOW]):
                    return at
        return None

    def _same_tokens(self, left: str, right: str) -> bool:
        # Of whitespace that goes on past the window it is not known what follows it.
        return bool(right.strip()) and self._encode(left) + self._encode(right) == self._encode(left + right)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _too_long(self, document: int, begins: str) -> InvalidInputError:
        why = (
            "no place between two words where this tokenizer's tokens can be told apart"
            if self._places
            else "this tokenizer does not split text at spaces, so its documents are tokenized whole"
        )
        return InvalidInputError(
            f"document {document} has more than {self._longest} characters from {begins!r} on that cannot be cut: "
            f"{why}. Split the document (split_on_blank_lines=True does, for a .txt file), or raise longest_piece: "
            "memory grows with it."
        )


def _word_boundaries(tokenizer: Tokenizer) -> set[tuple[bool, str]]:
    """Where words end: (whether a letter or digit stands before, the mark after) for which they always do."""
    places = {(is_letter, mark) for is_letter in (True, False) for mark in _AT}
    if not isinstance(tokenizer, _FastTokenizer):
        return places  # only its tokens can be looked at, and they are at every cut
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

    found = {
        (is_letter, mark)
        for is_letter, mark in places
        if all(ends_before(mark, letter) for letter in (_LETTERS if is_letter else _OTHERS))
    }
    if found or any(_ACROSS.search(token) for token in tokenizer.get_vocab()):
        return found
    return places
