"""Words on why heads look at the names they look at: their attention scores, split by what made query and key."""

import torch
from markupsafe import Markup

from headscope.analysis.attention.score_result import AttentionAttribution
from headscope.analysis.core.stats import Estimates, estimates_over_prompts
from headscope.ops.devices import wide
from headscope.report.blocks import Block, Fold, Heading
from headscope.report.task.story import TaskStory
from headscope.report.words import captioned, count, listed, percent, prose, say, spread, stand_out
from headscope.views.figures.attention_score import attention_sides

__all__ = ["why_blocks", "why_it_looks"]

_PARTS = 3
_NAMED = {"IO": "the right name", "S1": "the subject's first mention", "S2": "the subject's second mention"}


def why_blocks(story: TaskStory) -> list[Block]:
    """Return a sentence for each head that was asked why it looks where it looks, and the figures behind them."""
    said = [sentence for sentence in map(why_it_looks, story.why) if sentence is not None]
    if not said:
        return []
    how = (
        "A head's score before the softmax is a product of a query and a key, and each of these is a sum over what was "
        "written to the stream (norms with their scales as they are). So the score is split without a remainder; each "
        "number is that at one name less that at another, over {prompts}. These are terms of a sum: without a part, "
        "later parts would change too."
    )
    figures = tuple(
        captioned(
            attention_sides(why),
            "How much each part adds, through the query or through the key, to the score of head {head}.",
            "Attention attribution: the score at one key less that at another, split by the parts of the stream that "
            "made query and key; bars of one standard error.",
            "Blue: it looks there rather than elsewhere; red: the reverse.",
            head=str(why.info.options["head"]),
        )
        for why in story.why
    )
    prompts = count(len(story.why[0].scores), "prompt")
    return [Heading("Why they look there"), prose(how, prompts=prompts), *map(prose, said), Fold("In figures", figures)]


def why_it_looks(why: AttentionAttribution) -> Markup | None:
    """Name what most makes a head look at one name rather than another; nothing if it does not clearly do so."""
    options = why.info.options
    difference = estimates_over_prompts(why.scores[:, None], why.clusters)[0]
    here, there = wide(why.attention).mean(0).tolist()
    if len(why.scores) < 2 or difference.value <= 0 or not difference.clear() or here <= there:
        return None
    sides = []
    for side, parts in (("key", why.key_parts), ("query", why.query_parts)):
        named, total = _strongest(why.part_labels, estimates_over_prompts(parts, why.clusters))
        if named:
            share = percent(total / difference.value)
            sides.append(say("through the {side} {parts}, {share} of it", side=side, parts=listed(named), share=share))
    told = say(
        "<b>{head}</b> looks from the end at {here} ({share}) rather than at {there} ({other}): its score is "
        "{difference} higher there.",
        head=str(options["head"]),
        here=_NAMED[str(options["key"])],
        share=percent(here),
        there=_NAMED[str(options["against"])],
        other=percent(there),
        difference=spread(difference, sign=False),
    )
    return told + say(" The largest parts: {sides}.", sides=Markup("; ").join(sides)) if sides else told


def _strongest(labels: tuple[str, ...], each: Estimates) -> tuple[list[Markup], float]:
    """The parts that clearly add to the score, those that add most first, and what they add together."""
    adds = stand_out(each, 1)
    order = torch.where(adds, each.values, -torch.inf).argsort(descending=True)[: min(_PARTS, int(adds.sum()))]
    named = [say("<b>{label}</b> ({value})", label=labels[at], value=spread(each[at])) for at in order.tolist()]
    return named, float(each.values[order].sum())
