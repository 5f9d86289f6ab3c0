"""The section on indirect objects: the heads that tell them from the subject, in words that follow from the numbers."""

from collections.abc import Sequence

import torch
from markupsafe import Markup
from torch import Tensor

from headscope.analysis.circuits.circuit_result import FINAL, Circuit
from headscope.analysis.core.components import component_label
from headscope.analysis.core.ranking import HeadScore
from headscope.analysis.core.stats import Estimate
from headscope.report.blocks import Block, Cell, Fold, Heading, Prose, Section, Table
from headscope.report.places import Head, head_of, heads_in_order
from headscope.report.task.faithful import kept_alone
from headscope.report.task.figures import (
    attention_figure,
    circuit_figure,
    direct_figure,
    faithfulness_figure,
    patched_heads_figure,
    stream_figure,
    types_figure,
)
from headscope.report.task.sentences import (
    KINDS,
    LISTED,
    LOOKS,
    Worker,
    backups,
    changed_at_end,
    done_by,
    heads_of_kind,
    inhibition,
    no_head_does,
    no_paths,
    paths_to_answer,
    told_apart,
    undecided,
    where_they_look,
    whether_it_matters,
    who_looks_back,
)
from headscope.report.task.story import TaskStory
from headscope.report.task.why import why_blocks
from headscope.report.words import (
    count,
    estimate_cell,
    head_cell,
    number_cell,
    percent_cell,
    prose,
    say,
    signed,
    those,
)

__all__ = ["task_section"]

_TITLE = "Indirect objects"
_ROWS = 14


def task_section(story: TaskStory | str) -> Section:
    """Words, tables and figures, or why nothing was measured."""
    if isinstance(story, str):
        sentence = "Indirect object identification was not measured: {why}"
        return Section("task", _TITLE, (), (prose(sentence, why=story, soft=True),))
    blocks: list[Block] = [Prose(_told_apart(story)), _orders_table(story)]
    if not story.can:
        return Section("task", _TITLE, (), tuple(blocks))
    blocks += [Heading("Which heads move the names"), *_moving(story), direct_figure(story)]
    blocks += [*map(Prose, those(where_they_look(_looks_most(story)))), attention_figure(story), *why_blocks(story)]
    blocks += [Heading("Which heads know who is named twice"), *_duplicates(story)]
    if story.heads is not None:
        blocks += [patched_heads_figure(story), stream_figure(story)]
    blocks += _circuit_blocks(story)
    blocks += [Heading("The heads that matter, in numbers"), _heads_table(story)]
    blocks.append(Fold("Every head, for every head type of this task", (types_figure(story),)))
    finders = [score.label for score in story.types.heads("s_inhibition")]
    return Section("task", _TITLE, those(done_by(story.whole, _workers(story), finders)), tuple(blocks))


def _told_apart(story: TaskStory) -> Markup:
    ahead = sum(order.right * order.difference.n for order in story.orders) / len(story.task)
    names = story.task.answers[0][0], story.task.answers[0][1]
    return told_apart(story.task.prompts[0], names, len(story.task), ahead, story.whole)


def _workers(story: TaskStory, kind: str | None = None) -> list[Worker]:
    """The heads of the kinds that are told by direct effects, or of one, those with the highest score first."""
    heads = dict.fromkeys(head_of(score) for each in ([kind] if kind else KINDS) for score in story.types.heads(each))
    parts = dict.fromkeys(part for _, part, _ in KINDS.values())
    return [
        Worker(
            component_label(*head),
            story.types.kinds_of(*head),
            _by_order(story, head, "direct effect"),
            {part: _by_order(story, head, part) for part in parts},
        )
        for head in heads
    ]


def _by_order(story: TaskStory, head: Head, part: str) -> dict[str, float]:
    return {order.name: float(story.types.evidence_of(f"{part} ({order.name})")[head]) for order in story.orders}


def _orders_table(story: TaskStory) -> Table:
    rows = [
        (
            Cell("right name first (ABBA)" if order.name == "ABBA" else "subject first (BABA)", at),
            number_cell(float(order.difference.n), count(order.difference.n, "prompt")),
            estimate_cell(order.difference),
            percent_cell(order.right),
            number_cell(None) if order.swapped is None else estimate_cell(order.swapped),
        )
        for at, order in enumerate(story.orders)
    ]
    caption = say(
        "The last column is the same prompts with the second mention of the subject swapped for the other name, scored "
        "with the same answers: a model that follows the subject reverses the sign of the difference. ± is one "
        "standard error over prompts."
    )
    measured = ("prompts", "logit difference", "right name ahead", "with the other name as subject")
    return Table(("order of the names", *measured), rows, caption, words=(0,))


def _moving(story: TaskStory) -> list[Block]:
    """Direct effects of each type of head, whole and by the part that makes the type."""
    types = story.types
    told = [heads_of_kind(kind, _workers(story, kind)) for kind in KINDS]
    told.append(backups([(score.label, score.value) for score in types.heads("backup_name_mover")]))
    unsure = [(score.label, kind) for kind in KINDS for score in types.undecided(kind)[:LISTED]]
    soft = those(no_head_does(_workers(story)), undecided(len(story.task), unsure))
    n_patched = 0 if story.heads is None else story.heads.info.n_sequences
    end = None if story.heads is None else changed_at_end(_changes(story, "end"), story.gap, n_patched)
    return [*map(Prose, those(*told)), *(Prose(each, soft=True) for each in soft), *map(Prose, those(end))]


def _changes(story: TaskStory, word: str) -> dict[str, Estimate]:
    """Change from noising each head at a word, in logits."""
    each = story.head_estimates(word)
    return {component_label(*head): each[head] for head in heads_in_order(each.values)}


def _labelled(values: Tensor) -> dict[str, float]:
    """The values of heads by their labels, the largest first."""
    return {component_label(*head): float(values[head]) for head in heads_in_order(values)}


def _looks_most(story: TaskStory) -> dict[str, tuple[str, dict[str, float]]]:
    """The head that looks most at each name, in each order."""
    most = {}
    for word, place in (("IO", "the right name"), ("S1", "the subject's first mention"), ("S2", "its second")):
        means = story.attention_to(word)
        head = heads_in_order(means.mean(0))[0]
        shares = {order.name: float(mean[head]) for mean, order in zip(means, story.orders, strict=True)}
        most[place] = component_label(*head), shares
    return most


def _duplicates(story: TaskStory) -> list[Block]:
    """The heads that look back from the second mention to the first, and whether that matters."""
    types = story.types

    def with_attention(scores: Sequence[HeadScore], places: str) -> list[tuple[str, float]]:
        paid = types.evidence_of(f"attention {places}")
        return [(score.label, float(paid[head_of(score)])) for score in scores[:LISTED]]

    first = with_attention(types.heads("duplicate_name"), "S2 to S1")
    after_it = _labelled(types.evidence_of("attention S2 to S1+1"))
    following = [(label, share) for label, share in after_it.items() if share >= LOOKS][:LISTED]
    told = [who_looks_back(first, following)]
    if story.heads is not None:
        looking = list(dict.fromkeys(label for label, _ in (*first, *following)))
        told.append(whether_it_matters(_changes(story, "S2"), looking, story.gap))
    heads = types.heads("s_inhibition")[:LISTED]
    shares = with_attention(heads, "end to S2")
    lost = [(label, score.value, share) for score, (label, share) in zip(heads, shares, strict=True)]
    return [*map(Prose, (*told, *those(inhibition(lost))))]


def _circuit_blocks(story: TaskStory) -> list[Block]:
    circuit = story.circuit
    if circuit is None:
        return [Prose(no_paths(patched=story.heads is not None), soft=True)]
    paths = [
        (circuit.nodes[int(circuit.edges[number, 0])], float(circuit.effects[number])) for number in circuit.into(FINAL)
    ]
    told = Prose(paths_to_answer(paths, float(circuit.info.options["min_effect"])), soft=not paths)
    blocks = [Heading("Along which paths"), told]
    if circuit.inputs:
        blocks += [circuit_figure(circuit), Fold("The paths as a table", (_paths_table(circuit),))]
    faithful = circuit.faithfulness
    if faithful is not None and circuit.kept:
        blocks += [Prose(kept_alone(faithful, held_out=circuit.held_out)), faithfulness_figure(faithful)]
    return blocks


def _paths_table(circuit: Circuit) -> Table:
    rows = []
    for row in circuit.to_frame().itertuples(index=False):
        to = f"{row.receiver} ({row.input})" if row.input else row.receiver
        effect = say("{value} ± {error}", value=signed(row.effect), error=f"{row.error:.3f}")
        rows.append((head_cell(row.sender), Cell(to, to), number_cell(row.effect, effect), percent_cell(row.share)))
    caption = say(
        "What the logit difference loses when this path alone is corrupted; ± is one standard error over prompts."
    )
    return Table(("from", "to", "effect (logits)", "of the whole swap"), rows, caption, words=(1,), sorted_by=2)


def _heads_table(story: TaskStory) -> Table:
    types = story.types
    orders = {name: types.evidence_of(name) for name in (f"direct effect ({order.name})" for order in story.orders)}
    attention = {name: types.evidence_of(name) for name in types.evidence_names if name.startswith("attention end")}
    change = types.evidence_of("change when patched") if "change when patched" in types.evidence_names else None
    rows = []
    for head in heads_in_order(torch.stack(list(orders.values())).abs().sum(0))[:_ROWS]:
        names = ", ".join(types.kinds_of(*head)).replace("s_inhibition", "S-inhibition").replace("_", " ")
        rows.append(
            (
                head_cell(component_label(*head)),
                Cell(names or "–", names or None),
                *(number_cell(float(values[head])) for values in orders.values()),
                *(percent_cell(float(values[head])) for values in attention.values()),
                number_cell(None if change is None else float(change[head])),
            )
        )
    caption = say(
        "The heads with the largest direct effects on the logit difference, in logits for each order of the names; how "
        "much of their attention goes from the end to each name; and, for heads of a type of this task, the change "
        "when the head's output, at every word, is that with the other name as subject."
    )
    places = (name.removeprefix("attention ") for name in attention)
    return Table(("head", "types", *orders, *places, "patched"), rows, caption, words=(1,))
