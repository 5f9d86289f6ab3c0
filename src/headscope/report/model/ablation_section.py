"""The section on ablation: the loss without each head."""

import math
from collections.abc import Collection, Sequence

from markupsafe import Markup

from headscope.analysis.core.result import component_label
from headscope.analysis.core.stats import Estimate, Estimates
from headscope.analysis.core.top_places import top_positions
from headscope.report.blocks import Card, Figure, Heading, Prose, Section, Table
from headscope.report.model.findings import Findings
from headscope.report.model.model_section import few_sequences
from headscope.report.places import Head, heads_in_order, place_blocks, share_above
from headscope.report.words import (
    captioned,
    clearly,
    count,
    estimate_cell,
    head_cell,
    leaders,
    n_heads,
    nats,
    percent,
    percent_cell,
    probability,
    prose,
    say,
    spread,
    stand_out,
    those,
    token,
    too_small_to_see,
)
from headscope.views.figures.ablation import ablation_by_head, ablation_on_text

__all__ = ["ablation_section", "missed_heads", "no_head_missed", "where_it_matters", "with_and_without"]

_PLACES = 3
_IN_TEXT = 8


def ablation_section(findings: Findings) -> Section | None:
    """Words, a table and places; `None` if nothing was ablated."""
    if findings.ablation is None:
        return None
    patched, direct = (findings.loss_without(effect) for effect in ("patched", "direct"))
    # The head whose direct effect helps most, and the one whose direct effect costs most, or helps least.
    order = heads_in_order(direct.values)
    looked_at = {order[-1]: False, order[0]: True}
    cards = [_card(findings, head, direct, largest) for head, largest in reversed(looked_at.items())]
    intro = prose(
        "One head at a time is replaced by its mean output (or, where it says so, by zero), and the loss of every next "
        "token is measured again, on {n} (mean loss {loss} nats). <b>patched</b>: everything after the head is "
        "recomputed without it. <b>direct</b>: only the final residual stream changes, as if no later layer had read "
        "the head.",
        n=count(patched.n, "prediction"),
        loss=nats(float(findings.ablation.mean().loss)),
    )
    by_head, on_text = _figures(findings, patched.n)
    table = _table(patched, direct, looked_at)
    said = missed_heads(patched)
    asides = those(no_head_missed(patched), few_sequences(findings.ablation.loss.shape[0]))
    blocks = (intro, *map(Prose, asides), by_head, table, Heading("On the text"), on_text, *cards)
    return Section("ablation", "What breaks without each head", those(said), blocks)


def missed_heads(patched: Estimates) -> Markup | None:
    """The numbers of heads that clearly help and that clearly cost, and the first of each; nothing where none does."""
    helping, costing = (int(stand_out(patched, sign).sum()) for sign in (1, -1))
    if not helping and not costing:
        return None
    most = [
        say(sentence, heads=heads)
        for sentence, heads in (
            ("The loss rises most without {heads}.", leaders(patched)),
            ("It falls most without {heads}.", leaders(patched, largest=False)),
        )
        if heads
    ]
    return say(
        "With one head at a time replaced by its mean and everything after it recomputed, of {n} {helping} and "
        "{costing} (on {positions}). {most}",
        helping=clearly(helping, "help"),
        costing=clearly(costing, "cost"),
        n=n_heads(patched),
        positions=count(patched.n, "prediction"),
        most=Markup(" ").join(most),
    )


def no_head_missed(patched: Estimates) -> Markup | None:
    """Say that the loss changes clearly for no head, and how much would have been seen; nothing where it does."""
    if bool(stand_out(patched).any()):
        return None
    sentence = "By the patched effect, the loss changes clearly for none of {n}.{bound}"
    return say(sentence, n=n_heads(patched), bound=too_small_to_see(patched))


def _figures(findings: Findings, n: int) -> tuple[Figure, Figure]:
    assert findings.ablation is not None
    by_head = captioned(
        ablation_by_head(findings.ablation),
        "Mean loss difference of each head, layers down and heads across. Where patched is large and direct is "
        "not, the head acts through later layers.",
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


def _table(patched: Estimates, direct: Estimates, shown: Collection[Head]) -> Table:
    rows = [
        (
            head_cell(component_label(*head), link="ablated-" if head in shown else None),
            estimate_cell(patched[head]),
            estimate_cell(direct[head]),
            percent_cell(share_above(patched.each[head])),
        )
        for head in heads_in_order(patched.values)
    ]
    caption = say(
        "Every head, by the patched effect, with one standard error; “helps at” is the share of tokens whose loss "
        "rises without it (patched)."
    )
    return Table(("head", "patched (nats)", "direct (nats)", "helps at"), rows, caption, sorted_by=1)


def where_it_matters(direct: Estimate, helps: float, shown: Sequence[float], largest: bool) -> Markup:
    """The direct effect of a head, and if it helps or costs at the places that are shown.

    Args:
        direct: Its mean.
        helps: Share of the positions where it is above zero.
        shown: Its values at the places below.
        largest: They are its largest ones, not its lowest.
    """
    helping, costing = all(value > 0 for value in shown), all(value < 0 for value in shown)
    if largest:
        does = "helps most" if helping else "costs least" if costing else "is largest"
    else:
        does = "costs most" if costing else "helps least" if helping else "is lowest"
    colors = " Blue where the head helps, red where it costs." if any(value != 0 for value in shown) else ""
    return say(
        "{value} nats on average (direct, by the mean); on this text it helps at {helps} of positions. Below is where "
        "it {does}: each text ends at the framed token, from which the next one is predicted." + colors,
        value=spread(direct),
        helps=percent(helps),
        does=does,
    )


def with_and_without(next_token: str, loss: float, rise: float) -> Markup:
    """The probability of a token, with a head and without it.

    Args:
        next_token: Its text.
        loss: With the head.
        rise: The loss without it less that.
    """
    before, after = (probability(math.exp(-each)) for each in (loss, loss + rise))
    sentence = "for {token}: {before} with the head, {after} without it"
    return say(sentence, token=token(next_token), before=before, after=after)


def _card(findings: Findings, head: Head, effects: Estimates, largest: bool) -> Card:
    assert findings.ablation is not None
    label, values, loss = component_label(*head), effects.each[head], findings.ablation.loss
    shown = top_positions(values, _PLACES, largest=largest, apart=5)
    words = Prose(where_it_matters(effects[head], share_above(values), [place.value for place in shown], largest))
    places = place_blocks(
        findings.strings,
        values,
        shown,
        name=f"loss difference without {label}",
        says=lambda place: with_and_without(
            findings.strings[place.row][place.pos + 1], float(loss[place.row, place.pos]), place.value
        ),
    )
    title = f"Head {label}: the {'largest' if largest else 'lowest'} direct effect"
    return Card(f"ablated-{label}", title, (), (words, *places))
