"""The section on indirect objects: the heads that tell them from the subject, in words that follow from the numbers."""

from collections.abc import Iterable, Mapping

import torch
from markupsafe import Markup
from torch import Tensor

from headscope.analysis.circuits.circuit_result import FINAL, Circuit
from headscope.analysis.core.components import component_label
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
from headscope.report.task.story import Order, TaskStory
from headscope.report.task.why import why_blocks
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
# What heads of a type do, for or against the right name.
_DOES = {
    "name_mover": "raises the right name where it stands",
    "subject_suppressor": "lowers the subject where it stands",
    "amplifier": "adds to what is written at the end",
}
_HOLDS_BACK = {
    "negative_name_mover": "lowers the right name where it stands",
    "dampener": "takes from what is written at the end",
}
# What they are, the part of the direct effect that makes the type, and the place it comes from.
_TYPES = {
    "name_mover": (
        "Name movers do the task by raising the right name, at or just after which they look from the end.",
        "from IO",
        "the right name's place",
    ),
    "subject_suppressor": (
        "Subject suppressors do it by lowering the subject: they look at it, or at what follows it.",
        "from S",
        "the subject's places",
    ),
    "amplifier": ("Amplifiers do it by adding to what is written at the end.", "from end", "the end"),
    "negative_name_mover": (
        "Negative name movers work against it, over all prompts, by lowering the right name, at or "
        "just after which they look.",
        "from IO",
        "the right name's place",
    ),
    "dampener": ("Dampeners work against it by taking from what is written at the end.", "from end", "the end"),
    "name_copier": (
        "Name copiers raise the name they look at, the right one or the wrong one: in one order of the names at least "
        "they harm, or hardly help.",
        "from IO",
        "the right name's place",
    ),
}


def task_section(story: TaskStory | str) -> Section:
    """Words, tables and figures, or why nothing was measured."""
    if isinstance(story, str):
        sentence = "Indirect object identification was not measured: {why}"
        return Section("task", _TITLE, (), (prose(sentence, why=story, soft=True),))
    blocks: list[Block] = [_verdict(story), _orders_table(story)]
    if story.can:
        blocks += [Heading("Which heads move the names"), *_moving(story), direct_figure(story)]
        blocks += [_looking(story), attention_figure(story), *why_blocks(story)]
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
    """Result and heads: those that are known to do it or to work against it, by their direct effects."""
    told = say("It prefers the indirect object to the subject by {difference} logits", difference=spread(story.whole))
    parts = []
    for sentence, kinds in (("done most of all by {heads}", _DOES), ("held back by {heads}", _HOLDS_BACK)):
        heads = listed(_does(story, head, kinds) for head in _labelled(story, kinds)[:_LISTED])
        if heads:
            parts.append(say(sentence + " (direct effects, in logits)", heads=heads))
    finders = listed(say("<b>{label}</b>", label=score.label) for score in story.types.heads("s_inhibition")[:_LISTED])
    if finders:
        parts.append(say("the queries of heads that move names depend on {heads} (path patching)", heads=finders))
    if not parts:
        return told + Markup(".")
    return told + say(": {parts}.", parts=Markup("; ").join(parts))


def _labelled(story: TaskStory, kinds: Mapping[str, str]) -> list[Head]:
    """The heads of some kinds, those with the largest direct effect over both orders first."""
    effects = torch.stack([_direct(story, order) for order in story.orders]).mean(0).abs()
    heads = {head_of(score) for kind in kinds for score in story.types.heads(kind)}
    return [head for head in heads_in_order(effects) if head in heads]


def _does(story: TaskStory, head: Head, kinds: Mapping[str, str]) -> Markup:
    """A head, by what it does, its direct effect in each order."""
    does = listed(kinds[kind] for kind in story.types.kinds_of(*head) if kind in kinds)
    return say(
        "<b>{label}</b>, which {does} ({effects})", label=component_label(*head), does=does, effects=_each(story, head)
    )


def _direct(story: TaskStory, order: Order) -> Tensor:
    return story.types.evidence_of(f"direct effect ({order.name})")


def _each(story: TaskStory, head: Head, part: str = "direct effect") -> Markup:
    """The direct effect of a head in each order, or a part of it."""
    values = ((order.name, float(story.types.evidence_of(f"{part} ({order.name})")[head])) for order in story.orders)
    return Markup(", ").join(say("{value} in {order}", value=signed(value), order=order) for order, value in values)


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
    blocks: list[Block] = []
    for kind, (text, part, place) in _TYPES.items():
        heads = [head_of(score) for score in story.types.heads(kind)[:_LISTED]]
        parts = (
            say(
                "<b>{label}</b> {whole} (of it from {place} {part})",
                label=component_label(*head),
                whole=_each(story, head),
                place=place,
                part=_each(story, head, part),
            )
            for head in heads
        )
        if heads:
            blocks.append(prose(text + " Direct effects, in logits: {heads}.", heads=Markup("; ").join(parts)))
    backups = story.types.heads("backup_name_mover")[:_LISTED]
    if backups:
        blocks.append(
            prose(
                "Backups, which raise the right name, where it stands, by so many logits once the heads that do the "
                "task are taken out: {heads}.",
                heads=scored((score.label, score.value) for score in backups),
            )
        )
    if not _labelled(story, _DOES):
        none = "No head clearly does the task by itself, in both orders of the names."
        blocks.append(prose(none, soft=True))
    blocks += _undecided(story)
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


def _undecided(story: TaskStory) -> list[Block]:
    """The heads that more prompts would decide."""
    parts = (
        say("<b>{label}</b> ({kind})", label=score.label, kind=kind.replace("_", " "))
        for kind in _TYPES
        for score in story.types.undecided(kind)[:_LISTED]
    )
    heads = listed(parts)
    if not heads:
        return []
    sentence = "Undecided with {prompts}, as effects are high enough and not sure: {heads}. More prompts would decide."
    return [prose(sentence, prompts=count(len(story.task), "prompt"), heads=heads, soft=True)]


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
    first, following = (types.evidence_of(f"attention S2 to {place}") for place in ("S1", "S1+1"))
    for score in types.heads("duplicate_name")[:_LISTED]:
        looking.append((head_of(score), float(first[head_of(score)]), "the first mention, and not to the other name"))
    for head in heads_in_order(following)[:_LISTED]:
        if float(following[head]) >= _LOOKS:
            looking.append((head, float(following[head]), "what followed it"))
    parts = (
        say("<b>{label}</b> to {words} ({share})", label=component_label(*head), words=words, share=percent(share))
        for head, share, words in looking
    )
    sentence = (
        "From the second mention of the subject, these heads look back: {parts}."
        if looking
        else "No head clearly gives {share} of its attention, from the second mention of the subject, to the first and "
        "not to the other name, or gives so much to what followed the first."
    )
    blocks: list[Block] = [prose(sentence, parts=listed(parts), share=percent(_LOOKS))]
    if story.heads is not None:
        blocks.append(_whether_they_matter(story, {head for head, _, _ in looking}))
    inhibiting, at_s2 = types.heads("s_inhibition")[:_LISTED], types.evidence_of("attention end to S2")
    if inhibiting:
        blocks.append(
            prose(
                "S-inhibition heads tell heads that move names where to look. Corrupting what they send to the queries "
                "of these changes the logit difference by {heads} logits; from the end they look at the subject's "
                "second mention with {shares} of their attention.",
                heads=scored((score.label, -score.value) for score in inhibiting),
                shares=listed(percent(float(at_s2[head_of(score)])) for score in inhibiting),
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
