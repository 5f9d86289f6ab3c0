"""Vocabulary of indirect-object sentences: names, places, objects, and templates with gaps for them.

`[A]` is the indirect object, with which a sentence ends, `[B]` the subject, which is named twice; other gaps are filled
from lists of words.
"""

from collections.abc import Mapping, Sequence

from headscope.data.protocols import Tokenizer
from headscope.data.small_english import GIFTS, PLACES
from headscope.data.small_english import NAMES as FEW_NAMES
from headscope.errors import InvalidInputError

__all__ = ["NAMES", "NOUNS", "TEMPLATES", "baba", "single_tokens", "third_person", "token_after_a_word"]

NAMES = (
    *FEW_NAMES,
    *"""Adrian Alan Albert Alex Alexander Alison Anne Arthur Barbara Ben Benjamin Bruce Carl Carlos Carol Caroline
    Catherine Charlie Charlotte Chris Christian Christina Christine Christopher Cindy Connor Craig Crystal Dan Daisy
    Dean Dennis Donna Edward Elizabeth Ellen Eva Evan Felix Gary Gordon Graham Greg Hannah Harry Heather Holly Ian Isaac
    Jack Jake Jamie Jan Jeff Jeffrey Jennifer Jeremy Jim Joan Joe Joel Jon Jonathan Jordan Josh Joshua Justin Kate
    Kathryn Keith Ken Kenneth Kim Larry Lauren Lee Leon Lewis Liz Louis Louise Luke Madison Marcus Margaret Marie Matt
    Matthew Max Melissa Mike Molly Morgan Neil Nick Oliver Oscar Owen Pam Patricia Philip Phil Rob Roger Ron Roy Russell
    Ruby Sam Samantha Samuel Sandra Shannon Sharon Stephanie Stephen Steve Sue Susan Taylor Ted Teresa Theresa Tim
    Timothy Tony Tracy Tyler Vanessa Victor Victoria Vincent Walter Warren Wendy Will Zoe""".split(),
)

_PLACES = (*PLACES, *"airport bank beach bar café cinema clinic farm gym hall hotel lake mall pool pub zoo".split())
_OBJECTS = (*GIFTS, *"bag banana box card coin cookie gift gun knife map pen phone photo pie ticket toy".split())

NOUNS: Mapping[str, Sequence[str]] = {
    "PLACE": tuple(dict.fromkeys(_PLACES)),
    "OBJECT": tuple(dict.fromkeys(_OBJECTS)),
}

TEMPLATES = (
    "When [A] and [B] walked to the [PLACE], [B] gave a [OBJECT] to [A]",
    "After [A] and [B] came to the [PLACE], [B] handed a [OBJECT] to [A]",
    "After [A] met [B] at the [PLACE], [B] passed the [OBJECT] to [A]",
    "While [A] and [B] waited at the [PLACE], [B] brought a [OBJECT] to [A]",
    "One evening [A] and [B] were at the [PLACE]. Later [B] offered a [OBJECT] to [A]",
    "One morning [A] saw [B] near the [PLACE]. Then [B] showed the [OBJECT] to [A]",
    "The [PLACE] was full when [A] and [B] came in. [B] gave the [OBJECT] to [A]",
    "It was cold and [A] and [B] stayed in the [PLACE]. In the end, [B] gave a [OBJECT] to [A]",
    "Because [A] and [B] had a long day at the [PLACE], [B] handed the [OBJECT] to [A]",
    "That night, friends [A] and [B] found a [OBJECT] at the [PLACE]. [B] decided to give it to [A]",
    "Because [A] and [B] were working at the [PLACE], [B] told a story about a [OBJECT] to [A]",
    "It was sunny when [A] and [B] ran to the [PLACE]. Afterwards, [B] brought the [OBJECT] to [A]",
    "That morning [A] and [B] returned to the [PLACE]. Later [B] wanted to sell a [OBJECT] to [A]",
    "While [A] and [B] had fun at the [PLACE], [B] passed a new [OBJECT] to [A]",
)


def baba(template: str) -> str:
    """Swap the first two names of an ABBA template."""
    first, second = template.replace("[A]", "[@]", 1).replace("[B]", "[A]", 1).split("[@]")
    return f"{first}[B]{second}"


def third_person(template: str) -> str:
    """Replace the acting subject by a third person: the last `[B]` becomes `[C]`."""
    before, after = template.rsplit("[B]", 1)
    return f"{before}[C]{after}"


def token_after_a_word(tokenizer: Tokenizer, word: str) -> int | None:
    """Return the token of a word inside a sentence, with its leading space; `None` if it is not a single token there.

    It is looked up after another word, which also works for tokenizers that put a space before any text.
    """
    before = tokenizer.encode("a", add_special_tokens=False)
    both = tokenizer.encode(f"a {word}", add_special_tokens=False)
    return both[-1] if both[:-1] == before else None


def single_tokens(tokenizer: Tokenizer, words: Sequence[str], what: str, *, at_least: int = 1) -> dict[str, int]:
    """Return the words that are one token inside a sentence, with their tokens, in the order given.

    Raises:
        InvalidInputError: If there are fewer than `at_least`.
    """
    tokens = {word: token_after_a_word(tokenizer, word) for word in dict.fromkeys(words)}
    kept = {word: token for word, token in tokens.items() if token is not None}
    if len(kept) < at_least:
        given = ", ".join(repr(word) for word in list(tokens)[:5])
        raise InvalidInputError(
            f"of {len(tokens)} {what} ({given}{', ...' if len(tokens) > 5 else ''}) {len(kept)} are a single token for "
            f"this tokenizer, and at least {at_least} must be. Give others, spelled as inside a sentence.",
            code="HS-DATA-06",
        )
    return kept
