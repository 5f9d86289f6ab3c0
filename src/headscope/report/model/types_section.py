"""The sections on head types, and on where the notable heads look."""

from collections.abc import Mapping

from markupsafe import Markup

from headscope.analysis.core.ranking import Ranking
from headscope.analysis.heads.scores import MIN_ATTENTION
from headscope.report.blocks import Cell, Section, Table
from headscope.report.model.findings import Findings, strongest
from headscope.report.words import captioned, head_cell, listed, percent, percent_cell, prose, say
from headscope.views.attention import attention_heads
from headscope.views.figures.head_scores import head_score_maps

__all__ = ["attention_section", "types_section"]

_LISTED = 5


def types_section(findings: Findings) -> Section | None:
    """The heads of each type; `None` if it was not measured."""
    scores, types = findings.scores, strongest(findings.scores, _LISTED)
    if scores is None or not types:
        return None
    figure = captioned(
        head_score_maps(scores),
        "Share of its attention that each head pays, on average, to the token before (previous token), to earlier "
        "copies of the same token (duplicate token), and to what came right after earlier copies (induction).",
        "Measured on repeated random tokens, where meaning cannot help: a mean over positions, between 0 and 1.",
        "No color is none of its attention, the strongest blue is all of it; the panels share one scale.",
    )
    rows = [
        (Cell(name, at), head_cell(score.label), percent_cell(score.value))
        for at, (name, ranking) in enumerate(types.items())
        for score in ranking
    ]
    caption = say("The {k} heads that score highest in each type.", k=max(map(len, types.values())))
    table = Table(("type", "head", "of its attention"), rows, caption, words=(0,))
    return Section("types", "Head types", (_summary(types, scores.info.n_sequences),), (figure, table))


def _summary(types: Mapping[str, Ranking], n_sequences: int) -> Markup:
    parts = []
    for name, (best, *_) in types.items():
        if best.value >= MIN_ATTENTION:
            sentence = "<b>{label}</b> is the strongest {name} head ({share} of its attention)"
        else:
            sentence = "no head is clearly {a} {name} head (at most {share} of attention, head {label})"
        article = "an" if name == "induction" else "a"
        parts.append(say(sentence, label=best.label, name=name, share=percent(best.value), a=article))
    return say("On {n} sequences of repeated random tokens, {parts}.", n=n_sequences, parts=listed(parts))


def attention_section(findings: Findings) -> Section | None:
    """The attention patterns of the notable heads, and of the best of each type."""
    shown = findings.attention
    if shown is None:
        return None
    intro = prose(
        "The heads that raise entropy most, and the strongest of each type, on one sequence. Choose a head by its "
        "thumbnail, and point at a token to see which tokens it attends to, or is attended from; click to keep it."
    )
    figure = captioned(
        attention_heads(
            shown.patterns,
            findings.strings[shown.row][: shown.patterns.shape[-1]],
            attention_head_names=list(shown.names),
            min_value=0.0,
            max_value=1.0,
            focus=shown.focus,
        ),
        "In the square, each row is a token that attends, each column a token that is attended to.",
        "The attention weights of one forward pass; each row sums to 1.",
        "No color is no attention, the strongest blue is all of it.",
    )
    return Section("attention", "Attention patterns", (), (intro, figure))
