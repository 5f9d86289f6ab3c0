"""The figures of the section on indirect objects, each with what it shows, how it was made and what colour means."""

from markupsafe import Markup

from headscope.analysis.circuits.circuit import Circuit
from headscope.report.blocks import Caption, Figure
from headscope.report.task.story import LOOKED_AT, SWAPPED_WORDS, TaskStory
from headscope.report.words import count, percent, say, signed
from headscope.views.drawing.maps import component_maps
from headscope.views.figures.circuit import circuit_picture
from headscope.views.figures.head_types import head_type_maps

__all__ = [
    "attention_figure",
    "circuit_figure",
    "direct_figure",
    "kinds_figure",
    "least_path",
    "patched_heads_figure",
    "stream_figure",
]

_PATCH_COLOURS = "Red: the logit difference falls; blue: it rises; no colour: no change."


def direct_figure(story: TaskStory) -> Figure:
    """What each head adds to the logit difference, for each order."""
    return Figure(
        component_maps(
            {order.name: story.types.evidence_of(f"direct effect ({order.name})") for order in story.orders},
            columns=_heads(story),
            title="Direct effect of each head on the logit difference",
            data=story.task.description,
            unit="logits",
        ),
        Caption(
            say(
                "What each head itself adds to the right name's logit less the wrong one's: layers down, heads across. "
                "A head that is blue in one order and red in the other goes by the place of a name, not by who it is."
            ),
            say(
                "The head's output, with the final norm's scale of the prompt, times the difference of the two names' "
                "unembeddings, where the answer is predicted. Mean over {prompts}.",
                prompts=_prompts(story),
            ),
            say("Blue works for the right name, red for the wrong one, on one scale for all panels."),
        ),
    )


def attention_figure(story: TaskStory) -> Figure:
    """Where heads look from the end, for each order."""
    panels = {
        f"at {word}, {order.name}": story.attention_to(word)[at]
        for at, order in enumerate(story.orders)
        for word in LOOKED_AT
    }
    return Figure(
        component_maps(
            panels,
            columns=_heads(story),
            title="Where heads look from the end of the prompt",
            data=story.task.description,
            unit="attention",
            rising=True,
            limit=1.0,
            across=len(LOOKED_AT),
        ),
        Caption(
            say(
                "How much of each head's attention goes, from the word before the answer, to the right name (IO) and "
                "to the subject's two mentions (S1, S2), for each order of the names by itself. A head that follows a "
                "place rather than a person changes its panel with the order."
            ),
            say("Mean attention over the prompts of that order ({prompts} in all).", prompts=_prompts(story)),
            say("The stronger the blue, the more of its attention, from none to all of it."),
        ),
    )


def patched_heads_figure(story: TaskStory) -> Figure:
    """What each head's output changes at the words by which the subject is told."""
    return Figure(
        component_maps(
            {("at the end" if word == "end" else f"at {word}"): story.head_changes(word) for word in SWAPPED_WORDS},
            columns=_heads(story),
            title="What patching each head changes",
            data=story.task.description,
            unit="logits",
        ),
        Caption(
            say(
                "What the logit difference loses when one head, at one word, gives what it gives with the other one as "
                "subject. At S2, the subject's second mention: who tells the rest of the model that it stands there. "
                "At the end: who sets the answer."
            ),
            say(
                "Activation patching of the head's output, everything after it computed again. Mean over {prompts}; "
                "the whole swap changes {gap} logits.",
                prompts=_prompts(story),
                gap=signed(story.gap),
            ),
            say(_PATCH_COLOURS + " Both panels share one scale."),
        ),
    )


def stream_figure(story: TaskStory) -> Figure:
    """Where in the stream it is known who the subject is."""
    assert story.stream is not None
    words = list(story.stream.position_labels)
    values = story.stream_changes()
    numbers = [str(at) for at in range(len(words))]
    figure = component_maps(
        {"change of the logit difference": values},
        columns=numbers,
        title="Where it is known who the subject is",
        data=story.task.description,
        unit="logits",
    )
    figure.update_xaxes(tickvals=numbers, ticktext=words, title_text="word")
    figure.data[0].customdata = [[f"layer {layer}, {word}" for word in words] for layer in range(len(values))]
    return Figure(
        figure,
        Caption(
            say(
                "Which word's place in the residual stream says who the subject is, as it enters each layer: it moves "
                "from S2 to the end. S1 and S2 are the subject's mentions, S1+1 is the word after the first, IO the "
                "other name, end the last word before the answer."
                if _moves_to_the_end(story)
                else "Which word's place in the residual stream says who the subject is, as it enters each layer. S1 "
                "and S2 are the subject's mentions, S1+1 is the word after the first, IO the other name, end the last "
                "word before the answer."
            ),
            say(
                "Activation patching: the stream at that word gives way to that of the prompts with the other one as "
                "subject. Mean over {prompts}; the whole swap changes {gap} logits.",
                prompts=_prompts(story),
                gap=signed(story.gap),
            ),
            say(_PATCH_COLOURS),
        ),
    )


def _moves_to_the_end(story: TaskStory) -> bool:
    """Whether S2 says most as the stream enters the first layer, and the end does as it enters the last."""
    assert story.stream is not None
    words = story.stream.position_labels
    strongest = story.stream_changes().abs().argmax(1).tolist()
    return bool(words[strongest[0]] == "S2" and words[strongest[-1]] == "end")


def circuit_figure(circuit: Circuit) -> Figure:
    """The paths."""
    return Figure(
        circuit_picture(circuit),
        Caption(
            say(
                "Heads (circles) and MLPs (squares), from the first layer below to the answer above, and the paths by "
                "which they pass on who the subject is. Nodes are coloured by the kind of head."
            ),
            say(
                "Path patching: one part's output is swapped as one other part reads it, all else kept (queries, keys "
                "and values of heads each by themselves; keys dashed). Paths of at least {share} of what swapping the "
                "subject changes, and surely above zero, are drawn, as wide as their effect.",
                share=least_path(circuit),
            ),
            say("Blue paths work for the right answer, red ones against it."),
        ),
    )


def least_path(circuit: Circuit) -> Markup:
    """The least share of the whole swap that a path must carry."""
    return percent(float(circuit.info.options["min_effect"]))


def kinds_figure(story: TaskStory) -> Figure:
    """The score of every head for each kind."""
    return Figure(
        head_type_maps(story.types, unit="logits"),
        Caption(
            say("The score of every head for each kind of head; those that are called by it are framed."),
            say(
                "The direct effect on the logit difference that comes from the names' places, in the order of the "
                "names where it is lowest. A head is called by a kind if its score is at least {share} of the logit "
                "difference, is above the same number for the answers of other prompts, and surely so.",
                share=percent(float(story.types.info.options["min_effect"])),
            ),
            say("Blue above zero, red below; each panel has its own scale."),
        ),
    )


def _heads(story: TaskStory) -> list[str]:
    return [str(head) for head in range(story.types.scores.shape[2])]


def _prompts(story: TaskStory) -> Markup:
    return count(len(story.task), "prompt")
