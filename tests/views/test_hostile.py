"""Whatever a text holds, nothing of a page arises from it, and its data come back as they were."""

import html
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from hostile import HOSTILE, views_of
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.views.drawing.saving import figure_page
from headscope.views.html import HtmlView
from headscope.views.plots import bar, hist, imshow, line, scatter

# Any characters, half surrogate pairs among them, around what has broken pages before.
PIECES = st.one_of(st.sampled_from(HOSTILE[:-1]), st.text(st.characters(), max_size=8))
TEXTS = st.lists(st.builds(str.__add__, PIECES, PIECES), min_size=4, max_size=6)
KINDS = list(views_of(["a", " b"]))


class Elements(HTMLParser):
    """A page's elements with their attributes, the data in them, and its text outside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.data: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(attrs)))
        if tag == "script":
            (self.data if dict(attrs).get("type") == "application/json" else self.scripts).append("")

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data[:80]!r}")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            of = self.data if dict(self.tags[-1][1]).get("type") == "application/json" else self.scripts
            of[-1] += data


def fragments(views: list[HtmlView]) -> Elements:
    return Elements("".join(view.fragment() for view in views))


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (key, *strings(item))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)


@settings(max_examples=12, deadline=None)
@given(TEXTS)
def test_views_of_tokens_hold_text_as_data(tokens: list[str]) -> None:
    views = views_of(tokens)
    found, plain = (fragments(list(each.values())) for each in (views, views_of(["x"] * len(tokens))))
    assert found.tags == plain.tags and not found.scripts
    for (kind, view), source in zip(views.items(), found.data, strict=True):
        assert source.isascii() and "<" not in source
        data = json.loads(source)
        wanted = {"title": view.title, **view.data}
        assert list(strings(data)) == list(strings(json.loads(json.dumps(wanted)))), kind
        if kind not in ("topk_tokens",):  # which holds the strongest alone
            assert set(tokens) <= set(strings(data)), kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_and_a_notebook_frame_have_nothing_but_their_own(kind: str) -> None:
    """The title stands in the page's head, and the whole page in an attribute of the frame."""
    pages = [views_of(tokens)[kind] for tokens in (HOSTILE, ["x"] * len(HOSTILE))]
    found, plain = (Elements(str(view)) for view in pages)
    assert found.tags == plain.tags and found.scripts == plain.scripts
    found.tags = Elements(pages[0]._repr_html_()).tags
    [(tag, attributes)] = found.tags
    assert tag == "iframe" and [name for name, _ in attributes] == ["style", "title", "srcdoc"]
    assert dict(attributes)["srcdoc"] == str(pages[0])


def drawn(texts: list[str]) -> dict[str, tuple[go.Figure, list[str]]]:
    """Every helper that takes text, with text wherever it takes some; and which of it is data, not a title."""
    n = len(texts)
    labels = {"x": texts[0], "y": texts[1], "color": texts[2], "animation_frame": texts[3]}
    common: dict[str, Any] = {"return_fig": True, "title": texts[0]}
    named = {name: labels[name] for name in ("x", "y", "color")}
    two = [str(number) + text for number, text in enumerate(texts[:2])]  # alike names would be one series
    return {
        "imshow": (imshow(np.eye(n), x=texts, y=texts, text=[texts] * n, labels=named, **common), texts),
        "facets": (imshow(np.ones((2, 2, 2)), facet_col=0, facet_labels=texts[:2], **common), texts[:2]),
        "animation": (
            imshow(np.ones((2, 2, 2)), animation_frame=0, animation_labels=texts[:2], labels=labels, **common),
            texts[:2],
        ),
        "line": (line(np.ones((2, n)), x=texts, names=two, labels=named, **common), texts + two),
        "secondary": (line(np.ones((2, 3)), names=two, use_secondary_yaxis=True, labels=named, **common), two),
        "bar": (bar(np.ones((2, n)), x=texts, names=two, labels=named, **common), texts + two),
        "scatter": (
            scatter(range(n), range(n), text=texts, hover_name=texts, color=texts, labels=named, **common), texts
        ),
        "hist": (hist([[1.0, 2.0], [3.0]], names=two, labels={"x": texts[0], "color": texts[1]}, **common), two),
    }  # fmt: skip


def parsed(figure: go.Figure) -> list[Any]:
    """The arguments with which plotly's script draws the figure, read back from the page's source."""
    elements = Elements(figure.to_html(full_html=False, include_plotlyjs=False))
    assert {tag for tag, _ in elements.tags} <= {"div", "script"} and len(elements.scripts) <= 2
    assert all({name for name, _ in attributes} <= {"id", "class", "style", "type"} for _, attributes in elements.tags)
    source = elements.scripts[-1]
    at = re.search(r"Plotly\.newPlot\(\s*", source)
    assert at is not None
    found, end = [], at.end()
    for _ in range(3):
        value, end = json.JSONDecoder().raw_decode(source, end)
        found.append(value)
        end += len(re.match(r"[\s,]*", source[end:])[0])  # type: ignore[index]
    return found[1:]


def as_read(text: str) -> str:
    """What is seen of a label: markup undone, and what is not seen taken away."""
    return html.unescape(text).replace("\u200b", "")


def as_given(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8").replace("\n", " ").replace("\u200b", "")


@settings(max_examples=5, deadline=None)
@given(TEXTS)
def test_plotly_helpers_show_text_as_text(texts: list[str]) -> None:
    for name, (figure, given_texts) in drawn(texts).items():
        held = list(strings(parsed(figure)))
        assert all(text.encode("utf-8") is not None for text in held)  # no half surrogates
        read = {as_read(text).strip() for text in held}
        for text in given_texts:
            assert as_given(text).strip() in read, (name, text)


@pytest.mark.parametrize(
    "draw",
    [
        lambda text, **o: imshow([[1.0]], x=[text], y=[text], text=[[text]], **o),
        lambda text, **o: imshow(np.ones((1, 1, 1)), facet_col=0, facet_labels=[text], **o),
        lambda text, **o: imshow(np.ones((2, 1, 1)), animation_frame=0, animation_labels=[text, "b"], **o),
        lambda text, **o: line([[1.0], [2.0]], x=[text], names=[text, "b"], **o),
        lambda text, **o: bar([[1.0], [2.0]], x=[text], names=[text, "b"], **o),
        lambda text, **o: scatter([1.0], [1.0], text=[text], hover_name=[text], color=[text], **o),
        lambda text, **o: hist([[1.0], [2.0]], names=[text, "b"], **o),
    ],
    ids=["imshow", "facets", "animation", "line", "bar", "scatter", "hist"],
)
def test_data_are_no_markup(draw: Callable[..., go.Figure]) -> None:
    """No label has a tag that plotly would obey, nor a gap that it would fill."""
    held = list(strings(parsed(draw("<u>%{gap}</u><a href='x'>", return_fig=True))))
    assert not [text for text in held if "<u>" in text or "<a " in text or "%{gap" in text]
    assert any("&lt;u&gt;%\u200b{gap}&lt;/u&gt;" in text for text in held)


def test_a_page_of_figures_has_no_element_of_its_text() -> None:
    figure = bar([1.0, 2.0], x=HOSTILE[:2], title=HOSTILE[0], return_fig=True)
    assert figure is not None
    found, plain = (Elements(figure_page(figure, title=title)) for title in (HOSTILE[0], "x"))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in plain.tags]
    assert len(found.scripts) == len(plain.scripts)
