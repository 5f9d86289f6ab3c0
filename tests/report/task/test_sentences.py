"""Each sentence on a task of two names: numbers that it is said of, and numbers for which it would be false."""

from collections.abc import Callable

import pytest
from markupsafe import Markup
from sentences import check_words, mean

from headscope.analysis.core.stats import Estimate
from headscope.report.task.sentences import (
    Worker,
    backups,
    changed_at_end,
    done_by,
    heads_of_kind,
    inhibition,
    moves_along,
    no_head_does,
    no_paths,
    paths_to_answer,
    told_apart,
    undecided,
    where_they_look,
    whether_it_matters,
    who_looks_back,
)

Sentence = Callable[[], Markup | str | None]

PROMPT = ("When Mary and John ... John gave a drink to", (" Mary", " John"), 40)
AHEAD, UNSURE, BEHIND = mean(3.0, 0.2), mean(0.3, 0.2), mean(-3.0, 0.2)


def worker(label: str, *kinds: str, abba: float, baba: float, **parts: tuple[float, float]) -> Worker:
    each = {f"from {place}": dict(zip(("ABBA", "BABA"), values, strict=True)) for place, values in parts.items()}
    return Worker(label, kinds, {"ABBA": abba, "BABA": baba}, each)


SUPPRESSOR = worker("23.3", "subject_suppressor", abba=1.76, baba=1.58, S=(1.6, 1.5))
AMPLIFIER = worker("29.1", "amplifier", abba=0.7, baba=0.87, end=(0.6, 0.8))
NEGATIVE = worker("24.4", "negative_name_mover", abba=-0.07, baba=-0.72, IO=(-0.4, -0.5))
COPIER = worker("23.1", "name_copier", abba=-0.1, baba=0.72, IO=(0.6, 0.9))
SWAP = -7.0


def known(changes: dict[str, float], error: float = 0.01) -> dict[str, Estimate]:
    """Changes with an error over 16 prompts."""
    return {label: Estimate(value, error, 16, freedom=15.0) for label, value in changes.items()}


SAID: dict[str, tuple[Sentence, list[str]]] = {
    "told apart": (
        lambda: told_apart(*PROMPT, 0.88, AHEAD),
        ["John gave a drink to the next word is Mary, who is named once, and not John", "on 40 such prompts",
         "puts the right name ahead in 88 % of prompts, by +3.000 ± 0.200 logits", "~not clearly"],
    ),
    "not told apart": (
        lambda: told_apart(*PROMPT, 0.55, UNSURE),
        ["does not clearly tell the two apart: +0.300 ± 0.200 logits", "in 55 % of prompts", "~puts the right name"],
    ),
    "the wrong name ahead": (lambda: told_apart(*PROMPT, 0.1, BEHIND), ["not clearly tell", "~puts the right name"]),
    "done and held back": (
        lambda: done_by(AHEAD, [AMPLIFIER, COPIER, NEGATIVE, SUPPRESSOR], ["20.0"]),
        ["prefers the indirect object to the subject by +3.000 ± 0.200 logits: done most of all by 23.3, which lowers "
         "the subject where it stands (+1.760 in ABBA, +1.580 in BABA) and 29.1, which adds to what is written at the "
         "end (+0.700 in ABBA", "held back by 24.4, which lowers the right name where it stands (-0.070 in ABBA, ",
         "the queries of heads that move names depend on 20.0 (path patching).", "~23.1"],
    ),
    "another head has the larger effect": (
        lambda: done_by(AHEAD, [SUPPRESSOR, worker("1.0", "name_mover", abba=2.0, baba=1.9)], []),
        ["done most of all by 1.0, which raises the right name where it stands (+2.000", "~held back", "~depend on"],
    ),
    "nobody is known to do it": (
        lambda: done_by(AHEAD, [COPIER], []),
        ["by +3.000 ± 0.200 logits.", "~done", "~held", "~depend", "~23.1"],
    ),
    "an effect against its kind": (
        lambda: done_by(AHEAD, [worker("1.0", "name_mover", abba=-2.0, baba=0.1),
                                worker("1.1", "dampener", abba=2.0, baba=-0.1)], []),
        ["by +3.000 ± 0.200 logits.", "~1.0", "~1.1"],
    ),
    "suppressors": (
        lambda: heads_of_kind("subject_suppressor", [SUPPRESSOR, AMPLIFIER]),
        ["Subject suppressors do it by lowering the subject",
         "23.3 +1.760 in ABBA, +1.580 in BABA (of it from the subject's places +1.600 in ABBA, +1.500 in BABA).",
         "~29.1"],
    ),
    "negative name movers": (
        lambda: heads_of_kind("negative_name_mover", [NEGATIVE]),
        ["Negative name movers work against it, over all prompts", "right name's place -0.400 in ABBA", "~Amplifiers"],
    ),
    "copiers": (
        lambda: heads_of_kind("name_copier", [COPIER]), ["Name copiers", "at least they harm, or hardly help", "23.1"],
    ),
    "nobody does it": (lambda: no_head_does([COPIER, NEGATIVE]), ["No head clearly does the task by itself"]),
    "a backup": (lambda: backups([("26.1", 0.3)]), ["once the heads that do the task are taken out: 26.1 +0.300."]),
    "undecided": (
        lambda: undecided(16, [("23.0", "name_mover")]),
        ["Undecided with 16 prompts", "23.0 (name mover). More prompts would decide."],
    ),
    "changed at the end": (
        lambda: changed_at_end(known({"23.3": -3.2, "1.0": 0.1, "29.0": 1.3}), SWAP, 16),
        ["logit difference most for 23.3 -3.200 and 29.0 +1.300 (the whole swap: -7.000 logits), on 16 prompts.",
         "~1.0 "],
    ),
    "where they look": (
        lambda: where_they_look({"the right name": ("24.4", {"ABBA": 0.57, "BABA": 0.5}),
                                 "its second": ("20.0", {"ABBA": 0.29, "BABA": 0.3})}),
        ["to the right name, 24.4 (57 % in ABBA and 50 % in BABA).", "~20.0", "~its second"],
    ),
    "they look back": (
        lambda: who_looks_back([("8.1", 0.8)], [("17.3", 0.4), ("17.4", 0.29)]),
        ["8.1 to the first mention, and not to the other name (80 %) and 17.3 to what followed it (40 %).", "~17.4"],
    ),
    "nobody looks back": (lambda: who_looks_back([], [("17.4", 0.29)]), ["No head clearly gives 30 %", "~17.4"]),
    "it matters": (
        lambda: whether_it_matters(known({"8.1": -0.4, "8.0": -0.3}), ["8.1", "8.0"], SWAP),
        ["What they write there matters", "it changes 8.1 -0.400 logits.", "~8.0", "~But"],
    ),
    "others matter": (
        lambda: whether_it_matters(known({"8.1": -0.3, "0.2": 1.0}), ["8.1"], SWAP),
        ["does not tell who the subject is", "none of them changes the logit difference by 5.0 %",
         "Heads whose output at that word does matter: 0.2 +1.000 logits.", "~there matters"],
    ),
    "nobody matters": (
        lambda: whether_it_matters(known({"8.1": -0.3}), [], SWAP),
        ["No head's output at that word clearly matters by itself.", "~But", "~there matters"],
    ),
    "it goes against the swap": (
        lambda: whether_it_matters(known({"8.1": 0.6, "9.9": -1.0}), ["8.1"], SWAP),
        ["is not clear that what they write there tells", "does matter: 9.9 -1.000 and 8.1 +0.600", "~does not tell"],
    ),
    "too few prompts to tell": (
        lambda: whether_it_matters(known({"8.1": -0.6, "0.2": 1.0}, error=0.5), ["8.1"], SWAP),
        ["it is not clear that what they write there tells", "No head's output at that word clearly matters",
         "~does not tell", "~0.2"],
    ),
    "inhibition": (
        lambda: inhibition([("20.0", 1.93, 0.8)]),
        ["to the queries of these changes the logit difference by 20.0 -1.930 logits", "with 80 % of their attention"],
    ),
    "it moves": (lambda: moves_along(["S2", "S2", "end"]), [": it moves from S2 to the end"]),
    "it does not move": (lambda: moves_along(["S2", "end", "S1"]), ["~moves"]),
    "paths": (
        lambda: paths_to_answer([("23.3", 3.1), ("29.0", -1.2)], 0.05),
        ["straight to the answer, in logits, come from 23.3 (+3.100) and 29.0 (-1.200).", "~No single"],
    ),
    "no path": (
        lambda: paths_to_answer([], 0.05),
        ["No single path to the answer clearly carries 5.0 % of it.", "~strongest"],
    ),
    "no corrupted prompts": (lambda: no_paths(patched=False), ["so nothing was patched.", "~minutes"]),
    "a large model": (lambda: no_paths(patched=True), ["for a model of this size that takes minutes.", "~corrupted"]),
}  # fmt: skip

SILENT: dict[str, Sentence] = {
    "done by: not clearly done": lambda: done_by(UNSURE, [SUPPRESSOR], ["20.0"]),
    "done by: the wrong name is ahead": lambda: done_by(BEHIND, [SUPPRESSOR], ["20.0"]),
    "a kind: no head has it": lambda: heads_of_kind("name_mover", [SUPPRESSOR, COPIER]),
    "nobody does it: one does": lambda: no_head_does([COPIER, SUPPRESSOR]),
    "backups: none": lambda: backups([]),
    "undecided: none": lambda: undecided(16, []),
    "changed at the end: too little": lambda: changed_at_end(known({"23.3": -0.34, "1.0": 0.1}), SWAP, 16),
    "changed at the end: not sure": lambda: changed_at_end(known({"23.3": -3.2, "1.0": 0.1}, error=2.0), SWAP, 16),
    "where they look: nobody looks much": lambda: where_they_look(
        {"the right name": ("1.0", {"ABBA": 0.5, "BABA": 0})}
    ),
    "inhibition: none": lambda: inhibition([]),
}


@pytest.mark.parametrize("case", SAID)
def test_what_is_so_is_said(case: str) -> None:
    sentence, parts = SAID[case]
    check_words(sentence(), parts)


@pytest.mark.parametrize("case", SILENT)
def test_what_is_not_so_is_not_said(case: str) -> None:
    assert SILENT[case]() is None
