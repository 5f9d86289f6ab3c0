"""Findings of a page that compares two models: functions of numbers, which say nothing where it is not so."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from headscope.analysis.core.components import component_label
from headscope.analysis.core.ranking import HeadScore
from headscope.analysis.core.stats import Estimate, Estimates
from headscope.analysis.heads.scores import MIN_ATTENTION
from headscope.report.places import heads_in_order
from headscope.report.words import (
    SHOWN,
    count,
    leaders,
    listed,
    n_heads,
    percent,
    probability,
    say,
    signed,
    spread,
    stand_out,
    token,
    too_small_to_see,
)

__all__ = [
    "better_model",
    "differing_heads",
    "heads_of_each",
    "less_certain_model",
    "no_head_differs",
    "types_in_both",
    "under_each",
]


def better_model(names: tuple[str, str], gap: Estimate, *, paired: bool) -> Markup:
    """The model that predicts the text better; where none clearly does, how far they may be apart.

    Args:
        names: The two models.
        gap: The loss of the second less that of the first.
        paired: Both were compared token by token; else their losses are per byte.
    """
    unit = "nats per token" if paired else "nats per byte"
    n = say("the same {n}" if paired else "{n}", n=count(gap.n, "prediction"))
    if gap.clear() and abs(gap.value) < SHOWN:
        sentence = "Both models predict this text alike: their losses differ by less than {least} {unit}, over {n}."
        return say(sentence, least=SHOWN, unit=unit, n=n)
    if not gap.clear():
        low, high = gap.interval()
        sentence = (
            "Neither model clearly predicts this text better: the loss of {second} less that of {first} is {gap} "
            "{unit}, over {n}{between}."
        )
        told = " (95 % confidence interval: {low} to {high})" if math.isfinite(high) else ""
        between = say(told, low=signed(low), high=signed(high))
        return say(sentence, first=names[0], second=names[1], gap=spread(gap), unit=unit, n=n, between=between)
    better, worse = names if gap.value > 0 else reversed(names)
    return say(
        "<b>{better}</b> predicts this text better than {worse}: its loss is lower by <b>{gap}</b> {unit}, over {n}.",
        better=better,
        worse=worse,
        gap=spread(dataclasses.replace(gap, value=abs(gap.value)), sign=False),
        unit=unit,
        n=n,
    )


def less_certain_model(names: tuple[str, str], each: tuple[Estimate, Estimate], gap: Estimate) -> Markup | None:
    """The entropy of both final predictions; nothing where it is not clearly different.

    Args:
        names: The two models.
        each: The entropy of each model's final prediction.
        gap: That of the second less that of the first.
    """
    if not gap.clear() or abs(gap.value) < SHOWN:
        return None
    more, less = (1, 0) if gap.value > 0 else (0, 1)
    return say(
        "The final predictions of <b>{more}</b> are less certain: their entropy is {high} nats, and that of {less} "
        "{low} ({gap} between them).",
        more=names[more],
        less=names[less],
        high=spread(each[more], sign=False),
        low=spread(each[less], sign=False),
        gap=spread(dataclasses.replace(gap, value=abs(gap.value)), sign=False),
    )


def heads_of_each(names: tuple[str, str], effects: Sequence[Estimates], sentence: str) -> Markup | None:
    """The head with the largest effect of each model in which one is clearly above zero; nothing if that is none."""
    leading = zip(names, map(leaders, effects), strict=True)
    most = [say("in {name}, {heads}", name=name, heads=heads) for name, heads in leading if heads]
    return say(sentence, most=listed(most)) if most else None


def differing_heads(names: tuple[str, str], effects: Sequence[Estimates], gaps: Estimates, what: str) -> Markup | None:
    """The number of heads that differ, and the clearest; nothing where none does."""
    clear = stand_out(gaps)
    k = int(clear.sum())
    if k == 0:
        return None
    head = heads_in_order(gaps.values.abs().masked_fill(~clear, -1.0))[0]
    return say(
        "By {what}, {k} of {n} clearly differ{s}, head <b>{label}</b> most ({a} in {first}, {b} in {second}, "
        "a difference of {gap}).",
        what=what,
        k=k,
        n=n_heads(gaps),
        s="s" if k == 1 else "",
        label=component_label(*head),
        a=signed(effects[0][head].value),
        b=signed(effects[1][head].value),
        first=names[0],
        second=names[1],
        gap=spread(gaps[head]),
    )


def no_head_differs(gaps: Estimates, what: str) -> Markup | None:
    """Say that no head differs, and how much would have been seen; nothing where one does."""
    if bool(stand_out(gaps).any()):
        return None
    sentence = "By {what}, none of {n} clearly differs.{bound}"
    return say(sentence, what=what, n=n_heads(gaps), bound=too_small_to_see(gaps))


def types_in_both(names: tuple[str, str], found: Mapping[str, tuple[HeadScore, HeadScore]]) -> Markup | None:
    """The strongest head of each type in both models; nothing of a type that a head in neither is clearly of.

    Args:
        names: The two models.
        found: The strongest head of each, by the name of the type.
    """
    parts = []
    for name, scores in found.items():
        told = [
            say("<b>{label}</b> ({share})", label=each.label, share=percent(each.value))
            if each.value >= MIN_ATTENTION
            else "none"
            for each in scores
        ]
        if told != ["none", "none"]:
            sentence = "{name}: {a} in {first}, {b} in {second}"
            parts.append(say(sentence, name=name, a=told[0], b=told[1], first=names[0], second=names[1]))
    if not parts:
        return None
    return say(
        "On repeated random tokens, the strongest heads with {least} or more of their attention to a type: {parts}.",
        least=percent(MIN_ATTENTION),
        parts=Markup("; ").join(parts),
    )


def under_each(names: tuple[str, str], next_token: str, chances: Sequence[float]) -> Markup:
    """The probability of a token under both models."""
    first, second = map(probability, chances)
    sentence = "for {token}: {first} under {a}, {second} under {b}"
    return say(sentence, token=token(next_token), first=first, second=second, a=names[0], b=names[1])
