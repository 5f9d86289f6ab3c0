import hashlib
import random
import re

import pytest
import torch

from headscope.data.small_english import GIFTS, NAMES, PLACES, documents, ioi_prompts, vocabulary
from headscope.errors import InvalidInputError


def test_one_seed_gives_one_text_and_two_seeds_give_two():
    assert list(documents(5, n=50)) == list(documents(5, n=50))
    assert not set(documents(5, n=50)) & set(documents(6, n=50))


def test_the_text_of_a_seed_never_changes():
    """The shipped weights, tokenizer and card were made from this very text."""
    text = "\n".join(documents(0, n=100)) + "\n".join(p.prompt for p in ioi_prompts(100, 0))
    assert text.startswith("The farm was full when Frank and Mark came in. Later Mark said hello to Frank.")
    assert hashlib.sha256(text.encode()).hexdigest().startswith("adcf073b86fc8c68")


def test_global_random_state_does_not_matter():
    drawn = []
    for seed in (1, 2):
        random.seed(seed)
        torch.manual_seed(seed)
        drawn.append((list(documents(0, n=5)), ioi_prompts(5, 0)))
    assert drawn[0] == drawn[1]


def test_documents_leave_no_slot_open_and_use_known_words_only():
    text = " ".join(documents(1, n=300))
    assert not set("{}") & set(text)
    # Half of the words come from stories' sentences, which repeated phrases do not draw from.
    known = set(vocabulary())
    words = set(re.findall(r"[A-Za-z]+", text))
    assert {*NAMES, *PLACES, *GIFTS} <= known
    assert {*NAMES, *PLACES, *GIFTS} <= words
    assert len(words - known) < 60


def test_documents_hold_phrases_said_again():
    paragraphs = [part for text in documents(2, n=200) for part in text.split("\n\n")]
    repeated = [p for p in paragraphs if re.fullmatch(r"(.+?)((?:, | |\. )\1){1,3}\.", p)]
    assert len(repeated) > 10


def test_names_and_words_are_distinct():
    for words in (NAMES, PLACES, GIFTS, vocabulary()):
        assert len(set(words)) == len(words)


def test_ioi_prompts_name_the_subject_twice_and_the_answer_once():
    prompts = ioi_prompts(200, seed=1)
    assert len({p.prompt for p in prompts}) == 200
    for p in prompts:
        words = re.findall(r"\w+", p.prompt)
        answer, wrong = p.answer.strip(), p.wrong.strip()
        assert p.answer == f" {answer}" and p.wrong == f" {wrong}"
        assert words.count(answer) == 1 and words.count(wrong) == 2
        assert (words.index(answer) < words.index(wrong)) == (p.order == "ABBA")
        assert words[-1] == "to"
    assert [p.order for p in prompts].count("ABBA") == 100


def test_ioi_prompts_of_two_seeds_differ():
    assert not {p.prompt for p in ioi_prompts(100, 1)} & {p.prompt for p in ioi_prompts(100, 2)}


def test_a_negative_number_of_prompts_is_refused():
    with pytest.raises(InvalidInputError, match="-1"):
        ioi_prompts(-1, 0)
    assert ioi_prompts(0, 0) == []
