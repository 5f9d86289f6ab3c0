"""Numbers, tokens and sentences as HTML: values put into a sentence are escaped, the sentence itself is not."""

import unicodedata
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from headscope.analysis.core.result import component_label
from headscope.analysis.core.stats import Estimate, Estimates
from headscope.report.blocks import Cell, Figure, Plot, Prose
from headscope.views.html import HtmlView

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_BLANK = set(
    "\xa0\u034f\u115f\u1160\u1680\u17b4\u17b5\u180b\u180c\u180d\u180e\u180f\u202f\u205f\u2800\u3164\uffa0"
) | set(map(chr, range(0x2000, 0x200B)))


def say(sentence: str, /, **values: Any) -> Markup:
    """Put values into a sentence written in HTML; those that are not HTML themselves are escaped.

    Example:
        >>> print(say("<b>{name}</b>", name="<script>"))
        <b>&lt;script&gt;</b>
    """
    return Markup(sentence).format(**values)


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
        text = "<0.1" if share > 0 else ">-0.1"
    else:
        text = f"{100 * share:.1f}"
    return _number(f"{text}\xa0%")


def count(n: int, what: str) -> Markup:
    """A number of things.

    Example:
        >>> print(count(1, "head"), count(2000, "head"))
        1 head 2,000 heads
    """
    return Markup("{n:,} {what}").format(n=n, what=what if n == 1 else what + "s")


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


def leaders(each: Estimates, *, largest: bool = True, of: str = "") -> Markup:
    """Name the head with the most extreme mean `[layer, head]`, and those it is not clearly different from."""
    n_heads = each.values.shape[1]
    best, *close = (divmod(index, n_heads) for index in each.contenders(largest=largest))
    rivals = [component_label(*at) for at in close[:3]] + [f"{len(close) - 3} more"] * (len(close) > 3)
    value = say("{of}{value} nats", of=of, value=spread(each[best]))
    if rivals:
        value += say(", not clearly apart from {rivals}", rivals=listed(rivals))
    return say("head <b>{label}</b> ({value})", label=component_label(*best), value=value)


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
