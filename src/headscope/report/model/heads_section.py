"""The section on the heads that raise entropy most: a table, and each of them where it does so."""

import math
from collections.abc import Iterable

from markupsafe import Markup
from torch import Tensor

from headscope.analysis.core.result import HeadScore
from headscope.analysis.core.top_places import Position, TokenMean, token_means
from headscope.report.blocks import Block, Card, Cell, Column, Prose, Section, Table, View
from headscope.report.model.findings import KIND_SCORE, Findings, kinds_of, positions_of, token_string
from headscope.report.words import head_cell, nats, number_cell, percent, say, signed, spread, token
from headscope.views.tokens import colored_tokens

__all__ = ["CONTEXT", "heads_section", "share_above"]

CONTEXT = 20


def heads_section(found: Findings, heads: tuple[HeadScore, ...], n_positions: int) -> Section:
    """A table of the heads that raise entropy most, and a card for each that is looked at closely."""
    intro = say(
        "Each text below ends at the framed token, where the head raises entropy, with up to {n} tokens before it. "
        "Colour is the head's diff at every token: blue where it raises entropy, red where it lowers it, on one scale "
        "per head.",
        n=CONTEXT,
    )
    if not bool((found.diff.clear(1) | found.marginal.clear(1)).any()):
        intro = say("No head clearly raises entropy on average; these come nearest to it. ") + intro
    cards = tuple(_card(found, score, n_positions) for score in heads)
    return Section(
        "heads",
        "The heads that raise entropy most",
        (),
        (_table(found, heads), Prose(intro), *cards),
    )


def _table(found: Findings, heads: tuple[HeadScore, ...]) -> Table:
    chosen = {(score.layer, score.head) for score in heads}
    rows = found.means.top(max(10, len(heads)), by="diff")
    listed = {(score.layer, score.head) for score in rows}
    scores = sorted((*rows, *(s for s in heads if (s.layer, s.head) not in listed)), key=lambda s: -s.value)
    named = any(kinds_of(found.scores, score) for score in scores)
    columns = [Column("head"), Column("diff (nats)"), Column("marginal (nats)"), Column("positions raised")]
    caption = say(
        "By diff, largest first; ± is one standard error. “Positions raised” is the share of positions where the "
        "head's diff is above zero. The heads linked are looked at below; they are the first by diff and by marginal "
        "in turn."
    )
    if named:
        columns.append(Column("kind", words=True))
        caption += say(
            " A kind is named where the head gives it at least {share} of its attention on repeated random tokens.",
            share=percent(KIND_SCORE),
        )
    return Table(
        tuple(columns),
        tuple(_row(found, score, (score.layer, score.head) in chosen, named) for score in scores),
        caption,
        sorted_by=1,
    )


def _row(found: Findings, score: HeadScore, chosen: bool, named: bool) -> tuple[Cell, ...]:
    at = score.layer, int(score.head or 0)
    diff, marginal = found.diff[at], found.marginal[at]
    share = share_above(found.entropy.diff[at])
    kinds = ", ".join(name for name, _ in kinds_of(found.scores, score))
    return (
        head_cell(score.label, link=f"head-{score.label}" if chosen else None),
        number_cell(diff.value, spread(diff)),
        number_cell(marginal.value, spread(marginal)),
        number_cell(share, percent(share)),
        *((Cell(kinds, kinds or None),) if named else ()),
    )


def share_above(values: Tensor) -> float:
    """The share of what was measured that is above zero."""
    known = values[~values.isnan()]
    return float((known > 0).double().mean())


def _card(found: Findings, score: HeadScore, n_positions: int) -> Card:
    at = score.layer, int(score.head or 0)
    diff = found.entropy.diff[at]
    by_token = token_means(diff, found.tokens)
    positions = positions_of(found, score, n_positions)
    widest = max((abs(position.value) for position in positions), default=1.0) or 1.0
    blocks: list[Block] = [
        Prose(
            say(
                "diff {diff}, marginal {marginal} nats on average; it raises entropy at {share} of positions.",
                diff=spread(found.diff[at]),
                marginal=spread(found.marginal[at]),
                share=percent(share_above(diff)),
            )
        )
    ]
    for word, means in (
        ("Raises", [mean for mean in by_token[:6] if mean.mean > 0]),
        ("Lowers", [mean for mean in by_token[::-1][:4] if mean.mean < 0]),
    ):
        if means:
            blocks.append(Prose(say("{word} it most at: {tokens}", word=word, tokens=_tokens(found, means))))
    for position in positions:
        blocks += _place(found, score, position, diff, widest)
    tags = tuple(say("{name} {share}", name=name, share=percent(v)) for name, v in kinds_of(found.scores, score))
    return Card(f"head-{score.label}", f"Head {score.label}", tags, tuple(blocks))


def _tokens(found: Findings, means: Iterable[TokenMean]) -> Markup:
    def one(mean: TokenMean) -> Markup:
        row, pos = (found.tokens == mean.token).nonzero()[0].tolist()
        return say(
            '{token} {mean} <span class="soft">×{count}</span>',
            token=token(found.strings[row][pos]),
            mean=signed(mean.mean),
            count=mean.count,
        )

    return Markup(", ").join(one(mean) for mean in means)


def _place(found: Findings, score: HeadScore, position: Position, diff: Tensor, widest: float) -> list[Block]:
    """A place where a head raises entropy, in words and as a text, and what came next."""
    row, pos, window = position.row, position.pos, position.context(CONTEXT)
    strings = found.strings[row]
    text = colored_tokens(
        [strings[i] for i in window],
        diff[row, window.start : window.stop],
        name=f"entropy diff of {score.label}",
        unit="nats",
        max_value=widest,
        min_value=-widest,
        marked=[len(window) - 1],
        first_position=window.start,
        legend=False,
    )
    final = float(found.entropy.resid[-1, row, pos])
    without = final - float(found.entropy.marginal[score.layer, score.head, row, pos])
    head = say(
        '<b>{value} nats</b> at {token} <span class="soft">sequence {row}, position {pos}</span>',
        value=signed(position.value),
        token=token(strings[pos]),
        row=row,
        pos=pos,
    )
    tail = say("Final entropy {final} nats; without the head {without}.", final=nats(final), without=nats(without))
    return [Prose(head), View(text), Prose(_next_token(found, row, pos) + tail, soft=True)]


def _next_token(found: Findings, row: int, pos: int) -> Markup:
    """What came next, and what the model thought of it; nothing where nothing came."""
    predictions = found.predictions
    if pos >= predictions.loss.shape[1] or bool(predictions.loss[row, pos].isnan()):
        return Markup("")
    rank = int(predictions.rank[row, pos])
    top = zip(predictions.top_tokens[row, pos].tolist(), predictions.top_probs[row, pos].tolist(), strict=True)
    return say(
        "Then came {token} ({prob}, {rank}). The model's choices: {top}. ",
        token=token(found.strings[row][pos + 1]),
        prob=percent(math.exp(-float(predictions.loss[row, pos]))),
        rank="the model's first choice" if rank == 0 else f"choice {rank + 1:,}",
        top=Markup(", ").join(say("{t} {p}", t=token(token_string(found.model, t)), p=percent(p)) for t, p in top),
    )
