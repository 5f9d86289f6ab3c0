"""The sections on head types, and on where the notable heads look."""

import math
from collections.abc import Iterable, Mapping, Sequence

from jaxtyping import Int
from markupsafe import Markup
from torch import Tensor

from headscope.analysis.core.ranking import HeadScore, Ranking
from headscope.analysis.heads.scores import MIN_ATTENTION
from headscope.report.blocks import Cell, Prose, Section, Table
from headscope.report.model.findings import TYPES, Findings, strongest
from headscope.report.words import captioned, head_cell, listed, percent, percent_cell, prose, say, those
from headscope.views.attention import attention_heads
from headscope.views.figures.head_scores import head_score_maps

__all__ = [
    "attention_section",
    "otherwise_on_text",
    "strongest_heads",
    "types_section",
    "types_without_heads",
    "whose_attention",
]

_LISTED = 5
_FEWEST = 50  # repeats in a text, from which it is said that heads of a type do otherwise there
_ALWAYS = TYPES["previous_token"]  # needs no repeats
_HARDLY = 1 / 3  # of the least attention that makes a type


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
    text = findings.scores_on_text
    shares = {} if text is None else {name: getattr(text, type_) for type_, name in TYPES.items()}
    told = _told(shares, findings.tokens)
    rows = [
        (Cell(name, at), head_cell(score.label), percent_cell(score.value), percent_cell(_share(shares, name, score)))
        for at, (name, ranking) in enumerate(types.items())
        for score in ranking
    ]
    caption = say(
        "The {k} heads that score highest in each type on random tokens, and what they pay on the text of this page.",
        k=max(map(len, types.values())),
    )
    table = Table(("type", "head", "of its attention", "on the text"), rows, caption, words=(0,))
    said, absent = strongest_heads(types, scores.info.n_sequences), types_without_heads(types)
    unlike = otherwise_on_text(
        [(name, score.label, score.value, _share(told, name, score)) for name, best in types.items() for score in best]
    )
    return Section("types", "Head types", those(said), (*map(Prose, those(absent, unlike)), figure, table))


def _told(shares: Mapping[str, Tensor], tokens: Int[Tensor, "row pos"]) -> Mapping[str, Tensor]:
    """The shares by type of which something follows: where few tokens repeat, that of the token before alone."""
    n_repeats = sum(len(row) - len(set(row)) for row in tokens.tolist())
    return {name: share for name, share in shares.items() if n_repeats >= _FEWEST or name == _ALWAYS}


def _share(shares: Mapping[str, Tensor], name: str, score: HeadScore) -> float | None:
    """Attention of a head on the text; `None` where nothing counts."""
    value = float(shares[name][score.layer, score.head]) if name in shares else math.nan
    return None if math.isnan(value) else value


def otherwise_on_text(scored: Iterable[tuple[str, str, float, float | None]]) -> Markup | None:
    """The heads of a type on random tokens that hardly are so on the text; nothing where there are none.

    Args:
        scored: Type, head, and its attention on random tokens and on the text; `None` where it is not known.
    """
    parts = [
        say("{label} ({name}: {share} instead of {random})", label=label, name=name, share=percent(there),
            random=percent(value))
        for name, label, value, there in scored
        if value >= MIN_ATTENTION and there is not None and there < _HARDLY * MIN_ATTENTION
    ]  # fmt: skip
    if not parts:
        return None
    return say("On the text of this page these do otherwise than on random tokens: {heads}.", heads=listed(parts))


def strongest_heads(types: Mapping[str, Ranking], n_sequences: int) -> Markup | None:
    """The strongest head of each type that has one, by the least attention; nothing where there is none.

    Args:
        types: The heads of each type that was looked for, the strongest first.
        n_sequences: Number of sequences of random tokens.
    """
    parts = [
        say("<b>{label}</b> is the strongest {name} head ({share} of its attention)",
            label=best.label, name=name, share=percent(best.value))
        for name, (best, *_) in types.items() if best.value >= MIN_ATTENTION
    ]  # fmt: skip
    if not parts:
        return None
    return say("On {n} sequences of repeated random tokens, {parts}.", n=n_sequences, parts=listed(parts))


def types_without_heads(types: Mapping[str, Ranking]) -> Markup | None:
    """The types that were looked for and that no head is of, by the least attention; nothing where there are none."""
    parts = [
        say("as {article} {name} head would (at most {share}, head {label})",
            article="an" if name == "induction" else "a", name=name, share=percent(best.value), label=best.label)
        for name, (best, *_) in types.items() if best.value < MIN_ATTENTION
    ]  # fmt: skip
    if not parts:
        return None
    sentence = "On repeated random tokens no head pays {least} or more of its attention {parts}."
    return say(sentence, least=percent(MIN_ATTENTION), parts=listed(parts, last="or"))


def whose_attention(names: Sequence[str]) -> Markup:
    """Say which heads' patterns are shown.

    Args:
        names: The heads by their labels, with their type behind them for those that are shown for it.
    """
    typed = [name.partition(" ")[2] for name in names if " " in name]
    parts = ["the first heads by entropy diff and marginal in turn"] if len(typed) < len(names) else []
    parts += [f"the strongest {listed(typed)} head{'s' * (len(typed) > 1)}"] if typed else []
    sentence = ", and ".join(parts)
    return say("{sentence}, on one sequence.", sentence=sentence[:1].upper() + sentence[1:])


def attention_section(findings: Findings) -> Section | None:
    """The attention patterns of the notable heads, and of the best of each type."""
    shown = findings.attention
    if shown is None:
        return None
    intro = prose(
        "{whose} Choose a head by its thumbnail, and point at a token to see which tokens it attends to, or is "
        "attended from; click to keep it.",
        whose=whose_attention(shown.names),
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
