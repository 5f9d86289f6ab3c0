"""The section on how well the model predicts the text."""

import dataclasses
import math

from markupsafe import Markup

from headscope.analysis.core.stats import Estimate, difference, estimate
from headscope.report.blocks import Caption, Figure, Heading, Prose, Section
from headscope.report.model.findings import Findings
from headscope.report.words import count, nats, percent, say, spread
from headscope.views.figures.loss import loss_by_position
from headscope.views.html import HtmlView
from headscope.views.tokens import colored_tokens

__all__ = ["loss_section"]

_SHOWN_TOKENS = 256


def loss_section(found: Findings) -> Section:
    """Loss by position and by token, and the text as the model finds it."""
    predictions, uniform = found.predictions, math.log(found.model.cfg.d_vocab_out)
    known = ~predictions.loss.isnan()
    ranks = predictions.rank[known]
    first, top10 = (float((ranks < k).double().mean()) for k in (1, 10))
    mean = estimate(predictions.loss)
    figure = Figure(
        loss_by_position(predictions.loss, data=found.means.info.data, uniform=uniform),
        Caption(
            say(
                "Left: the mean loss at each position (dots), and its running mean (line); a model that uses its "
                "context gets better to the right. Right: how many tokens had which loss."
            ),
            say("Loss is minus the log-probability of the token that came, in nats, averaged over the sequences."),
            say("Colour tells the curves apart, as the legend says; it has no scale."),
        ),
    )
    text = Figure(
        _sample_view(found, uniform),
        Caption(
            say("The beginning of the first sequence, token by token."),
            say("A token's number is its own loss, given those before it; point at a token to see it."),
            say(
                "The stronger the blue, the more surprised the model was; no colour is no surprise, the full colour is "
                "what a uniform guess would cost."
            ),
        ),
    )
    words = say(
        "Mean loss over {n}: <b>{mean} nats</b>. The token that came was the model's first choice {first} of the "
        "time, and among its first ten {top10}.",
        n=count(mean.n, "prediction"),
        mean=spread(mean, sign=False),
        first=percent(first),
        top10=percent(top10),
    )
    return Section(
        "loss",
        "Loss",
        (_summary(mean, uniform, first), *_use_of_context(found)),
        (Prose(words), figure, Heading("The text, as the model finds it"), text),
    )


def _summary(mean: Estimate, uniform: float, first: float) -> Markup:
    """How good the predictions are, beside a uniform guess."""
    gain = dataclasses.replace(mean, value=mean.value - uniform)
    if not gain.clear():
        verdict = say("which on so much text is not clearly different from a uniform guess ({u})", u=nats(uniform))
    elif gain.value > 0:
        verdict = say("which is <b>worse</b> than a uniform guess ({u})", u=nats(uniform))
    else:
        verdict = say("where a uniform guess would cost {u}", u=nats(uniform))
    return say(
        "The model predicts the next token of this text with a mean loss of <b>{mean} nats</b> (perplexity {ppl}, over "
        "{n}), {verdict}. Its first choice is right {first} of the time.",
        mean=spread(mean, sign=False),
        ppl=f"{math.exp(min(mean.value, 700.0)):,.1f}",
        n=count(mean.n, "prediction"),
        verdict=verdict,
        first=percent(first),
    )


def _use_of_context(found: Findings) -> tuple[Markup, ...]:
    """Whether it predicts better late in a sequence than early; nothing where that is not clear."""
    loss = found.predictions.loss
    width = loss.shape[1]
    if width < 8:
        return ()
    early, late = estimate(loss[:, : width // 4]), estimate(loss[:, width // 2 :])
    change = difference(late, early)
    if not change.clear():
        return ()
    return (
        say(
            "Late in a sequence it predicts {word} than early: {change} nats in the second half, compared with the "
            "first quarter.",
            word="better" if change.value < 0 else "worse",
            change=spread(change),
        ),
    )


def _sample_view(found: Findings, uniform: float) -> HtmlView:
    """The first sequence, each token coloured by what its prediction cost."""
    n = min(_SHOWN_TOKENS, found.tokens.shape[1])
    loss = found.predictions.loss[0, : n - 1].tolist()
    return colored_tokens(
        found.strings[0][:n],
        [math.nan, *loss],
        name="loss",
        unit="nats",
        max_value=uniform,
        notes=["no prediction: nothing is before it", *(f"probability {math.exp(-value):.2%}" for value in loss)],
    )
