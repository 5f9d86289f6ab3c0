"""The section on how well the model predicts the text."""

import dataclasses
import math

from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from headscope.analysis.core.stats import Estimate, difference, estimate
from headscope.report.blocks import Heading, Prose, Section
from headscope.report.model.findings import Findings
from headscope.report.words import captioned, count, nats, percents, say, spread, those
from headscope.views.figures.loss import loss_by_position
from headscope.views.html import HtmlView
from headscope.views.tokens import colored_tokens

__all__ = ["loss_and_choices", "loss_section", "mean_loss", "use_of_context"]

_SHOWN_TOKENS = 256
_LONG = 8  # positions, from which early and late are told apart


def loss_section(findings: Findings) -> Section:
    """Loss by position and by token, and the text with the loss of each token."""
    predictions, uniform = findings.predictions, math.log(findings.d_vocab_out)
    first, mean = findings.among_first(1), estimate(predictions.loss)
    figure = captioned(
        loss_by_position(predictions.loss, data=findings.data, uniform=uniform),
        "First panel: the mean loss at each position (dots) and its running mean (line), which falls to the right "
        "where a model uses its context. Second panel: the number of tokens by their loss.",
        "Loss is minus the log-probability of the token that came, in nats, averaged over the sequences.",
        "Color tells the curves apart, as the legend says; it has no scale.",
    )
    text = captioned(
        _sample_view(findings, uniform),
        "The beginning of the first sequence, token by token.",
        "A token's number is its own loss, given those before it; point at a token to see it.",
        "The stronger the blue, the more surprised the model was; no color is no surprise, the full color is the "
        "loss of a uniform guess.",
    )
    words = Prose(loss_and_choices(mean, first, findings.among_first(10)))
    summary = those(mean_loss(mean, uniform, first), use_of_context(_late_less_early(predictions.loss)))
    return Section("loss", "Loss", summary, (words, figure, Heading("The text, as the model finds it"), text))


def loss_and_choices(mean: Estimate, first: Estimate, first_ten: Estimate) -> Markup:
    """The mean loss, and how often the token that came was among the first choices.

    Args:
        mean: The mean loss.
        first: Share of the predictions whose first choice came.
        first_ten: The same of the first ten.
    """
    return say(
        "Mean loss over {n}: <b>{mean} nats</b>. The token that came was the model's first choice {first} of the "
        "time, and among its first ten {first_ten}.",
        n=count(mean.n, "prediction"),
        mean=spread(mean, sign=False),
        first=percents(first),
        first_ten=percents(first_ten),
    )


def mean_loss(mean: Estimate, uniform: float, first: Estimate) -> Markup:
    """The quality of the predictions, beside a uniform guess.

    Args:
        mean: The mean loss.
        uniform: The loss of a uniform guess.
        first: Share of the predictions whose first choice is right.
    """
    gain = dataclasses.replace(mean, value=mean.value - uniform)
    if not gain.clear():
        verdict = "which on this much text is not clearly different from a uniform guess ({uniform})"
    elif gain.value > 0:
        verdict = "which is <b>worse</b> than a uniform guess ({uniform})"
    else:
        verdict = "where a uniform guess would cost {uniform}"
    return say(
        "The model predicts the next token of this text with a mean loss of <b>{mean} nats</b> (perplexity {ppl}, over "
        "{n}), " + verdict + ". Its first choice is right {first} of the time.",
        mean=spread(mean, sign=False),
        ppl=f"{math.exp(min(mean.value, 700.0)):,.1f}",
        n=count(mean.n, "prediction"),
        uniform=nats(uniform),
        first=percents(first),
    )


def _late_less_early(loss: Float[Tensor, "batch pos"]) -> Estimate:
    """The mean loss in the second half of a sequence less that in its first quarter; NaN for short ones."""
    width = loss.shape[1]
    if width < _LONG:
        return Estimate(math.nan, math.nan, 0)
    return difference(estimate(loss[:, width // 2 :]), estimate(loss[:, : width // 4]))


def use_of_context(change: Estimate) -> Markup | None:
    """The change of the loss from early to late in a sequence; nothing where it is not clear."""
    if not change.clear():
        return None
    sentence = (
        "Late in a sequence it predicts {word} than early: the loss changes by {change} nats from the first quarter to "
        "the second half."
    )
    return say(sentence, word="better" if change.value < 0 else "worse", change=spread(change))


def _sample_view(findings: Findings, uniform: float) -> HtmlView:
    """View of the first sequence, each token colored by its loss."""
    n = min(_SHOWN_TOKENS, findings.tokens.shape[1])
    loss = findings.predictions.loss[0, : n - 1].tolist()
    return colored_tokens(
        findings.strings[0][:n],
        [math.nan, *loss],
        name="loss",
        unit="nats",
        max_value=uniform,
        notes=["no prediction: nothing is before it", *map(_note, loss)],
    )


def _note(loss: float) -> str:
    return "not counted: predicted from BOS alone" if math.isnan(loss) else f"probability {math.exp(-loss):.2%}"
