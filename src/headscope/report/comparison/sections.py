"""The sections of a page that compares two models."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from torch import Tensor

from headscope.analysis.core.result import component_label
from headscope.analysis.core.stats import Estimate, Estimates, difference, estimate, estimates
from headscope.analysis.core.top_places import Position, top_positions
from headscope.report.blocks import (
    Block,
    Caption,
    Card,
    Cell,
    Column,
    FactList,
    Figure,
    Prose,
    Row,
    Section,
    Table,
    View,
)
from headscope.report.comparison.compared import Compared
from headscope.report.model.entropy_section import leaders
from headscope.report.model.findings import KIND_SCORE, KINDS, Findings, strongest
from headscope.report.model.model_section import glossary, model_facts
from headscope.report.words import count, head_cell, listed, number_cell, percent, say, signed, spread, token
from headscope.views.figures.comparison import compared_lines, compared_maps
from headscope.views.tokens import colored_tokens

__all__ = [
    "compared_ablation_section",
    "compared_head_section",
    "compared_kinds_section",
    "compared_layer_section",
    "compared_loss_section",
    "compared_models_section",
]

_PLACES = 4
_CONTEXT = 20
_LISTED = 10
_WINDOW = 9


def compared_models_section(both: Compared) -> Section:
    """The two models, and the text each read."""
    models = tuple(
        FactList(name, model_facts(side.model, side.means.info.processing))
        for name, side in zip(both.names, both.sides, strict=True)
    )
    n_rows, width = both.first.tokens.shape
    data: tuple[tuple[Markup | str, Markup | str], ...] = (("Text", both.first.means.info.data),)
    if both.paired:
        data += (("Sequences", f"{n_rows:,} of {width:,} tokens, the same for both"),)
    else:
        shapes = [" of ".join(f"{n:,}" for n in side.tokens.shape) for side in both.sides]
        data += (("Sequences", f"{shapes[0]} tokens, and {shapes[1]}: the two cut the text into different tokens"),)
    return Section("models", "The two models", (), (Row(models), FactList("Data", data), glossary()))


# Loss


def compared_loss_section(both: Compared) -> Section:
    """Which predicts the text better, where in a sequence, and at which tokens."""
    losses = [side.predictions.loss for side in both.sides]
    curves = {
        name: (list(range(1, loss.shape[1] + 1)), _smooth(loss)) for name, loss in zip(both.names, losses, strict=True)
    }
    figure = Figure(
        compared_lines(
            curves,
            title="Loss by position",
            data=both.first.means.info.data,
            x="position of the predicted token",
            y="loss (nats)",
        ),
        Caption(
            say("The mean loss at each position of a sequence, for both models; lower is better."),
            say(
                "Loss is minus the log-probability of the token that came, averaged over the sequences and over {n} "
                "neighbouring positions.",
                n=_WINDOW,
            ),
            say("Blue and solid is the first model, orange and dashed the second."),
        ),
    )
    rows = tuple(
        (
            Cell(name, at),
            number_cell(estimate(loss).value, spread(estimate(loss), sign=False)),
            number_cell(per_byte.value, spread(per_byte, sign=False)),
            number_cell(first := _first_choice(side), percent(first)),
        )
        for at, (name, side, loss, per_byte) in enumerate(
            zip(both.names, both.sides, losses, (_per_byte(side) for side in both.sides), strict=True)
        )
    )
    table = Table(
        (
            Column("model", words=True),
            Column("loss (nats per token)"),
            Column("loss (nats per byte of text)"),
            Column("first choice right"),
        ),
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
    """The mean at each position over the sequences and the neighbouring positions."""
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
    blocks: list[Block] = []
    for name, largest in ((both.names[1], False), (both.names[0], True)):
        places = top_positions(gap, _PLACES, largest=largest, apart=5)
        found = [place for place in places if place.value and (place.value > 0) == largest]
        if not found:
            continue
        widest = max(abs(place.value) for place in found)
        inside = tuple(block for place in found for block in _place(both, gap, place, widest))
        number = both.names.index(name)
        blocks.append(Card(f"better-{number}", f"Where {name} is better most", (), inside))
    if not blocks:
        return []
    note = (
        "Each text below ends at the framed token, from which the next one is predicted. Colour is the loss of the "
        "next token under the second model less that under the first: blue where {first} predicts it better, red where "
        "{second} does."
    )
    return [Prose(say(note, first=both.names[0], second=both.names[1])), *blocks]


def _place(both: Compared, gap: Tensor, place: Position, widest: float) -> list[Block]:
    window, strings = place.context(_CONTEXT), both.first.strings[place.row]
    text = colored_tokens(
        [strings[at] for at in window],
        gap[place.row, window.start : window.stop],
        name="loss difference",
        unit="nats",
        min_value=-widest,
        max_value=widest,
        marked=[len(window) - 1],
        first_position=window.start,
        legend=False,
    )
    first, second = (math.exp(-float(side.predictions.loss[place.row, place.pos])) for side in both.sides)
    words = say(
        "<b>{gap} nats</b> for {token}: {first} under {a}, {second} under {b} "
        '<span class="soft">sequence {row}, position {pos}</span>',
        gap=signed(place.value),
        token=token(strings[place.pos + 1]),
        first=percent(first),
        second=percent(second),
        a=both.names[0],
        b=both.names[1],
        row=place.row,
        pos=place.pos,
    )
    return [Prose(words), View(text)]


# Entropy


def compared_layer_section(both: Compared) -> Section:
    """Entropy along the two residual streams."""
    same = both.first.entropy.state_labels == both.second.entropy.state_labels
    curves: dict[str, tuple[Sequence[Any], Sequence[float]]] = {}
    for name, side in zip(both.names, both.sides, strict=True):
        values = side.means.resid.double().tolist()
        depth = [at / (len(values) - 1) for at in range(len(values))]
        curves[name] = (list(side.entropy.state_labels) if same else depth, values)
    figure = Figure(
        compared_lines(
            curves,
            title="Entropy along the residual stream",
            data=both.first.means.info.data,
            x="state" if same else "share of the way through the layers",
            y="entropy (nats)",
        ),
        Caption(
            say("How certain each model's prediction is at each state of its residual stream; lower is more certain."),
            say(
                "Each state is read by the model's own final norm and unembedding (the logit lens), and its entropy "
                "averaged over positions."
            ),
            say("Blue and solid is the first model, orange and dashed the second."),
        ),
    )
    gap = both.gap(both.first.entropy.resid[-1], both.second.entropy.resid[-1])
    ends = [spread(estimate(side.entropy.resid[-1]), sign=False) for side in both.sides]
    word = "is clearly different" if gap.clear() else "is not clearly different"
    summary = say(
        "The entropy of the final prediction {word}: {a} nats for {first}, {b} for {second} ({gap}).",
        word=word,
        a=ends[0],
        b=ends[1],
        first=both.names[0],
        second=both.names[1],
        gap=spread(gap),
    )
    return Section("layers", "Entropy per layer", (summary,), (figure,))


def compared_head_section(both: Compared) -> Section:
    """What each head does to the entropy, in both models."""
    blocks: list[Block] = []
    summary: list[Markup] = []
    for by, what in (
        ("diff", "how the entropy of the stream changes where the head writes"),
        ("marginal", "how the entropy of the final prediction would differ without the head"),
    ):
        first, second = (getattr(side, by) for side in both.sides)
        how = say("{by}: {what}; a mean over positions, in nats.", by=by, what=what)
        colour = "Blue raises entropy, red lowers it, no colour is no change. All panels share one scale."
        blocks.append(_maps(both, first, second, f"Entropy {by} of each head", how, say(colour)))
        blocks.append(_head_table(both, first, second, f"{by} (nats)"))
        summary += _heads_that_differ(both, first, second, f"entropy {by}")
    return Section("by-head", "Entropy per head", tuple(summary), tuple(blocks))


def compared_ablation_section(both: Compared) -> Section | None:
    """What breaks without each head, in both models; `None` if it was not measured in both."""
    results = [side.ablation for side in both.sides]
    if any(result is None for result in results):
        return None
    first, second = (_patched(side) for side in both.sides)
    how = say(
        "One head at a time gives way to its mean output and everything after it is computed again; loss difference, "
        "ablated minus original, in nats, averaged over {n}.",
        n=count(min(first.n, second.n), "prediction"),
    )
    colour = "Blue: the head helps, the loss rises without it; red: it costs. All panels share one scale."
    figure = _maps(both, first, second, "Loss difference when ablated", how, say(colour))
    most = listed(
        say(
            "in {name}, head <b>{label}</b> ({value})",
            name=name,
            label=component_label(*divmod(best, each.values.shape[1])),
            value=spread(each[divmod(best, each.values.shape[1])]),
        )
        for name, each in zip(both.names, (first, second), strict=True)
        for best in each.as_good()[:1]
        if bool(each.clear(1).flatten()[best])
    )
    summary = [say("Missed most when replaced by its mean: {most}.", most=most)] if most else []
    summary += _heads_that_differ(both, first, second, "ablation effect")
    table = _head_table(both, first, second, "loss difference (nats)")
    return Section("ablation", "What breaks without each head", tuple(summary), (figure, table))


def _patched(side: Findings) -> Estimates:
    result, cfg = side.ablation, side.model.cfg
    assert result is not None
    values = result.loss_diff[0, result.effects.index("patched")]
    return estimates(values.unflatten(0, (cfg.n_layers, cfg.n_heads)))


# Shared by what is measured of each head


def _maps(both: Compared, first: Estimates, second: Estimates, title: str, how: Markup, colour: Markup) -> Figure:
    maps = dict(zip(both.names, (first.values, second.values), strict=True))
    shows = "Every head of both models, layers down and heads across"
    shows += ", and the second less the first." if both.one_shape else "; where one has no such head, nothing is drawn."
    drawing = compared_maps(maps, title=title, data=both.first.means.info.data, unit="nats")
    return Figure(drawing, Caption(say(shows), how, colour))


def _head_table(both: Compared, first: Estimates, second: Estimates, what: str) -> Table:
    """The heads that differ most; of models of different shapes, the strongest of each."""
    if both.one_shape:
        gaps = both.gaps(first, second)
        n_heads = gaps.values.shape[1]
        order = gaps.values.abs().flatten().argsort(descending=True, stable=True)[:_LISTED].tolist()
        rows = []
        for at in (divmod(index, n_heads) for index in order):
            cells = (number_cell(each[at].value, spread(each[at])) for each in (first, second, gaps))
            rows.append((head_cell(component_label(*at)), *cells))
        columns = (Column("head"), *(Column(name) for name in both.names), Column("difference"))
        return Table(
            columns,
            tuple(rows),
            say("The heads that differ most, by {what}, with one standard error.", what=what),
        )
    orders = [each.values.flatten().abs().argsort(descending=True, stable=True).tolist() for each in (first, second)]
    rows = [
        (
            Cell(name, number),
            head_cell(component_label(*(at := divmod(index, each.values.shape[1])))),
            number_cell(each[at].value, spread(each[at])),
        )
        for number, (name, each, order) in enumerate(zip(both.names, (first, second), orders, strict=True))
        for index in order[: _LISTED // 2]
    ]
    columns = (Column("model", words=True), Column("head"), Column(what))
    return Table(columns, tuple(rows), say("The heads with the largest effect in each model, with one standard error."))


def _heads_that_differ(both: Compared, first: Estimates, second: Estimates, what: str) -> list[Markup]:
    """A sentence: for models of one shape what differs, for others the clearest head of each."""
    if not both.one_shape:
        heads = listed(
            say("{heads} in {name}", name=name, heads=leaders(each))
            for name, each in zip(both.names, (first, second), strict=True)
            if bool(each.clear(1).any())
        )
        return [say("The largest {what}: {heads}.", what=what, heads=heads)] if heads else []
    gaps = both.gaps(first, second)
    clear, n = gaps.clear(), gaps.values.numel()
    if not bool(clear.any()):
        return [say("By {what}, none of {n} clearly differs.", what=what, n=count(n, "head"))]
    best = int(gaps.values.abs().masked_fill(~clear, -1.0).flatten().argmax())
    at = divmod(best, gaps.values.shape[1])
    return [
        say(
            "By {what}, {k} of {n} clearly differ{s}, head <b>{label}</b> most ({a} in {first}, {b} in {second}).",
            what=what,
            k=int(clear.sum()),
            n=count(n, "head"),
            s="s" if int(clear.sum()) == 1 else "",
            label=component_label(*at),
            a=signed(first[at].value),
            b=signed(second[at].value),
            first=both.names[0],
            second=both.names[1],
        )
    ]


# Kinds of head


def compared_kinds_section(both: Compared) -> Section | None:
    """Which heads of the two are of a known kind; `None` if it was not measured in both."""
    scores = [side.scores for side in both.sides]
    kinds = [dict(strongest(each, 1)) for each in scores]
    first, second = scores
    if first is None or second is None:
        return None
    blocks: list[Block] = []
    sentences: list[Markup] = []
    rows: list[tuple[Cell, ...]] = []
    for kind, name in KINDS.items():
        if any(name not in each for each in kinds):
            continue
        best = [each[name][0] for each in kinds]
        maps = dict(zip(both.names, (getattr(first, kind), getattr(second, kind)), strict=True))
        title = f"{name[0].upper()}{name[1:]} score"
        drawing = compared_maps(maps, title=title, data=first.info.data, unit="score", limit=1.0)
        caption = Caption(
            say("How far each head is a {name} head, in both models.", name=name),
            say("The share of its attention that goes where the kind says, on random tokens said twice."),
            say("No colour is none of it, the strongest blue all of it; of the difference, red is below zero."),
        )
        blocks.append(Figure(drawing, caption))
        cells = [
            Cell(say("{label} ({share})", label=score.label, share=percent(score.value)), score.value) for score in best
        ]
        rows.append((Cell(name, len(rows)), *cells))
        labels = [score.label if score.value >= KIND_SCORE else "none" for score in best]
        if labels != ["none", "none"]:
            sentences.append(say("{name} {a} and {b}", name=name, a=labels[0], b=labels[1]))
    if not rows:
        return None
    table = Table(
        (Column("kind", words=True), *(Column(name) for name in both.names)),
        tuple(rows),
        say("The strongest head of each kind, and how much of its attention it gives to it."),
    )
    summary = say(
        "The strongest heads that clearly are of their kind, in {first} and in {second}: {parts}.",
        first=both.names[0],
        second=both.names[1],
        parts=Markup("; ").join(sentences),
    )
    return Section("kinds", "Kinds of head", (summary,) if sentences else (), (table, *blocks))
