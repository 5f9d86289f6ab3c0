"""A single indirect-object sentence, and flips of its names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from headscope.errors import InvalidInputError

__all__ = ["Flip", "Prompt", "Template", "flipped", "parse_flip"]

_GAP = re.compile(r"\[([^\[\]]*)\]")
_PEOPLE = "ABC"
_RANDOM = "RAND"
_FLIPS = (
    ("IO", _RANDOM), ("S", _RANDOM), ("S1", _RANDOM), ("S2", _RANDOM),
    ("S2", "IO"), ("IO", "S1"), ("S1", "IO"), ("IO", "S"), ("S", "IO"), ("END", "S"),
)  # fmt: skip


@dataclass(frozen=True)
class Template:
    """A sentence with gaps.

    Attributes:
        text: The template as written.
        roles: The roles named, in order: `"ABBA"`, `"BABA"`, or with a third person in the subject's place, `"ABCA"`.
        nouns: The other gaps.
    """

    text: str
    roles: str
    nouns: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, known: Mapping[str, Sequence[str]]) -> "Template":
        """Read a template.

        Raises:
            InvalidInputError: If it does not end with `[A]`, does not name both people before, or has an unknown gap.
        """
        gaps = _GAP.findall(text)
        roles = "".join(gap for gap in gaps if gap in _PEOPLE)
        nouns = tuple(dict.fromkeys(gap for gap in gaps if gap not in _PEOPLE))
        unknown = [gap for gap in nouns if gap not in known]
        if unknown:
            raise InvalidInputError(
                f"template {text!r} has an unknown gap [{unknown[0]}]; give words for it in nouns. "
                f"Known: [A], [B], [C], {', '.join(f'[{gap}]' for gap in known)}.",
                code="HS-DATA-05",
            )
        before = roles[:-1]
        if not text.endswith("[A]") or "A" not in before or len(before.replace("A", "")) < 2 or "B" not in before:
            raise InvalidInputError(
                "a template must name the indirect object [A] once, the subject [B] twice (or [B], then a third person "
                f"[C]), and end with [A], like 'When [A] and [B] met, [B] waved to [A]'; got {text!r}.",
                code="HS-DATA-05",
            )
        if re.search(r"[^ ]\[", text):
            raise InvalidInputError(f"each gap of a template must follow a space or begin the template; got {text!r}.")
        return cls(text, roles, nouns)

    def draw(self, index: int, names: Sequence[str], nouns: Mapping[str, Sequence[str]], rng: Random) -> "Prompt":
        """Fill the gaps at random."""
        people = dict(zip(_PEOPLE, rng.sample(names, 3 if "C" in self.roles else 2), strict=False))
        words = {gap: rng.choice(nouns[gap]) for gap in self.nouns}
        text = self.text
        for gap, word in words.items():
            text = text.replace(f"[{gap}]", word)
        return Prompt(
            pieces=tuple(re.split(r"\[[ABC]\]", text)),
            names=tuple(people[role] for role in self.roles),
            roles=self.roles,
            io=people["A"],
            s=people["B"],
            template=index,
            words=tuple(words.items()),
        )


@dataclass(frozen=True)
class Prompt:
    """A sentence with its people.

    Attributes:
        pieces: The text around the names: one piece more than there are names, the last one empty.
        names: The name at each mention; the last is the answer.
        roles: The role of each mention, such as `"ABBA"`. It determines the places of IO, S1 and S2, whoever is named.
        io: The indirect object: the correct answer.
        s: The subject: the wrong answer.
        template: The index of its template.
        words: The words in the other gaps.
    """

    pieces: tuple[str, ...]
    names: tuple[str, ...]
    roles: str
    io: str
    s: str
    template: int
    words: tuple[tuple[str, str], ...]

    def text(self, mentions: int | None = None) -> str:
        """Return the sentence up to and including this many mentions; all of it if `None`."""
        names = self.names[:mentions]
        return "".join(piece + name for piece, name in zip(self.pieces, names, strict=False))

    def before(self, mention: int) -> str:
        """Return the sentence up to a mention, without the space before it."""
        return (self.text(mention) + self.pieces[mention]).rstrip(" ")

    def place(self, role: str) -> int:
        """Return the index of the mention `IO` (the first of the indirect object), `S1` or `S2` (of the subject)."""
        before = self.roles[:-1]
        if role == "IO":
            return before.index("A")
        return before.index("B") if role == "S1" else max(before.rfind("B"), before.rfind("C"))

    def as_dict(self) -> dict[str, str | int]:
        """Return the prompt in the format of TransformerLens and of Wang et al."""
        given = {f"[{gap}]": word for gap, word in self.words}
        return {"text": self.text(), "IO": self.io, "S": self.s, "TEMPLATE_IDX": self.template, **given}

    def exchanged(self) -> "Prompt":
        """Return the twin in which the indirect object and the subject swap places everywhere."""
        other = {self.io: self.s, self.s: self.io}
        return replace(self, names=tuple(other.get(name, name) for name in self.names), io=self.s, s=self.io)


@dataclass(frozen=True)
class Flip:
    """A change of names: new people for patterns of roles, or a pair such as `("S2", "IO")`."""

    patterns: Mapping[str, str]
    pair: tuple[str, str] | None = None


def parse_flip(flip: str | Sequence[str]) -> Flip:
    """Parse a flip.

    Raises:
        InvalidInputError: For anything that is not one.

    Example:
        >>> parse_flip("ABB->XYZ, BAB->XYZ").patterns
        {'ABB': 'XYZ', 'BAB': 'XYZ'}
        >>> parse_flip(("S2", "IO")).pair
        ('S2', 'IO')
    """
    parts = [part.strip() for part in flip.split(",")] if isinstance(flip, str) else []
    pairs = [tuple(side.strip() for side in part.split("->")) for part in parts]
    if not isinstance(flip, str):
        pairs = [tuple(flip)]
    if len(pairs) == 1 and pairs[0] in _FLIPS:
        return Flip({}, (pairs[0][0], pairs[0][1]))
    patterns = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
    good = isinstance(flip, str) and all(
        len(pair) == 2 and re.fullmatch(r"[A-Z]{3,}", "".join(pair)) and len(pair[0]) == len(pair[1]) for pair in pairs
    )
    if not good or len(patterns) < len(pairs) or any(len(old) < 3 or set(old) - set(_PEOPLE) for old in patterns):
        raise InvalidInputError(
            f"{flip!r} is not a flip. Give patterns such as 'ABB->XYZ, BAB->XYZ', which say for each order of the "
            "names (A the indirect object, B the subject) who is named instead, other letters being new people; or one "
            f"of the pairs {', '.join(str(pair) for pair in _FLIPS)}."
        )
    return Flip(patterns)


def flipped(prompt: Prompt, flip: Flip, names: Sequence[str], rng: Random) -> Prompt:
    """Return a sentence with its names changed, of the same length in tokens.

    Raises:
        InvalidInputError: If no pattern of the flip fits the sentence, or there are too few names to draw from.
    """
    if flip.pair is not None:
        return _changed(prompt, *flip.pair, names, rng)
    fitting = [(old, new) for old, new in flip.patterns.items() if prompt.roles.startswith(old)]
    if not fitting:
        raise InvalidInputError(
            f"the flip has patterns for {', '.join(flip.patterns)}, and the names of {prompt.text()!r} come in the "
            f"order {prompt.roles[:-1]}. Give a pattern for each order."
        )
    old, new = fitting[0]
    people = dict(zip(old, prompt.names, strict=False))
    strangers = [letter for letter in dict.fromkeys(new) if letter not in people]
    people |= dict(zip(strangers, _others(prompt, names, len(strangers), rng), strict=True))
    changed = tuple(people[letter] for letter in new)
    # The subject is the one who acts, the indirect object the other of the first two. If neither of these acts, it is
    # the one in the indirect object's place.
    subject = changed[2]
    candidates = [name for name in dict.fromkeys(changed[:2]) if name != subject]
    in_its_place = changed[min(prompt.place("IO"), 1)]
    indirect = in_its_place if in_its_place in candidates or not candidates else candidates[0]
    return replace(prompt, names=(*changed, *prompt.names[len(new) :]), io=indirect, s=subject)


def _changed(prompt: Prompt, which: str, into: str, names: Sequence[str], rng: Random) -> Prompt:
    """Apply a pair's flip, which replaces mentions of one role."""
    new = list(prompt.names)
    io_at, s1_at, s2_at = (prompt.place(role) for role in ("IO", "S1", "S2"))
    if into == _RANDOM:
        (stranger,) = _others(prompt, names, 1, rng)
        if which in ("S1", "S2"):
            new[s1_at if which == "S1" else s2_at] = stranger
            return replace(prompt, names=tuple(new))
        leaving = prompt.io if which == "IO" else prompt.s
        new = [stranger if name == leaving else name for name in new]
        io, s = (stranger, prompt.s) if which == "IO" else (prompt.io, stranger)
        return replace(prompt, names=tuple(new), io=io, s=s)
    if (which, into) == ("S2", "IO"):
        new[s2_at] = prompt.io
        return replace(prompt, names=tuple(new), io=prompt.s, s=prompt.io)
    if which == "END":
        new[-1] = prompt.s
        return replace(prompt, names=tuple(new))
    if "S" in (which, into):
        return prompt.exchanged()
    new[io_at], new[s1_at] = new[s1_at], new[io_at]
    return replace(prompt, names=tuple(new))


def _others(prompt: Prompt, names: Sequence[str], n: int, rng: Random) -> list[str]:
    left = [name for name in names if name not in prompt.names]
    if len(left) < n:
        raise InvalidInputError(
            f"the flip needs {n} new people, and {len(left)} of {len(names)} names are not in the sentence. Give more."
        )
    return rng.sample(left, n)
