"""IOI sentences: who is named where, read back from the text by another way; flips; what tokenizers may do."""

import random
import re
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headscope import HookedTransformer
from headscope.data.ioi import IOIDataset
from headscope.data.ioi.prompts import Template
from headscope.data.ioi.words import NAMES, NOUNS, TEMPLATES, baba, token_after_a_word
from headscope.errors import InvalidInputError, MissingTokenizerError

FEW = ["Mary", "John", "Tom", "Anna", "Peter", "Lucy"]
MET = "When [A] and [B] met, [B] waved to [A]"


class Words:
    """Whole words and marks; a word of `broken` falls into letters, one of `glued` swallows the mark after it."""

    bos_token_id: int | None = 0
    eos_token_id: int | None = 1

    def __init__(self, broken: Sequence[str] = (), glued: Sequence[str] = (), front: str = "") -> None:
        self.texts = ["<bos>", "<eos>"]
        self.ids = {text: i for i, text in enumerate(self.texts)}
        self.broken, self.glued, self.front = set(broken), glued, front

    def pieces(self, text: str) -> list[str]:
        glue = "|".join(rf" {word}," for word in self.glued)
        found = []
        for piece in re.findall(rf"{glue + '|' if glue else ''} ?\w+|\W", self.front + text):
            found += list(piece) if piece.strip() in self.broken else [piece]
        return found

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        pieces = self.pieces(text)
        for piece in pieces:
            if piece not in self.ids:
                self.ids[piece] = len(self.texts)
                self.texts.append(piece)
        return [self.ids[piece] for piece in pieces]

    def row(self, ids: torch.Tensor) -> list[str]:
        return [self.texts[i] for i in ids.tolist()]


class Padding(Words):
    pad_token_id = 7


def demo_tokenizer():
    return HookedTransformer.from_pretrained("headscope-demo").tokenizer


def people(text: str, names: Sequence[str] = NAMES) -> list[str]:
    """The names in a sentence, in order."""
    return [word for word in re.findall(r"\w+", text) if word in names]


def skeleton(text: str) -> str:
    """A sentence without its names."""
    return re.sub(r"\w+", lambda word: "@" if word[0] in NAMES else word[0], text)


@given(
    kind=st.sampled_from(["ABBA", "BABA", "mixed", "ABC", "BAC", "ABC mixed"]),
    n=st.integers(1, 6).map(lambda k: 2 * k),
    seed=st.integers(0, 10**6),
    bos=st.booleans(),
    symmetric=st.booleans(),
)
def test_every_word_stands_where_it_is_said_to(kind: str, n: int, seed: int, bos: bool, symmetric: bool) -> None:
    tokenizer = Words()
    data = IOIDataset(kind, n, tokenizer, prepend_bos=bos, symmetric=symmetric, seed=seed)
    assert len(data) == data.N == n and data.toks.shape == (n, data.max_len) == data.attention_mask.shape
    assert sorted(i for group in data.groups for i in group.tolist()) == list(range(n))
    for group in data.groups:
        assert len({data.ioi_prompts[i]["TEMPLATE_IDX"] for i in group.tolist()}) == 1
    for i, (text, prompt) in enumerate(zip(data.sentences, data.ioi_prompts, strict=True)):
        strings = tokenizer.row(data.toks[i])
        real = strings[: int(data.attention_mask[i].sum())]
        assert "".join(real) == "<bos>" * bos + text == "<bos>" * bos + str(prompt["text"])
        assert set(strings[len(real) :]) <= {"<eos>"}
        io, s = f" {prompt['IO']}", f" {prompt['S']}"
        named = people(text)
        assert io != s and named[-1] == prompt["IO"] == io[1:]
        at = {word: int(places[i]) for word, places in data.word_idx.items()}
        assert at["IO"] == real.index(io) and at["S1"] == real.index(s) and at["starts"] == 0
        assert at["S1+1"] == at["S1"] + 1 and at["end"] == len(real) - 2 and real[-1] == io
        if "C" in kind:
            assert named.count(prompt["S"]) == 1 and len(set(named)) == 3
            assert real[at["S2"]] == f" {named[2]}" and named[2] not in (io[1:], s[1:])
        else:
            assert at["S2"] == max(j for j, string in enumerate(real) if string == s) > at["S1"]
            assert real.count(io) == 2 and real.count(s) == 2
        assert at["punct"] == max(j for j in range(at["S2"]) if real[j] in (",", "."))
        order = "ABBA" if at["IO"] < at["S1"] else "BABA"
        assert kind in ("mixed", "ABC mixed") or order[0] == kind[0]
        assert data.orders[i] == (order[:2] + "CA" if "C" in kind else order)
        assert tokenizer.texts[data.io_tokenIDs[i]] == io and tokenizer.texts[data.s_tokenIDs[i]] == s
        assert data.prompts[i] + io == text
        template = data.templates[int(prompt["TEMPLATE_IDX"])]
        for gap in ("[PLACE]", "[OBJECT]"):
            assert (gap in template) == (gap in prompt)
            template = template.replace(gap, str(prompt.get(gap)))
        assert re.sub(r"\[[ABC]\]", "@", template) == skeleton(text)
    if symmetric:
        for one, twin in zip(data.sentences[::2], data.sentences[1::2], strict=True):
            assert one != twin and people(one)[0] == people(twin)[1] and people(one)[1] == people(twin)[0]
            swap = dict(zip(people(one)[:2], people(one)[1::-1], strict=True))
            assert [swap.get(word, word) for word in re.findall(r"\w+|\W", one)] == re.findall(r"\w+|\W", twin)


def test_a_seed_gives_the_same_sentences_and_the_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    made = []
    for seed in (3, 3, 4):
        random.seed(len(made))  # the type checker draws from it too, so its state tells nothing
        made.append(IOIDataset(N=30, tokenizer=Words(), seed=seed))
    first, again, other = made
    assert first.sentences == again.sentences != other.sentences
    flips = [data.gen_flipped_prompts("ABB->XYZ, BAB->XYZ") for data in (first, again)]
    assert flips[0].sentences == flips[1].sentences
    assert first.gen_flipped_prompts("ABB->XYZ, BAB->XYZ", seed=9).sentences != flips[0].sentences
    assert torch.equal(torch.get_rng_state(), before)


def test_with_a_real_tokenizer_the_words_are_those_named() -> None:
    tokenizer = demo_tokenizer()
    data = IOIDataset(N=60, tokenizer=tokenizer, prepend_bos=True)
    assert set(data.names) < set(NAMES) and "Zoe" not in data.names
    for i, prompt in enumerate(data.ioi_prompts):
        found = {word: tokenizer.decode([int(data.toks[i, at[i]])]) for word, at in data.word_idx.items()}
        assert found["IO"] == f" {prompt['IO']}" and found["S1"] == found["S2"] == f" {prompt['S']}"
        assert found["end"] == " to" and found["punct"] in (",", ".") and data.toks[i, 0] == tokenizer.bos_token_id
        assert tokenizer.decode(data.toks[i][data.attention_mask[i]][1:]) == prompt["text"]


FLIPS = {
    # Who stands at the first three mentions and at the end, of A, B and new people; then the new IO and S.
    "ABB->XYZ, BAB->XYZ": ("xyzA", "xyzA", "x", "z"),
    "ABB->ABA, BAB->BAA": ("ABAA", "BAAA", "B", "A"),
    "ABB->BAA, BAB->ABA": ("BAAA", "ABAA", "B", "A"),
    "ABB->AXB, BAB->XAB": ("AxBA", "xABA", "A", "B"),
    "ABB->CDD, BAB->DCD": ("xyyA", "xyxA", "x", "y"),
    "ABBA->XYYX, BABA->YXYX": ("xyyx", "xyxy", "x", "y"),
    ("IO", "RAND"): ("xBBx", "BxBx", "x", "B"),
    ("S", "RAND"): ("AxxA", "xAxA", "A", "x"),
    ("S1", "RAND"): ("AxBA", "xABA", "A", "B"),
    ("S2", "RAND"): ("ABxA", "BAxA", "A", "B"),
    ("S2", "IO"): ("ABAA", "BAAA", "B", "A"),
    ("IO", "S1"): ("BABA", "ABBA", "A", "B"),
    ("S1", "IO"): ("BABA", "ABBA", "A", "B"),
    ("IO", "S"): ("BAAB", "ABAB", "B", "A"),
    "S->IO": ("BAAB", "ABAB", "B", "A"),
    ("END", "S"): ("ABBB", "BABB", "A", "B"),
}


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("kind", ["ABBA", "BABA"])
def test_a_flip_changes_the_names_it_says_and_nothing_else(flip: str | tuple[str, str], kind: str) -> None:
    tokenizer = Words()
    data = IOIDataset(kind, 40, tokenizer, prepend_bos=True, seed=2)
    other = data.gen_flipped_prompts(flip)
    abba, baba_, io, s = FLIPS[flip]
    expected = abba if kind == "ABBA" else baba_
    assert other.toks.shape == data.toks.shape and torch.equal(other.attention_mask, data.attention_mask)
    assert all(torch.equal(at, data.word_idx[word]) for word, at in other.word_idx.items())
    for i, (before, after) in enumerate(zip(data.sentences, other.sentences, strict=True)):
        assert skeleton(before) == skeleton(after)
        prompt = data.ioi_prompts[i]
        who = {str(prompt["IO"]): "A", str(prompt["S"]): "B"}
        strangers = iter("xyz")
        letters = ""
        for name in people(after):
            if name not in who:
                who[name] = next(strangers)
            letters += who[name]
        assert letters == expected
        new = other.ioi_prompts[i]
        # The other of two new people, or of three the one in the indirect object's place.
        roles = {"xyxA": ("y", "x"), "xyxy": ("y", "x"), "xyzA": ("xy"[kind == "BABA"], "z")}.get(expected, (io, s))
        assert (who[str(new["IO"])], who[str(new["S"])]) == roles
        changed = (data.toks[i] != other.toks[i]).nonzero().flatten().tolist()
        row = tokenizer.row(other.toks[i])
        assert len(changed) == sum(a != b for a, b in zip(expected, kind, strict=True))
        assert all(row[j].strip() in NAMES for j in changed)


def test_sets_with_a_third_person_flip_by_their_own_order() -> None:
    data = IOIDataset("ABC mixed", 20, Words())
    twice = data.gen_flipped_prompts("ABC->ABB, BAC->BAB")
    for text, prompt in zip(twice.sentences, twice.ioi_prompts, strict=True):
        assert people(text).count(str(prompt["S"])) == people(text).count(str(prompt["IO"])) == 2


def test_words_of_several_tokens_are_left_out() -> None:
    broken = [*NAMES[:100], *NOUNS["PLACE"][:20]]
    data = IOIDataset(N=200, tokenizer=Words(broken), seed=1)
    assert not set(data.names) & set(broken) and set(data.names) <= set(NAMES)
    assert not any(set(re.findall(r"\w+", text)) & set(broken) for text in data.sentences)
    assert len({name for text in data.sentences for name in people(text)}) > 20


def test_words_of_ones_own() -> None:
    at_noon = "At noon [B] met [A]. [B] sold a [FISH] and a [OBJECT] to [A]"
    data = IOIDataset([at_noon], 30, Words(), names=FEW, nouns={"FISH": ["cod", "eel"], "OBJECT": ["hat"]})
    assert {word for text in data.sentences for word in people(text)} <= set(FEW)
    assert {str(prompt["[FISH]"]) for prompt in data.ioi_prompts} == {"cod", "eel"}
    assert all(" and a hat to" in text for text in data.sentences) and data.orders == ["BABA"] * 30
    assert (
        "punct" in data.word_idx
        and "punct" not in IOIDataset(["So [A] saw [B] and [B] ran to [A]"], 2, Words()).word_idx
    )


def test_a_sentence_may_begin_with_a_name() -> None:
    tokenizer = Words(broken=["Lucy"])
    data = IOIDataset(["[A] and [B] met, [B] waved to [A]"], 8, tokenizer, prepend_bos=True, names=FEW)
    for i, prompt in enumerate(data.ioi_prompts):
        assert tokenizer.row(data.toks[i])[1] == prompt["IO"] and int(data.word_idx["IO"][i]) == 1
        assert tokenizer.texts[data.io_tokenIDs[i]] == f" {prompt['IO']}"
    flipped = data.gen_flipped_prompts(("IO", "RAND"))
    assert (flipped.toks != data.toks).sum(1).tolist() == [2] * 8

    class LowFront(Words):
        def pieces(self, text: str) -> list[str]:
            found = super().pieces(text)
            return [*found[0], *found[1:]] if found and found[0] in FEW else found

    with pytest.raises(InvalidInputError, match="begins with a name, and 0 of 6 names"):
        IOIDataset(["[A] and [B] met, [B] waved to [A]"], 8, LowFront(), names=FEW)


def test_a_tokenizer_that_puts_a_space_before_any_text() -> None:
    tokenizer = Words(front=" ")
    assert token_after_a_word(tokenizer, "Mary") == tokenizer.texts.index(" Mary")
    data = IOIDataset(N=10, tokenizer=tokenizer, names=FEW)
    for i, prompt in enumerate(data.ioi_prompts):
        assert tokenizer.row(data.toks[i])[int(data.word_idx["IO"][i])] == f" {prompt['IO']}"


def test_slices() -> None:
    data = IOIDataset(N=12, tokenizer=Words(), seed=5)
    some = data[2:5]
    assert len(some) == 3 and some.sentences == data.sentences[2:5] and torch.equal(some.toks, data.toks[2:5])
    assert data[4] == data.ioi_prompts[4] and data[-1] == data.ioi_prompts[11]
    picked = data[torch.tensor([7, 0])]
    assert picked.io_tokenIDs == [data.io_tokenIDs[7], data.io_tokenIDs[0]]
    assert torch.equal(picked.word_idx["S2"], data.word_idx["S2"][[7, 0]])
    assert data[[1]].sentences == [data.sentences[1]]
    assert [prompt["text"] for prompt in data] == data.sentences
    short = data[[int(data.attention_mask.sum(1).argmin())]]
    assert short.gen_flipped_prompts(("S2", "IO")).toks.shape == short.toks.shape == (1, data.max_len)
    with pytest.raises(InvalidInputError, match="selects none of the 12 sentences"):
        data[5:5]
    with pytest.raises(IndexError):
        data[12]
    assert data.sentences[0] in repr(data)


def test_padding_is_the_tokenizers_own_or_eos() -> None:
    for tokenizer, pad in ((Words(), 1), (Padding(), 7)):
        data = IOIDataset(N=30, tokenizer=tokenizer)
        assert set(data.toks[~data.attention_mask].tolist()) == {pad}
    nothing = Words()
    nothing.bos_token_id = nothing.eos_token_id = None
    assert IOIDataset([MET], 3, nothing).attention_mask.all()
    with pytest.raises(InvalidInputError, match="no padding or EOS token"):
        IOIDataset(N=30, tokenizer=nothing)
    with pytest.raises(InvalidInputError, match="pass prepend_bos=False"):
        IOIDataset([MET], 3, nothing, prepend_bos=True)
    other = Words()
    other.bos_token_id = None
    assert IOIDataset([MET], 3, other, prepend_bos=True).toks[:, 0].tolist() == [1, 1, 1]


BAD = {
    "no tokenizer": (lambda: IOIDataset(), "pass tokenizer=model.tokenizer"),
    "kind": (lambda: IOIDataset("ABAB", 3, Words()), "prompt_type must be .*'mixed'.*got 'ABAB'"),
    "no templates": (lambda: IOIDataset([], 3, Words()), "empty list"),
    "none": (lambda: IOIDataset(N=0, tokenizer=Words()), "at least 1; got 0"),
    "odd": (lambda: IOIDataset(N=3, tokenizer=Words(), symmetric=True), "even, since .*got 3"),
    "no name left": (lambda: IOIDataset(N=3, tokenizer=Words(NAMES)), r"names \('Mary', .*\.\.\.\) 0 are a single"),
    "one name left": (lambda: IOIDataset(N=3, tokenizer=Words(FEW[1:]), names=FEW), "of 6 .* 1 are a.*at least 2"),
    "two for three": (lambda: IOIDataset("ABC", 3, Words(), names=FEW[:2]), "at least 3"),
    "no noun": (lambda: IOIDataset(N=3, tokenizer=Words(NOUNS["PLACE"])), r"words for \[PLACE\]"),
    "ends otherwise": (lambda: IOIDataset([MET + "."], 3, Words()), r"end with \[A\]"),
    "S once": (lambda: IOIDataset(["When [A] met [B], it rained on [A]"], 3, Words()), "the subject .B. twice"),
    "IO late": (lambda: IOIDataset(["So [B] and [B] saw [A]"], 3, Words()), "once"),
    "unknown gap": (lambda: IOIDataset(["So [A] and [B] ate [SOUP], [B] fed [A]"], 3, Words()), r"\[SOUP\].*Known"),
    "no space": (lambda: IOIDataset(['So [A] and "[B]" met, [B] waved to [A]'], 3, Words()), "follow a space"),
    "glued": (lambda: IOIDataset(["So [A] met [B], [B] saw [A]"], 9, Words(glued=FEW), names=FEW), "merges names"),
    "one glued": (lambda: IOIDataset(["At [A], [B] ran, [B] saw [A]"], 2, Words(glued=FEW), names=FEW), "merges names"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises((InvalidInputError, MissingTokenizerError), match=message):
        make()


@pytest.mark.parametrize(
    "flip", ["", "XYZ", "ABB->XY", "AB->XY", "ABD->XYZ", "ABB->XYZ, ABB->ABA", ("S2", "S2"), "abb->xyz"]
)
def test_what_is_no_flip_is_told(flip: str | tuple[str, str]) -> None:
    with pytest.raises(InvalidInputError, match="is not a flip"):
        IOIDataset([MET], 2, Words()).gen_flipped_prompts(flip)


def test_a_flip_must_fit_every_sentence_and_find_new_people() -> None:
    data = IOIDataset("BABA", 3, Words())
    with pytest.raises(InvalidInputError, match="the flip has patterns for ABB, and the names of .* in the order BAB"):
        data.gen_flipped_prompts("ABB->XYZ")
    with pytest.raises(InvalidInputError, match="needs 3 new people, and 2 of 4 names"):
        IOIDataset([MET], 3, Words(), names=FEW[:4]).gen_flipped_prompts("ABB->XYZ")


def test_the_templates_are_of_the_order_they_are_said_to_be() -> None:
    for template in TEMPLATES:
        assert Template.parse(template, NOUNS).roles == "ABBA"
        assert Template.parse(baba(template), NOUNS).roles == "BABA" and baba(baba(template)) == template
    assert len(set(TEMPLATES)) == len(TEMPLATES) and len(set(NAMES)) == len(NAMES)
