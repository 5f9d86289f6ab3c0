"""The section on copy suppression."""

import dataclasses
import math

from markupsafe import Markup

from headscope.analysis.core.stats import Estimate, estimate
from headscope.analysis.suppression.cspa_result import CopySuppression
from headscope.report.blocks import Figure, Section, Table
from headscope.report.model.findings import Findings, Suppression
from headscope.report.words import captioned, head_cell, number_cell, percent, percent_cell, prose, say
from headscope.views.figures.copy_suppression import suppression_scatter

__all__ = ["suppression_section"]

_SURE = 0.5  # a share explained from which a head is said to suppress copying


def suppression_section(findings: Findings) -> Section | None:
    """Words, a figure of every head, and a table of the likeliest; `None` if it was not measured."""
    measured = findings.suppression
    if measured is None:
        return None
    shares = _shares(measured.explained)
    verdict, summary = _verdict(measured.explained.labels, shares)
    intro = prose(
        "Some heads keep the model from copying: they attend to tokens of the text that are already predicted, and "
        "lower their logits. {verdict}",
        verdict=verdict,
    )
    figures = () if measured.scores.ioi is None else (_figure(measured),)
    return Section("suppression", "Copy suppression", summary, (intro, *figures, _table(measured, shares)))


def _shares(explained: CopySuppression) -> list[Estimate]:
    """The share each head's copy suppression explains; its error is that of a ratio of means, to first order."""
    shares = []
    for share, kept, whole in zip(explained.share().tolist(), explained.kl_cspa, explained.kl_mean, strict=True):
        mean, rest = estimate(whole), estimate(kept - (1 - share) * whole)
        error = rest.error / mean.value if mean.value else math.nan
        shares.append(Estimate(share, error, mean.n, rest.freedom))
    return shares


def _verdict(labels: tuple[str, ...], shares: list[Estimate]) -> tuple[Markup, tuple[Markup, ...]]:
    """The clearest copy suppressor, for the section and for the summary, which says nothing if there is none."""
    best = max(range(len(labels)), key=lambda at: _sortable(shares[at]))
    share, label = shares[best], labels[best]
    above = dataclasses.replace(share, value=share.value - _SURE)
    if above.value > 0 and above.clear(among=len(labels)):
        values = {"label": label, "worth": _worth(share)}
        verdict = say("Here head <b>{label}</b> does: this alone explains {worth} of its direct effect.", **values)
        summary = "Head <b>{label}</b> suppresses copying: this explains {worth} of its direct effect."
        return verdict, (say(summary, **values),)
    none = (
        "Here no candidate clearly does: by the measure below, this explains at most {share} of a head's direct effect "
        "(head {label})."
    )
    return say(none, share=percent(max(_sortable(share), 0.0)), label=label), ()


def _sortable(share: Estimate) -> float:
    """The share, or one below all others where it is not known."""
    return share.value if share.value == share.value else -9.0


def _worth(share: Estimate) -> Markup:
    return say("{share}\xa0±\xa0{error}", share=percent(share.value), error=percent(share.error))


def _figure(measured: Suppression) -> Figure:
    return captioned(
        suppression_scatter(measured.scores),
        "Every head as a dot. Copy suppressors are at the top right, heads that copy at the left or the bottom.",
        "To the right: on repeated random tokens, the head lowers the logit of the token that is about to repeat. "
        "Up: in prompts such as <i>When Mary and John went to the store, John gave a drink to</i>, it lowers the "
        "indirect object below the subject.",
        "Color means nothing here; the heads furthest out are named.",
    )


def _table(measured: Suppression, shares: list[Estimate]) -> Table:
    scores, ranks = measured.scores, measured.ranks
    ioi = {} if scores.ioi is None else {"IOI (logits)": scores.ioi}
    of_scores = {"anti-induction (logits)": scores.anti_induction} | ioi
    rows = []
    for at in sorted(range(len(shares)), key=lambda at: _sortable(shares[at]), reverse=True):
        layer, head = measured.explained.heads[at].tolist()
        rows.append(
            (
                head_cell(measured.explained.labels[at]),
                number_cell(shares[at].value, _worth(shares[at])),
                *(number_cell(float(values[layer, head])) for values in of_scores.values()),
                percent_cell(float(ranks.ov_bottom[at])),
                percent_cell(float(ranks.qk_top[at])),
            )
        )
    caption = say(
        "The heads that score highest, in detail. <b>Explained</b>: of the KL divergence that mean-ablating the head's "
        "direct effect causes, the share that is avoided by keeping only what it writes against the {top:.0f} % of "
        "tokens in sight that are predicted most (McDougall et al. 2023); below zero, keeping that does harm. The last "
        "two columns are read from the weights alone: for how many tokens attending to a token lowers its own logit "
        "most, and for how many a stream that predicts a token looks for that token.",
        top=100 * measured.explained.info.options["top"],
    )
    of_ranks = (f"OV: own token in the bottom {ranks.k}", f"QK: own token in the top {ranks.k}")
    return Table(("head", "explained", *of_scores, *of_ranks), rows, caption, sorted_by=1)
