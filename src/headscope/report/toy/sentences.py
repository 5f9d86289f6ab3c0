"""Findings of a page about a toy model: functions of numbers, which say nothing where it is not so."""

import math
from collections.abc import Mapping, Sequence

from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from headscope.analysis.core.stats import Estimate
from headscope.report.words import count, listed, nats, percent, say

__all__ = [
    "answered",
    "composition",
    "few_waves",
    "head_missed",
    "heads_of_types",
    "loss_of",
    "no_head_of_types",
    "replied",
    "share_of",
    "when_learned",
]

_POWER = 0.95  # of what differs between embeddings, that the strongest frequencies are counted up to


def share_of(value: float) -> Markup:
    """A share that may be close to all, in percent with two decimals."""
    return say('<span class="number">{value:.2f}\xa0%</span>', value=100 * value)


def loss_of(value: float) -> Markup:
    """A loss that may be close to zero, with four decimals."""
    return say('<span class="number">{value:.4f}</span>', value=value)


def answered(
    steps: int,
    seconds: float,
    *,
    signal: tuple[float, float, float],
    every: tuple[float, float] | None,
    held_out: bool,
) -> Markup:
    """The share of answers that are right, beside the best that is possible.

    Args:
        steps: Number of steps of training.
        seconds: Time they took.
        signal: Accuracy and loss of the answers that their prompt settles, and the least loss possible.
        every: Accuracy of all answers, and the largest possible; `None` where every answer is settled.
        held_out: They are of data that the model was not trained on.
    """
    accuracy, loss, best = signal
    said = say(
        "After {steps} ({seconds:.1f} s) <b>{accuracy}</b> of the answers that their prompt settles are right{where}, "
        "at a loss of <b>{loss}</b> nats (the best possible: {best})",
        steps=count(steps, "step"),
        seconds=seconds,
        accuracy=share_of(accuracy),
        where=" on held-out data" if held_out else " in the last epoch of training",
        loss=loss_of(loss),
        best=loss_of(best),
    )
    if every is not None:
        sentence = "; of all answers, noise included, {all} (the best possible: {best})"
        said += say(sentence, all=share_of(every[0]), best=share_of(every[1]))
    return said + "."


def when_learned(share: float, training: int | None, held_out: int | None) -> Markup | None:
    """The steps at which a share of answers was first right; nothing where it never was.

    Args:
        share: The share.
        training: The step at which it was, in a batch of training; `None` for never.
        held_out: The same on held-out data, at the steps it was measured.
    """
    if training is None and held_out is None:
        return None
    steps = [say("at step {step:,}", step=step) for step in (training, held_out) if step is not None]
    sentence = (
        "{share} of the signal was first right {first} in a batch of training, and when it was measured {second} in "
        "held-out data."
    )
    if held_out is None:
        sentence = "{share} of the signal was right {first} in a batch of training, and never in held-out data."
    elif training is None:
        sentence = "{share} of the signal was right {first} in held-out data, and in no batch of training."
    return say(sentence, share=percent(share), first=steps[0], second=steps[-1])


def head_missed(
    label: str, *, right: tuple[float, float], loss: tuple[float, float], n_rows: int, n_heads: int
) -> Markup | None:
    """The head without which the loss is highest; nothing unless clearly fewer answers are right without it.

    Args:
        label: The head with the largest loss without it.
        right: Share of right answers with all heads, and without it.
        loss: The same of the loss.
        n_rows: Number of prompts; answers of one prompt are not taken as independent.
        n_heads: Number of heads that it was chosen from.
    """
    variance = sum(share * (1 - share) for share in right) / max(1, n_rows)
    fall = Estimate(right[0] - right[1], math.sqrt(variance), n_rows)
    if fall.value <= 0 or not fall.clear(among=n_heads) or loss[1] <= loss[0]:
        return None
    return say(
        "When one head at a time is replaced by its mean over the data, head <b>{label}</b> is missed most: "
        "{without} of settled answers are right without it instead of {right}, and the loss is {loss_without} nats "
        "instead of {loss}.",
        label=label,
        right=share_of(right[0]),
        without=share_of(right[1]),
        loss=nats(loss[0]),
        loss_without=nats(loss[1]),
    )


def heads_of_types(labels: Mapping[str, Sequence[str]]) -> Markup | None:
    """The heads that are labeled with each type; nothing of types without one."""
    named = [
        say("{name}: <b>{heads}</b>", name=name.replace("_", " "), heads=listed(heads))
        for name, heads in labels.items()
        if heads
    ]
    return say("Heads of known types: {named}.", named=Markup("; ").join(named)) if named else None


def no_head_of_types(labels: Mapping[str, Sequence[str]]) -> Markup | None:
    """Say that no head is labeled with any of these types; nothing where one is."""
    return None if any(labels.values()) else say("No head is clearly of one of these types.")


def replied(reply: int, right: int) -> Markup:
    """An answer of the model, and that it is wrong where it is."""
    return say("{reply}" if reply == right else "<b>{reply}, which is wrong</b>", reply=reply)


def composition(previous: bool) -> str:
    """The caption of K-composition, which names previous-token heads only where there are some."""
    caption = "How much the keys of each induction head read what each earlier head writes."
    if previous:
        return caption + " An induction head looks for what a previous-token head (outlined) wrote."
    return caption + " What a previous-token head would write is what they look for; here no head is clearly one."


def few_waves(before: Float[Tensor, " frequency"] | None, after: Float[Tensor, " frequency"]) -> Markup | None:
    """The number of frequencies that hold nearly all of the embedding; nothing unless training is known to cause it.

    Args:
        before: Share of what differs between embeddings that each frequency holds, before training, if it is known.
        after: The same after training.
    """
    if before is None:
        return None
    few, many = (int((power.sort(descending=True).values.cumsum(0) < _POWER).sum()) + 1 for power in (after, before))
    if few >= many:
        return None
    return say(
        "<b>{few}</b> of {of} frequencies hold {share} of what differs between the numbers' embeddings, where it took "
        "{many} before training.",
        few=few,
        of=len(after),
        share=percent(_POWER),
        many=many,
    )
