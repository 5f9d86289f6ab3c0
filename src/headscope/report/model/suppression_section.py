"""The section on copy suppression."""

import dataclasses
import math

from markupsafe import Markup

from headscope.analysis.core.stats import Estimate, estimate
from headscope.analysis.suppression.cspa_result import CopySuppression
from headscope.report.blocks import Block, Caption, Column, Figure, Prose, Section, Table
from headscope.report.model.findings import Findings
from headscope.report.model.suppression import Suppression
from headscope.report.words import head_cell, number_cell, percent, say
from headscope.views.figures.copy_suppression import suppression_scatter

__all__ = ["suppression_section"]

_SURE = 0.5  # a share explained from which a head is said to suppress copying


def suppression_section(found: Findings) -> Section | None:
    """Words, a figure of every head, and a table of the likeliest; `None` if it was not measured."""
    measured = found.suppression
    if measured is None:
        return None
    shares = _shares(measured.explained)
    verdict, summary = _verdict(measured, shares)
    intro = say(
        "Some heads hold back what the model is about to copy: they look for tokens of the text that are already "
        "predicted, and lower their logits. {verdict}",
        verdict=verdict,
    )
    blocks: list[Block] = [Prose(intro)]
    if measured.scores.ioi is not None:
        blocks.append(_figure(measured))
    return Section("suppression", "Copy suppression", summary, (*blocks, _table(measured, shares)))


def _shares(explained: CopySuppression) -> list[Estimate]:
    """The share each head's copy suppression explains; its error is that of a ratio of means, to first order."""
    found = []
    for share, kept, whole in zip(explained.share().tolist(), explained.kl_cspa, explained.kl_mean, strict=True):
        mean, rest = estimate(whole), estimate(kept - (1 - share) * whole)
        error = rest.error / mean.value if mean.value else math.nan
        found.append(Estimate(share, error, mean.n, rest.freedom))
    return found


def _verdict(measured: Suppression, shares: list[Estimate]) -> tuple[Markup, tuple[Markup, ...]]:
    """Whether a head clearly does, for the section and for the summary, which says nothing if none does."""
    labels = measured.explained.labels
    best = max(range(len(labels)), key=lambda at: shares[at].value if shares[at].value == shares[at].value else -9.0)
    share, label = shares[best], labels[best]
    above = dataclasses.replace(share, value=share.value - _SURE)
    if above.value > 0 and above.clear(among=len(labels)):
        worth = _worth(share)
        text = "Here head <b>{label}</b> does: this alone explains {worth} of what its direct effect is worth."
        said = say(text, label=label, worth=worth)
        return said, (
            say(
                "Head <b>{label}</b> suppresses copying: this explains {worth} of what its direct effect is worth.",
                label=label,
                worth=worth,
            ),
        )
    said = say(
        "Here no head clearly does: among the candidates, it explains at most {share} of what a head's direct effect "
        "is worth (head {label}).",
        share=percent(max(share.value, 0.0) if share.value == share.value else 0.0),
        label=label,
    )
    return said, ()


def _worth(share: Estimate) -> Markup:
    return say("{share} ± {error}", share=percent(share.value), error=percent(share.error))


def _figure(measured: Suppression) -> Figure:
    return Figure(
        suppression_scatter(measured.scores),
        Caption(
            say(
                "Every head as a dot. A copy suppressor stands at the top right; heads that copy stand at the left or "
                "the bottom."
            ),
            say(
                "To the right: on random tokens said twice, the head lowers the logit of the token that is about to "
                "repeat. Up: in prompts such as <i>When Mary and John went to the store, John gave a drink to</i>, it "
                "lowers the indirect object below the subject."
            ),
            say("Colour means nothing here; the heads furthest out are named."),
        ),
    )


def _table(measured: Suppression, shares: list[Estimate]) -> Table:
    scores, ranks = measured.scores, measured.ranks
    has_ioi = scores.ioi is not None
    columns = [Column("head"), Column("explained"), Column("anti-induction (logits)")]
    columns += [Column("IOI (logits)")] if has_ioi else []
    columns += [Column(f"OV: own token in the bottom {ranks.k}"), Column(f"QK: own token in the top {ranks.k}")]
    known = [share if share.value == share.value else None for share in shares]
    order = sorted(range(len(known)), key=lambda at: -9.0 if (one := known[at]) is None else one.value, reverse=True)
    rows = []
    for at in order:
        layer, head = measured.explained.heads[at].tolist()
        share, bottom, top = known[at], float(ranks.ov_bottom[at]), float(ranks.qk_top[at])
        rows.append(
            (
                head_cell(measured.explained.labels[at]),
                number_cell(None) if share is None else number_cell(share.value, _worth(share)),
                number_cell(float(scores.anti_induction[layer, head])),
                *((number_cell(float(scores.ioi[layer, head])),) if scores.ioi is not None else ()),
                number_cell(bottom, percent(bottom)),
                number_cell(top, percent(top)),
            )
        )
    caption = say(
        "The heads that score highest, looked at closely. <b>Explained</b>: of what the predictions lose (in KL) when "
        "the head's direct effect gives way to its mean, the share that is kept by keeping only what it writes against "
        "the {top:.0f} % of tokens in sight that are predicted most (McDougall et al. 2023); below zero, keeping that "
        "does harm. The last two columns are read from the weights alone: for how many tokens attending to a token "
        "lowers its own logit most, and for how many a stream that predicts a token looks for that token.",
        top=100 * measured.explained.info.options["top"],
    )
    return Table(tuple(columns), tuple(rows), caption, sorted_by=1)
