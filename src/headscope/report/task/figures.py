"""The figures of the section on indirect objects, with their captions."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup
from torch import Tensor

from headscope.analysis.circuits.circuit_result import Circuit
from headscope.analysis.circuits.faithfulness_result import Faithfulness
from headscope.report.blocks import Figure
from headscope.report.task.sentences import moves_along
from headscope.report.task.story import LOOKED_AT, SWAPPED_WORDS, TaskStory
from headscope.report.words import captioned, count, percent, signed
from headscope.views.drawing.maps import component_maps
from headscope.views.figures.circuit import circuit_picture
from headscope.views.figures.faithfulness import faithfulness_curve
from headscope.views.figures.head_types import head_type_maps

__all__ = [
    "attention_figure",
    "circuit_figure",
    "direct_figure",
    "faithfulness_figure",
    "patched_heads_figure",
    "stream_figure",
    "types_figure",
]

_PATCH_COLORS = "Red: the logit difference falls; blue: it rises; no color: no change."


def direct_figure(story: TaskStory) -> Figure:
    """Direct effect of each head on the logit difference, for each order."""
    return captioned(
        _maps(
            story,
            {order.name: story.types.evidence_of(f"direct effect ({order.name})") for order in story.orders},
            "Direct effect of each head on the logit difference",
        ),
        "What each head itself adds to the right name's logit less the wrong one's: layers down, heads across. "
        "A head that is blue in one order and red in the other goes by the place of a name, not by who it is.",
        "The head's output, with the final norm's scale of the prompt, times the difference of the two names' "
        "unembeddings, where the answer is predicted. Mean over {prompts}.",
        "Blue works for the right name, red for the wrong one, on one scale for all panels.",
        prompts=_prompts(story),
    )


def attention_figure(story: TaskStory) -> Figure:
    """Attention of each head from the end, for each order."""
    panels = {
        f"at {word}, {order.name}": story.attention_to(word)[at]
        for at, order in enumerate(story.orders)
        for word in LOOKED_AT
    }
    return captioned(
        _maps(
            story,
            panels,
            "Where heads look from the end of the prompt",
            unit="attention",
            rising=True,
            limit=1.0,
            across=len(LOOKED_AT),
        ),
        "How much of each head's attention goes, from the word before the answer, to the right name (IO) and to "
        "the subject's two mentions (S1, S2), for each order of the names. A head that follows a place "
        "rather than a person changes its panel with the order.",
        "Mean attention over the prompts of that order ({prompts} in all).",
        "The stronger the blue, the more of its attention, from none to all of it.",
        prompts=_prompts(story),
    )


def patched_heads_figure(story: TaskStory) -> Figure:
    """Change from patching each head's output at the words that tell the subject."""
    return captioned(
        _maps(
            story,
            {("at the end" if word == "end" else f"at {word}"): story.head_changes(word) for word in SWAPPED_WORDS},
            "What patching each head changes",
        ),
        "The change of the logit difference when one head's output, at one word, is that of the prompt with the "
        "other name as subject. At S2, the subject's second mention: which heads tell the rest of the model that "
        "it stands there. At the end: which heads set the answer.",
        "Activation patching of the head's output, everything after it recomputed. Mean over {prompts}; the whole "
        "swap changes {gap} logits.",
        _PATCH_COLORS + " Both panels share one scale.",
        prompts=_patched_prompts(story),
        gap=signed(story.gap),
    )


def stream_figure(story: TaskStory) -> Figure:
    """Change from patching the residual stream, at each named word."""
    assert story.stream is not None
    words = list(story.stream.position_labels)
    values = story.stream_changes()
    numbers = [str(at) for at in range(len(words))]
    figure = _maps(story, {"change of the logit difference": values}, "Where it is known who the subject is")
    figure.update_xaxes(tickvals=numbers, ticktext=words, title_text="word")
    figure.data[0].customdata = [[f"layer {layer}, {word}" for word in words] for layer in range(len(values))]
    strongest = [words[at] for at in values.abs().argmax(1).tolist()]
    return captioned(
        figure,
        "At which word the residual stream entering each layer says who the subject is{moves}. S1 and "
        "S2 are the subject's mentions, S1+1 is the word after the first, IO the other name, end the last word "
        "before the answer.",
        "Activation patching: the stream at that word is replaced by that of the prompts with the other name as "
        "subject. Mean over {prompts}; the whole swap changes {gap} logits.",
        _PATCH_COLORS,
        moves=moves_along(strongest),
        prompts=_patched_prompts(story),
        gap=signed(story.gap),
    )


def circuit_figure(circuit: Circuit) -> Figure:
    """The paths between heads, MLPs and the answer."""
    return captioned(
        circuit_picture(circuit),
        "Heads (circles) and MLPs (squares), from the first layer below to the answer above, and the paths by "
        "which they pass on who the subject is. Nodes are colored by head type.",
        "Path patching: one part's output is swapped as one other part reads it, all else kept (queries, keys and "
        "values of heads each by themselves; keys dashed). Paths of at least {share} of what swapping the subject "
        "changes, and clearly above zero, are drawn, as wide as their effect.",
        "Blue paths work for the right answer, red ones against it.",
        share=percent(float(circuit.info.options["min_effect"])),
    )


def faithfulness_figure(found: Faithfulness) -> Figure:
    """The share that the circuit's heads keep alone, over their number."""
    return captioned(
        faithfulness_curve(found),
        "The share of the logit difference that heads of the circuit keep by themselves, the strongest first. At 1 "
        "they do what the whole model does.",
        "All other heads give what they give with the other name as subject, MLPs are recomputed. Share of what the "
        "swap changes, {prompts}; bars are one standard error over prompts, dotted as many heads drawn at random.",
        "Blue: the circuit; gray: random heads.",
        prompts=count(len(found.whole), "prompt"),
    )


def types_figure(story: TaskStory) -> Figure:
    """The score of every head for each type."""
    return captioned(
        head_type_maps(story.types, unit="logits"),
        "The score of every head for each head type; heads that are given the label are framed.",
        "The lowest of the numbers that make the type: direct effects on the logit difference, whole and from the "
        "places that the type is about, in the order of the names where they are lowest. A head is given a label if "
        "each is at least {share} of the logit difference and clearly exceeds its control, the same number for the "
        "answers of other prompts.",
        "Blue above zero, red below; each panel has its own scale.",
        share=percent(float(story.types.info.options["min_effect"])),
    )


def _maps(story: TaskStory, panels: Mapping[str, Tensor], title: str, unit: str = "logits", **style: Any) -> Any:
    return component_maps(panels, title=title, data=story.task.description, unit=unit, **style)


def _prompts(story: TaskStory) -> Markup:
    return count(len(story.task), "prompt")


def _patched_prompts(story: TaskStory) -> Markup:
    assert story.heads is not None
    return count(story.heads.info.n_sequences, "prompt")
