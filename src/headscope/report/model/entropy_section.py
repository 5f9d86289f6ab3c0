"""The sections on entropy: along the layers, and by head."""

import itertools

from markupsafe import Markup

from headscope.analysis.core.result import component_label
from headscope.analysis.core.stats import Estimates, estimate, estimates
from headscope.report.blocks import Caption, Figure, Prose, Section
from headscope.report.model.findings import Findings
from headscope.report.words import count, listed, say, spread
from headscope.views.figures.entropy import Which, entropy_by_head, entropy_by_layer

__all__ = ["HEAD_COLOURS", "entropy_head_section", "entropy_layer_section", "leaders"]

HEAD_COLOURS = (
    "Blue raises entropy (the prediction becomes less certain), red lowers it, no colour is no change. All panels of "
    "the figure share one scale."
)
_COLOURS: dict[Which, str] = {"increases": "The stronger the blue, the more it raises entropy, on one scale for both."}
_MAPS: dict[Which, str] = {
    "all": "All components: layers down, heads across, and each layer's MLP in the last column. MLPs often do so much "
    "that the heads look pale beside them.",
    "heads": "The heads alone, on a scale of their own.",
    "increases": "Only what raises entropy; everything else is left without colour.",
}


def entropy_layer_section(found: Findings) -> Section:
    """How certain the model is after each layer, and what each layer changes."""
    how = (
        "Each state is turned into a prediction by the final norm and the unembedding (the logit lens); its entropy is "
        "averaged over {n}."
    )
    if found.means.info.options.get("scale") == "final":
        how += " Every state is read with the final norm's scale of the same position."
    figure = Figure(
        entropy_by_layer(found.means),
        Caption(
            say(
                "Left: mean entropy of the prediction at each state of the residual stream: <code>2_pre</code> is the "
                "stream as it enters layer 2, <code>2_mid</code> the same after that layer's attention, "
                "<code>final</code> what the model really predicts. Right: what each layer changes; below zero, the "
                "prediction becomes more certain."
            ),
            say(how, n=count(found.means.info.n_positions, "position")),
            say("Blue bars are attention, orange ones MLPs."),
        ),
    )
    return Section("layers", "Entropy per layer", (_from_first_to_last(found),), (figure,))


def _from_first_to_last(found: Findings) -> Markup:
    resid, labels = found.entropy.resid, found.entropy.state_labels
    change = estimate(resid[-1] - resid[0])
    steps = estimates(resid[1:] - resid[:-1])
    names = [_step_name(before, after) for before, after in itertools.pairwise(labels)]
    sentence = "Read through the logit lens, the entropy of its prediction "
    if change.clear():
        sentence += "{verb} from <b>{first}</b> nats at the embedding to <b>{last}</b> at the end ({change})."
    else:
        sentence += "is {first} nats at the embedding and {last} at the end, which is no clear change ({change})."
    parts = []
    for sign, word in ((-1, "drop"), (1, "rise")):
        if bool(steps.clear(sign).any()):
            best, *close = steps.as_good(largest=sign > 0)
            rivals = listed((names[at] for at in close[:2]), last="or") if close else ""
            parts.append(
                say(
                    "largest {word} is {value} at {place}" + (", hardly to be told from {rivals}" if close else ""),
                    word=word,
                    value=spread(steps[best]),
                    place=names[best],
                    rivals=rivals,
                )
            )
    tail = say(" The {parts}.", parts=Markup(", the ").join(parts)) if parts else Markup("")
    return (
        say(
            sentence,
            verb="falls" if change.value < 0 else "rises",
            first=spread(estimate(resid[0]), sign=False),
            last=spread(estimate(resid[-1]), sign=False),
            change=spread(change),
        )
        + tail
    )


def _step_name(before: str, after: str) -> str:
    layer, _, place = before.partition("_")
    if place == "mid":
        return f"the MLP of layer {layer}"
    return f"the attention of layer {layer}" if after.endswith("_mid") else f"layer {layer}"


def entropy_head_section(found: Findings) -> Section:
    """What each head does to the entropy: all components, heads alone, increases alone."""
    info = found.means.info
    how = say(
        "diff: entropy of the stream with the component's output added, minus that before it. marginal: entropy of the "
        "final prediction, minus that with the component's output taken out. Means over {n}, in nats; point at a cell "
        "to read one.",
        n=count(info.n_positions, "position"),
    )
    again = say("As in the figure above: the same means, in nats.")
    wanted = [which for which in _MAPS if which != "all" or found.means.has_mlp]  # it would be the next one again
    figures = tuple(
        Figure(
            entropy_by_head(found.means, which),
            Caption(say(_MAPS[which]), again if at else how, say(_COLOURS.get(which, HEAD_COLOURS))),
        )
        for at, which in enumerate(wanted)
    )
    words = say(
        "Two ways to ask what a single component does. <b>diff</b>: how the entropy of the stream changes where the "
        "component writes. <b>marginal</b>: how the entropy of the final prediction would differ without it. To raise "
        "entropy, to make the prediction less certain, is the rarer thing."
    )
    return Section("by-head", "Entropy per head", _raising(found), (Prose(words), *figures))


def _raising(found: Findings) -> tuple[Markup, ...]:
    up_diff, up_marginal = (each.clear(1) for each in (found.diff, found.marginal))
    n, both = up_diff.numel(), int((up_diff & up_marginal).sum())
    if not bool((up_diff | up_marginal).any()):
        first = say(
            "None of its {n} clearly raises entropy on average over {positions}.",
            n=count(n, "head"),
            positions=count(found.means.info.n_positions, "position"),
        )
        return (first,)
    first = say(
        "Of its {n}, <b>{diff}</b> clearly {raise_diff} the entropy of the stream written to (<i>diff</i>), "
        "<b>{marginal}</b> clearly {raise_marginal} that of the final prediction (<i>marginal</i>), and {both} {do} "
        "both.",
        n=count(n, "head"),
        diff=int(up_diff.sum()),
        raise_diff="raises" if int(up_diff.sum()) == 1 else "raise",
        marginal=int(up_marginal.sum()),
        raise_marginal="raises" if int(up_marginal.sum()) == 1 else "raise",
        both=both,
        do="does" if both == 1 else "do",
    )
    most = [
        say("by {by}, {heads}", by=by, heads=leaders(each))
        for by, each, raising in (("diff", found.diff, up_diff), ("marginal", found.marginal, up_marginal))
        if bool(raising.any())
    ]
    return (first + say(" Most of all: {most}.", most=Markup("; ").join(most)),)


def leaders(each: Estimates) -> Markup:
    """The head with the largest mean, and those that chance may have put behind it."""
    n_heads = each.values.shape[1]
    best, *close = each.as_good()
    named = say(
        "head <b>{label}</b> ({value} nats)",
        label=component_label(*divmod(best, n_heads)),
        value=spread(each[divmod(best, n_heads)]),
    )
    if not close:
        return named
    rivals = [component_label(*divmod(at, n_heads)) for at in close[:3]]
    more = [] if len(close) <= 3 else [f"{len(close) - 3} more"]
    return named + say(", hardly to be told from {rivals}", rivals=listed([*rivals, *more]))
