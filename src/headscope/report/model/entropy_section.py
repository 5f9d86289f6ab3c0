"""The sections on entropy: along the layers, and by head."""

import itertools

from markupsafe import Markup

from headscope.analysis.core.stats import estimate, estimates
from headscope.report.blocks import Section
from headscope.report.model.findings import Findings
from headscope.report.words import captioned, count, leaders, listed, prose, say, spread
from headscope.views.figures.entropy import Which, entropy_by_head, entropy_by_layer

__all__ = ["entropy_head_section", "entropy_layer_section"]

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
    return Section("layers", "Entropy per layer", (_from_first_to_last(findings),), (figure,))


def _from_first_to_last(findings: Findings) -> Markup:
    resid, labels = findings.entropy.resid, findings.entropy.state_labels
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
            best, *close = steps.contenders(largest=sign > 0)
            part = say("largest {word} is {value} at {place}", word=word, value=spread(steps[best]), place=names[best])
            if close:
                part += ", not clearly apart from " + listed((names[at] for at in close[:2]), last="or")
            parts.append(part)
    tail = say(" The {parts}.", parts=Markup("; the ").join(parts)) if parts else ""
    first, last = (spread(estimate(state), sign=False) for state in (resid[0], resid[-1]))
    verb = "falls" if change.value < 0 else "rises"
    return say(sentence, verb=verb, first=first, last=last, change=spread(change)) + tail


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
    return Section("by-head", "Entropy per head", (_raising(findings),), (words, *figures))


def _raising(findings: Findings) -> Markup:
    up_diff, up_marginal = (each.clear(1) for each in (findings.diff, findings.marginal))
    n = up_diff.numel()
    if not bool((up_diff | up_marginal).any()):
        return say(
            "None of its {n} clearly raises entropy on average over {positions}.",
            n=count(n, "head"),
            positions=count(findings.means.info.n_positions, "position"),
        )
    first = say(
        "Of its {n}, <b>{diff}</b> clearly raise the entropy of the stream they write to (<i>diff</i>), "
        "<b>{marginal}</b> that of the final prediction (<i>marginal</i>), and {both} both.",
        n=count(n, "head"),
        diff=int(up_diff.sum()),
        marginal=int(up_marginal.sum()),
        both=int((up_diff & up_marginal).sum()),
    )
    most = [
        say("by {by}, {heads}", by=by, heads=leaders(each))
        for by, each, raising in (("diff", findings.diff, up_diff), ("marginal", findings.marginal, up_marginal))
        if bool(raising.any())
    ]
    return first + say(" Most of all: {most}.", most=Markup("; ").join(most))
