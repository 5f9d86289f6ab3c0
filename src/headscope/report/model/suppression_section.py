"""The section on copy suppression."""

import dataclasses
import math
from collections.abc import Sequence

from markupsafe import Markup

from headscope.analysis.core.stats import Estimate, threshold
from headscope.report.blocks import Figure, Section, Table
from headscope.report.model.findings import Findings, Suppression
from headscope.report.words import (
    captioned,
    head_cell,
    listed,
    number_cell,
    percent,
    percent_cell,
    percents,
    prose,
    say,
)
from headscope.views.figures.copy_suppression import suppression_scatter

__all__ = ["suppression_section", "suppression_verdict"]

_SURE = 0.5  # a share explained from which a head is said to suppress copying
_SOME = 0.1  # and from which it is said to do so in part

_MOST = "the {top:.0f} % of tokens in sight that are predicted most"
_KEPT = {
    "paper": f"what it writes against {_MOST}",
    "relative": f"what it writes against {_MOST} above their average",
    "own_logit": f"by how much it lowers the own logits of {_MOST} above their average",
}


def suppression_section(findings: Findings) -> Section | None:
    """Words, a figure of every head, and a table of the likeliest; `None` if it was not measured."""
    measured = findings.suppression
    if measured is None:
        return None
    explained = measured.explained
    shares, powers = explained.share_estimates(), explained.power_estimates()
    verdict, summary = suppression_verdict(explained.labels, shares, powers)
    intro = prose(
        "Some heads keep the model from copying: they attend to tokens of the text that are already predicted, and "
        "lower their logits. {verdict}",
        verdict=verdict,
    )
    figures = () if measured.scores.ioi is None else (_figure(measured),)
    return Section("suppression", "Copy suppression", summary, (intro, *figures, _table(measured, shares, powers)))


def suppression_verdict(
    labels: Sequence[str], shares: Sequence[Estimate], powers: Sequence[Estimate]
) -> tuple[Markup, tuple[Markup, ...]]:
    """Say of the candidates what the numbers bear, for the section and, if one does, for the summary.

    With the power as the share of an ideal suppressor, a head of which copy suppression is the part z is given about z
    times the power. A head does copy suppression if its share is clearly above half of that, in part if its share is
    clearly above zero, not small, and clearly below that half, and at least in part if it is on neither side of it.
    That none does is said only if one would have been found.

    Args:
        labels: The candidates.
        shares: What copy suppression explains of each.
        powers: The share that the measure gives an ideal suppressor in the place of each.
    """
    among = len(labels)
    found = [at for at in _by_size(shares) if shares[at].value >= _SOME and shares[at].clear(among)]
    if found:
        best = found[0]
        beyond = _beyond_half(shares[best], powers[best])
        part = " at least in part"
        if beyond.clear(among):
            part = "" if beyond.value > 0 else " in part"
        values = {"label": labels[best], "part": part, "worth": percents(shares[best])}
        verdict = say("Here head <b>{label}</b> does{part}: this explains {worth} of its direct effect", **values)
        if powers[best].value == powers[best].value:
            verdict += say(", where an ideal suppressor would be given {power}", power=percent(powers[best].value))
        if others := [say("{label} ({worth})", label=labels[at], worth=percents(shares[at])) for at in found[1:]]:
            verdict += say("; less so {others}", others=listed(others))
        summary = "Head <b>{label}</b> suppresses copying{part}: this explains {worth} of its direct effect."
        return verdict + ".", (say(summary, **values),)
    least = {at: _detectable(shares[at], powers[at], among) for at in range(among)}
    seen = [at for at in _by_size(shares) if least[at] <= 1]
    if not seen:
        most = max((power.value for power in powers if power.value == power.value), default=math.nan)
        why = Markup("the numbers are too uncertain on so little text")
        if math.isnan(most):
            why = Markup("the model gives the tokens in sight no probability")
        elif most < _SOME:
            why = say(
                "even an ideal suppressor in their place would be given at most {most} of its effect",
                most=percent(most),
            )
        return say("Whether one of the candidates does cannot be told here: {why}.", why=why), ()
    none = say(
        "Here no candidate clearly does: by the measure below, this explains at most {share} of a head's direct effect "
        "(head {label}), and it would have been seen from {least} on.",
        share=percent(max(shares[seen[0]].value, 0.0)),
        label=labels[seen[0]],
        least=percent(max(least[at] for at in seen)),
    )
    if blind := [labels[at] for at in range(among) if at not in seen]:
        none += say(" Of {blind} this cannot be told.", blind=listed(blind))
    return none, ()


def _beyond_half(share: Estimate, power: Estimate) -> Estimate:
    """The share less half of what an ideal suppressor would be given; of all where that is not known."""
    ideal = power if math.isfinite(power.value) else dataclasses.replace(power, value=1.0, error=0.0)
    error = math.hypot(share.error, _SURE * ideal.error)
    return dataclasses.replace(share, value=share.value - _SURE * ideal.value, error=error)


def _detectable(share: Estimate, power: Estimate, among: int) -> float:
    """The least part of a head's effect that would have been called copy suppression; infinite if none would."""
    clear = threshold(among, share.freedom) * share.error
    return max(_SOME, clear) / power.value if power.value > 0 and not math.isnan(clear) else math.inf


def _by_size(shares: Sequence[Estimate]) -> list[int]:
    """The places of the shares, the largest first."""
    return sorted(range(len(shares)), key=lambda at: _sortable(shares[at]), reverse=True)


def _sortable(share: Estimate) -> float:
    """The share, or one below all others where it is not known."""
    return share.value if share.value == share.value else -9.0


def _figure(measured: Suppression) -> Figure:
    return captioned(
        suppression_scatter(measured.scores),
        "Every head as a dot. Copy suppressors are at the top right, heads that copy at the left or the bottom.",
        "To the right: on repeated random tokens, the head lowers the logit of the token that is about to repeat. "
        "Up: in prompts such as <i>When Mary and John went to the store, John gave a drink to</i>, it lowers the "
        "indirect object below the subject.",
        "Color means nothing here; the heads furthest out are named.",
    )


def _table(measured: Suppression, shares: Sequence[Estimate], powers: Sequence[Estimate]) -> Table:
    scores, ranks, explained = measured.scores, measured.ranks, measured.explained
    ioi = {} if scores.ioi is None else {"IOI (logits)": scores.ioi}
    of_scores = {"anti-induction (logits)": scores.anti_induction} | ioi
    rows = []
    for at in _by_size(shares):
        layer, head = explained.heads[at].tolist()
        rows.append(
            (
                head_cell(explained.labels[at]),
                number_cell(shares[at].value, percents(shares[at])),
                number_cell(powers[at].value, percents(powers[at])),
                *(number_cell(float(values[layer, head])) for values in of_scores.values()),
                percent_cell(float(ranks.ov_bottom[at])),
                percent_cell(float(ranks.qk_top[at])),
            )
        )
    caption = say(
        "The heads that score highest, in detail. <b>Explained</b>: of the KL divergence that mean-ablating the head's "
        "direct effect causes, the share that is avoided by keeping only {kept} (after McDougall et al. 2023; variant "
        "<code>{variant}</code>); below zero, keeping that does harm. <b>Ideal</b>: the share that this measure would "
        "give a head in its place that did nothing but hold back the token in sight which the model comes to predict "
        "most above its average; where it is small, little can be found. The last two columns come from the weights "
        "alone: for how many tokens attending to a token lowers its own logit most, and for how many a stream that "
        "predicts a token looks for that token.",
        kept=say(_KEPT[explained.info.options["variant"]], top=100 * explained.info.options["top"]),
        variant=explained.info.options["variant"],
    )
    of_ranks = (f"OV: own token in the bottom {ranks.k}", f"QK: own token in the top {ranks.k}")
    return Table(("head", "explained", "ideal", *of_scores, *of_ranks), rows, caption, sorted_by=1)
