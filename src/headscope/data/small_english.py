"""A small synthetic English: stories, gifts that change hands and repeated phrases, generated from a seed.

The demo model is trained on it. It has few kinds of sentences and many sentences, so that a model of a million
parameters learns the circuits the field studies: in *"When Mary and John went to the store, John gave a drink to"* only
the roles of the names determine which comes next, and a phrase of random words can be continued only by looking back at
its earlier occurrence.

Everything here is plain Python on `random.Random(seed)`: the same seed gives the same text on every machine, and the
global generator is untouched. A document costs some tens of microseconds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

from headscope.errors import InvalidInputError

__all__ = ["GIFTS", "NAMES", "PLACES", "IOIPrompt", "documents", "ioi_prompts", "vocabulary"]

NAMES = tuple(
    """Mary John Alice Tom James Sarah David Anna Peter Lucy Michael Emily Robert Laura Daniel Rachel Paul Amy Mark
    Lisa Kevin Megan Adam Nicole Eric Kelly Ryan Erin Jason Amber Brian Sara Scott Angela Kyle Andrea Sean Katie Jacob
    Maria Aaron Helen Nathan Julia Patrick Karen Simon Rose Martin Claire Andrew Jane William Emma Joseph Sophie Thomas
    Grace Steven Diana Charles Ruth George Linda Henry Olivia Frank Jessica Anthony Rebecca Richard Michelle""".split()
)
PLACES = tuple(
    """store school garden house station office restaurant hospital park market library beach river farm kitchen
    museum church bakery harbor forest castle bridge theater village""".split()
)
GIFTS = tuple(
    """drink ring bone basketball computer necklace snack kiss book lamp basket flower letter hat coat cake key ball
    clock mirror pencil blanket guitar bottle""".split()
)
_ADJECTIVES = "red blue green small big old new warm heavy soft bright round golden strange lovely plain".split()
_WEATHERS = "cold sunny rainy windy quiet foggy".split()
_TIMES = "morning evening afternoon night".split()
_FEELINGS = "happy glad proud surprised tired pleased".split()
_ANIMALS = "dog cat horse bird fox duck".split()
_TRAVEL = "went walked came ran returned".split()
_SPEECH = "said sang wrote repeated whispered".split()

# Each opening names two people once; one that ends with a comma continues with the giver in the same sentence.
_OPENINGS = (
    "When {a} and {b} {travel} to the {place},",
    "After {a} and {b} {travel} to the {place},",
    "While {a} and {b} were working at the {place},",
    "When {a} and {b} got a {other} at the {place},",
    "After {a} met {b} at the {place},",
    "Because {a} and {b} had a long day at the {place},",
    "Then, {a} and {b} {travel} to the {place}.",
    "Then, {a} and {b} had a lot of fun at the {place}.",
    "Then, {a} and {b} were working at the {place}.",
    "One {time} {a} and {b} were at the {place}.",
    "One {time} {a} saw {b} near the {place}.",
    "The {place} was full when {a} and {b} came in.",
    "That {time}, friends {a} and {b} found a {adjective} {other} at the {place}.",
    "It was {weather} and {a} and {b} stayed in the {place}.",
)
_CONTINUATIONS = ("", "", "", " Then", " Later", " Afterwards,", " In the end,")
_ACTS = (
    "{s} gave a {gift} to",
    "{s} gave a {gift} to",
    "{s} gave the {adjective} {gift} to",
    "{s} handed a {gift} to",
    "{s} decided to give a {gift} to",
    "{s} decided to give it to",
    "{s} wanted to sell a {gift} to",
    "{s} passed the {gift} to",
    "{s} offered a {adjective} {gift} to",
    "{s} brought a {gift} to",
    "{s} showed the {gift} to",
    "{s} said hello to",
    "{s} told a story to",
)
_THANKS = (
    "{io} was {feeling} and thanked {s}.",  # the only one without a gift
    "{io} thanked {s} for the {gift}.",
    "{io} put the {gift} on the table and {s} smiled.",
    "Now {io} had the {gift} and {s} was {feeling}.",
)


@dataclass(frozen=True)
class IOIPrompt:
    """An indirect-object-identification prompt.

    Attributes:
        prompt: The text up to the word before the answer, without a trailing space.
        answer: The indirect object, with a leading space: the name that occurs once.
        wrong: The subject, with a leading space: the name that occurs twice.
        order: `"ABBA"` where the answer is named first, `"BABA"` where the subject is.
    """

    prompt: str
    answer: str
    wrong: str
    order: str


def _fill(rng: Random, text: str, **given: str) -> str:
    """Fill a template with the given words, and draw the others, each kind from its own list."""
    drawn = {
        "place": PLACES,
        "gift": GIFTS,
        "other": GIFTS,
        "adjective": _ADJECTIVES,
        "weather": _WEATHERS,
        "time": _TIMES,
        "feeling": _FEELINGS,
        "animal": _ANIMALS,
        "travel": _TRAVEL,
    }
    slots = {kind: rng.choice(words) for kind, words in drawn.items() if f"{{{kind}}}" in text}
    return text.format(**(slots | given))


def _gift_scene(rng: Random, io: str, s: str, giver: str, *, gift: str, abba: bool) -> str:
    """Make an opening that names `io` and `s` and an act of `giver`, up to the word before the receiver."""
    first, second = (io, s) if abba else (s, io)
    opening = rng.choice(_OPENINGS)
    joint = rng.choice(_CONTINUATIONS) if opening.endswith(".") else ""
    return _fill(rng, f"{opening}{joint} {rng.choice(_ACTS)}", a=first, b=second, s=giver, gift=gift)


def _exchange(rng: Random) -> str:
    """Make one or two sentences in which a gift changes hands; occasionally the giver is a third person."""
    io, s, third = rng.sample(NAMES, 3)
    giver = third if rng.random() < 0.05 else s
    gift = rng.choice(GIFTS)
    text = f"{_gift_scene(rng, io, s, giver, gift=gift, abba=rng.random() < 0.5)} {io}."
    if rng.random() < 0.4:
        thanks = _THANKS if f" {gift} to" in text else _THANKS[:1]
        text += " " + _fill(rng, rng.choice(thanks), io=io, s=giver, gift=gift)
    return text


def _echo(rng: Random) -> str:
    """Let two people say the same random words."""
    first, second = rng.sample(NAMES, 2)
    phrase = " ".join(rng.choices(_VOCABULARY, k=rng.randint(3, 8)))
    verb = rng.choice(_SPEECH)
    return f"Then {first} {verb}: {phrase}. And {second} {verb}: {phrase}."


def _story(rng: Random) -> str:
    """Make a few sentences about two or three people, a thing and an animal."""
    a, b, c = rng.sample(NAMES, 3)
    thing = f"{rng.choice(_ADJECTIVES)} {rng.choice(GIFTS)}"
    place = rng.choice(PLACES)
    given = {"a": a, "b": b, "c": c, "thing": thing, "here": place}
    opening = rng.choice(
        (
            "Once there was a {weather} {time} at the {here}, where {a} lived with a {animal}.",
            "One {weather} {time} {a} found a {thing} at the {here}.",
            "It was a {weather} {time} and {a} was alone in the {here}.",
            "The {animal} at the {here} was {feeling} when {a} came home.",
        )
    )
    middles = [
        "Everyone liked the {thing}, and {a} liked the {thing} most of all.",
        "Then {b} came to the {here} to see {a}.",
        "Soon {a} and {b} were {feeling}.",
        "They looked for the {animal} under the {here}, but it was gone.",
        "{b} asked {a} about the {thing}.",
        "The next day {c} walked to the {here} with {b}.",
        "{c} had no {gift}, so {b} looked for the {thing}.",
        "It was a {weather} day.",
    ]
    io, s = rng.sample((a, b), 2)
    scene = f"{_gift_scene(rng, io, s, s, gift=rng.choice(GIFTS), abba=rng.random() < 0.5)} {io}."
    parts = [opening, *rng.sample(middles, rng.randint(2, 4)), scene]
    if rng.random() < 0.4:
        parts.append(_echo(rng))
    parts.append(
        rng.choice(("At last they all went home.", "That was the end of the day.", "{a} and {b} were {feeling}."))
    )
    return " ".join(_fill(rng, part, **given) for part in parts)


def _repeats(rng: Random) -> str:
    """Repeat a phrase of uniformly random words, two to four times in all."""
    phrase = " ".join(rng.choices(_VOCABULARY, k=rng.randint(4, 24)))
    separator = rng.choice((" ", ", ", ". "))
    return separator.join([phrase] * rng.randint(2, 4)) + "."


def _exchanges(rng: Random) -> str:
    return " ".join(_exchange(rng) for _ in range(rng.randint(1, 3)))


_KINDS: dict[Callable[[Random], str], float] = {_exchanges: 0.62, _story: 0.22, _echo: 0.04, _repeats: 0.12}


_LISTED = {*NAMES, *PLACES, *GIFTS, *_ADJECTIVES, *_WEATHERS, *_TIMES, *_FEELINGS, *_ANIMALS, *_TRAVEL, *_SPEECH}
_WRITTEN = " ".join((*_OPENINGS, *_CONTINUATIONS, *_ACTS, *_THANKS)).split()
_VOCABULARY = tuple(sorted(_LISTED | {word.strip(".,") for word in _WRITTEN if "{" not in word}))


def vocabulary() -> tuple[str, ...]:
    """Return the words that repeated phrases are drawn from, in alphabetical order.

    Example:
        >>> vocabulary()[::60]
        ('Aaron', 'Patrick', 'farm', 'quiet')
    """
    return _VOCABULARY


def documents(seed: int, *, n: int | None = None) -> Iterator[str]:
    """Draw documents of the small English, endlessly unless `n` is given.

    A document is one to three paragraphs with blank lines between. A paragraph is a few exchanges of gifts, a story, an
    echo or a repeated phrase.

    Args:
        seed: Different seeds give unrelated texts; the same seed gives the same text on every machine.
        n: Number of documents; endless if `None`.

    Example:
        >>> print(next(documents(seed=3)))
        The dog at the harbor was proud when Mary came home. Everyone liked the round bone, and Mary liked ...
    """
    return islice(_draw(Random(f"small-english/{seed}")), n)


def _draw(rng: Random) -> Iterator[str]:
    kinds, weights = list(_KINDS), list(_KINDS.values())
    while True:
        n_paragraphs = rng.choices((1, 2, 3), weights=(4, 2, 1))[0]
        yield "\n\n".join(kind(rng) for kind in rng.choices(kinds, weights=weights, k=n_paragraphs))


def ioi_prompts(n: int, seed: int) -> list[IOIPrompt]:
    """Draw indirect-object-identification prompts, half ABBA and half BABA, all different.

    Args:
        n: Number of prompts.
        seed: Seed of the draw; independent of `documents` with the same seed.

    Raises:
        InvalidInputError: If `n` is negative.

    Example:
        >>> for prompt in ioi_prompts(2, seed=0):
        ...     print(f"{prompt.order}: {prompt.prompt} |{prompt.answer}")
        ABBA: The office was full when Scott and Peter came in. In the end, Peter handed a guitar to | Scott
        BABA: The harbor was full when Lisa and Steven came in. Then Lisa passed the coat to | Steven
    """
    if n < 0:
        raise InvalidInputError(f"The number of IOI prompts is {n}; it must be 0 or more.")
    rng = Random(f"small-english/ioi/{seed}")
    by_text: dict[str, IOIPrompt] = {}
    while len(by_text) < n:
        io, s = rng.sample(NAMES, 2)
        abba = len(by_text) % 2 == 0
        text = _gift_scene(rng, io, s, s, gift=rng.choice(GIFTS), abba=abba)
        by_text.setdefault(text, IOIPrompt(text, f" {io}", f" {s}", "ABBA" if abba else "BABA"))
    return list(by_text.values())
