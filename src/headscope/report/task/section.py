"""The section on indirect objects: who tells them from the subject, told from the numbers on the page."""

from markupsafe import Markup

from headscope.analysis.circuits.circuit import FINAL, Circuit
from headscope.analysis.core.result import HeadScore
from headscope.report.blocks import Block, Cell, Column, Fold, Heading, Prose, Section, Table
from headscope.report.task.figures import (
    attention_figure,
    circuit_figure,
    direct_figure,
    kinds_figure,
    least_path,
    patched_heads_figure,
    stream_figure,
)
from headscope.report.task.story import TaskStory
from headscope.report.words import count, head_cell, listed, number_cell, percent, say, signed, spread

__all__ = ["task_section", "unmeasured_task_section"]

_TITLE = "Indirect objects"
_LOOKS = 0.3  # of its attention, from which a head is said to look somewhere
_MATTERS = 0.05  # of what swapping the subject changes
_LISTED = 6
_ROWS = 14
_IN_WORDS = {
    "name_mover": "name mover",
    "negative_name_mover": "negative name mover",
    "name_copier": "name copier",
    "subject_suppressor": "subject suppressor",
    "s_inhibition": "S-inhibition",
    "backup_name_mover": "backup name mover",
}


def unmeasured_task_section(why: str) -> Section:
    """A sentence on why there is nothing else."""
    sentence = "Indirect object identification was not measured: {why}"
    return Section("task", _TITLE, (), (Prose(say(sentence, why=why), soft=True),))


def task_section(story: TaskStory) -> Section:
    """Words, tables and figures."""
    verdict, summary = _verdict(story)
    blocks: list[Block] = [Prose(verdict), _orders_table(story)]
    if story.can:
        blocks += [Heading("Which heads move the names"), *_moving(story), direct_figure(story)]
        blocks += [Prose(_looking_words(story)), attention_figure(story)]
        blocks += [Heading("Which heads know who is named twice"), *_duplicates(story)]
        if story.heads is not None:
            blocks += [patched_heads_figure(story), stream_figure(story)]
        blocks += _circuit_blocks(story)
        blocks += [Heading("The heads that matter, in numbers"), _heads_table(story)]
        blocks.append(Fold("Every head, for every kind of head in this task", (kinds_figure(story),)))
    return Section("task", _TITLE, summary, tuple(blocks))


def _verdict(story: TaskStory) -> tuple[Markup, tuple[Markup, ...]]:
    example, (right, wrong) = story.task.prompts[0], story.task.answers[0]
    intro = say(
        "In <i>{example}</i> the next word is{right}, who is named once, and not{wrong}, who is named twice (Wang et "
        "al. 2022). The <b>logit difference</b> is the right name's logit less the wrong one's; it was measured on "
        "{prompts}. ",
        example=example,
        right=right,
        wrong=wrong,
        prompts=count(len(story.task), "such prompt"),
    )
    share = sum(order.right * order.difference.n for order in story.orders) / len(story.task)
    if not story.can:
        cannot = say(
            "This model does not surely tell the two apart: {difference} logits, the right name ahead in {share} of "
            "prompts. So nothing is said of how it would.",
            difference=spread(story.whole),
            share=percent(share),
        )
        return intro + cannot, ()
    can = say(
        "This model puts the right name ahead in {share} of prompts, by <b>{difference}</b> logits on average.",
        share=percent(share),
        difference=spread(story.whole),
    )
    return intro + can, (_summary(story),)


def _summary(story: TaskStory) -> Markup:
    found = say("It tells the indirect object by {difference} logits", difference=spread(story.whole))
    parts = [
        say("{heads} {verb} it", heads=_named(story, kind), verb=verb)
        for kind, verb in (("name_mover", "move"), ("negative_name_mover", "hold back"))
        if story.types.heads(kind)
    ]
    if story.types.heads("name_copier"):
        parts.append(say("{heads} copy a name by its place", heads=_named(story, "name_copier")))
    if story.types.heads("subject_suppressor"):
        parts.append(say("{heads} lower the subject", heads=_named(story, "subject_suppressor")))
    return found + (say(": heads {parts}.", parts=listed(parts)) if parts else Markup("."))


def _named(story: TaskStory, kind: str) -> Markup:
    return listed(say("<b>{label}</b>", label=score.label) for score in story.types.heads(kind)[:_LISTED])


def _orders_table(story: TaskStory) -> Table:
    rows = tuple(
        (
            Cell("right name first (ABBA)" if order.name == "ABBA" else "subject first (BABA)", at),
            number_cell(float(order.difference.n), count(order.difference.n, "prompt")),
            number_cell(order.difference.value, spread(order.difference)),
            number_cell(order.right, percent(order.right)),
            number_cell(None) if order.swapped is None else number_cell(order.swapped.value, spread(order.swapped)),
        )
        for at, order in enumerate(story.orders)
    )
    columns = ("prompts", "logit difference", "right name ahead", "with the other one as subject")
    return Table(
        (Column("order of the names", words=True), *map(Column, columns)),
        rows,
        say(
            "The last column is the same prompts with the second mention of the subject swapped for the other name, "
            "scored with the same answers: a model that follows the subject turns the difference round. ± is one "
            "standard error over prompts."
        ),
    )


def _effects(story: TaskStory, score: HeadScore) -> Markup:
    """The direct effects of a head in each order."""
    place = score.layer, int(score.head or 0)
    parts = [
        say(
            "{value} in {order}",
            value=signed(float(story.types.evidence_of(f"direct effect ({order.name})")[place])),
            order=order.name,
        )
        for order in story.orders
    ]
    return say("<b>{label}</b> ({parts})", label=score.label, parts=Markup(", ").join(parts))


def _moving(story: TaskStory) -> list[Block]:
    """What each kind of head adds directly."""
    found: list[Block] = []
    texts = {
        "name_mover": "Name movers, which look from the end of the prompt at the right name and raise it, in either "
        "order: {heads}.",
        "negative_name_mover": "Negative name movers, which look at the right name and lower it: {heads}.",
        "backup_name_mover": "Backups, which raise the right name once the name movers are taken out: {heads}.",
        "name_copier": "Heads that copy a name by its place, whoever it is: {heads} logits. What helps in one order "
        "harms in the other, so these heads bring both names up, and do not choose.",
        "subject_suppressor": "Heads that look at the subject, or at what follows it, and lower that name in either "
        "order: {heads} logits.",
    }
    for kind, text in texts.items():
        heads = story.types.heads(kind)
        if heads:
            found.append(Prose(say(text, heads=listed(_effects(story, score) for score in heads[:_LISTED]))))
    if not story.types.heads("name_mover"):
        found.append(
            Prose(say("No head raises the right name from its place in both orders, as a name mover would."), soft=True)
        )
    patched = _strongest_patched(story)
    if patched:
        found.append(
            Prose(
                say(
                    "Patched at the end with what they give when the other one is the subject, heads change the logit "
                    "difference most so: {heads} (of {gap} that swapping the subject changes).",
                    heads=listed(
                        say("<b>{label}</b> {value}", label=label, value=signed(value)) for label, value in patched
                    ),
                    gap=signed(story.gap),
                )
            )
        )
    return found


def _strongest_patched(story: TaskStory, word: str = "end") -> list[tuple[str, float]]:
    """Heads whose output at a word matters, in logits, the strongest first."""
    if story.heads is None:
        return []
    values = story.head_changes(word)
    order = values.abs().flatten().argsort(descending=True).tolist()
    places = [divmod(index, values.shape[1]) for index in order[:_LISTED]]
    return [
        (f"{layer}.{head}", float(values[layer, head]))
        for layer, head in places
        if abs(float(values[layer, head])) >= _MATTERS * abs(story.gap)
    ]


def _looking_words(story: TaskStory) -> Markup:
    """Which heads look most at which name, in each order."""
    parts = []
    for word, called in (("IO", "the right name"), ("S1", "the subject's first mention"), ("S2", "its second")):
        means = story.attention_to(word)
        layer, head = divmod(int(means.mean(0).argmax()), means.shape[2])
        shares = listed(
            say("{share} in {order}", share=percent(float(mean[layer, head])), order=order.name)
            for mean, order in zip(means, story.orders, strict=True)
        )
        parts.append(
            say("at {called}, <b>{layer}.{head}</b> ({shares})", called=called, layer=layer, head=head, shares=shares)
        )
    return say(
        "From the end of the prompt, the heads that look most are these: {parts}.", parts=Markup("; ").join(parts)
    )


def _duplicates(story: TaskStory) -> list[Block]:
    """Who looks back from the second mention to the first, and whether that matters."""
    types = story.types
    looking = []
    for name, words in (("attention S2 to S1", "the first mention"), ("attention S2 to S1+1", "what followed it")):
        if name in types.evidence_names:
            values = types.evidence_of(name)
            order = values.flatten().argsort(descending=True).tolist()[:_LISTED]
            places = [divmod(index, values.shape[1]) for index in order]
            looking += [
                (layer, head, float(values[layer, head]), words)
                for layer, head in places
                if float(values[layer, head]) >= _LOOKS
            ]
    found: list[Block] = []
    if looking:
        parts = [
            say("<b>{layer}.{head}</b> at {words} ({share})", layer=layer, head=head, words=words, share=percent(value))
            for layer, head, value, words in looking
        ]
        found.append(
            Prose(say("From the second mention of the subject, heads look back: {parts}.", parts=listed(parts)))
        )
    else:
        found.append(
            Prose(
                say(
                    "No head gives {share} of its attention, from the second mention of the subject, to the first or "
                    "to what followed it.",
                    share=percent(_LOOKS),
                )
            )
        )
    if story.heads is not None:
        found.append(Prose(_whether_they_matter(story, {(layer, head) for layer, head, *_ in looking})))
    inhibiting = types.heads("s_inhibition")
    if inhibiting:
        found.append(
            Prose(
                say(
                    "S-inhibition heads tell the name movers where not to look: corrupting what they send to the "
                    "movers' queries costs {heads} logits.",
                    heads=listed(
                        say("<b>{label}</b> {value}", label=score.label, value=signed(-score.value))
                        for score in inhibiting[:_LISTED]
                    ),
                )
            )
        )
    return found


def _whether_they_matter(story: TaskStory, looking: set[tuple[int, int]]) -> Markup:
    values = story.head_changes("S2")
    least = _MATTERS * abs(story.gap)
    matter = _strongest_patched(story, "S2")
    carried = [(layer, head) for layer, head in looking if abs(float(values[layer, head])) >= least]
    if looking and carried:
        text = "What they write there matters: patched at that word alone, {heads} logits."
        heads = [(f"{layer}.{head}", float(values[layer, head])) for layer, head in sorted(carried)]
    elif looking:
        text = (
            "But what they write there does not tell who the subject is: patched at that word alone, none of them "
            "changes the logit difference by {share} of what swapping the subject does. Nothing measured here says "
            "that the model goes by the name being there twice, rather than by who is named last. {others}"
        )
        heads = []
    else:
        text, heads = "{others}", []
    others = (
        say(
            "Heads whose output at that word does matter: {heads} logits.",
            heads=listed(say("<b>{label}</b> {value}", label=label, value=signed(value)) for label, value in matter),
        )
        if matter
        else say("No head's output at that word matters by itself.")
    )
    return say(
        text,
        heads=listed(say("<b>{label}</b> {value}", label=label, value=signed(value)) for label, value in heads),
        share=percent(_MATTERS),
        others=others,
    )


def _circuit_blocks(story: TaskStory) -> list[Block]:
    circuit = story.circuit
    if circuit is None:
        text = (
            "The prompts have no corrupted ones beside them, so nothing was patched."
            if story.heads is None
            else "The paths between heads were not measured: for a model of this size that takes minutes."
        )
        return [Prose(say(text), soft=True)]
    if not circuit.inputs:
        return [
            Prose(say("No single path between two parts carries {share} of it.", share=least_path(circuit)), soft=True)
        ]
    into_answer = circuit.into(FINAL)[:4]
    paths = listed(
        say(
            "<b>{sender}</b> ({value})",
            sender=circuit.nodes[int(circuit.edges[number, 0])],
            value=signed(float(circuit.effects[number])),
        )
        for number in into_answer
    )
    return [
        Heading("Along which paths"),
        Prose(say("What sets the answer directly is sent most by {paths}, in logits.", paths=paths)),
        circuit_figure(circuit),
        Fold("The paths as a table", (_paths_table(circuit),)),
    ]


def _paths_table(circuit: Circuit) -> Table:
    rows = []
    for row in circuit.to_frame().itertuples(index=False):
        to = f"{row.receiver} ({row.input})" if row.input else row.receiver
        effect = say("{value} ± {error}", value=signed(row.effect), error=f"{row.error:.3f}")
        rows.append(
            (
                head_cell(row.sender),
                Cell(to, to),
                number_cell(row.effect, effect),
                number_cell(row.share, percent(row.share)),
            )
        )
    return Table(
        (Column("from"), Column("to", words=True), Column("effect (logits)"), Column("of the whole swap")),
        tuple(rows),
        say("What the logit difference loses when this path alone is corrupted; ± is one standard error over prompts."),
        sorted_by=2,
    )


def _heads_table(story: TaskStory) -> Table:
    types = story.types
    orders = [f"direct effect ({order.name})" for order in story.orders]
    attention = [name for name in types.evidence_names if name.startswith("attention end")]
    strength = sum(types.evidence_of(name).abs() for name in orders)
    change = types.evidence_of("change when patched") if "change when patched" in types.evidence_names else None
    order = strength.flatten().argsort(descending=True).tolist()[:_ROWS]  # type: ignore[union-attr]
    rows = []
    for index in order:
        layer, head = divmod(index, types.scores.shape[2])
        kinds = ", ".join(_IN_WORDS.get(kind, kind.replace("_", " ")) for kind in types.kinds_of(layer, head))
        rows.append(
            (
                head_cell(f"{layer}.{head}"),
                Cell(kinds or "–", kinds or None),
                *(number_cell(float(types.evidence_of(name)[layer, head])) for name in orders),
                *(
                    number_cell(value := float(types.evidence_of(name)[layer, head]), percent(value))
                    for name in attention
                ),
                number_cell(None if change is None else float(change[layer, head])),
            )
        )
    return Table(
        (
            Column("head"),
            Column("kinds", words=True),
            *(Column(name) for name in orders),
            *(Column(name.removeprefix("attention ")) for name in attention),
            Column("patched"),
        ),
        tuple(rows),
        say(
            "The heads with the largest direct effects on the logit difference, in logits for each order of the names; "
            "how much of their attention goes from the end to each name; and, for heads of a kind of this task, the "
            "change when the head gives what it gave with the other one as subject."
        ),
    )
