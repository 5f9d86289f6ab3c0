"""Each sentence of a page about a model: numbers that it is said of, and numbers for which it would be false."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from markupsafe import Markup
from sentences import check_words, mean, means

from headscope.analysis.core.ranking import HeadScore, Ranking
from headscope.report.assembly import Assembly
from headscope.report.model import types_section
from headscope.report.model.ablation_section import missed_heads, no_head_missed, where_it_matters, with_and_without
from headscope.report.model.entropy_section import (
    along_the_layers,
    largest_steps,
    lowering_heads,
    no_head_raises,
    raising_heads,
)
from headscope.report.model.heads_section import (
    came,
    final_entropy,
    heads_title,
    highest_tokens,
    lowest_tokens,
    nearest_heads,
    on_average,
)
from headscope.report.model.loss_section import loss_and_choices, mean_loss, use_of_context
from headscope.report.model.model_section import few_sequences, in_front
from headscope.report.model.suppression_section import suppression_verdict
from headscope.report.model.types_section import (
    otherwise_on_text,
    strongest_heads,
    types_without_heads,
    whose_attention,
)
from headscope.report.numbers_section import how_it_was_made
from headscope.report.words import leaders, too_small_to_see

Sentence = Callable[[], Markup | str | None]


def of_types(**values: float) -> dict[str, Ranking]:
    """The strongest head of each type, with the share of its attention."""
    return {name: Ranking([HeadScore(1, 2, value), HeadScore(0, 0, 0.01)]) for name, value in values.items()}


def suppresses(shares: list[float], powers: list[float], *, error: float = 0.02, summary: bool = False) -> Sentence:
    """The verdict on candidates 0.0, 1.0, ... or what the summary says of them."""
    labels = [f"{at}.0" for at in range(len(shares))]
    found = [mean(share, error, 99) for share in shares]
    verdict, told = suppression_verdict(labels, found, [mean(power, 0.01, 99) for power in powers])
    return lambda: (told[0] if told else None) if summary else verdict


def stopped(missing: tuple[str, ...] = (), **failed: Exception) -> Sentence:
    """The notices of a page that is not whole."""
    return lambda: Markup(" ").join(Assembly({}, missing, failed).notices("headscope report --resume")) or None


NOISE = means([[0.01, -0.02], [0.0, 0.01]], noise=0.5)
UP = means([[0.5, 0.01], [0.0, -0.01]], noise=0.1)
TWO_UP = means([[0.5, 0.01], [0.49, -0.01]], noise=0.1)
DOWN = means([[0.0, 0.01], [-0.4, 0.0]], noise=0.1)
TINY = means([[0.0003, 0.0], [0.0, 0.0]], noise=0.00001)
BY_TOKEN = [(" the", 0.5, 9), (" cat", 0.1, 3), (" dog", -0.2, 4)]
STEP, TWO_STEPS, DROP = [0.5, 0.01, 0.0, -0.01], [0.5, 0.01, 0.49, -0.01], [0.0, 0.01, -0.4, 0.0]
STEPS = ["layer 0", "layer 1", "layer 2", "layer 3"]

# A sentence with its numbers, and what it says of them; what begins with "~" it must not say.
SAID: dict[str, tuple[Sentence, list[str]]] = {
    "better than uniform": (
        lambda: mean_loss(mean(3.0, 0.1), 6.9, mean(0.4, 0.02)),
        ["mean loss of 3.000 ± 0.100 nats (perplexity 20.1, over 400 predictions)", "a uniform guess would cost 6.900",
         "right 40 % ± 2.0 % of the time", "~worse", "~clearly different"],
    ),
    "worse than uniform": (lambda: mean_loss(mean(7.5, 0.1), 6.9, mean(0.0, 0.0)), ["worse than a uniform guess"]),
    "like uniform": (
        lambda: mean_loss(mean(7.0, 0.1), 6.9, mean(0.0, 0.0)),
        ["not clearly different from a uniform guess (6.900)", "~worse", "~would cost"],
    ),
    "loss and choices": (
        lambda: loss_and_choices(mean(3.0, 0.1), mean(0.4, 0.02), mean(0.7, 0.02)),
        ["over 400 predictions: 3.000 ± 0.100 nats", "first choice 40 % ± 2.0 % of the time", "first ten 70 %",
         "~+3.000"],
    ),
    "context helps": (lambda: use_of_context(mean(-0.5, 0.1)), ["better than early", "changes by -0.500 ± 0.100"]),
    "context harms": (lambda: use_of_context(mean(0.5, 0.1)), ["worse than early"]),
    "entropy falls": (
        lambda: along_the_layers(mean(6.0, 0.1), mean(2.0, 0.1), mean(-4.0, 0.1)),
        ["logit lens", "falls from 6.000 ± 0.100 nats at the embedding to 2.000 ± 0.100 at the end (-4.000 ± 0.100)"],
    ),
    "entropy rises": (lambda: along_the_layers(mean(1.0, 0.1), mean(2.0, 0.1), mean(1.0, 0.1)), ["rises from 1.000"]),
    "one step": (
        lambda: largest_steps(means(STEP, 0.1), STEPS),
        ["The largest rise of that entropy is +0.500 ± 0.018 nats, at layer 0.", "~apart", "~drop"],
    ),
    "two steps": (lambda: largest_steps(means(TWO_STEPS, 0.1), STEPS), ["at layer 0, not clearly apart from layer 2."]),
    "a drop": (lambda: largest_steps(means(DROP, 0.1), STEPS), ["The largest drop of that entropy is -0.400", "~rise"]),
    "one raises by diff": (
        lambda: raising_heads(UP, NOISE),
        ["Of 4 heads, 1 clearly raises the entropy of the stream (diff) and none clearly raises that of the final",
         "Most of all: by diff, head 0.0 (+0.500 ± 0.018 nats).", "~by marginal", "~do both", "~apart"],
    ),
    "two raise by marginal": (
        lambda: raising_heads(UP, TWO_UP),
        ["1 clearly raises", "2 clearly raise that", "1 of them do both",
         "by marginal, head 0.0 (+0.500 ± 0.018 nats, not clearly apart from 1.0)"],
    ),
    "none raises": (
        lambda: no_head_raises(NOISE, DOWN),
        ["By neither measure does any of 4 heads clearly raise entropy.", "the median head",
         "at least 0.238 nats from zero"],
    ),
    "one lowers": (lambda: lowering_heads(DOWN, UP), ["By diff 1 clearly lowers", "By diff, that alone is little"]),
    "one lowers by marginal alone": (lambda: lowering_heads(UP, DOWN), ["by marginal 1 clearly lowers", "~is little"]),
    "one is missed": (
        lambda: missed_heads(UP),
        ["of 4 heads 1 clearly helps and none clearly costs (on 32 predictions)",
         "The loss rises most without head 0.0 (+0.500 ± 0.018 nats).", "~falls"],
    ),
    "one costs": (
        lambda: missed_heads(DOWN),
        ["none clearly helps and 1 clearly costs", "It falls most without head 1.0 (-0.400 ± ", "~rises"],
    ),
    "none is missed": (
        lambda: no_head_missed(NOISE),
        ["By the patched effect, the loss changes clearly for none of 4 heads.",
         "the median head",
         "at least 0.238 nats from zero"],
    ),
    "it helps most": (
        lambda: where_it_matters(mean(0.5, 0.1), 0.7, [0.9, 0.8], largest=True),
        ["+0.500 ± 0.100 nats on average", "it helps at 70 % of positions", "where it helps most", "~costs most"],
    ),
    "it costs most": (
        lambda: where_it_matters(mean(-0.5, 0.1), 0.2, [-0.9, -0.8], largest=False),
        ["where it costs most", "~helps most", "~least"],
    ),
    "the lowest head helps": (
        lambda: where_it_matters(mean(0.1, 0.1), 1.0, [0.01, 0.02], largest=False), ["where it helps least", "~most"],
    ),
    "the largest head costs": (
        lambda: where_it_matters(mean(-0.1, 0.1), 0.0, [-0.01, -0.02], largest=True), ["it costs least", "~most"],
    ),
    "on both sides of zero": (
        lambda: where_it_matters(mean(-0.1, 0.1), 0.5, [-0.01, 0.02], largest=False), ["is lowest", "~most", "~least"],
    ),
    "with and without": (
        lambda: with_and_without(" cat", math.log(2), math.log(5)),
        ["for cat: 50 % with the head, 10 % without it", "~10 % with the"],
    ),
    "a suppressor": (
        suppresses([0.05, 0.8], [0.9, 0.9]),
        ["Here head 1.0 does: this explains 80 % ± 2.0 % of its direct effect, where an ideal suppressor would be "
         "given 90 %.", "~in part", "~less so"],
    ),
    "a suppressor, in the summary": (
        suppresses([0.05, 0.8], [0.9, 0.9], summary=True),
        ["Head 1.0 suppresses copying: this explains 80 % ± 2.0 % of its direct effect.", "~in part", "~0.0"],
    ),
    "suppressors in part": (
        suppresses([0.2, 0.01, 0.15], [0.6, 0.9, 0.6]),
        ["Here head 0.0 does in part: this explains 20 %", "given 60 %; less so 2.0 (15 % ± 2.0 %).", "~1.0"],
    ),
    "above half of an ideal suppressor": (suppresses([0.4], [0.6]), ["does: this explains 40 %", "~in part"]),
    "on neither side of half of one": (suppresses([0.47], [0.9]), ["does at least in part: this explains 47 %"]),
    "no ideal suppressor known, below half": (suppresses([0.4], [math.nan]), ["does in part", "~ideal"]),
    "no ideal suppressor known, above half": (suppresses([0.6], [math.nan]), ["does: this", "~ideal"]),
    "no suppressor: not clear": (suppresses([0.4], [0.9], error=0.2), ["no candidate clearly does", "~in part"]),
    "no suppressor": (
        suppresses([0.05, -0.3], [0.8, 0.5]),
        ["no candidate clearly does", "at most 5.0 % of a head's direct effect (head 0.0)",
         "would have been seen from 20 % on", "~cannot"],
    ),
    "no suppressor, and one that cannot be told": (
        suppresses([0.0, 0.0], [0.8, 0.04]), ["no candidate clearly does", "Of 1.0 this cannot be told."],
    ),
    "an ideal suppressor would not be found": (
        suppresses([0.05, -0.3], [0.04, math.nan]),
        ["Whether one of the candidates does cannot be told here: even an ideal", "at most 4.0 %", "~no candidate"],
    ),
    "errors not known": (suppresses([math.nan], [0.9], error=math.nan), ["on so little text", "~no candidate"]),
    "too little text": (suppresses([0.0], [0.9], error=0.45), ["cannot be told here: the numbers", "~no candidate"]),
    "no probability": (
        suppresses([0.0], [math.nan]),
        ["told here: the model gives the tokens in sight no probability.", "~no candidate"],
    ),
    "stopped": (
        stopped(("ablation",)),
        ["not whole: it was stopped. Missing: ablation; nothing", "to continue: headscope report --resume", "~failed"],
    ),
    "failed": (
        stopped(task=ValueError("why")), ["indirect objects failed; nothing is said", "ValueError: why", "~stopped"],
    ),
    "how much would be seen": (
        lambda: too_small_to_see(NOISE), ["the median head", "at least 0.238 nats from zero", "~too little"],
    ),
    "no error known": (
        lambda: too_small_to_see(dataclasses.replace(NOISE, errors=NOISE.errors * math.nan)),
        ["This is too little text to know the error of any.", "~at least"],
    ),
    "some raise": (lambda: heads_title(True), ["The heads that raise entropy most"]),
    "some come near": (lambda: heads_title(False), ["come nearest to raising entropy", "~raise entropy most"]),
    "none raises, in its place": (lambda: nearest_heads(False), ["No head clearly raises entropy on average"]),
    "a head on average": (
        lambda: on_average(mean(0.5, 0.1), mean(-0.2, 0.1), 0.8),
        ["diff +0.500 ± 0.100, marginal -0.200 ± 0.100 nats", "above zero at 80 % of positions", "~-0.500"],
    ),
    "the highest tokens": (
        lambda: highest_tokens(BY_TOKEN), ["Highest mean diff by token", "the +0.500 ×9, cat +0.100 ×3", "~dog"],
    ),
    "the lowest tokens": (
        lambda: lowest_tokens(BY_TOKEN), ["Lowest mean diff by token", "dog -0.200 ×4", "~cat", "~Highest"],
    ),
    "a leader": (lambda: leaders(UP), ["head 0.0 (+0.500 ± 0.018 nats)", "~apart"]),
    "two leaders": (lambda: leaders(TWO_UP), ["head 0.0 (+0.500 ± 0.018 nats, not clearly apart from 1.0)"]),
    "final entropy": (
        lambda: final_entropy(3.0, 0.25), ["Final entropy 3.000 nats; without the head (marginal) 2.750.", "~3.250"],
    ),
    "came first": (
        lambda: came(" cat", 0.5, 0, [(" cat", 0.5), (" dog", 0.00031)]),
        ["Then came cat, the model's first choice (50 %). Its next: dog 0.031 %.", "~choice 1"],
    ),
    "came third": (
        lambda: came(" cat", 0.1, 2, [(" dog", 0.5)]),
        ["Then came cat (10 %), choice 3. The model's first: dog 50 %.", "~first choice"],
    ),
    "BOS in front": (
        lambda: in_front("<|im_start|>", "<|im_end|>", 2),
        ["In front of each of the 2 sequences stands <|im_start|>", "no part of the text",
         "Documents are set apart by <|im_end|>"],
    ),
    "BOS in front of one": (lambda: in_front("<s>", None, 1), ["In front of the sequence stands <s>", "~Documents"]),
    "two sequences": (lambda: few_sequences(2), ["There are only 2 sequences", "pieces of them", "likely too small"]),
    "one sequence": (lambda: few_sequences(1), ["There is only 1 sequence", "pieces of it"]),
    "one type": (
        lambda: strongest_heads(of_types(induction=0.9, duplicate=0.29), 32),
        ["On 32 sequences of repeated random tokens, 1.2 is the strongest induction head (90 % of its attention).",
         "~duplicate", "~previous"],
    ),
    "a type without heads": (
        lambda: types_without_heads(of_types(induction=0.9, duplicate=0.29)),
        ["no head pays 30 % or more of its attention as a duplicate head would (at most 29 %, head 1.2).",
         "~induction"],
    ),
    "heads that do otherwise on the text": (
        lambda: otherwise_on_text([("induction", "18.7", 0.59, 0.021), ("induction", "18.6", 0.9, 0.3)]),
        ["these do otherwise than on random tokens: 18.7 (induction: 2.1 % instead of 59 %).", "~18.6"],
    ),
    "heads by entropy and by type": (
        lambda: whose_attention(["2.3", "0.3 previous-token", "1.3 induction"]),
        ["The first heads by entropy diff and marginal in turn, and the strongest previous-token and induction heads,"],
    ),
    "heads by entropy": (lambda: whose_attention(["2.3", "1.0"]), ["marginal in turn, on one sequence.", "~strongest"]),
    "heads by type": (lambda: whose_attention(["1.3 induction"]), ["The strongest induction head, on", "~entropy"]),
    "entropy was measured": (
        lambda: how_it_was_made({"scale": "final"}, ["fold_ln"]),
        ["Entropy was measured with scale=final, on weights processed by fold_ln.", "are left out of all means"],
    ),
    "with BOS": (lambda: how_it_was_made({"include_bos": True}, ()), ["on weights as they are", "~left out"]),
    "no entropy": (
        lambda: how_it_was_made({}, ["fold_ln", "center_unembed"]),
        ["All was measured on weights processed by fold_ln and center_unembed.", "~Entropy was", "~left out"],
    ),
}  # fmt: skip

SILENT: dict[str, Sentence] = {
    "highest tokens: all below zero": lambda: highest_tokens(BY_TOKEN[2:]),
    "lowest tokens: all above zero": lambda: lowest_tokens(BY_TOKEN[:2]),
    "no head raises: one does, by marginal": lambda: no_head_raises(NOISE, UP),
    "no head is missed: one is": lambda: no_head_missed(UP),
    "no head is missed: one costs": lambda: no_head_missed(DOWN),
    "leaders: noise": lambda: leaders(NOISE),
    "leaders: only below zero": lambda: leaders(DOWN),
    "nearest: some raise": lambda: nearest_heads(True),
    "suppressors, in the summary: none": suppresses([0.05, -0.3], [0.8, 0.5], summary=True),
    "notices: the page is whole": stopped(),
    "context: no clear change": lambda: use_of_context(mean(-0.5, 0.4)),
    "context: a short sequence": lambda: use_of_context(mean(float("nan"), float("nan"))),
    "entropy along layers: no clear change": lambda: along_the_layers(mean(6.0, 1.0), mean(5.5, 1.0), mean(-0.5, 0.5)),
    "steps: noise": lambda: largest_steps(means([0.01, -0.02, 0.0, 0.01], 0.5), STEPS),
    "raising: noise": lambda: raising_heads(NOISE, NOISE),
    "raising: only lowered": lambda: raising_heads(DOWN, DOWN),
    "raising: clear, but zero in three decimals": lambda: raising_heads(TINY, TINY),
    "lowering: only raised": lambda: lowering_heads(UP, UP),
    "missed: noise": lambda: missed_heads(NOISE),
    "missed: zero in three decimals": lambda: missed_heads(TINY),
    "types: too little attention": lambda: strongest_heads(of_types(induction=0.29), 32),
    "types: none looked for": lambda: strongest_heads({}, 32),
    "types without heads: each has one": lambda: types_without_heads(of_types(induction=0.3)),
    "types without heads: none looked for": lambda: types_without_heads({}),
    "types on the text: as on random tokens": lambda: otherwise_on_text([("induction", "1.0", 0.9, 0.1)]),
    "types on the text: no head of the type": lambda: otherwise_on_text([("induction", "1.0", 0.29, 0.0)]),
    "types on the text: not known": lambda: otherwise_on_text([("induction", "1.0", 0.9, None)]),
    "in front: no BOS": lambda: in_front(None, None, 8),
    "few sequences: eight": lambda: few_sequences(8),
}


@pytest.mark.parametrize("case", SAID)
def test_what_is_so_is_said(case: str) -> None:
    sentence, parts = SAID[case]
    check_words(sentence(), parts)


@pytest.mark.parametrize("case", SILENT)
def test_what_is_not_so_is_not_said(case: str) -> None:
    assert SILENT[case]() is None


def test_a_bound_is_that_of_a_head_that_just_stands_out() -> None:
    """What "none" excludes: at the bound that is told, half of the heads would have been called clear."""
    just_seen = means([[0.24, -0.24], [0.24, -0.24]], noise=0.5)
    just_not = means([[0.237, -0.237], [0.237, -0.237]], noise=0.5)
    assert bool(just_seen.clear().all()) and not bool(just_not.clear().any())


def test_of_few_repeats_on_a_text_nothing_is_said() -> None:
    """Attention to what repeats is a mean over the repeats; all positions have a token before."""
    shares = {"previous-token": torch.zeros(1, 1), "induction": torch.zeros(1, 1)}
    assert set(types_section._told(shares, torch.zeros(10, 6, dtype=torch.long))) == set(shares)  # 50 repeats
    assert set(types_section._told(shares, torch.zeros(7, 7, dtype=torch.long))) == {"previous-token"}  # 42
