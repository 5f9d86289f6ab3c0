"""Figures as files: one offline page, and pictures through kaleido."""

import importlib.util
import re
import sys
import types
from pathlib import Path

import plotly.graph_objects as go
import pytest

from headscope.errors import InvalidInputError, MissingDependencyError
from headscope.views.drawing.saving import figure_page, save_figure
from headscope.views.html import CONTENT_POLICY
from headscope.views.plots import line


def figure(name: str = "loss") -> go.Figure:
    drawn = line([[1.0, 2.0], [2.0, 1.0]], names=[name, "b"], return_fig=True)
    assert drawn is not None
    return drawn


def test_a_page_holds_the_script_once_and_forbids_the_network() -> None:
    page = figure_page(figure(), figure(), figure(), title="</title><script>")
    assert f'content="{CONTENT_POLICY}"' in page
    assert page.count('class="plotly-graph-div"') == 3
    assert "<title>&lt;/title&gt;&lt;script&gt;</title>" in page
    assert not re.search(r"<script[^>]+src=|<link", page)
    assert len(page) < 1.2 * len(figure_page(figure()))


def test_text_of_a_figure_cannot_end_its_script() -> None:
    hostile = "</script><script>alert(1)</script><!--"
    assert hostile not in figure_page(figure(hostile))


@pytest.mark.parametrize("name", ["heads.html", "heads.HTM"])
def test_a_page_is_written(name: str, tmp_path: Path) -> None:
    path = save_figure(figure(), tmp_path / name)
    assert "<title>heads</title>" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_pictures_are_drawn_by_kaleido(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: types.SimpleNamespace(name=name))
    monkeypatch.setattr(go.Figure, "to_image", lambda self, **options: asked.append(options) or b"picture")
    path = save_figure(figure(), tmp_path / f"heads.{kind}", width=400, scale=3.0)
    assert path.read_bytes() == b"picture"
    assert asked == [{"format": kind, "width": 400, "height": None, "scale": 3.0}]


def test_kaleido_that_is_missing_is_told_with_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'headscope\[static\]'.*Chrome or Chromium"):
        save_figure(figure(), tmp_path / "heads.png")
    assert not list(tmp_path.iterdir())


def test_a_browser_that_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: go.Figure, **options: object) -> bytes:
        raise RuntimeError("Kaleido requires Google Chrome")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: types.SimpleNamespace(name=name))
    monkeypatch.setattr(go.Figure, "to_image", fail)
    with pytest.raises(MissingDependencyError, match=r"needs Chrome or Chromium.*Kaleido requires"):
        save_figure(figure(), tmp_path / "heads.pdf")


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"heads.gif: .* \.html, \.png"):
        save_figure(figure(), tmp_path / "heads.gif")
    with pytest.raises(InvalidInputError, match="Cannot write the figure to"):
        save_figure(figure(), tmp_path / "missing" / "heads.html")
    with pytest.raises(InvalidInputError, match="there is no figure"):
        figure_page()


@pytest.mark.skipif(importlib.util.find_spec("kaleido") is None, reason="kaleido is not installed")
@pytest.mark.browser
@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<svg"), ("pdf", b"%PDF")])
def test_real_pictures(kind: str, start: bytes, tmp_path: Path) -> None:
    assert save_figure(figure(), tmp_path / f"heads.{kind}").read_bytes().startswith(start)
    assert "kaleido" in sys.modules
