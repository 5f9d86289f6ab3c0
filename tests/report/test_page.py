"""Sections on a page: every kind of block, and any text in any place."""

import json
import re
from collections.abc import Iterator
from html import unescape

import plotly.graph_objects as go
import plotly.offline
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from report_pages import Page as Seen

from headscope.report import page
from headscope.report.blocks import (
    Block,
    Card,
    Cell,
    FactList,
    Figure,
    Fold,
    Heading,
    Page,
    Prose,
    Row,
    Section,
    Table,
    View,
)
from headscope.report.page import render_page
from headscope.report.words import listed, say, token, visible
from headscope.views.drawing.theme import plot_title
from headscope.views.html import HtmlView
from headscope.views.tokens import colored_tokens

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "&lt;b&gt;{x}%s{{7*7}}{% raw %}",
    "\u2028\u202e\ud83d\x00",
    "x" * 10_000,
]


def page_of(text: str) -> str:
    """A page with this text wherever a caller's text can stand."""
    said = say("<b>{text}</b>", text=text)
    figure = go.Figure(go.Bar(x=[text], y=[1.0], name=text)).update_layout(title=plot_title("Bars", text))
    blocks: tuple[Block, ...] = (
        Prose(said),
        Heading(text),
        Figure(figure, said, said, said),
        Figure(colored_tokens([text, "a"], [1.0, 2.0], name=text), said, said, said),
        View(HtmlView("tokens", colored_tokens([text], [1.0]).data)),
        Table((text, "n"), ((Cell(text, text), Cell(token(text), 1.5)),), said, words=(0,), sorted_by=1),
        Row((FactList(text, {text: text}), Fold(text, (Prose(said),)))),
        Card("card", text, (said,), (Prose(said),)),
    )
    return render_page(Page(text, text, (Section("one", text, (said,), blocks),)))


@pytest.fixture(scope="module", autouse=True)
def _no_libraries() -> Iterator[None]:
    """Leave the scripts of plotly and the views out: megabytes that say nothing of the page."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plotly.offline, "get_plotlyjs", lambda: "")
        patched.setattr(page, "bundle", lambda: "")
        yield


@pytest.fixture(scope="module")
def calm(_no_libraries: None) -> Seen:
    return Seen(page_of("calm"))


@settings(max_examples=25)
@given(st.one_of(st.sampled_from(HOSTILE), st.text(min_size=1, max_size=30)))
def test_any_text_stays_text(calm: Seen, text: str) -> None:
    source = page_of(text).encode("utf-8", "replace").decode()
    seen = Seen(source)
    # The same elements with the same attributes, whatever the text.
    assert [(tag, sorted(attrs)) for tag, attrs in seen.elements] == [
        (tag, sorted(attrs)) for tag, attrs in calm.elements
    ]


def test_a_name_is_shown_as_it_is() -> None:
    source = page_of(HOSTILE[0])
    assert "<script>alert(1)</script>" not in source
    assert "<script>alert(1)</script>" in unescape(source)
    data = re.search(r'<div class="plot">.*?<script type="application/json">(.*?)</script>', source, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["data"][0]["x"] == [HOSTILE[0]]


def test_the_blocks_are_drawn(calm: Seen) -> None:
    tags = [tag for tag, _ in calm.elements]
    assert tags.count("figure") == tags.count("figcaption") == 2
    cells = [attrs for tag, attrs in calm.elements if tag in ("th", "td")]
    assert [cell.get("aria-sort") for cell in cells] == ["none", "descending", None, None]
    assert [cell.get("data-value") for cell in cells[2:]] == ["calm", "1.5"]
    assert [attrs["id"] for tag, attrs in calm.elements if tag == "article"] == ["card"]
    # Each sentence of the summary leads to its section, and so does a line of the contents.
    assert [attrs["href"] for tag, attrs in calm.elements if tag == "a"] == ["#summary", "#summary", "#one", "#one"]
    assert "calm → " not in calm.text and "HowcalmColorcalm" in calm.text


def test_sentences() -> None:
    assert say("<i>{a}</i> {b}", a="<", b=Markup("<b>&</b>")) == "<i>&lt;</i> <b>&</b>"
    assert listed([]) == "" and listed(["a", "b"], last="or") == "a or b"


def test_what_cannot_be_seen_is_spelt_out() -> None:
    assert visible(" a\n\t\x00\u202e\ud83dé") == " a↵⇥\\x00\\u202e\\ud83dé"
    assert visible("\xa0\U000e0041\u3164") == "\\xa0\\u{e0041}\\u3164"
    assert visible("") == "∅"
