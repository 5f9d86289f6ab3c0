"""The sections of a page that compares two models."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from torch import Tensor

from headscope.analysis.core.components import component_label
from headscope.analysis.core.ranking import HeadScore
from headscope.analysis.core.stats import Estimate, Estimates, difference, estimate
from headscope.analysis.core.top_places import top_positions
from headscope.ops.devices import wide
from headscope.report.blocks import Block, Card, Cell, FactList, Prose, Row, Section, Table
from headscope.report.comparison.compared import Compared
from headscope.report.comparison.sentences import (
    better_model,
    differing_heads,
    heads_of_each,
    less_certain_model,
    no_head_differs,
    types_in_both,
    under_each,
)
from headscope.report.model.findings import TYPES, Findings, strongest
from headscope.report.model.model_section import few_sequences, glossary, in_front
from headscope.report.places import heads_in_order, place_blocks
from headscope.report.words import (
    captioned,
    count,
    estimate_cell,
    head_cell,
    number_cell,
    percent,
    percents,
    prose,
    say,
    those,
)
from headscope.views.figures.comparison import compared_lines, compared_maps

__all__ = [
    "compared_ablation_section",
    "compared_head_section",
    "compared_layer_section",
    "compared_loss_section",
    "compared_models_section",
    "compared_types_section",
]

_PLACES = 4
_LISTED = 10
_WINDOW = 9
_MISSED = "Missed most when replaced by its mean (patched): {most}."
_LINE_COLORS = "Blue and solid is the first model, orange and dashed the second."


def compared_models_section(both: Compared) -> Section:
    """The two models, and the text each read."""
    shapes = [" of ".join(f"{n:,}" for n in side.tokens.shape) for side in both.sides.values()]
    sequences = f"{shapes[0]} tokens, the same for both"
    if not both.paired:
        sequences = f"{shapes[0]} tokens, and {shapes[1]}: the two read the text as different tokens"
    data = FactList("Data", {"Text": both.first.data, "Sequences": sequences})
    models = [FactList(name, side.facts) for name, side in both.sides.items()]
    read = {name: in_front(side.bos, side.separator, len(side.tokens)) for name, side in both.sides.items()}
    if len(set(read.values())) == 1:
        in_front_of_each = [read[both.names[0]]]
    else:
        in_front_of_each = [said and say("{name}: {said}", name=name, said=said) for name, said in read.items()]
    said = those(*in_front_of_each, few_sequences(min(len(side.tokens) for side in both.sides.values())))
    return Section("models", "The two models", (), (Row(models), data, *map(Prose, said), glossary()))


# Loss


def compared_loss_section(both: Compared) -> Section:
    """The losses of both, by position in a sequence, and the tokens where they differ most."""
    losses = {name: side.predictions.loss for name, side in both.sides.items()}
    curves = {name: (list(range(1, loss.shape[1] + 1)), _smooth(loss)) for name, loss in losses.items()}
    figure = captioned(
        compared_lines(
            curves,
            title="Loss by position",
            data=both.first.data,
            x="position of the predicted token",
            y="loss (nats)",
        ),
        "The mean loss at each position of a sequence, for both models; lower is better.",
        "Loss is minus the log-probability of the token that came, averaged over the sequences and over {n} "
        "neighboring positions.",
        _LINE_COLORS,
        n=_WINDOW,
    )
    rows = [
        (
            Cell(name, at),
            estimate_cell(estimate(side.predictions.loss), sign=False),
            estimate_cell(_per_byte(side), sign=False),
            number_cell(side.among_first(1).value, percents(side.among_first(1))),
        )
        for at, (name, side) in enumerate(both.sides.items())
    ]
    caption = say(
        "Means with one standard error. Per byte, models that cut the text into different tokens can be compared."
    )
    columns = ("model", "loss (nats per token)", "loss (nats per byte of text)", "first choice right")
    table = Table(columns, rows, caption, words=(0,))
    said = better_model(both.names, _loss_gap(both), paired=both.paired)
    return Section("loss", "Loss", (said,), (table, figure, *(_places(both) if both.paired else ())))


def _loss_gap(both: Compared) -> Estimate:
    """The loss of the second model less that of the first, per token or per byte."""
    if both.paired:
        return both.gap(both.first.predictions.loss, both.second.predictions.loss)
    return difference(_per_byte(both.second), _per_byte(both.first))


def _smooth(loss: Tensor) -> list[float]:
    """Mean at each position, over the sequences and the neighboring positions."""
    reach = _WINDOW // 2
    width = loss.shape[1]
    return [float(wide(loss[:, max(0, at - reach) : at + reach + 1]).nanmean()) for at in range(width)]


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
    losses = [side.predictions.loss for side in both.sides.values()]
    gap = losses[1] - losses[0]
    cards: list[Block] = []
    for number, largest in ((1, False), (0, True)):
        places = top_positions(gap, _PLACES, largest=largest, apart=5)
        blocks = place_blocks(
            both.first.strings,
            gap,
            [place for place in places if place.value and (place.value > 0) == largest],
            name="loss difference",
            says=lambda place: under_each(
                both.names,
                both.first.strings[place.row][place.pos + 1],
                tuple(math.exp(-float(loss[place.row, place.pos])) for loss in losses),
            ),
        )
        if blocks:
            cards.append(Card(f"better-{number}", f"Where {both.names[number]} is better by most", (), blocks))
    if not cards:
        return []
    note = (
        "Each text below ends at the framed token, from which the next one is predicted. Color is the loss of the "
        "next token under the second model less that under the first: blue where {first} predicts it better, red where "
        "{second} does."
    )
    return [prose(note, first=both.names[0], second=both.names[1]), *cards]


# Entropy


def compared_layer_section(both: Compared) -> Section:
    """Entropy along the two residual streams."""
    same = both.first.entropy.state_labels == both.second.entropy.state_labels
    curves: dict[str, tuple[Sequence[Any], Sequence[float]]] = {}
    for name, side in both.sides.items():
        values = wide(side.means.resid).tolist()
        depth = [at / (len(values) - 1) for at in range(len(values))]
        curves[name] = (list(side.entropy.state_labels) if same else depth, values)
    figure = captioned(
        compared_lines(
            curves,
            title="Entropy along the residual stream",
            data=both.first.data,
            x="state" if same else "share of the way through the layers",
            y="entropy (nats)",
        ),
        "Entropy of each model's prediction at each state of its residual stream; lower is more certain.",
        "Each state is read by the model's own final norm and unembedding (the logit lens), and its entropy "
        "averaged over positions.",
        _LINE_COLORS,
    )
    final = [side.entropy.resid[-1] for side in both.sides.values()]
    said = less_certain_model(both.names, (estimate(final[0]), estimate(final[1])), both.gap(*final))
    return Section("layers", "Entropy per layer", those(said), (figure,))


def compared_head_section(both: Compared) -> Section:
    """Effect of each head on the entropy, in both models."""
    blocks: list[Block] = []
    summary: list[Markup] = []
    for by, what in (
        ("diff", "how the entropy of the stream changes where the head writes"),
        ("marginal", "how the entropy of the final prediction would differ without the head"),
    ):
        sentences, shown = _compared_heads(
            both,
            [getattr(side, by) for side in both.sides.values()],
            title=f"Entropy {by} of each head",
            what=f"entropy {by}",
            first=f"Entropy raised most, by {by}: {{most}}.",
            unit=f"{by} (nats)",
            how=f"{by}: {what}; a mean over positions, in nats.",
            colors="Blue raises entropy, red lowers it, no color is no change. All panels share one scale.",
        )
        summary += sentences
        blocks += shown
    return Section("by-head", "Entropy per head", summary, blocks)


def compared_ablation_section(both: Compared) -> Section | None:
    """The loss without each head, in both models; `None` if it was not measured in both."""
    if any(side.ablation is None for side in both.sides.values()):
        return None
    effects = [side.loss_without("patched") for side in both.sides.values()]
    sentences, blocks = _compared_heads(
        both,
        effects,
        title="Loss difference when ablated",
        what="ablation effect",
        first=_MISSED,
        unit="loss difference (nats)",
        how="One head at a time is replaced by its mean output and everything after it is recomputed; loss difference, "
        f"ablated minus original, in nats, averaged over {count(min(each.n for each in effects), 'prediction')}.",
        colors="Blue: the head helps, the loss rises without it; red: it costs. All panels share one scale.",
    )
    if both.one_shape:
        sentences = [*those(heads_of_each(both.names, effects, _MISSED)), *sentences]
    return Section("ablation", "What breaks without each head", sentences, blocks)


def _compared_heads(
    both: Compared, effects: Sequence[Estimates], *, title: str, what: str, first: str, unit: str, how: str, colors: str
) -> tuple[list[Markup], list[Block]]:
    """Sentences on the heads whose effects differ, and a figure and a table of them.

    Models of one shape are compared head by head; of others the strongest heads of each are told.
    """
    drawing = compared_maps(
        {name: each.values for name, each in zip(both.names, effects, strict=True)},
        title=title,
        data=both.first.data,
        unit="nats",
    )
    shows = "Every head of both models, layers down and heads across"
    shows += ", and the second less the first." if both.one_shape else "; where one has no such head, nothing is drawn."
    figure = captioned(drawing, shows, how, colors)
    if both.one_shape:
        gaps = both.gaps(*effects)
        rows = [
            (head_cell(component_label(*head)), *(estimate_cell(each[head]) for each in (*effects, gaps)))
            for head in heads_in_order(gaps.values.abs())[:_LISTED]
        ]
        caption = say("The heads that differ most, by {what}, with one standard error.", what=unit)
        table = Table(("head", *both.names, "difference"), rows, caption)
        said = differing_heads(both.names, effects, gaps, what)
        none = map(Prose, those(no_head_differs(gaps, what)))
        return [*those(said)], [*none, figure, table]
    of_each = [
        (Cell(name, number), head_cell(component_label(*head)), estimate_cell(each[head]))
        for number, (name, each) in enumerate(zip(both.names, effects, strict=True))
        for head in heads_in_order(each.values.abs())[: _LISTED // 2]
    ]
    caption = say("The heads with the largest effect in each model, with one standard error.")
    return [*those(heads_of_each(both.names, effects, first))], [
        figure,
        Table(("model", "head", unit), of_each, caption, words=(0,)),
    ]


# Head types


def compared_types_section(both: Compared) -> Section | None:
    """The heads of each type in both; `None` if it was not measured in both."""
    first, second = (side.scores for side in both.sides.values())
    if first is None or second is None:
        return None
    best = [strongest(each, 1) for each in (first, second)]
    blocks: list[Block] = []
    found: dict[str, tuple[HeadScore, HeadScore]] = {}
    rows: list[tuple[Cell, ...]] = []
    for key, name in TYPES.items():
        if any(name not in each for each in best):
            continue
        maps = dict(zip(both.names, (getattr(first, key), getattr(second, key)), strict=True))
        title = f"{name[0].upper()}{name[1:]} score"
        blocks.append(
            captioned(
                compared_maps(maps, title=title, data=first.info.data, unit="score", limit=1.0),
                f"The {name} score of each head, in both models.",
                "The share of its attention that goes where the type says, on repeated random tokens.",
                "No color is none of it, the strongest blue all of it; of the difference, red is below zero.",
            )
        )
        found[name] = best[0][name][0], best[1][name][0]
        cells = (Cell(say("{l} ({p})", l=each.label, p=percent(each.value)), each.value) for each in found[name])
        rows.append((Cell(name, len(rows)), *cells))
    if not rows:
        return None
    caption = say("The strongest head of each type, and how much of its attention it gives to it.")
    table = Table(("type", *both.names), rows, caption, words=(0,))
    return Section("types", "Head types", those(types_in_both(both.names, found)), (table, *blocks))
