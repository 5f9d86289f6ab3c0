"""Self-contained pages: whatever a token's text, it is data and never markup."""

import json
import math
import re
import types
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headscope.errors import InvalidInputError
from headscope.views import examples
from headscope.views import html as html_module
from headscope.views.html import HtmlView, bundle, page, quantized
from headscope.views.tokens import colored_tokens

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--",
    "<!--<script>",
    "-->",
    "]]>",
    '" onmouseover="x',
    "'",
    "\\",
    "\n",
    "\r\n\t",
    "\x00",
    "\u2028\u202e",
    "&lt;&amp;",
    "\U0001f381",
    "\ud83d",
    "",
    " ",
]


class Elements(HTMLParser):
    """The elements of a page, with the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self._inside: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)


def data_of(text: str) -> list[dict[str, Any]]:
    """What the views on a page would draw."""
    return [json.loads(body) for kind, body in Elements(text).scripts if kind == "application/json"]


@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(codec=None), max_size=8)), min_size=1))
def test_any_token_text_comes_through_as_data(tokens: list[str]) -> None:
    view = colored_tokens(tokens, [0.0] * len(tokens), title=tokens[0])
    text = str(view)
    elements = Elements(text)
    tags = [tag for tag, _ in elements.tags]
    assert tags == "html head meta meta meta title style script body div script".split()
    (data,) = data_of(text)
    assert data["tokens"] == tokens and data["title"] == tokens[0]
    (body,) = [body for kind, body in elements.scripts if kind == "application/json"]
    assert "<" not in body and body.isascii()
    text.encode("utf-8")


def test_the_script_and_style_are_inlined_once_for_any_number_of_views() -> None:
    view = colored_tokens(["a", " b"], [1.0, -1.0])
    text = page([view, view, view], title="three")
    assert text.count(bundle()) == 1
    assert len(data_of(text)) == 3


def test_nothing_on_a_page_is_fetched() -> None:
    elements = Elements(str(colored_tokens(["a"], [1.0])))
    policies = [
        attrs["content"] for tag, attrs in elements.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies and policies[0] is not None and policies[0].startswith("default-src 'none'")
    assert not [attrs for _, attrs in elements.tags if attrs.keys() & {"src", "href"}]
    assert not re.search(r"https?://|@import|url\(", bundle())


def test_the_script_writes_no_markup() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", bundle())


def test_what_is_not_finite_is_null() -> None:
    text = HtmlView("tokens", {"values": [math.nan, (math.inf, 1.5)], "more": {"x": -math.inf}}).fragment()
    assert data_of(text) == [{"title": "", "values": [None, [None, 1.5]], "more": {"x": None}}]


def test_a_notebook_shows_the_page_in_a_frame_of_its_own() -> None:
    view = colored_tokens(['"><b>'], [1.0], title='"><i>')
    ((tag, attrs),) = Elements(view._repr_html_()).tags
    assert tag == "iframe"
    assert attrs["srcdoc"] == str(view)


def test_saving_writes_the_page(tmp_path: Path) -> None:
    view = colored_tokens(["\ud83d", "é"], [1.0, 2.0], title="\ud83d")
    path = view.save(tmp_path / "view.html")
    assert path.read_text(encoding="utf-8") == str(view)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="Cannot write the view to"):
        colored_tokens(["a"], [1.0]).save(tmp_path / "missing" / "view.html")


def test_show_opens_a_browser_outside_notebooks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []
    monkeypatch.setattr(html_module.webbrowser, "open", opened.append)
    monkeypatch.setattr(html_module.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    monkeypatch.setitem(html_module.sys.modules, "IPython", None)  # type: ignore[arg-type]
    view = colored_tokens(["a"], [1.0])
    view.show()
    assert opened == [(tmp_path / "view.html").as_uri()]
    assert (tmp_path / "view.html").read_text(encoding="utf-8") == str(view)


def test_show_displays_in_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    ipython = types.SimpleNamespace(get_ipython=lambda: 1, display=types.SimpleNamespace(display=shown.append))
    monkeypatch.setitem(html_module.sys.modules, "IPython", ipython)  # type: ignore[arg-type]
    view = colored_tokens(["a"], [1.0])
    view.show()
    assert shown == [view]


@given(st.lists(st.floats(-3, 5), min_size=1))
def test_quantized_values_are_near_and_in_range(values: list[float]) -> None:
    import base64

    low, high = -2.0, 4.0
    levels = np.frombuffer(base64.b64decode(quantized(np.array(values), low, high)), dtype=np.uint8)
    back = low + (high - low) * levels / 254
    np.testing.assert_allclose(back, np.clip(values, low, high), atol=(high - low) / 254 / 2 + 1e-9)


def test_the_code_of_a_view_is_its_page() -> None:
    view = examples.hello("Ada")
    assert view.show_code() == str(view) and json.loads(Elements(view.show_code()).scripts[-1][1]) == {
        "title": "",
        "name": "Ada",
    }
