"""The sections of a page that compares two models."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from torch import Tensor

from headscope.analysis.core.result import component_label
from headscope.analysis.core.stats import Estimate, Estimates, difference, estimate
from headscope.analysis.core.top_places import Position, top_positions
from headscope.analysis.heads.scores import MIN_ATTENTION
from headscope.report.blocks import Block, Card, Cell, Column, FactList, Figure, Row, Section, Table
from headscope.report.comparison.compared import Compared
from headscope.report.model.findings import KINDS, Findings, strongest
from headscope.report.model.model_section import glossary
from headscope.report.places import place_view, where, widest
from headscope.report.words import (
    captioned,
    count,
    estimate_cell,
    head_cell,
    leaders,
    listed,
    percent,
    percent_cell,
    prose,
    say,
    signed,
    spread,
    token,
)
from headscope.views.figures.comparison import compared_lines, compared_maps

__all__ = [
    "compared_ablation_section",
    "compared_head_section",
    "compared_kinds_section",
    "compared_layer_section",
    "compared_loss_section",
    "compared_models_section",
]

_PLACES = 4
_LISTED = 10
_WINDOW = 9
_LINE_COLORS = "Blue and solid is the first model, orange and dashed the second."


def compared_models_section(both: Compared) -> Section:
    """The two models, and the text each read."""
    models = tuple(FactList(name, side.facts) for name, side in zip(both.names, both.sides, strict=True))
    n_rows, width = both.first.tokens.shape
    sequences = f"{n_rows:,} of {width:,} tokens, the same for both"
    if not both.paired:
        shapes = [" of ".join(f"{n:,}" for n in side.tokens.shape) for side in both.sides]
        sequences = f"{shapes[0]} tokens, and {shapes[1]}: the two cut the text into different tokens"
    data = FactList("Data", (("Text", both.first.means.info.data), ("Sequences", sequences)))
    return Section("models", "The two models", (), (Row(models), data, glossary()))


# Loss


def compared_loss_section(both: Compared) -> Section:
    """The losses of both, by position in a sequence, and the tokens where they differ most."""
    losses = [side.predictions.loss for side in both.sides]
    curves = {
        name: (list(range(1, loss.shape[1] + 1)), _smooth(loss)) for name, loss in zip(both.names, losses, strict=True)
    }
    figure = captioned(
        compared_lines(
            curves,
            title="Loss by position",
            data=both.first.means.info.data,
            x="position of the predicted token",
            y="loss (nats)",
        ),
        "The mean loss at each position of a sequence, for both models; lower is better.",
        "Loss is minus the log-probability of the token that came, averaged over the sequences and over {n} "
        "neighboring positions.",
        _LINE_COLORS,
        n=_WINDOW,
    )
    rows = tuple(
        (
            Cell(name, at),
            estimate_cell(estimate(side.predictions.loss), sign=False),
            estimate_cell(_per_byte(side), sign=False),
            percent_cell(_first_choice(side)),
        )
        for at, (name, side) in enumerate(zip(both.names, both.sides, strict=True))
    )
    columns = ("loss (nats per token)", "loss (nats per byte of text)", "first choice right")
    table = Table(
        (Column("model", words=True), *map(Column, columns)),
        rows,
        say("Means with one standard error. Per byte, models that cut the text into different tokens can be compared."),
    )
    blocks: list[Block] = [table, figure]
    if both.paired:
        blocks += _places(both)
    return Section("loss", "Loss", (_loss_summary(both),), tuple(blocks))


def _loss_summary(both: Compared) -> Markup:
    if both.paired:
        gap = both.gap(both.first.predictions.loss, both.second.predictions.loss)
        unit, how = "nats per token", say("token by token over {n}", n=count(gap.n, "prediction"))
    else:
        gap = difference(_per_byte(both.second), _per_byte(both.first))
        unit, how = "nats per byte", say("over {n}", n=count(gap.n, "prediction"))
    if not gap.clear():
        sentence = "Neither model clearly predicts this text better: the loss differs by {gap} {unit}, {how}."
        return say(sentence, gap=spread(gap), unit=unit, how=how)
    better, worse = both.names if gap.value > 0 else reversed(both.names)
    better_by = dataclasses.replace(gap, value=abs(gap.value))
    return say(
        "<b>{better}</b> predicts this text better than {worse}: its loss is lower by <b>{gap}</b> {unit}, {how}.",
        better=better,
        worse=worse,
        gap=spread(better_by, sign=False),
        unit=unit,
        how=how,
    )


def _smooth(loss: Tensor) -> list[float]:
    """Mean at each position, over the sequences and the neighboring positions."""
    reach = _WINDOW // 2
    width = loss.shape[1]
    return [float(loss[:, max(0, at - reach) : at + reach + 1].double().nanmean()) for at in range(width)]


def _first_choice(side: Findings) -> float:
    ranks = side.predictions.rank[~side.predictions.loss.isnan()]
    return float((ranks == 0).double().mean())


def _per_byte(side: Findings) -> Estimate:
    """The loss in nats per byte of the predicted text, its tokens' error carried over."""
    loss = estimate(side.predictions.loss)
    known = (~side.predictions.loss.isnan()).tolist()
    n_bytes = sum(
        len(string.encode("utf-8", "replace"))
        for strings, row in zip(side.strings, known, strict=True)
        for string, counts in zip(strings[1:], row, strict=False)
        if counts
    )
    scale = loss.n / max(1, n_bytes)
    return dataclasses.replace(loss, value=loss.value * scale, error=loss.error * scale)


def _places(both: Compared) -> list[Block]:
    """The tokens where the two differ most, each way."""
    gap = both.second.predictions.loss - both.first.predictions.loss
    cards: list[Block] = []
    for number, largest in ((1, False), (0, True)):
        places = [
            place
            for place in top_positions(gap, _PLACES, largest=largest, apart=5)
            if place.value and (place.value > 0) == largest
        ]
        blocks: list[Block] = []
        for place in places:
            blocks.append(_place_words(both, place))
            view = place_view(both.first.strings, gap, place, name="loss difference", limit=widest(places))
            blocks.append(view)
        if places:
            cards.append(Card(f"better-{number}", f"Where {both.names[number]} is better by most", (), tuple(blocks)))
    if not cards:
        return []
    note = (
        "Each text below ends at the framed token, from which the next one is predicted. Color is the loss of the "
        "next token under the second model less that under the first: blue where {first} predicts it better, red where "
        "{second} does."
    )
    return [prose(note, first=both.names[0], second=both.names[1]), *cards]


def _place_words(both: Compared, place: Position) -> Block:
    first, second = (math.exp(-float(side.predictions.loss[place.row, place.pos])) for side in both.sides)
    return prose(
        "<b>{gap} nats</b> for {token}: {first} under {a}, {second} under {b} {where}",
        gap=signed(place.value),
        token=token(both.first.strings[place.row][place.pos + 1]),
        first=percent(first),
        second=percent(second),
        a=both.names[0],
        b=both.names[1],
        where=where(place),
    )


# Entropy


def compared_layer_section(both: Compared) -> Section:
    """Entropy along the two residual streams."""
    same = both.first.entropy.state_labels == both.second.entropy.state_labels
    curves: dict[str, tuple[Sequence[Any], Sequence[float]]] = {}
    for name, side in zip(both.names, both.sides, strict=True):
        values = side.means.resid.double().tolist()
        depth = [at / (len(values) - 1) for at in range(len(values))]
        curves[name] = (list(side.entropy.state_labels) if same else depth, values)
    figure = captioned(
        compared_lines(
            curves,
            title="Entropy along the residual stream",
            data=both.first.means.info.data,
            x="state" if same else "share of the way through the layers",
            y="entropy (nats)",
        ),
        "Entropy of each model's prediction at each state of its residual stream; lower is more certain.",
        "Each state is read by the model's own final norm and unembedding (the logit lens), and its entropy "
        "averaged over positions.",
        _LINE_COLORS,
    )
    gap = both.gap(both.first.entropy.resid[-1], both.second.entropy.resid[-1])
    first, second = (spread(estimate(side.entropy.resid[-1]), sign=False) for side in both.sides)
    summary = say(
        "The entropy of the final prediction is {clearly} different: {first} nats for {a}, {second} for {b} ({gap}).",
        clearly="clearly" if gap.clear() else "not clearly",
        first=first,
        second=second,
        a=both.names[0],
        b=both.names[1],
        gap=spread(gap),
    )
    return Section("layers", "Entropy per layer", (summary,), (figure,))


def compared_head_section(both: Compared) -> Section:
    """Effect of each head on the entropy, in both models."""
    blocks: list[Block] = []
    summary: list[Markup] = []
    for by, what in (
        ("diff", "how the entropy of the stream changes where the head writes"),
        ("marginal", "how the entropy of the final prediction would differ without the head"),
    ):
        first, second = (getattr(side, by) for side in both.sides)
        how = f"{by}: {what}; a mean over positions, in nats."
        colors = "Blue raises entropy, red lowers it, no color is no change. All panels share one scale."
        blocks.append(_maps(both, first, second, f"Entropy {by} of each head", how, colors))
        blocks.append(_head_table(both, first, second, f"{by} (nats)"))
        summary += _heads_that_differ(both, first, second, f"entropy {by}")
    return Section("by-head", "Entropy per head", tuple(summary), tuple(blocks))


def compared_ablation_section(both: Compared) -> Section | None:
    """The loss without each head, in both models; `None` if it was not measured in both."""
    if any(side.ablation is None for side in both.sides):
        return None
    first, second = (side.loss_without("patched") for side in both.sides)
    how = (
        "One head at a time is replaced by its mean output and everything after it is recomputed; loss difference, "
        f"ablated minus original, in nats, averaged over {count(min(first.n, second.n), 'prediction')}."
    )
    colors = "Blue: the head helps, the loss rises without it; red: it costs. All panels share one scale."
    figure = _maps(both, first, second, "Loss difference when ablated", how, colors)
    most = listed(
        say("in {name}, {heads}", name=name, heads=leaders(each))
        for name, each in zip(both.names, (first, second), strict=True)
        if bool(each.clear(1).flatten()[each.values.argmax()])
    )
    summary = [say("Missed most when replaced by its mean: {most}.", most=most)] if most else []
    summary += _heads_that_differ(both, first, second, "ablation effect")
    table = _head_table(both, first, second, "loss difference (nats)")
    return Section("ablation", "What breaks without each head", tuple(summary), (figure, table))


# Shared by what is measured of each head


def _maps(both: Compared, first: Estimates, second: Estimates, title: str, how: str, colors: str) -> Figure:
    maps = dict(zip(both.names, (first.values, second.values), strict=True))
    shows = "Every head of both models, layers down and heads across"
    shows += ", and the second less the first." if both.one_shape else "; where one has no such head, nothing is drawn."
    drawing = compared_maps(maps, title=title, data=both.first.means.info.data, unit="nats")
    return captioned(drawing, shows, how, colors)


def _largest(each: Estimates, n: int) -> list[tuple[int, int]]:
    """The heads with the largest effects either way, the largest first."""
    order = each.values.abs().flatten().argsort(descending=True, stable=True).tolist()[:n]
    return [divmod(index, each.values.shape[1]) for index in order]


def _head_table(both: Compared, first: Estimates, second: Estimates, what: str) -> Table:
    """The heads that differ most; of models of different shapes, the strongest of each."""
    if both.one_shape:
        gaps = both.gaps(first, second)
        rows = tuple(
            (head_cell(component_label(*at)), *(estimate_cell(each[at]) for each in (first, second, gaps)))
            for at in _largest(gaps, _LISTED)
        )
        columns = (Column("head"), *map(Column, both.names), Column("difference"))
        text = say("The heads that differ most, by {what}, with one standard error.", what=what)
        return Table(columns, rows, text)
    rows = tuple(
        (Cell(name, number), head_cell(component_label(*at)), estimate_cell(each[at]))
        for number, (name, each) in enumerate(zip(both.names, (first, second), strict=True))
        for at in _largest(each, _LISTED // 2)
    )
    columns = (Column("model", words=True), Column("head"), Column(what))
    return Table(columns, rows, say("The heads with the largest effect in each model, with one standard error."))


def _heads_that_differ(both: Compared, first: Estimates, second: Estimates, what: str) -> list[Markup]:
    """The heads that differ, for models of one shape; for others the clearest of each."""
    if not both.one_shape:
        heads = listed(
            say("{heads} in {name}", name=name, heads=leaders(each))
            for name, each in zip(both.names, (first, second), strict=True)
            if bool(each.clear(1).any())
        )
        return [say("The largest {what}: {heads}.", what=what, heads=heads)] if heads else []
    gaps = both.gaps(first, second)
    clear, n = gaps.clear(), gaps.values.numel()
    k = int(clear.sum())
    if k == 0:
        return [say("By {what}, none of {n} clearly differs.", what=what, n=count(n, "head"))]
    at = divmod(int(gaps.values.abs().masked_fill(~clear, -1.0).argmax()), gaps.values.shape[1])
    return [
        say(
            "By {what}, {k} of {n} clearly differ{s}, head <b>{label}</b> most ({a} in {first}, {b} in {second}).",
            what=what,
            k=k,
            n=count(n, "head"),
            s="s" if k == 1 else "",
            label=component_label(*at),
            a=signed(first[at].value),
            b=signed(second[at].value),
            first=both.names[0],
            second=both.names[1],
        )
    ]


# Kinds of head


def compared_kinds_section(both: Compared) -> Section | None:
    """The heads of each kind in both; `None` if it was not measured in both."""
    first, second = (side.scores for side in both.sides)
    if first is None or second is None:
        return None
    best = [{name: ranking[0] for name, ranking in strongest(each, 1)} for each in (first, second)]
    figures: list[Block] = []
    sentences: list[Markup] = []
    rows: list[tuple[Cell, ...]] = []
    for kind, name in KINDS.items():
        if any(name not in each for each in best):
            continue
        maps = dict(zip(both.names, (getattr(first, kind), getattr(second, kind)), strict=True))
        title = f"{name[0].upper()}{name[1:]} score"
        drawing = compared_maps(maps, title=title, data=first.info.data, unit="score", limit=1.0)
        figures.append(
            captioned(
                drawing,
                f"The {name} score of each head, in both models.",
                "The share of its attention that goes where the kind says, on repeated random tokens.",
                "No color is none of it, the strongest blue all of it; of the difference, red is below zero.",
            )
        )
        scores = [each[name] for each in best]
        cells = (Cell(say("{l} ({p})", l=score.label, p=percent(score.value)), score.value) for score in scores)
        rows.append((Cell(name, len(rows)), *cells))
        labels = [score.label if score.value >= MIN_ATTENTION else "none" for score in scores]
        if labels != ["none", "none"]:
            sentences.append(say("{name} {a} and {b}", name=name, a=labels[0], b=labels[1]))
    if not rows:
        return None
    table = Table(
        (Column("kind", words=True), *map(Column, both.names)),
        tuple(rows),
        say("The strongest head of each kind, and how much of its attention it gives to it."),
    )
    summary = say(
        "The strongest heads that clearly are of their kind, in {first} and in {second}: {parts}.",
        first=both.names[0],
        second=both.names[1],
        parts=Markup("; ").join(sentences),
    )
    return Section("kinds", "Kinds of head", (summary,) if sentences else (), (table, *figures))
