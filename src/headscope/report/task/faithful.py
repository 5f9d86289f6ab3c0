"""The sentence on what the heads of a circuit keep of the task by themselves."""

from dataclasses import replace

from markupsafe import Markup

from headscope.analysis.circuits.faithfulness_result import Faithfulness
from headscope.analysis.core.stats import Estimate
from headscope.report.words import count, percent, percents, say, signed

__all__ = ["kept_alone"]

_NAMED = 20


def kept_alone(found: Faithfulness, *, held_out: bool) -> Markup:
    """The share that the circuit's heads keep by themselves, and if that is all of it."""
    share, error = float(found.faithfulness[-1]), float(found.errors[-1])
    kept = Estimate(share, error, len(found.whole), len(found.whole) - 1.0)
    lacks, works = replace(kept, value=1 - share), kept.clear() and share > 0
    right = Markup("")
    if found.right is not None and found.whole_right is not None:
        ahead = ", and the right name ahead in {share} of them, where the whole model has {whole}"
        right = say(ahead, share=percent(float(found.right[-1])), whole=percent(found.whole_right))
    told = say(
        "With {heads} alone at work ({names}), MLPs as they are and every other head giving what it gives with the "
        "other name as subject, {share} of what the swap changes is there ({metric} of {whole} logits, on {prompts} "
        "{which}){right}.",
        heads=count(len(found.ranking), "head"),
        names=", ".join(found.ranking[:_NAMED]) + (", ..." if len(found.ranking) > _NAMED else ""),
        share=percents(kept),
        metric=signed(float(found.metrics[-1])),
        whole=signed(float(found.whole.mean())),
        prompts=count(len(found.whole), "prompt"),
        which="that the search for them did not see" if held_out else "that the search for them saw",
        right=right,
    )
    if share < 0 and kept.clear():
        verdict = say("By themselves they do the opposite: they are not the circuit.")
    elif not works:
        verdict = say("That is not clearly anything: they are not the circuit.")
    elif not lacks.clear():
        verdict = say("They do not clearly do less or more than the whole model.")
    elif share < 1:
        verdict = say("So something is missing from them.")
    else:
        verdict = say("They do more than the whole model: heads that work against the answer are missing from them.")
    random = none = None
    if found.control is not None:
        random = say("As many heads at random keep {share}.", share=percent(float(found.control[-1])))
    if found.kept_by_none is not None:
        none = say("With no head at work, MLPs alone, {share} is there.", share=percent(found.kept_by_none))
    return Markup(" ").join(part for part in (told, verdict, random, none) if part)
