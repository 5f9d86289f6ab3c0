"""The sentence on a circuit at work by itself: numbers that it is said of, and numbers for which it would be false."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from markupsafe import Markup
from sentences import check_words

from headscope.analysis.circuits.faithfulness_result import Faithfulness
from headscope.analysis.core.result import RunInfo
from headscope.report.task.faithful import kept_alone

SCATTER = torch.tensor([1.0, -1.0]).repeat(10)  # of twenty prompts


def circuit(share: float, noise: float = 0.02, **fields: Any) -> Faithfulness:
    """Two heads that keep a share of a difference from -2 to 2 logits, give or take noise on single prompts."""
    whole, nothing = torch.full((20,), 2.0), torch.full((20,), -2.0)
    kept = (nothing + 4 * (share + noise * SCATTER))[None]
    values: dict[str, Any] = {
        "info": RunInfo("m", (), "prompts", 20, 100), "sizes": torch.tensor([2]), "shares": torch.tensor([0.1]),
        "metrics": kept.mean(1), "per_prompt": kept, "random": torch.tensor([[-1.9], [-1.9]]), "whole": whole,
        "nothing": nothing, "ranking": ("0.0", "1.1"), "n_parts": 20, "level": "nodes", "ablation": "patch",
        "has_answers": True,
    }  # fmt: skip
    return Faithfulness(**{**values, **fields})


# A circuit, whether it is said of prompts that the search did not see, and what is said; what begins with "~" is not.
SAID: dict[str, tuple[Callable[[], Markup], list[str]]] = {
    "most of it": (
        lambda: kept_alone(circuit(0.9), held_out=True),
        [
            "With 2 heads alone at work (0.0, 1.1), MLPs as they are",
            "90 % ± 0.5 % of what the swap changes", "+1.600 of +2.000 logits",
            "20 prompts that the search for them did not see",
            "ahead in 100 % of them, where the whole model has 100 %",
            "something is missing from them", "at random keep 2.5 %", "~do more", "~not clearly",
        ],
    ),
    "all of it": (
        lambda: kept_alone(circuit(1.0), held_out=False),
        ["20 prompts that the search for them saw", "do not clearly do less or more", "~missing", "~did not see"],
    ),
    "perhaps all of it": (
        lambda: kept_alone(circuit(0.9, noise=0.6), held_out=True), ["do not clearly do less or more", "~missing"],
    ),
    "more than all": (
        lambda: kept_alone(circuit(1.2), held_out=True),
        ["do more than the whole model", "work against the answer are missing", "~something is"],
    ),
    "nothing": (
        lambda: kept_alone(circuit(0.02, noise=0.5), held_out=True),
        ["not clearly anything: they are not the circuit", "~do not clearly do less", "~something is", "~opposite"],
    ),
    "the opposite": (
        lambda: kept_alone(circuit(-0.3), held_out=True),
        ["By themselves they do the opposite", "~not clearly anything", "~something is"],
    ),
    "with MLPs that do some of it": (
        lambda: kept_alone(circuit(0.9, empty=torch.full((20,), -1.8)), held_out=True),
        ["With no head at work, MLPs alone, 5.0 % is there"],
    ),
    "another metric": (
        lambda: kept_alone(circuit(0.9, random=None, has_answers=False), held_out=True),
        ["~random", "~ahead", "~MLPs alone", "something is missing"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_it_says_what_the_numbers_do(case: str) -> None:
    sentence, parts = SAID[case]
    check_words(sentence(), parts)
