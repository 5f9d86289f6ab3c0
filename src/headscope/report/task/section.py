"""The section on indirect objects: the heads that tell them from the subject, in words that follow from the numbers."""

from collections.abc import Iterable

import torch
from markupsafe import Markup
from torch import Tensor

from headscope.analysis.circuits.circuit import FINAL, Circuit
from headscope.analysis.core.components import component_label
from headscope.analysis.core.ranking import HeadScore
from headscope.report.blocks import Block, Cell, Fold, Heading, Section, Table
from headscope.report.places import Head, head_of, heads_in_order
from headscope.report.task.figures import (
    attention_figure,
    circuit_figure,
    direct_figure,
    least_path,
    patched_heads_figure,
    stream_figure,
    types_figure,
)
from headscope.report.task.story import TaskStory
from headscope.report.words import (
    count,
    estimate_cell,
    head_cell,
    listed,
    number_cell,
    percent,
    percent_cell,
    prose,
    say,
    scored,
    signed,
    spread,
)

__all__ = ["task_section"]

_TITLE = "Indirect objects"
_LOOKS = 0.3  # of its attention, from which a head is said to look somewhere
_MATTERS = 0.05  # of what swapping the subject changes
_LISTED = 6
_ROWS = 14


def task_section(story: TaskStory | str) -> Section:
    """Words, tables and figures, or why nothing was measured."""
    if isinstance(story, str):
        sentence = "Indirect object identification was not measured: {why}"
        return Section("task", _TITLE, (), (prose(sentence, why=story, soft=True),))
    blocks: list[Block] = [_verdict(story), _orders_table(story)]
    if story.can:
        blocks += [Heading("Which heads move the names"), *_moving(story), direct_figure(story)]
        blocks += [_looking(story), attention_figure(story)]
        blocks += [Heading("Which heads know who is named twice"), *_duplicates(story)]
        if story.heads is not None:
            blocks += [patched_heads_figure(story), stream_figure(story)]
        blocks += _circuit_blocks(story)
        blocks += [Heading("The heads that matter, in numbers"), _heads_table(story)]
        blocks.append(Fold("Every head, for every head type of this task", (types_figure(story),)))
    return Section("task", _TITLE, (_summary(story),) if story.can else (), tuple(blocks))


def _verdict(story: TaskStory) -> Block:
    share = sum(order.right * order.difference.n for order in story.orders) / len(story.task)
    sentence = (
        "In <i>{example}</i> the next word is{right}, who is named once, and not{wrong}, who is named twice (Wang et "
        "al. 2022). The <b>logit difference</b> is the right name's logit less the wrong one's; it was measured on "
        "{prompts}. "
    )
    if story.can:
        sentence += (
            "This model puts the right name ahead in {share} of prompts, by <b>{difference}</b> logits on average."
        )
    else:
        sentence += (
            "This model does not clearly tell the two apart: {difference} logits, the right name ahead in {share} of "
            "prompts. So nothing is said of how it would."
        )
    return prose(
        sentence,
        example=story.task.prompts[0],
        right=story.task.answers[0][0],
        wrong=story.task.answers[0][1],
        prompts=count(len(story.task), "such prompt"),
        share=percent(share),
        difference=spread(story.whole),
    )


def _summary(story: TaskStory) -> Markup:
    parts = []
    for kind, does in (
        ("name_mover", "move it"),
        ("negative_name_mover", "hold it back"),
        ("name_copier", "copy a name by its place"),
        ("subject_suppressor", "lower the subject"),
    ):
        heads = listed(say("<b>{label}</b>", label=score.label) for score in story.types.heads(kind)[:_LISTED])
        if heads:
            parts.append(say("{heads} {does}", heads=heads, does=does))
    told = say("It prefers the indirect object to the subject by {difference} logits", difference=spread(story.whole))
    return told + (say(": heads {parts}.", parts=listed(parts)) if parts else Markup("."))


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


def _effects(story: TaskStory, score: HeadScore) -> Markup:
    """The direct effects of a head in each order."""
    values = (
        (order.name, float(story.types.evidence_of(f"direct effect ({order.name})")[head_of(score)]))
        for order in story.orders
    )
    parts = (say("{value} in {order}", value=signed(value), order=order) for order, value in values)
    return say("<b>{label}</b> ({parts})", label=score.label, parts=Markup(", ").join(parts))


def _moving(story: TaskStory) -> list[Block]:
    """Direct effects of each type of head."""
    blocks: list[Block] = []
    texts = {
        "name_mover": "Name movers, which look from the end of the prompt at the right name and raise it, in either "
        "order: {heads}.",
        "negative_name_mover": "Negative name movers, which look at the right name and lower it: {heads}.",
        "backup_name_mover": "Backups, which raise the right name once the name movers are taken out: {heads}.",
        "name_copier": "Heads that copy a name by its place, whoever it is (in logits): {heads}. What helps in one "
        "order harms in the other, so these heads bring both names up, and do not choose.",
        "subject_suppressor": "Heads that look at the subject, or at what follows it, and lower that name in either "
        "order (in logits): {heads}.",
    }
    for kind, text in texts.items():
        heads = story.types.heads(kind)
        if heads:
            blocks.append(prose(text, heads=listed(_effects(story, score) for score in heads[:_LISTED])))
    if not story.types.heads("name_mover"):
        none = "No head clearly raises the right name by attending to it in both orders, as a name mover would."
        blocks.append(prose(none, soft=True))
    patched = [] if story.heads is None else _strongest_patched(story, "end")
    if patched:
        blocks.append(
            prose(
                "Replacing a head's output at the end by its output with the other name as subject changes the logit "
                "difference most for {heads} (the whole swap: {gap} logits).",
                heads=scored(patched),
                gap=signed(story.gap),
            )
        )
    return blocks


def _with_values(values: Tensor, heads: Iterable[Head]) -> list[tuple[str, float]]:
    return [(component_label(*head), float(values[head])) for head in heads]


def _strongest_patched(story: TaskStory, word: str) -> list[tuple[str, float]]:
    """Heads whose output at a word matters, in logits, the strongest first."""
    values = story.head_changes(word)
    scores = _with_values(values, heads_in_order(values.abs())[:_LISTED])
    return [(label, value) for label, value in scores if abs(value) >= _MATTERS * abs(story.gap)]


def _looking(story: TaskStory) -> Block:
    """The heads that look most at each name, in each order."""
    parts = []
    for word, called in (("IO", "the right name"), ("S1", "the subject's first mention"), ("S2", "its second")):
        means = story.attention_to(word)
        head = heads_in_order(means.mean(0))[0]
        shares = listed(
            say("{share} in {order}", share=percent(float(mean[head])), order=order.name)
            for mean, order in zip(means, story.orders, strict=True)
        )
        label = component_label(*head)
        parts.append(say("to {called}, <b>{label}</b> ({shares})", called=called, label=label, shares=shares))
    return prose("These heads attend most from the end of the prompt: {parts}.", parts=Markup("; ").join(parts))


def _duplicates(story: TaskStory) -> list[Block]:
    """The heads that look back from the second mention to the first, and whether that matters."""
    types = story.types
    looking = []
    for name, words in (("attention S2 to S1", "the first mention"), ("attention S2 to S1+1", "what followed it")):
        if name in types.evidence_names:
            shares = types.evidence_of(name)
            for head in heads_in_order(shares.abs())[:_LISTED]:
                if float(shares[head]) >= _LOOKS:
                    looking.append((head, float(shares[head]), words))
    parts = (
        say("<b>{label}</b> to {words} ({share})", label=component_label(*head), words=words, share=percent(share))
        for head, share, words in looking
    )
    sentence = (
        "From the second mention of the subject, these heads look back: {parts}."
        if looking
        else "No head gives {share} of its attention, from the second mention of the subject, to the first or to what "
        "followed it."
    )
    blocks: list[Block] = [prose(sentence, parts=listed(parts), share=percent(_LOOKS))]
    if story.heads is not None:
        blocks.append(_whether_they_matter(story, {head for head, _, _ in looking}))
    inhibiting = types.heads("s_inhibition")[:_LISTED]
    if inhibiting:
        blocks.append(
            prose(
                "S-inhibition heads tell the name movers where not to look: corrupting what they send to the movers' "
                "queries costs {heads} logits.",
                heads=scored((score.label, -score.value) for score in inhibiting),
            )
        )
    return blocks


def _whether_they_matter(story: TaskStory, looking: set[Head]) -> Block:
    values = story.head_changes("S2")
    carried = [head for head in sorted(looking) if abs(float(values[head])) >= _MATTERS * abs(story.gap)]
    matter = _strongest_patched(story, "S2")
    others = (
        "Heads whose output at that word does matter: {matter} logits."
        if matter
        else "No head's output at that word matters by itself."
    )
    if carried:
        sentence = "What they write there matters: patched at that word alone, it changes {carried} logits."
    elif looking:
        sentence = (
            "But what they write there does not tell who the subject is: patched at that word alone, none of them "
            "changes the logit difference by {share} of what swapping the subject does. Nothing measured here says "
            "that the model goes by the name being there twice, rather than by who is named last. " + others
        )
    else:
        sentence = others
    return prose(
        sentence, carried=scored(_with_values(values, carried)), matter=scored(matter), share=percent(_MATTERS)
    )


def _circuit_blocks(story: TaskStory) -> list[Block]:
    circuit = story.circuit
    if circuit is None:
        why = (
            "The prompts have no corrupted ones beside them, so nothing was patched."
            if story.heads is None
            else "The paths between heads were not measured: for a model of this size that takes minutes."
        )
        return [prose(why, soft=True)]
    if not circuit.inputs:
        none = "No single path between two parts carries {share} of it."
        return [prose(none, share=least_path(circuit), soft=True)]
    paths = listed(
        say(
            "<b>{sender}</b> ({value})",
            sender=circuit.nodes[int(circuit.edges[number, 0])],
            value=signed(float(circuit.effects[number])),
        )
        for number in circuit.into(FINAL)[:4]
    )
    return [
        Heading("Along which paths"),
        prose("The strongest paths straight to the answer, in logits, come from {paths}.", paths=paths),
        circuit_figure(circuit),
        Fold("The paths as a table", (_paths_table(circuit),)),
    ]


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
        "when the head's output is that with the other name as subject."
    )
    places = (name.removeprefix("attention ") for name in attention)
    return Table(("head", "types", *orders, *places, "patched"), rows, caption, words=(1,))
