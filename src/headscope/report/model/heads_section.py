"""The section on the heads that raise entropy most: a table, and each of them where it does so."""

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from headscope.analysis.core.components import component_label
from headscope.analysis.core.stats import Estimate
from headscope.analysis.core.top_places import Position, token_means
from headscope.analysis.heads.scores import MIN_ATTENTION
from headscope.report.blocks import Block, Card, Cell, Prose, Section, Table
from headscope.report.model.findings import Findings, positions_of, types_of
from headscope.report.places import CONTEXT, Head, head_of, place_blocks, share_above
from headscope.report.words import (
    estimate_cell,
    head_cell,
    nats,
    percent,
    percent_cell,
    probability,
    prose,
    say,
    signed,
    spread,
    stand_out,
    those,
    token,
)

__all__ = [
    "came",
    "final_entropy",
    "heads_section",
    "heads_title",
    "highest_tokens",
    "lowest_tokens",
    "nearest_heads",
    "on_average",
]


def heads_section(findings: Findings, n_positions: int) -> Section:
    """A table of the heads that raise entropy most, and a card for each of the notable ones."""
    raising = bool((stand_out(findings.diff, 1) | stand_out(findings.marginal, 1)).any())
    title = heads_title(raising)
    intro = prose(
        "Each text below ends at the framed token, where the head's diff is highest, with up to {n} tokens before it. "
        "Color is the head's diff at every token: blue where it raises entropy, red where it lowers it, on one scale "
        "per head.",
        n=CONTEXT,
    )
    none = map(Prose, those(nearest_heads(raising)))
    cards = (_card(findings, head, n_positions) for head in findings.notable)
    return Section("heads", title, (), (*none, _table(findings), intro, *cards))


def nearest_heads(raising: bool) -> Markup | None:
    """Say that the heads shown do not clearly raise entropy; nothing where some do."""
    return None if raising else say("No head clearly raises entropy on average; these come nearest to it.")


def heads_title(raising: bool) -> str:
    """The section's title, which claims no more than was found."""
    return "The heads that raise entropy most" if raising else "The heads that come nearest to raising entropy"


def _table(findings: Findings) -> Table:
    ranked = findings.means.top(max(10, len(findings.notable)), by="diff")
    heads = sorted(
        dict.fromkeys((*map(head_of, ranked), *findings.notable)), key=lambda head: -float(findings.means.diff[head])
    )
    types = {head: ", ".join(types_of(findings.scores, head)) for head in heads}
    named = any(types.values())
    caption = say(
        "By diff, largest first; ± is one standard error. “Positions raised” is the share of positions where the "
        "head's diff is above zero. The heads linked are shown below: the first by diff and by marginal in turn."
    )
    if named:
        caption += say(
            " A type is named where the head gives it at least {share} of its attention on repeated random tokens.",
            share=percent(MIN_ATTENTION),
        )
    rows = [
        (
            head_cell(component_label(*head), link="head-" if head in findings.notable else None),
            estimate_cell(findings.diff[head]),
            estimate_cell(findings.marginal[head]),
            percent_cell(share_above(findings.entropy.diff[head])),
            *([Cell(types[head], types[head] or None)] if named else []),
        )
        for head in heads
    ]
    columns = ("head", "diff (nats)", "marginal (nats)", "positions raised", *(["type"] if named else []))
    return Table(columns, rows, caption, words=(4,), sorted_by=1)


def _card(findings: Findings, head: Head, n_positions: int) -> Card:
    label, diff = component_label(*head), findings.entropy.diff[head]
    by_token = token_means(diff, findings.tokens)
    blocks: list[Block] = [
        Prose(on_average(findings.diff[head], findings.marginal[head], share_above(diff))),
    ]
    told = [(findings.texts[each.token], each.mean, each.count) for each in by_token]
    blocks += map(Prose, those(highest_tokens(told), lowest_tokens(told)))
    blocks += place_blocks(
        findings.strings,
        diff,
        positions_of(findings.entropy, head, n_positions),
        name=f"entropy diff of {label}",
        says=lambda place: say("(diff) at {token}", token=token(findings.strings[place.row][place.pos])),
        then=lambda place: [_outcome(findings, head, place)],
    )
    tags = [say("{name} {share}", name=name, share=percent(v)) for name, v in types_of(findings.scores, head).items()]
    return Card(f"head-{label}", f"Head {label}", tags, blocks)


def on_average(diff: Estimate, marginal: Estimate, raised: float) -> Markup:
    """The means of a head.

    Args:
        diff: Its diff.
        marginal: Its marginal.
        raised: Share of the positions where its diff is above zero.
    """
    return say(
        "diff {diff}, marginal {marginal} nats on average; its diff is above zero at {share} of positions.",
        diff=spread(diff),
        marginal=spread(marginal),
        share=percent(raised),
    )


def highest_tokens(by_token: Sequence[tuple[str, float, int]]) -> Markup | None:
    """The tokens with the highest mean diff; nothing if all are below zero.

    Args:
        by_token: Text, mean, and how often it stands here; the highest mean first.
    """
    above = [each for each in by_token[:6] if each[1] > 0]
    if not above:
        return None
    sentence = "Highest mean diff by token, of those that stand here three times or more: {tokens}"
    return say(sentence, tokens=_tokens(above))


def lowest_tokens(by_token: Sequence[tuple[str, float, int]]) -> Markup | None:
    """The tokens with the lowest mean diff, of the same; nothing if all are above zero."""
    below = [each for each in by_token[::-1][:4] if each[1] < 0]
    if not below:
        return None
    sentence = "Lowest mean diff by token, of those that stand here three times or more: {tokens}"
    return say(sentence, tokens=_tokens(below))


def _tokens(means: Iterable[tuple[str, float, int]]) -> Markup:
    told = '{token} {mean} <span class="soft">×{count}</span>'
    return Markup(", ").join(say(told, token=token(text), mean=signed(mean), count=n) for text, mean, n in means)


def _outcome(findings: Findings, head: Head, place: Position) -> Prose:
    """The next token with its probability and the model's choices, unless the text ends; and the final entropy."""
    row, pos, words = place.row, place.pos, Markup("")
    predictions = findings.predictions if findings.has("loss") else None
    if predictions and pos < predictions.loss.shape[1] and not bool(predictions.loss[row, pos].isnan()):
        top = zip(predictions.top_tokens[row, pos].tolist(), predictions.top_probs[row, pos].tolist(), strict=True)
        words = came(
            findings.strings[row][pos + 1],
            math.exp(-float(predictions.loss[row, pos])),
            int(predictions.rank[row, pos]),
            [(findings.texts[token], chance) for token, chance in top],
        )
    final = float(findings.entropy.resid[-1, row, pos])
    words += final_entropy(final, float(findings.entropy.marginal[head][row, pos]))
    return Prose(words, soft=True)


def final_entropy(final: float, marginal: float) -> Markup:
    """The entropy of a final prediction, and without a head.

    Args:
        final: With the head.
        marginal: That less the entropy without it.
    """
    sentence = "Final entropy {final} nats; without the head (marginal) {without}."
    return say(sentence, final=nats(final), without=nats(final - marginal))


def came(next_token: str, chance: float, rank: int, choices: Sequence[tuple[str, float]]) -> Markup:
    """The token that came, with its probability and rank, and the model's choices where they are others too."""
    if rank == 0:
        sentence, others, called = "Then came {token}, the model's first choice ({chance}). ", choices[1:], "Its next: "
    else:
        sentence, others, called = "Then came {token} ({chance}), choice {rank:,}. ", choices, "The model's first: "
    first = say(sentence, token=token(next_token), chance=probability(chance), rank=rank + 1)
    told = Markup(", ").join(say("{token} {chance}", token=token(text), chance=probability(p)) for text, p in others)
    return first + (say("{called}{told}. ", called=called, told=told) if others else "")
