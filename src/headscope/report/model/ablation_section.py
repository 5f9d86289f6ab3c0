"""The section on ablation: the loss without each head."""

import math

from markupsafe import Markup
from torch import Tensor

from headscope.analysis.core.result import component_label
from headscope.analysis.core.stats import Estimate, Estimates
from headscope.analysis.core.top_places import Position, top_positions
from headscope.report.blocks import Block, Card, Column, Figure, Heading, Section, Table
from headscope.report.model.findings import Findings
from headscope.report.places import place_view, share_above, where, widest
from headscope.report.words import (
    captioned,
    count,
    estimate_cell,
    head_cell,
    leaders,
    nats,
    percent,
    percent_cell,
    prose,
    say,
    signed,
    spread,
    token,
)
from headscope.views.figures.ablation import ablation_by_head, ablation_on_text

__all__ = ["ablation_section"]

_PLACES = 3
_IN_TEXT = 8

Head = tuple[int, int]


def ablation_section(findings: Findings) -> Section | None:
    """Words, a table and places; `None` if nothing was ablated."""
    if findings.ablation is None:
        return None
    patched, direct = (findings.loss_without(effect) for effect in ("patched", "direct"))
    # The head whose direct effect helps most, and the one whose direct effect costs most, or helps least.
    order = _in_order(direct)
    looked_at = ((order[0], True), (order[-1], False))[: len(order)]
    cards = tuple(_card(findings, at, direct[at], direct.each[at], largest) for at, largest in looked_at)
    intro = prose(
        "One head at a time is replaced by its mean output (or, where it says so, by zero), and the loss of every next "
        "token is measured again, on {n} (mean loss {loss} nats). <b>patched</b>: everything after the head is "
        "recomputed without it. <b>direct</b>: only the final residual stream changes, as if no later layer had read "
        "the head.",
        n=count(patched.n, "prediction"),
        loss=nats(float(findings.ablation.mean().loss)),
    )
    by_head, on_text = _figures(findings, patched.n)
    table = _table(patched, direct, {card.id for card in cards})
    blocks: tuple[Block, ...] = (intro, by_head, table, Heading("On the text"), on_text, *cards)
    return Section("ablation", "What breaks without each head", (_summary(patched),), blocks)


def _summary(patched: Estimates) -> Markup:
    """The heads that are missed, and those that are not, as far as can be told."""
    n = patched.values.numel()
    helping, costing = (int(patched.clear(sign).sum()) for sign in (1, -1))
    if not helping and not costing:
        sentence = (
            "With one head at a time replaced by its mean, the loss changes clearly for none of {n} (on {positions})."
        )
        return say(sentence, n=count(n, "head"), positions=count(patched.n, "prediction"))
    parts = []
    if helping:
        parts.append(say("{heads} is missed most", heads=leaders(patched, of="loss ")))
    if costing:
        heads = leaders(patched, largest=False, of="loss ")
        parts.append(say("without {heads} the model would do better", heads=heads))
    return say(
        "With one head at a time replaced by its mean and everything after it recomputed, {parts}. Of {n}, {helping} "
        "clearly help{s} and {costing} clearly cost{t}.",
        parts=Markup(", and ").join(parts),
        n=count(n, "head"),
        helping=helping or "none",
        s="" if helping > 1 else "s",
        costing=costing or "none",
        t="" if costing > 1 else "s",
    )


def _figures(findings: Findings, n: int) -> tuple[Figure, Figure]:
    assert findings.ablation is not None
    by_head = captioned(
        ablation_by_head(findings.ablation),
        "Mean loss difference of each head, layers down and heads across. Where patched is large and direct is "
        "not, later layers build on what the head writes.",
        "The difference is ablated minus original loss, in nats, averaged over {n}.",
        "Blue: the head helps, the loss rises without it; red: it costs, the loss falls without it; no color: no "
        "change. Each panel has its own scale.",
        n=count(n, "prediction"),
    )
    on_text = captioned(
        ablation_on_text(findings.ablation, k=_IN_TEXT),
        "The effect of ablating a head on each token's own loss. Choose the sequence, the way of ablating, and "
        "among the heads that matter most.",
        "The difference is ablated minus original loss, in nats, of that token, predicted from those before it.",
        "Blue where the head helps to predict the token, red where it hurts. The scale is the same for all, and "
        "cut at the strongest half percent.",
    )
    return by_head, on_text


def _in_order(effects: Estimates) -> list[Head]:
    """The heads, the largest effect first."""
    order = effects.values.flatten().argsort(descending=True, stable=True).tolist()
    return [divmod(index, effects.values.shape[1]) for index in order]


def _table(patched: Estimates, direct: Estimates, cards: set[str]) -> Table:
    rows = []
    for at in _in_order(patched):
        label = component_label(*at)
        link = f"ablated-{label}" if f"ablated-{label}" in cards else None
        effects = (estimate_cell(patched[at]), estimate_cell(direct[at]))
        rows.append((head_cell(label, link=link), *effects, percent_cell(share_above(patched.each[at]))))
    return Table(
        (Column("head"), Column("patched (nats)"), Column("direct (nats)"), Column("helps at")),
        tuple(rows),
        say(
            "Every head, by the patched effect, with one standard error; “helps at” is the share of tokens whose loss "
            "rises without it (patched)."
        ),
        sorted_by=1,
    )


def _card(findings: Findings, at: Head, direct: Estimate, values: Tensor, largest: bool) -> Card:
    label = component_label(*at)
    places = top_positions(values, _PLACES, largest=largest, apart=5)
    verdict = "helps most" if largest else "costs most" if direct.value < 0 and direct.clear() else "helps least"
    words = prose(
        "{value} nats on average; it helps at {helps} of positions. Below is where it {does} most: each text ends at "
        "the framed token, from which the next one is predicted. Blue where the head helps, red where it costs.",
        value=spread(direct),
        helps=percent(share_above(values)),
        does="helps" if largest else "costs",
    )
    blocks: list[Block] = [words]
    for place in places:
        name = f"loss difference without {label}"
        blocks.append(_place_words(findings, place))
        blocks.append(place_view(findings.strings, values, place, name=name, limit=widest(places)))
    return Card(f"ablated-{label}", f"Head {label}: its direct effect {verdict}", (), tuple(blocks))


def _place_words(findings: Findings, place: Position) -> Block:
    assert findings.ablation is not None
    loss = float(findings.ablation.loss[place.row, place.pos])
    return prose(
        "<b>{value} nats</b> for {token}: {before} with the head, {after} without it {where}",
        value=signed(place.value),
        token=token(findings.strings[place.row][place.pos + 1]),
        before=percent(math.exp(-loss)),
        after=percent(math.exp(-(loss + place.value))),
        where=where(place),
    )
