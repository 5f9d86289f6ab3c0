"""The section on the heads that raise entropy most: a table, and each of them where it does so."""

import math
from collections.abc import Iterable

from markupsafe import Markup

from headscope.analysis.core.result import HeadScore
from headscope.analysis.core.top_places import Position, TokenMean, token_means
from headscope.analysis.heads.scores import MIN_ATTENTION
from headscope.report.blocks import Block, Card, Cell, Column, Prose, Section, Table
from headscope.report.model.findings import Findings, kinds_of, positions_of
from headscope.report.places import CONTEXT, place_view, share_above, where, widest
from headscope.report.words import (
    estimate_cell,
    head_cell,
    nats,
    percent,
    percent_cell,
    prose,
    say,
    signed,
    spread,
    token,
)

__all__ = ["heads_section"]


def heads_section(findings: Findings, n_positions: int) -> Section:
    """A table of the heads that raise entropy most, and a card for each of the notable ones."""
    intro = (
        "Each text below ends at the framed token, where the head raises entropy, with up to {n} tokens before it. "
        "Color is the head's diff at every token: blue where it raises entropy, red where it lowers it, on one scale "
        "per head."
    )
    if not bool((findings.diff.clear(1) | findings.marginal.clear(1)).any()):
        intro = "No head clearly raises entropy on average; these come nearest to it. " + intro
    cards = (_card(findings, score, n_positions) for score in findings.notable)
    title = "The heads that raise entropy most"
    return Section("heads", title, (), (_table(findings), prose(intro, n=CONTEXT), *cards))


def _table(findings: Findings) -> Table:
    heads = findings.notable
    chosen = {(score.layer, score.head) for score in heads}
    rows = findings.means.top(max(10, len(heads)), by="diff")
    listed = {(score.layer, score.head) for score in rows}
    scores = sorted((*rows, *(s for s in heads if (s.layer, s.head) not in listed)), key=lambda s: -s.value)
    named = any(kinds_of(findings.scores, score) for score in scores)
    columns = [Column("head"), Column("diff (nats)"), Column("marginal (nats)"), Column("positions raised")]
    caption = say(
        "By diff, largest first; ± is one standard error. “Positions raised” is the share of positions where the "
        "head's diff is above zero. The heads linked are shown below: the first by diff and by marginal in turn."
    )
    if named:
        columns.append(Column("kind", words=True))
        caption += say(
            " A kind is named where the head gives it at least {share} of its attention on repeated random tokens.",
            share=percent(MIN_ATTENTION),
        )
    cells = tuple(_row(findings, score, (score.layer, score.head) in chosen, named) for score in scores)
    return Table(tuple(columns), cells, caption, sorted_by=1)


def _row(findings: Findings, score: HeadScore, chosen: bool, named: bool) -> tuple[Cell, ...]:
    at = score.layer, int(score.head or 0)
    kinds = ", ".join(name for name, _ in kinds_of(findings.scores, score))
    return (
        head_cell(score.label, link=f"head-{score.label}" if chosen else None),
        estimate_cell(findings.diff[at]),
        estimate_cell(findings.marginal[at]),
        percent_cell(share_above(findings.entropy.diff[at])),
        *((Cell(kinds, kinds or None),) if named else ()),
    )


def _card(findings: Findings, score: HeadScore, n_positions: int) -> Card:
    at = score.layer, int(score.head or 0)
    diff = findings.entropy.diff[at]
    by_token = token_means(diff, findings.tokens)
    places = positions_of(findings.entropy, score, n_positions)
    blocks: list[Block] = [
        prose(
            "diff {diff}, marginal {marginal} nats on average; it raises entropy at {share} of positions.",
            diff=spread(findings.diff[at]),
            marginal=spread(findings.marginal[at]),
            share=percent(share_above(diff)),
        )
    ]
    for word, means in (
        ("Raises", [mean for mean in by_token[:6] if mean.mean > 0]),
        ("Lowers", [mean for mean in by_token[::-1][:4] if mean.mean < 0]),
    ):
        if means:
            blocks.append(prose("{word} it most at: {tokens}", word=word, tokens=_tokens(findings, means)))
    for place in places:
        blocks += _place(findings, score, place, widest(places))
    tags = tuple(say("{name} {share}", name=name, share=percent(v)) for name, v in kinds_of(findings.scores, score))
    return Card(f"head-{score.label}", f"Head {score.label}", tags, tuple(blocks))


def _tokens(findings: Findings, means: Iterable[TokenMean]) -> Markup:
    return Markup(", ").join(
        say(
            '{token} {mean} <span class="soft">×{count}</span>',
            token=token(findings.texts[mean.token]),
            mean=signed(mean.mean),
            count=mean.count,
        )
        for mean in means
    )


def _place(findings: Findings, score: HeadScore, place: Position, limit: float) -> list[Block]:
    """A place where a head raises entropy, in words and as a text, and the next token."""
    row, pos = place.row, place.pos
    at = score.layer, int(score.head or 0)
    final = float(findings.entropy.resid[-1, row, pos])
    without = final - float(findings.entropy.marginal[at][row, pos])
    head = prose(
        "<b>{value} nats</b> at {token} {where}",
        value=signed(place.value),
        token=token(findings.strings[row][pos]),
        where=where(place),
    )
    name = f"entropy diff of {score.label}"
    view = place_view(findings.strings, findings.entropy.diff[at], place, name=name, limit=limit)
    tail = say("Final entropy {final} nats; without the head {without}.", final=nats(final), without=nats(without))
    return [head, view, Prose(_next_token(findings, row, pos) + tail, soft=True)]


def _next_token(findings: Findings, row: int, pos: int) -> Markup:
    """The next token, with its probability and the model's choices; nothing at the end of a text."""
    predictions = findings.predictions
    if pos >= predictions.loss.shape[1] or bool(predictions.loss[row, pos].isnan()):
        return Markup("")
    rank = int(predictions.rank[row, pos])
    top = zip(predictions.top_tokens[row, pos].tolist(), predictions.top_probs[row, pos].tolist(), strict=True)
    return say(
        "Then came {token} ({prob}, {rank}). The model's choices: {top}. ",
        token=token(findings.strings[row][pos + 1]),
        prob=percent(math.exp(-float(predictions.loss[row, pos]))),
        rank="the model's first choice" if rank == 0 else f"choice {rank + 1:,}",
        top=Markup(", ").join(say("{t} {p}", t=token(findings.texts[t]), p=percent(p)) for t, p in top),
    )
