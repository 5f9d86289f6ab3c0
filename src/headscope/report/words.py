"""Numbers, tokens and sentences as HTML: values put into a sentence are escaped, the sentence itself is not."""

import math
import unicodedata
from collections.abc import Iterable
from typing import Any

from jaxtyping import Bool
from markupsafe import Markup
from torch import Tensor

from headscope.analysis.core.result import component_label
from headscope.analysis.core.stats import Estimate, Estimates, threshold
from headscope.report.blocks import Cell, Figure, Plot, Prose
from headscope.views.html import HtmlView

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_BLANK = set(
    "\xa0\u034f\u115f\u1160\u1680\u17b4\u17b5\u180b\u180c\u180d\u180e\u180f\u202f\u205f\u2800\u3164\uffa0"
) | set(map(chr, range(0x2000, 0x200B)))
SHOWN = 0.0005  # what is smaller is zero in three decimals
_NAMED = 3  # rivals of a head that are called by name; more are counted


def say(sentence: str, /, **values: Any) -> Markup:
    """Put values into a sentence written in HTML; those that are not HTML themselves are escaped.

    Example:
        >>> print(say("<b>{name}</b>", name="<script>"))
        <b>&lt;script&gt;</b>
    """
    return Markup(sentence).format(**values)


def those(*sentences: Markup | None) -> tuple[Markup, ...]:
    """Return the sentences that there are."""
    return tuple(sentence for sentence in sentences if sentence is not None)


def prose(sentence: str, /, *, soft: bool = False, **values: Any) -> Prose:
    """Return a paragraph, with values put in."""
    return Prose(say(sentence, **values), soft)


def captioned(drawing: Plot | HtmlView, shows: str, how: str, color: str, **values: Any) -> Figure:
    """Return a figure with its caption, whose three parts have values put in."""
    return Figure(drawing, *(say(part, **values) for part in (shows, how, color)))


def nats(value: float) -> Markup:
    """A number with three decimals."""
    return _number(f"{value:.3f}")


def signed(value: float) -> Markup:
    """A number with its sign."""
    return _number(f"{value:+.3f}")


def spread(estimate: Estimate, *, sign: bool = True) -> Markup:
    """A mean and its standard error.

    Example:
        >>> print(spread(Estimate(-0.25, 0.125, 9)).striptags())
        −0.250 ± 0.125
    """
    value = f"{estimate.value:+.3f}" if sign else f"{estimate.value:.3f}"
    return _number(value + (f" ± {estimate.error:.3f}" if estimate.error == estimate.error else ""))


def percent(share: float) -> Markup:
    """A share in percent.

    Example:
        >>> [str(percent(share).striptags()) for share in (0.5, 0.0123, 0.0001, 0.0, 1.0)]
        ['50 %', '1.2 %', '<0.1 %', '0 %', '100 %']
    """
    size = abs(share)
    if share == 0 or size >= 0.1:
        text = f"{100 * share:.0f}"
    elif size < 0.0005:
        text = "<0.1" if share > 0 else "-0.0"
    else:
        text = f"{100 * share:.1f}"
    return _number(f"{text}\xa0%")


def percents(share: Estimate) -> Markup:
    """A share in percent and its standard error.

    Example:
        >>> print(percents(Estimate(0.25, 0.0125, 9)).striptags())
        25 % ± 1.2 %
    """
    if share.error != share.error:
        return percent(share.value)
    return say("{share}\xa0±\xa0{error}", share=percent(share.value), error=percent(share.error))


def probability(p: float) -> Markup:
    """A probability in percent, small ones to two digits.

    Example:
        >>> [str(probability(p).striptags()) for p in (0.5, 0.00031, 0.00000002)]
        ['50 %', '0.031 %', '2e−06 %']
    """
    if p >= 0.0005 or p == 0:
        return percent(p)
    return _number((f"{float(f'{100 * p:.2g}'):f}".rstrip("0") if p >= 1e-6 else f"{100 * p:.1g}") + "\xa0%")


def count(n: int, what: str) -> Markup:
    """A number of things.

    Example:
        >>> print(count(1, "head"), count(2000, "head"))
        1 head 2,000 heads
    """
    return Markup("{n:,} {what}").format(n=n, what=what if n == 1 else what + "s")


def n_heads(each: Estimates) -> Markup:
    """The number of heads that a mean is known of."""
    return count(int((~each.values.isnan()).sum()), "head")


def clearly(n: int, verb: str) -> Markup:
    """The subject and verb of so many heads.

    Example:
        >>> print(*(clearly(n, "help").striptags() for n in (0, 1, 2)), sep=", ")
        none clearly helps, 1 clearly helps, 2 clearly help
    """
    return say("<b>{n}</b> clearly {verb}", n=n or "none", verb=verb if n > 1 else verb + "s")


def token(text: str) -> Markup:
    """A token's text in a frame, with invisible characters spelled out."""
    return Markup('<q class="token">{}</q>').format(visible(text))


def listed(parts: Iterable[Markup | str], *, last: str = "and") -> Markup:
    """One, two and three.

    Example:
        >>> print(listed(["1.0", "1.1", "<"]), listed(["1.0"]))
        1.0, 1.1 and &lt; 1.0
    """
    each = list(parts)
    if len(each) < 2:
        return Markup("").join(each)
    return Markup(", ").join(each[:-1]) + f" {last} " + each[-1]


def scored(scores: Iterable[tuple[str, float]]) -> Markup:
    """Labels with their numbers.

    Example:
        >>> print(scored([("1.0", 0.5), ("2.3", -0.25)]).striptags())
        1.0 +0.500 and 2.3 −0.250
    """
    return listed(say("<b>{label}</b> {value}", label=label, value=signed(value)) for label, value in scores)


def stand_out(each: Estimates, sign: int = 0) -> Bool[Tensor, "*thing"]:
    """Tell which are clearly different from zero (above it, below it) and not zero in the digits that are shown.

    Example:
        >>> import torch
        >>> print(stand_out(Estimates(torch.tensor([0.5, 0.0001]), torch.zeros(2), torch.zeros(2) + 40, n=9)))
        tensor([ True, False])
    """
    return each.clear(sign) & (each.values.abs() >= SHOWN)


def leaders(each: Estimates, *, largest: bool = True, of: str = "") -> Markup | None:
    """Name the head with the most extreme mean `[layer, head]` of those clearly above zero (or below it), if any.

    With it come those of them that it is not clearly different from.
    """
    sure = stand_out(each, 1 if largest else -1).flatten().nonzero()[:, 0]
    if not len(sure):
        return None
    values, errors, freedom = (numbers.flatten()[sure] for numbers in (each.values, each.errors, each.freedom))
    clear = Estimates(values, errors, freedom, each.n, each.each.flatten(0, -3)[sure])
    best, *close = clear.contenders(largest=largest)
    label, *rivals = (component_label(*divmod(int(sure[at]), each.values.shape[1])) for at in (best, *close))
    value = say("{of}{value} nats", of=of, value=spread(clear[best]))
    if rivals:
        named = listed(rivals) if len(rivals) <= _NAMED else count(len(rivals), "other")
        value += say(", not clearly apart from {rivals}", rivals=named)
    return say("head <b>{label}</b> ({value})", label=label, value=value)


def too_small_to_see(each: Estimates, *, unit: str = "nats") -> Markup:
    """Say how large a mean must be to be clear, which bounds what "none" says; nothing where no error is known.

    Example:
        >>> import torch
        >>> errors = torch.tensor([0.1, 0.2, 0.3])
        >>> print(too_small_to_see(Estimates(0 * errors, errors, 0 * errors + 40, n=500)).striptags())
         On this much text, the median head would have to be at least 0.500 nats from zero to stand out.
    """
    bounds = threshold(each.values.numel(), each.freedom) * each.errors
    bound = float(bounds.flatten().nanmedian())
    if not math.isfinite(bound):
        return say(" This is too little text to know the error of any.")
    sentence = " On this much text, the median head would have to be at least {bound} {unit} from zero to stand out."
    return say(sentence, bound=nats(bound), unit=unit)


def number_cell(value: float | None, shown: Markup | None = None) -> Cell:
    """A number in a table, by default signed with three decimals; a dash for one that was not measured."""
    if value is None or value != value:
        return Cell("–", None)
    return Cell(signed(value) if shown is None else shown, value)


def percent_cell(share: float | None) -> Cell:
    """A share in a table."""
    return number_cell(share, None if share is None else percent(share))


def estimate_cell(estimate: Estimate, *, sign: bool = True) -> Cell:
    """A mean and its standard error in a table."""
    return number_cell(estimate.value, spread(estimate, sign=sign))


def head_cell(label: str, *, link: str | None = None) -> Cell:
    """A head's label in a table, sorted by layer and head; `link` begins the name of its card."""
    layer, _, head = label.removeprefix("mlp").partition(".")
    place = 10_000 * int(layer) + (int(head) if head else 9_999)
    shown = label if link is None else say('<a href="#{link}{label}"><b>{label}</b></a>', link=link, label=label)
    return Cell(shown, place)


def visible(text: str) -> str:
    r"""Spell out the invisible characters of a token's text, as the views' script does.

    Example:
        >>> print(visible(" a\n\x00"))
         a↵\x00
    """
    if not text:
        return "∅"

    def spelled(char: str) -> str:
        code = ord(char)
        if char in "\n\t":
            return "↵" if char == "\n" else "⇥"
        if unicodedata.category(char) not in _UNSEEN and char not in _BLANK:
            return char
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\u{{{code:x}}}"

    return "".join(map(spelled, text))


def _number(text: str) -> Markup:
    return Markup('<span class="number">{}</span>').format(text.replace("-", "−"))
