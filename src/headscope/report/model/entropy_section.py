"""The sections on entropy: along the layers, and by head."""

import itertools
from collections.abc import Sequence

from markupsafe import Markup

from headscope.analysis.core.stats import Estimate, Estimates, estimate, estimates
from headscope.report.blocks import Prose, Section
from headscope.report.model.findings import Findings
from headscope.report.words import (
    captioned,
    clearly,
    count,
    leaders,
    listed,
    n_heads,
    prose,
    say,
    spread,
    stand_out,
    those,
    too_small_to_see,
)
from headscope.views.figures.entropy import Which, entropy_by_head, entropy_by_layer

__all__ = [
    "along_the_layers",
    "entropy_head_section",
    "entropy_layer_section",
    "largest_steps",
    "lowering_heads",
    "no_head_raises",
    "raising_heads",
]

_NAMED = 3  # other steps that are called by name

_EVERY_COLOR = (
    "Blue raises entropy (the prediction becomes less certain), red lowers it, no color is no change. All panels of "
    "the figure share one scale."
)
_MAPS: dict[Which, str] = {
    "all": "All components: layers down, heads across, and each layer's MLP in the last column. MLPs often do so much "
    "that the heads look pale beside them.",
    "heads": "The heads alone, on a scale of their own.",
    "increases": "Only what raises entropy; everything else is left without color.",
}


def entropy_layer_section(findings: Findings) -> Section:
    """Entropy of the prediction after each layer, and its change in each layer."""
    info = findings.means.info
    how = (
        "Each state is turned into a prediction by the final norm and the unembedding (the logit lens); its entropy is "
        "averaged over {n}."
    )
    if info.options.get("scale") == "final":
        how += " Every state is read with the final norm's scale of the same position."
    figure = captioned(
        entropy_by_layer(findings.means),
        "First panel: mean entropy of the prediction at each state of the residual stream: <code>2_pre</code> is the "
        "stream as it enters layer 2, <code>2_mid</code> the same after that layer's attention, <code>final</code> "
        "what the model really predicts. Second panel: the change in each layer; below zero, the prediction becomes "
        "more certain.",
        how,
        "Blue bars are attention, orange ones MLPs.",
        n=count(info.n_positions, "position"),
    )
    resid, labels = findings.entropy.resid, findings.entropy.state_labels
    steps = estimates(resid[1:] - resid[:-1])
    names = [_step_name(before, after) for before, after in itertools.pairwise(labels)]
    summary = those(
        along_the_layers(estimate(resid[0]), estimate(resid[-1]), estimate(resid[-1] - resid[0])),
        largest_steps(steps, names),
    )
    return Section("layers", "Entropy per layer", summary, (figure,))


def along_the_layers(first: Estimate, last: Estimate, change: Estimate) -> Markup | None:
    """The entropy at the embedding and at the end; nothing where it does not clearly change.

    Args:
        first: The entropy at the embedding.
        last: The entropy at the end.
        change: The mean of what they differ by at each position.
    """
    if not change.clear():
        return None
    return say(
        "Read through the logit lens, the entropy of the model's prediction {verb} from <b>{first}</b> nats at the "
        "embedding to <b>{last}</b> at the end ({change}).",
        verb="falls" if change.value < 0 else "rises",
        first=spread(first, sign=False),
        last=spread(last, sign=False),
        change=spread(change),
    )


def largest_steps(steps: Estimates, names: Sequence[str]) -> Markup | None:
    """The largest clear drop of entropy from one state of the stream to the next, and the largest clear rise.

    Args:
        steps: The change from each state to the next.
        names: The part of the model that makes each.
    """
    parts = []
    for sign, word in ((-1, "drop"), (1, "rise")):
        best, *close = steps.contenders(largest=sign > 0)
        if bool(stand_out(steps, sign)[best]):
            sentence = "largest {word} of that entropy is {value} nats, at {place}"
            part = say(sentence, word=word, value=spread(steps[best]), place=names[best])
            if close:
                others = [names[at] for at in close] if len(close) < _NAMED else [count(len(close), "other")]
                part += say(", not clearly apart from {others}", others=listed(others, last="or"))
            parts.append(part)
    return say("The {parts}.", parts=Markup("; the ").join(parts)) if parts else None


def _step_name(before: str, after: str) -> str:
    layer, _, place = before.partition("_")
    if place == "mid":
        return f"the MLP of layer {layer}"
    return f"the attention of layer {layer}" if after.endswith("_mid") else f"layer {layer}"


def entropy_head_section(findings: Findings) -> Section:
    """Effect of each head on the entropy: all components, heads alone, increases alone."""
    info = findings.means.info
    how = (
        "diff: entropy of the stream with the component's output added, minus that before it. marginal: entropy of the "
        "final prediction, minus that with the component's output taken out. Means over {n}, in nats; point at a cell "
        "to read one."
    )
    again = "As in the figure above: the same means, in nats."
    wanted = dict.fromkeys(_MAPS, _EVERY_COLOR)
    wanted["increases"] = "The stronger the blue, the more it raises entropy, on one scale for both."
    if not findings.means.has_mlp:
        del wanted["all"]  # it would be that of the heads
    n = count(info.n_positions, "position")
    figures = tuple(
        captioned(entropy_by_head(findings.means, which), _MAPS[which], again if at else how, color, n=n)
        for at, (which, color) in enumerate(wanted.items())
    )
    words = prose(
        "Two ways to measure a single component. <b>diff</b>: how the entropy of the stream changes where the "
        "component writes. <b>marginal</b>: how the entropy of the final prediction would differ without it. To "
        "raise entropy is to make the prediction less certain."
    )
    measures = (findings.diff, findings.marginal)
    said = raising_heads(*measures)
    asides = those(no_head_raises(*measures), lowering_heads(*measures))
    return Section("by-head", "Entropy per head", those(said), (words, *map(Prose, asides), *figures))


def raising_heads(diff: Estimates, marginal: Estimates) -> Markup | None:
    """The numbers of heads that clearly raise entropy, and the first of each measure; nothing where none does."""
    ups = [int(stand_out(each, 1).sum()) for each in (diff, marginal)]
    if not any(ups):
        return None
    both = int((stand_out(diff, 1) & stand_out(marginal, 1)).sum())
    most = [
        say("by {by}, {heads}", by=by, heads=heads)
        for by, heads in (("diff", leaders(diff)), ("marginal", leaders(marginal)))
        if heads
    ]
    return say(
        "Of {n}, {up} the entropy of the stream (<i>diff</i>) and {final_up} that of the final prediction "
        "(<i>marginal</i>){both}. Most of all: {most}.",
        n=n_heads(diff),
        up=clearly(ups[0], "raise"),
        final_up=clearly(ups[1], "raise"),
        both=say("; {both} of them do both", both=both) if both else "",
        most=Markup("; ").join(most),
    )


def no_head_raises(diff: Estimates, marginal: Estimates) -> Markup | None:
    """Say that no head clearly raises entropy, and how much would have been seen by the coarser of both measures.

    Nothing where one does.
    """
    if bool((stand_out(diff, 1) | stand_out(marginal, 1)).any()):
        return None
    coarser = max(diff, marginal, key=lambda each: float(each.errors.nanmedian()))
    sentence = "By neither measure does any of {n} clearly raise entropy.{bound}"
    return say(sentence, n=n_heads(diff), bound=too_small_to_see(coarser))


def lowering_heads(diff: Estimates, marginal: Estimates) -> Markup | None:
    """The numbers of heads that clearly lower entropy, and how little that means by diff; nothing where none does."""
    down, final_down = (int(stand_out(each, -1).sum()) for each in (diff, marginal))
    if not down and not final_down:
        return None
    sentence = "By diff {down} entropy, by marginal {final_down} it."
    if down:
        sentence += (
            " By diff, that alone is little: nearly any vector, added to a stream whose prediction is close to "
            "uniform, makes it less so, and heads of untrained models do that too."
        )
    return say(sentence, down=clearly(down, "lower"), final_down=clearly(final_down, "lower"))
