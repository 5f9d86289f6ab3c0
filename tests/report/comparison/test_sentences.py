"""Each sentence of a page on two models: numbers that it is said of, and numbers for which it would be false."""

from collections.abc import Callable

import pytest
from markupsafe import Markup
from sentences import check_words, mean, means

from headscope.analysis.core.ranking import HeadScore
from headscope.report.comparison.sentences import (
    better_model,
    differing_heads,
    heads_of_each,
    less_certain_model,
    no_head_differs,
    types_in_both,
    under_each,
)

Sentence = Callable[[], Markup | None]

AB = ("A", "B")
NOISE = means([[0.01, -0.02], [0.0, 0.01]], noise=0.5)
UP = means([[0.5, 0.01], [0.0, -0.01]], noise=0.1)
FLAT = means([[0.1, 0.01], [0.0, -0.01]], noise=0.001)
TINY = means([[0.0003, 0.0], [0.0, 0.0]], noise=0.00001)


def score(head: int, value: float) -> HeadScore:
    return HeadScore(1, head, value)


SAID: dict[str, tuple[Sentence, list[str]]] = {
    "the first is better": (
        lambda: better_model(AB, mean(0.5, 0.1), paired=True),
        ["A predicts this text better than B: its loss is lower by 0.500 ± 0.100 nats per token, over the same 400"],
    ),
    "the second is better": (
        lambda: better_model(AB, mean(-0.5, 0.1), paired=False),
        ["B predicts this text better than A", "nats per byte, over 400 predictions"],
    ),
    "neither is better": (
        lambda: better_model(AB, mean(0.1, 0.1), paired=True),
        ["Neither model clearly predicts this text better: the loss of B less that of A is +0.100 ± 0.100 nats per",
         "(95 % confidence interval: -0.100 to +0.300)", "~B predicts"],
    ),
    "clear, but zero in three decimals": (
        lambda: better_model(AB, mean(-0.0002, 0.00001), paired=True),
        ["Both models predict this text alike: their losses differ by less than 0.0005 nats per token", "~better"],
    ),
    "one is less certain": (
        lambda: less_certain_model(AB, (mean(1.0, 0.1), mean(2.0, 0.1)), mean(1.0, 0.1)),
        ["predictions of B are less certain: their entropy is 2.000 ± 0.100 nats, and that of A 1.000", "(1.000 ± 0.1"],
    ),
    "the other is less certain": (
        lambda: less_certain_model(AB, (mean(2.0, 0.1), mean(1.0, 0.1)), mean(-1.0, 0.1)),
        ["predictions of A are less certain: their entropy is 2.000", "(1.000 ± 0.1"],
    ),
    "one leads": (
        lambda: heads_of_each(AB, [UP, NOISE], "Missed most: {most}."),
        ["Missed most: in A, head 0.0 (+0.500 ± 0.018 nats).", "~in B"],
    ),
    "one differs": (
        lambda: differing_heads(AB, [UP, FLAT], means([[-0.4, 0.0], [0.0, 0.0]], 0.1), "entropy diff"),
        ["By entropy diff, 1 of 4 heads clearly differs, head 0.0 most (+0.500 in A, +0.100 in B, a differ"],
    ),
    "none differs": (
        lambda: no_head_differs(NOISE, "entropy diff"),
        ["By entropy diff, none of 4 heads clearly differs.", "at least 0.238 nats from zero"],
    ),
    "a token under each": (
        lambda: under_each(AB, " cat", (0.5, 0.0003)), ["for cat: 50 % under A, 0.03 % under B", "~50 % under B"],
    ),
    "a type in one": (
        lambda: types_in_both(AB, {"induction": (score(2, 0.9), score(0, 0.29)), "previous": (score(1, 0.2),) * 2}),
        ["30 % or more of their attention", "induction: 1.2 (90 %) in A, none in B.", "~previous"],
    ),
}  # fmt: skip

SILENT: dict[str, Sentence] = {
    "certainty: no clear difference": lambda: less_certain_model(AB, (mean(1.0, 0.1), mean(1.1, 0.1)), mean(0.1, 0.1)),
    "certainty: zero in three decimals": lambda: less_certain_model(
        AB, (mean(1.0, 0.1), mean(1.0, 0.1)), mean(0.0001, 0.00001)
    ),
    "leading: noise in both": lambda: heads_of_each(AB, [NOISE, NOISE], "Missed most: {most}."),
    "differing: noise": lambda: differing_heads(AB, [UP, UP], NOISE, "entropy diff"),
    "differing: zero in three decimals": lambda: differing_heads(AB, [UP, UP], TINY, "entropy diff"),
    "no head differs: one does": lambda: no_head_differs(UP, "entropy diff"),
    "types: too little attention": lambda: types_in_both(AB, {"induction": (score(2, 0.29), score(0, 0.2))}),
    "types: none looked for": lambda: types_in_both(AB, {}),
}


@pytest.mark.parametrize("case", SAID)
def test_what_is_so_is_said(case: str) -> None:
    sentence, parts = SAID[case]
    check_words(sentence(), parts)


@pytest.mark.parametrize("case", SILENT)
def test_what_is_not_so_is_not_said(case: str) -> None:
    assert SILENT[case]() is None
