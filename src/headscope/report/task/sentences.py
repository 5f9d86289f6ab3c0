"""Sentences on a task of two names: functions of numbers, which say nothing where it is not so."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from headscope.analysis.core.stats import Estimate, threshold
from headscope.report.words import count, listed, percent, say, scored, signed, spread

__all__ = [
    "AGAINST",
    "DOES",
    "KINDS",
    "LISTED",
    "LOOKS",
    "Worker",
    "backups",
    "changed_at_end",
    "done_by",
    "heads_of_kind",
    "inhibition",
    "moves_along",
    "no_head_does",
    "no_paths",
    "paths_to_answer",
    "told_apart",
    "undecided",
    "where_they_look",
    "whether_it_matters",
    "who_looks_back",
]

LOOKS = 0.3  # of its attention, from which a head is said to look somewhere
LISTED = 6  # heads in a sentence, at most
_MATTERS = 0.05  # of what swapping the subject changes
# What heads of a kind do for the right name, and against it.
DOES = {
    "name_mover": "raises the right name where it stands",
    "subject_suppressor": "lowers the subject where it stands",
    "amplifier": "adds to what is written at the end",
}
AGAINST = {
    "negative_name_mover": "lowers the right name where it stands",
    "dampener": "takes from what is written at the end",
}
# What they are, the part of the direct effect that makes the kind, and the place it comes from.
KINDS = {
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
        "Negative name movers work against it, over all prompts, by lowering the right name, at or just after which "
        "they look.",
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


@dataclass(frozen=True)
class Worker:
    """A head that has a part in the task.

    Attributes:
        label: Its layer and number.
        kinds: The kinds that it is labeled with.
        whole: Its direct effect in each order of the names.
        parts: The same of what comes from a place: `from IO`, `from S`, `from end`.
    """

    label: str
    kinds: Sequence[str]
    whole: Mapping[str, float]
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Its direct effect over the orders."""
        return sum(self.whole.values()) / len(self.whole)


def told_apart(prompt: str, names: tuple[str, str], n: int, ahead: float, difference: Estimate) -> Markup:
    """The task by an example, and whether the model does it.

    Args:
        prompt: A prompt.
        names: The right name and the wrong one.
        n: Number of prompts.
        ahead: Share of them in which the right name is ahead.
        difference: The logit difference.
    """
    sentence = (
        "In <i>{prompt}</i> the next word is{right}, who is named once, and not{wrong}, who is named twice (Wang et "
        "al. 2022). The <b>logit difference</b> is the right name's logit less the wrong one's; it was measured on "
        "{prompts}. "
    )
    if difference.value > 0 and difference.clear():
        sentence += (
            "This model puts the right name ahead in {share} of prompts, by <b>{difference}</b> logits on average."
        )
    else:
        sentence += (
            "This model does not clearly tell the two apart: {difference} logits, the right name ahead in {share} of "
            "prompts. So nothing is said of how it would."
        )
    return say(
        sentence,
        prompt=prompt,
        right=names[0],
        wrong=names[1],
        prompts=count(n, "such prompt"),
        share=percent(ahead),
        difference=spread(difference),
    )


def done_by(difference: Estimate, workers: Iterable[Worker], finders: Sequence[str]) -> Markup | None:
    """The result in one sentence, with the heads that do it and those that work against it.

    Args:
        difference: The logit difference.
        workers: Heads with their kinds; named are those whose direct effect has the sign of a kind they have, the
            largest first.
        finders: Labels of the S-inhibition heads.
    """
    if difference.value <= 0 or not difference.clear():
        return None
    told = say(
        "In prompts of two names the model prefers the indirect object to the subject by {difference} logits",
        difference=spread(difference),
    )
    parts, every = [], list(workers)
    for sentence, kinds, sign in (("done most of all by {heads}", DOES, 1), ("held back by {heads}", AGAINST, -1)):
        those = [each for each in every if sign * each.mean > 0 and not set(kinds).isdisjoint(each.kinds)]
        those.sort(key=lambda each: -abs(each.mean))
        named = [
            say(
                "<b>{label}</b>, which {does} ({effects})",
                label=each.label,
                does=listed(kinds[kind] for kind in each.kinds if kind in kinds),
                effects=_by_order(each.whole),
            )
            for each in those[:LISTED]
        ]
        if named:
            parts.append(say(sentence + " (direct effects, in logits)", heads=listed(named)))
    if finders:
        names = listed(say("<b>{label}</b>", label=label) for label in finders[:LISTED])
        parts.append(say("the queries of heads that move names depend on {heads} (path patching)", heads=names))
    return told + (say(": {parts}.", parts=Markup("; ").join(parts)) if parts else Markup("."))


def heads_of_kind(kind: str, workers: Iterable[Worker]) -> Markup | None:
    """A kind, with the direct effect of each of its heads and the part that makes the kind; nothing if there is none.

    Args:
        kind: One of `KINDS`.
        workers: Heads with their kinds, those with the highest score first.
    """
    text, part, place = KINDS[kind]
    heads = [each for each in workers if kind in each.kinds][:LISTED]
    if not heads:
        return None
    told = Markup("; ").join(
        say(
            "<b>{label}</b> {whole} (of it from {place} {part})",
            label=each.label,
            whole=_by_order(each.whole),
            place=place,
            part=_by_order(each.parts[part]),
        )
        for each in heads
    )
    return say(text + " Direct effects, in logits: {heads}.", heads=told)


def no_head_does(workers: Iterable[Worker]) -> Markup | None:
    """Say that no head is known to do the task; nothing if one is."""
    if any(not set(DOES).isdisjoint(each.kinds) for each in workers):
        return None
    return say("No head clearly does the task by itself, in both orders of the names.")


def backups(scores: Sequence[tuple[str, float]]) -> Markup | None:
    """The backups, with what they add once the heads that do the task are taken out; nothing if there are none."""
    if not scores:
        return None
    return say(
        "Backups, which raise the right name, where it stands, by so many logits once the heads that do the task are "
        "taken out: {heads}.",
        heads=scored(scores[:LISTED]),
    )


def undecided(n: int, heads: Sequence[tuple[str, str]]) -> Markup | None:
    """The heads that more prompts would decide, with the kind; nothing if there are none.

    Args:
        n: Number of prompts.
        heads: Label and kind.
    """
    if not heads:
        return None
    return say(
        "Undecided with {prompts}, as effects are high enough and not sure: {heads}. More prompts would decide.",
        prompts=count(n, "prompt"),
        heads=listed(say("<b>{label}</b> ({kind})", label=label, kind=kind.replace("_", " ")) for label, kind in heads),
    )


def changed_at_end(changes: Mapping[str, Estimate], gap: float, n: int) -> Markup | None:
    """The heads whose output at the end matters; nothing if none does.

    Args:
        changes: Change of the logit difference, in logits, with each head's output swapped.
        gap: That of swapping the subject.
        n: Number of prompts.
    """
    matter = _that_matter(changes, gap)
    if not matter:
        return None
    return say(
        "Replacing a head's output at the end by its output with the other name as subject changes the logit "
        "difference most for {heads} (the whole swap: {gap} logits), on {prompts}.",
        heads=scored(matter),
        gap=signed(gap),
        prompts=count(n, "prompt"),
    )


def where_they_look(most: Mapping[str, tuple[str, Mapping[str, float]]]) -> Markup | None:
    """The head that looks most at each name from the end; nothing of a name at which none looks much.

    Args:
        most: By the place, in words: the head, and its attention in each order of the names.
    """
    parts = [
        say(
            "to {place}, <b>{label}</b> ({shares})",
            place=place,
            label=label,
            shares=listed(say("{share} in {order}", share=percent(x), order=order) for order, x in each.items()),
        )
        for place, (label, each) in most.items()
        if sum(each.values()) / len(each) >= LOOKS
    ]
    if not parts:
        return None
    return say("These heads attend most from the end of the prompt: {parts}.", parts=Markup("; ").join(parts))


def who_looks_back(first: Sequence[tuple[str, float]], following: Sequence[tuple[str, float]]) -> Markup:
    """The heads that look back from the second mention of the subject, or that none does.

    Args:
        first: Those that find the first mention, and not the other name, with their attention to it.
        following: Heads with their attention to what followed it.
    """
    looking = [(label, "the first mention, and not to the other name", share) for label, share in first]
    looking += [(label, "what followed it", share) for label, share in following if share >= LOOKS]
    if not looking:
        return say(
            "No head clearly gives {share} of its attention, from the second mention of the subject, to the first and "
            "not to the other name, or gives so much to what followed the first.",
            share=percent(LOOKS),
        )
    parts = (
        say("<b>{label}</b> to {words} ({share})", label=label, words=words, share=percent(share))
        for label, words, share in looking
    )
    return say("From the second mention of the subject, these heads look back: {parts}.", parts=listed(parts))


def whether_it_matters(changes: Mapping[str, Estimate], looking: Sequence[str], gap: float) -> Markup:
    """Say if what heads write at the subject's second mention tells the rest of the model that it stands there.

    Args:
        changes: Change of the logit difference, in logits, with each head's output at that word swapped.
        looking: Labels of the heads that look back from there.
        gap: Change from swapping the subject.
    """
    matter = _that_matter(changes, gap)
    others = (
        say("Heads whose output at that word does matter: {matter} logits.", matter=scored(matter))
        if matter
        else say("No head's output at that word clearly matters by itself.")
    )
    clear = _all_that_matter(changes, gap)
    carried = [(label, value) for label, value in clear if label in looking and value * gap > 0]  # not against the swap
    if carried:
        sentence = "What they write there matters: patched at that word alone, it changes {carried} logits."
        return say(sentence, carried=scored(carried))
    if not looking:
        return others
    among = len(changes)
    least = _MATTERS * abs(gap)
    small = all(
        abs(changes[label].value) + threshold(among, changes[label].freedom) * changes[label].error < least
        for label in looking
    )
    told = (
        "But what they write there does not tell who the subject is: patched at that word alone, none of them "
        "changes the logit difference by {share} of what swapping the subject does."
        if small
        else "But it is not clear that what they write there tells who the subject is: patched at that word alone, "
        "none of them clearly changes the logit difference, as swapping the subject does, by {share} of it."
    )
    return say(
        told + " Nothing measured here says that the model goes by the name being there twice, rather than by who is "
        "named last. {others}",
        share=percent(_MATTERS),
        others=others,
    )


def inhibition(heads: Sequence[tuple[str, float, float]]) -> Markup | None:
    """The heads that tell others where to look; nothing if there are none.

    Args:
        heads: Label, loss of logit difference along its paths to queries, and attention from the end to S2.
    """
    some = heads[:LISTED]
    if not some:
        return None
    return say(
        "S-inhibition heads tell heads that move names where to look. Corrupting what they send to the queries of "
        "these changes the logit difference by {heads} logits; from the end they look at the subject's second mention "
        "with {shares} of their attention.",
        heads=scored((label, -lost) for label, lost, _ in some),
        shares=listed(percent(share) for _, _, share in some),
    )


def moves_along(strongest: Sequence[str]) -> str:
    """The end of a caption: from where to where the subject's identity moves; nothing unless it is from S2 to the end.

    Args:
        strongest: The word whose patch changes most, at each layer.
    """
    return ": it moves from S2 to the end" if (strongest[0], strongest[-1]) == ("S2", "end") else ""


def paths_to_answer(paths: Sequence[tuple[str, float]], least: float) -> Markup:
    """The strongest paths straight to the answer, or that no path carries much.

    Args:
        paths: Senders of the paths there are to the answer, and their effects, the strongest first.
        least: The share of the whole swap that a path must carry.
    """
    if not paths:
        return say("No single path to the answer clearly carries {share} of it.", share=percent(least))
    told = listed(say("<b>{sender}</b> ({value})", sender=sender, value=signed(value)) for sender, value in paths[:4])
    return say("The strongest paths straight to the answer, in logits, come from {paths}.", paths=told)


def no_paths(*, patched: bool) -> Markup:
    """Say why no paths were measured: for lack of corrupted prompts, unless heads were patched."""
    if not patched:
        return say("The prompts have no corrupted ones beside them, so nothing was patched.")
    return say("The paths between heads were not measured: for a model of this size that takes minutes.")


def _all_that_matter(changes: Mapping[str, Estimate], gap: float) -> list[tuple[str, float]]:
    """The changes that are clear among all heads, and no small part of the whole swap's; the largest first."""
    largest = sorted(changes.items(), key=lambda each: -abs(each[1].value))
    among = len(changes)
    least = _MATTERS * abs(gap)
    return [(label, each.value) for label, each in largest if abs(each.value) >= least and each.clear(among)]


def _that_matter(changes: Mapping[str, Estimate], gap: float) -> list[tuple[str, float]]:
    return _all_that_matter(changes, gap)[:LISTED]


def _by_order(values: Mapping[str, float]) -> Markup:
    """A number in each order of the names."""
    return Markup(", ").join(say("{value} in {order}", value=signed(x), order=order) for order, x in values.items())
