"""The sections on kinds of head, and on where the notable heads look."""

import torch
from markupsafe import Markup

from headscope.analysis.core.result import HeadScore
from headscope.report.blocks import Caption, Cell, Column, Figure, Prose, Section, Table
from headscope.report.model.findings import KIND_SCORE, Findings, positions_of, strongest
from headscope.report.words import head_cell, number_cell, percent, say
from headscope.views.attention import attention_heads
from headscope.views.figures.head_scores import head_score_maps
from headscope.views.html import HtmlView

__all__ = ["KINDS_CAPTION", "attention_section", "kinds_section"]

_SHOWN_TOKENS = 256
_LISTED = 5

KINDS_CAPTION = Caption(
    say(
        "How much of its attention each head pays, on average, to the token before (previous token), to earlier copies "
        "of the same token (duplicate token), and to what came right after earlier copies (induction)."
    ),
    say("Measured on random tokens said twice, where meaning cannot help: a mean over positions, between 0 and 1."),
    say("No colour is none of its attention, the strongest blue is all of it; the panels share one scale."),
)


def kinds_section(found: Findings) -> Section | None:
    """Which heads are of a known kind; `None` if it was not measured."""
    scores, kinds = found.scores, strongest(found.scores, _LISTED)
    if scores is None or not kinds:
        return None
    rows = tuple(
        (Cell(name, at), head_cell(score.label), number_cell(score.value, percent(score.value)))
        for at, (name, ranking) in enumerate(kinds)
        for score in ranking
    )
    return Section(
        "kinds",
        "Kinds of head",
        (_summary(kinds, scores.info.n_sequences),),
        (
            Figure(head_score_maps(scores), KINDS_CAPTION),
            Table(
                (Column("kind", words=True), Column("head"), Column("of its attention")),
                rows,
                say("The {k} heads that score highest in each kind.", k=max(len(ranking) for _, ranking in kinds)),
            ),
        ),
    )


def _summary(kinds: list[tuple[str, list[HeadScore]]], n_sequences: int) -> Markup:
    parts = []
    for name, ranking in kinds:
        best = ranking[0]
        if best.value >= KIND_SCORE:
            sentence = "<b>{label}</b> is the strongest {name} head ({share} of its attention)"
        else:
            sentence = "no head is clearly {a} {name} head (at most {share} of attention, head {label})"
        article = "an" if name == "induction" else "a"
        parts.append(say(sentence, label=best.label, name=name, share=percent(best.value), a=article))
    joined = Markup(", ").join(parts[:-1]) + (Markup(" and ") if len(parts) > 1 else Markup("")) + parts[-1]
    return say("On {n} sequences of random tokens said twice, {parts}.", n=n_sequences, parts=joined)


def attention_section(found: Findings, heads: tuple[HeadScore, ...]) -> Section:
    """The attention patterns of the heads looked at, and of the best of each kind."""
    intro = say(
        "The heads above on one sequence. Choose a head by its thumbnail, and point at a token to see which tokens it "
        "attends to, or is attended from; click to keep it."
    )
    figure = Figure(
        _attention_view(found, heads),
        Caption(
            say("In the square, each row is a token that attends, each column a token that is attended to."),
            say("The attention weights of one forward pass; each row sums to 1."),
            say("No colour is no attention, the strongest blue is all of it."),
        ),
    )
    return Section("attention", "Attention patterns", (), (Prose(intro), figure))


def _attention_view(found: Findings, heads: tuple[HeadScore, ...]) -> HtmlView:
    """The heads of note on the sequence where the first of them has its strongest effect."""
    wanted = {(score.layer, int(score.head or 0)): score.label for score in heads}
    for kind, ranking in strongest(found.scores):
        best = ranking[0]
        if best.value >= KIND_SCORE and kind != "duplicate token":
            key = (best.layer, int(best.head or 0))
            wanted[key] = f"{wanted.get(key, best.label)} {kind}"
    n = min(_SHOWN_TOKENS, found.tokens.shape[1])
    places = [place for place in positions_of(found, heads[0], 50) if place.pos < n]
    # Near the start of a row there is little to attend to.
    place = next((place for place in places if place.pos >= min(8, n // 2)), places[0] if places else None)
    row, focus = (place.row, place.pos) if place is not None else (0, None)
    layers = {layer for layer, _ in wanted}
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
    with torch.no_grad():
        _, cache = found.model.run_with_cache(found.tokens[row : row + 1, :n], names_filter=names, return_type=None)
    patterns = torch.stack([cache["pattern", layer][0, head] for layer, head in wanted])
    return attention_heads(
        patterns,
        found.strings[row][:n],
        attention_head_names=list(wanted.values()),
        min_value=0.0,
        max_value=1.0,
        focus=focus,
    )
