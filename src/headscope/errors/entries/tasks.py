"""Prompts, answers and metrics."""

from headscope.errors.entry import Entry

ENTRIES = (
    Entry(
        code="HS-PROMPTS-01",
        error="InvalidInputError",
        title="Clean and corrupted prompts of unequal length",
        symptom=(
            "prompt 0: the corrupted prompt has 10 tokens and the prompt 5, so they are not aligned: "
            "['<|endoftext|>', 'J', 'ohn', ' met', ' the', ' ne', 'i', 'gh', 'bor', 's'] and ['<|endoftext|>', "
            "'J', 'ohn', ' met', ' Mary']. Change words for others with as many tokens."
        ),
        cause=(
            "Patching puts the activation of one run into the other at the same position, so that both prompts "
            "must have the same number of tokens, word for word."
        ),
        repair="Change words for others with as many tokens: `model.to_str_tokens` shows them.",
        example="""
from headscope.analysis import Task
Task.from_prompts(["John met Mary"], [" John"], [" Mary"], model.tokenizer, corrupted=["John met the neighbors"])
""",
        related=("headscope.analysis.Task.from_prompts", "HS-TOKENS-04"),
    ),
    Entry(
        code="HS-PROMPTS-02",
        error="InvalidInputError",
        title="No corrupted prompts",
        symptom=(
            "patching needs corrupted prompts, and Task(1 prompts of up to 5 tokens, without corrupted ones, e.g. "
            "'John met Mary': ' John', not ' Mary') has none. Give them: `corrupted` in from_prompts, a column of "
            "that name in a file, from_templates, from_tokens, or from_ioi."
        ),
        cause="Patching compares two runs, and the task has prompts for one only.",
        repair="Give `corrupted` prompts: the same sentence with the word changed that decides the answer.",
        example="""
from headscope.analysis import Task, activation_patch
activation_patch(model, Task.from_prompts(["John met Mary"], [" John"], [" Mary"], model.tokenizer))
""",
        related=("headscope.analysis.Task.from_prompts", "headscope.analysis.Task.from_ioi", "HS-PROMPTS-01"),
    ),
    Entry(
        code="HS-PROMPTS-03",
        error="InvalidInputError",
        title="An answer that is both right and wrong",
        symptom="prompt 0: ' Mary' is both a correct and an incorrect answer.",
        cause="The logit difference of a token with itself is zero, whatever the model does.",
        repair="Give a wrong answer that differs from the right one in its first token.",
        example="""
from headscope.analysis import Task
Task.from_prompts(["John met"], [" Mary"], [" Mary"], model.tokenizer)
""",
        related=("headscope.analysis.Task.from_prompts",),
    ),
    Entry(
        code="HS-PROMPTS-04",
        error="InvalidInputError",
        title="A prompt that ends with a space",
        symptom="prompt 0: the prompt 'John met ' ends with a space, which the answer brings along. Take it away.",
        cause=(
            "Answers begin with a space, as tokens of words do; with another one before it, the model would be "
            "asked for what it never saw."
        ),
        repair="Take the space away, or set `prepend_space_to_answer=False` for answers without one.",
        example="""
from headscope.analysis import Task
Task.from_prompts(["John met "], [" Mary"], [" Tom"], model.tokenizer)
""",
        related=("headscope.analysis.Task.from_prompts", "HS-TOKENS-04"),
    ),
    Entry(
        code="HS-PROMPTS-05",
        error="InvalidInputError",
        title="A position that is not a real token of every prompt",
        symptom="position 99 is not a real token of every prompt; the shortest has 16 of them.",
        cause="The position is behind the end of a prompt, or is padding. Positions count from 0, BOS included.",
        repair='Choose a position that all prompts have; `"end"` is the last token of each.',
        example="""
from headscope.analysis import activation_patch
activation_patch(model, task, positions=[99])
""",
        related=("HS-NAME-08", "headscope.analysis.activation_patch"),
    ),
    Entry(
        code="HS-PROMPTS-06",
        error="InvalidInputError",
        title="Answers that do not go with the prompts",
        symptom="there are 2 prompts; answer_tokens must be [2, 2], got [1, 3].",
        cause="Each prompt has as many right answers as every other, and as many wrong ones, each one token id.",
        repair="Give a row for each prompt: `answer_tokens` is `[prompt, 2]`, the right and the wrong one.",
        example="""
from headscope.analysis import attribute
attribute(model, model.to_tokens(["John met", "Tom saw"]), answer_tokens=torch.tensor([[1, 2, 3]]))
""",
        related=("headscope.analysis.attribute", "headscope.analysis.Task.from_tokens"),
    ),
    Entry(
        code="HS-METRIC-01",
        error="InvalidInputError",
        title="A metric that does not give one number",
        symptom=(
            "the metric must give one number for the logits it gets; it gave shape [4]. Take a mean over the batch."
        ),
        cause=(
            "A metric of your own gets the logits of all prompts and gives one number for them. A function that "
            "forgets to return gives None."
        ),
        repair=(
            "Take the mean over the batch. For a number for each prompt, with errors and tests, give a "
            "`PromptMetric` such as `AnswerMetric`."
        ),
        example="""
from headscope.analysis import Task, activation_patch
activation_patch(model, task, metric=lambda logits: logits[:, -1].max(-1).values)
""",
        related=("headscope.analysis.AnswerMetric", "headscope.analysis.PromptMetric"),
    ),
    Entry(
        code="HS-METRIC-02",
        error="InvalidInputError",
        title="A metric without a gradient",
        symptom="metric has no gradient: it must be made of its logits by torch functions alone.",
        cause=(
            "Attribution needs the gradient of the metric, and it was lost on the way: by `.item()`, `.detach()`, "
            "numpy, or a comparison."
        ),
        repair="Compute it from the logits by torch functions alone.",
        example="""
from headscope.analysis import attribution_patch
attribution_patch(model, task, metric=lambda logits: torch.tensor(float(logits[:, -1, 5].mean())))
""",
        related=("headscope.analysis.attribution_patch", "headscope.analysis.activation_patch"),
    ),
    Entry(
        code="HS-METRIC-03",
        error="InvalidInputError",
        title="A metric that is not linear in the logits",
        symptom=(
            "only a metric that is linear in the logits adds up over the parts of a model; got <function <lambda> "
            "at 0x...>. Give an AnswerMetric, a NumberMetric or another LinearMetric, or use activation_patch or "
            "attribution_patch."
        ),
        cause=(
            "Direct logit attribution splits a number into one of each part of the model, which adds up only if "
            "the number is linear in the logits; a probability is not."
        ),
        repair=(
            "Take a logit difference (`AnswerMetric`) or another `LinearMetric`; or measure effects with "
            "`activation_patch`."
        ),
        example="""
from headscope.analysis import Task, attribute
attribute(model, task, metric=lambda logits: logits[:, -1].log_softmax(-1)[:, 5].mean())
""",
        related=("headscope.analysis.LinearMetric", "headscope.analysis.attribute"),
    ),
    Entry(
        code="HS-METRIC-04",
        error="InvalidInputError",
        title="No values of single prompts",
        symptom=(
            "nothing is known of single prompts: the metric gives one number for all of them, or there were too "
            "many numbers to keep. See `metric` and PromptMetric."
        ),
        cause=(
            "The metric gives one number for all prompts, so that no error, interval or test over prompts can be made."
        ),
        repair=(
            "Use a named metric, or a `PromptMetric` such as `AnswerMetric` and `NumberMetric`, which have a "
            "number for each prompt."
        ),
        example="""
from headscope.analysis import activation_patch
activation_patch(model, task, metric=lambda logits: logits[:, -1, 5].mean(), sites=["z"]).errors
""",
        related=("headscope.analysis.PromptMetric", "headscope.analysis.NumberMetric", "results.md"),
    ),
)
