"""Each sentence of a page about a toy model: numbers that it is said of, and numbers for which it would be false."""

from collections.abc import Callable

import pytest
import torch
from markupsafe import Markup
from sentences import check_words

from headscope.report.toy.sentences import (
    answered,
    composition,
    few_waves,
    head_missed,
    heads_of_types,
    no_head_of_types,
    replied,
    when_learned,
)

Sentence = Callable[[], Markup | str | None]

EVEN, FEW = torch.full((10,), 0.1), torch.tensor([0.5, 0.48, 0.02, *[0.0] * 7])


def missed(right: tuple[float, float], loss: tuple[float, float], n_rows: int = 400, n_heads: int = 8) -> Sentence:
    return lambda: head_missed("0.2", right=right, loss=loss, n_rows=n_rows, n_heads=n_heads)


SAID: dict[str, tuple[Sentence, list[str]]] = {
    "held-out answers": (
        lambda: answered(400, 3.21, signal=(0.998, 0.0123, 0.0), every=(0.6, 0.65), held_out=True),
        ["After 400 steps (3.2 s) 99.80 % of the answers that their prompt settles are right on held-out data, at",
         "a loss of 0.0123 nats (the best possible: 0.0000); of all answers, noise included, 60.00 % (the best"],
    ),
    "answers in training": (
        lambda: answered(1, 0.1, signal=(0.5, 0.1, 0.0), every=None, held_out=False),
        ["After 1 step (0.1 s)", "right in the last epoch of training", "~noise", "~held-out"],
    ),
    "learned in both": (
        lambda: when_learned(0.99, 76, 1000),
        ["99 % of the signal was first right at step 76 in a batch", "when it was measured at step 1,000 in held-out"],
    ),
    "learned in training": (lambda: when_learned(0.99, 76, None), ["at step 76 in a batch", "never in held-out data"]),
    "learned in held-out data": (lambda: when_learned(0.99, None, 76), ["at step 76 in held-out", "in no batch of"]),
    "a head is missed": (
        missed((1.0, 0.4), (0.004, 2.3)),
        ["head 0.2 is missed most: 40.00 % of settled answers are right without it instead of 100.00 %",
         "the loss is 2.300 nats instead of 0.004"],
    ),
    "types": (
        lambda: heads_of_types({"induction": ["1.0", "1.1"], "previous_token": ["0.3"], "duplicate_token": []}),
        ["Heads of known types: induction: 1.0 and 1.1; previous token: 0.3.", "~duplicate"],
    ),
    "no types": (lambda: no_head_of_types({"induction": []}), ["No head is clearly of one of these types."]),
    "a wrong reply": (lambda: replied(3, 4), ["3, which is wrong", "~4"]),
    "a right reply": (lambda: replied(3, 3), ["3", "~wrong"]),
    "composition": (lambda: composition(True), ["a previous-token head (outlined) wrote"]),
    "composition without previous-token heads": (lambda: composition(False), ["no head is clearly one", "~outlined"]),
    "few waves": (
        lambda: few_waves(EVEN, FEW),
        ["2 of 10 frequencies hold 95 % of what differs", "where it took 10 before training"],
    ),
}  # fmt: skip

SILENT: dict[str, Sentence] = {
    "learned: never": lambda: when_learned(0.99, None, None),
    "missed: no fewer right answers": missed((1.0, 1.0), (0.004, 0.5)),
    "missed: more right answers": missed((0.4, 0.6), (1.0, 1.1)),
    "missed: fewer right answers, but a lower loss": missed((0.06, 0.02), (9.6, 9.1), n_rows=10_000),
    "missed: fewer by chance, in so few prompts": missed((0.9, 0.8), (0.1, 0.5), n_rows=40),
    "missed: fewer by chance, among so many heads": missed((0.9, 0.8), (0.1, 0.5), n_rows=170, n_heads=100),
    "no types: one is": lambda: no_head_of_types({"induction": ["1.0"], "previous_token": []}),
    "types: none": lambda: heads_of_types({"induction": []}),
    "waves: no fewer than before": lambda: few_waves(FEW, FEW),
    "waves: not known before": lambda: few_waves(None, FEW),
}


@pytest.mark.parametrize("case", SAID)
def test_what_is_so_is_said(case: str) -> None:
    sentence, parts = SAID[case]
    check_words(sentence(), parts)


@pytest.mark.parametrize("case", SILENT)
def test_what_is_not_so_is_not_said(case: str) -> None:
    assert SILENT[case]() is None
