"""The report's section on what breaks without each head."""

import math
from dataclasses import dataclass

from markupsafe import Markup

from headscope.analysis.ablation.result import AblationResult
from headscope.analysis.core.stats import Estimates, estimates
from headscope.analysis.core.top_places import Position, top_positions
from headscope.report.blocks import Block, Caption, Card, Column, Figure, Heading, Prose, Section, Table, View
from headscope.report.model.findings import Findings
from headscope.report.model.heads_section import CONTEXT, share_above
from headscope.report.words import count, head_cell, listed, nats, number_cell, percent, say, signed, spread, token
from headscope.views.figures.ablation import ablation_by_head, ablation_on_text
from headscope.views.tokens import colored_tokens

__all__ = ["ablation_section", "ablation_summary"]

_PLACES = 3
_IN_TEXT = 8


@dataclass(frozen=True)
class _Measured:
    """An ablation of every head, with the errors of its two effects."""

    result: AblationResult
    patched: Estimates
    direct: Estimates

    @classmethod
    def of(cls, result: AblationResult) -> "_Measured":
        values = result.loss_diff[0]  # of the first way: the mean is put in place
        effects = (estimates(values[result.effects.index(effect)]) for effect in ("patched", "direct"))
        return cls(result, *effects)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.result.component_labels


def ablation_section(found: Findings) -> Section | None:
    """Words, a table and places; `None` if nothing was ablated."""
    if found.ablation is None:
        return None
    measured = _Measured.of(found.ablation)
    cards = tuple(_card(found, measured, at, largest) for at, largest in _looked_at(measured))
    intro = say(
        "One head at a time gives way to its mean output (or, where it says so, to zero), and the loss of every next "
        "token is measured again, on {n} (mean loss {loss} nats). <b>patched</b>: everything after the head is "
        "computed again without it. <b>direct</b>: only the final residual stream changes, as if no later layer had "
        "read the head.",
        n=count(measured.patched.n, "prediction"),
        loss=nats(float(measured.result.mean().loss)),
    )
    figures = _figures(measured)
    return Section(
        "ablation",
        "What breaks without each head",
        ablation_summary(measured.result),
        (Prose(intro), figures[0], _table(measured, {card.id for card in cards}), Heading("On the text"), figures[1])
        + cards,
    )


def ablation_summary(result: AblationResult) -> tuple[Markup, ...]:
    """Which heads are missed, and which are not, as far as can be told."""
    measured = _Measured.of(result)
    patched, n = measured.patched, len(result.component_labels)
    helping, costing = (int(patched.clear(sign).sum()) for sign in (1, -1))
    if not helping and not costing:
        sentence = (
            "With one head at a time replaced by its mean, the loss changes clearly for none of {n} (on {positions})."
        )
        return (say(sentence, n=count(n, "head"), positions=count(patched.n, "prediction")),)
    parts = []
    if helping:
        parts.append(say("{heads} is missed most", heads=_extreme(measured, largest=True)))
    if costing:
        parts.append(say("without {heads} the model would do better", heads=_extreme(measured, largest=False)))
    counts = say(
        "Of {n}, {helping} clearly help and {costing} clearly cost{s}.",
        n=count(n, "head"),
        helping=helping,
        costing=costing or "none",
        s="" if costing > 1 else "s",
    )
    return (
        say(
            "With one head at a time replaced by its mean and everything after it computed again, {parts}. {counts}",
            parts=Markup(", and ").join(parts),
            counts=counts,
        ),
    )


def _extreme(measured: _Measured, *, largest: bool) -> Markup:
    best, *close = measured.patched.as_good(largest=largest)
    named = say("head <b>{label}</b>", label=measured.labels[best])
    if close:
        named += say(" (hardly to be told from {rivals})", rivals=listed(measured.labels[at] for at in close[:3]))
    return named + say(" (loss {value} nats)", value=spread(measured.patched[best]))


def _figures(measured: _Measured) -> tuple[Figure, Figure]:
    way = "The difference is ablated minus original loss, in nats"
    by_head = Figure(
        ablation_by_head(measured.result),
        Caption(
            say(
                "Mean loss difference of each head, layers down and heads across. Where patched is large and direct is "
                "not, later layers build on what the head writes."
            ),
            say("{way}, averaged over {n}.", way=way, n=count(measured.patched.n, "prediction")),
            say(
                "Blue: the head helps, the loss rises without it; red: it costs, the loss falls without it; no "
                "colour: no change. Each panel has its own scale."
            ),
        ),
    )
    on_text = Figure(
        ablation_on_text(measured.result, k=_IN_TEXT),
        Caption(
            say(
                "What ablating a head does to each token's own loss. Choose the sequence, the way of ablating, and "
                "among the heads that matter most."
            ),
            say("{way}, of that token, predicted from those before it.", way=way),
            say(
                "Blue where the head helps to predict the token, red where it hurts. The scale is the same for all; "
                "its ends are cut at the strongest half percent."
            ),
        ),
    )
    return by_head, on_text


def _table(measured: _Measured, cards: set[str]) -> Table:
    order = measured.patched.values.argsort(descending=True, stable=True).tolist()

    def link(label: str) -> str | None:
        return f"ablated-{label}" if f"ablated-{label}" in cards else None

    return Table(
        (Column("head"), Column("patched (nats)"), Column("direct (nats)"), Column("helps at")),
        tuple(
            (
                head_cell(measured.labels[at], link=link(measured.labels[at])),
                number_cell(measured.patched[at].value, spread(measured.patched[at])),
                number_cell(measured.direct[at].value, spread(measured.direct[at])),
                number_cell(helps := share_above(measured.patched.each[at]), percent(helps)),
            )
            for at in order
        ),
        say(
            "Every head, by the patched effect, with one standard error; “helps at” is the share of tokens whose loss "
            "rises without it (patched)."
        ),
        sorted_by=1,
    )


def _looked_at(measured: _Measured) -> list[tuple[int, bool]]:
    """The head whose direct effect helps most, and the one whose direct effect costs most, or helps least."""
    order = measured.direct.values.argsort(descending=True, stable=True).tolist()
    return [(order[0], True), (order[-1], False)] if len(order) > 1 else [(order[0], True)]


def _card(found: Findings, measured: _Measured, at: int, largest: bool) -> Card:
    label, direct = measured.labels[at], measured.direct[at]
    values = measured.direct.each[at]
    places = top_positions(values, _PLACES, largest=largest, apart=5)
    widest = max((abs(place.value) for place in places), default=1.0) or 1.0
    verdict = "helps most" if largest else "costs most" if direct.value < 0 and direct.clear() else "helps least"
    words = say(
        "{value} nats on average; it helps at {helps} of positions. Below is where it {does} most: each text ends at "
        "the framed token, from which the next one is predicted. Blue where the head helps, red where it costs.",
        value=spread(direct),
        helps=percent(share_above(values)),
        does="helps" if largest else "costs",
    )
    blocks: list[Block] = [Prose(words)]
    for place in places:
        blocks += _place(found, measured, at, place, widest)
    return Card(f"ablated-{label}", f"Head {label}: its direct effect {verdict}", (), tuple(blocks))


def _place(found: Findings, measured: _Measured, at: int, place: Position, widest: float) -> list[Block]:
    window, strings = place.context(CONTEXT), found.strings[place.row]
    loss = float(measured.result.loss[place.row, place.pos])
    text = colored_tokens(
        [strings[pos] for pos in window],
        measured.direct.each[at][place.row, window.start : window.stop],
        name=f"loss difference without {measured.labels[at]}",
        unit="nats",
        min_value=-widest,
        max_value=widest,
        marked=[len(window) - 1],
        first_position=window.start,
        legend=False,
    )
    words = say(
        "<b>{value} nats</b> for {token}: {before} with the head, {after} without it "
        '<span class="soft">sequence {row}, position {pos}</span>',
        value=signed(place.value),
        token=token(strings[place.pos + 1]),
        before=percent(math.exp(-loss)),
        after=percent(math.exp(-(loss + place.value))),
        row=place.row,
        pos=place.pos,
    )
    return [Prose(words), View(text)]
