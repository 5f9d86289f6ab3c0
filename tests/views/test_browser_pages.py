"""Whole pages in a real browser: every view and the report, in light and dark, on a phone, with any text."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from browser import NEEDS_CHROMIUM, named_controls, visit
from hostile import HOSTILE, WORDS, views_of
from small_models import STORY, small_model

from headscope.report import write_report
from headscope.views.attention import attention_heads
from headscope.views.html import HtmlView, page
from headscope.views.tokens import colored_tokens

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = NEEDS_CHROMIUM

KINDS = list(views_of(WORDS))


def saved(views: list[HtmlView], folder: Path) -> Path:
    path = folder / "page.html"
    path.write_text(page(views, title="quiet"), encoding="utf-8")
    return path


def tokens_on(opened: "Page") -> list[str]:
    return opened.locator(".hs-text").first.locator(".hs-token").all_text_contents()


def test_the_check_sees_what_goes_wrong(chromium: "Browser", tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    outside = "http://127.0.0.1:9/pixel.png"
    for body, trouble in (
        ("<script>console.error('oh no')</script>", "error: oh no"),
        ("<script>missing()</script>", "uncaught: missing is not defined"),
        (f"<img src='{outside}'>", outside),
    ):
        path.write_text(f"<!doctype html><title>x</title>{body}", encoding="utf-8")
        with pytest.raises(AssertionError, match=trouble), visit(chromium, path):
            pass


def test_a_saved_page_cannot_reach_a_network(chromium: "Browser", tmp_path: Path) -> None:
    path = saved([colored_tokens(WORDS, torch.randn(len(WORDS)))], tmp_path)
    reach = """async () => {
      const tried = [() => fetch("http://127.0.0.1:9/"), () => new Promise((yes, no) => {
        const image = new Image(); image.onload = yes; image.onerror = no; image.src = "http://127.0.0.1:9/x.png"; })];
      window.refused = 0;
      document.addEventListener("securitypolicyviolation", () => window.refused++);
      for (const one of tried) await one().catch(() => {});
    }"""
    with pytest.raises(AssertionError, match="Content Security Policy"), visit(chromium, path) as opened:
        opened.evaluate(reach)
        opened.wait_for_function("() => window.refused === 2")


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_text_shows_as_text(kind: str, chromium: "Browser", tmp_path: Path) -> None:
    with visit(chromium, saved([views_of(HOSTILE)[kind]], tmp_path)) as opened:
        # Whatever pops up is shown too.
        for pointed in opened.locator(".hs-token, .hs-cell").all()[:6]:
            pointed.dispatch_event("pointerover")
        assert opened.title() == "quiet"
        assert opened.locator("script:not([type])").count() == 1
        assert opened.evaluate("[...document.querySelectorAll('*')].flatMap((n) => n.getAttributeNames())"
                               ".filter((name) => name.startsWith('on'))") == []  # fmt: skip
        shown = opened.locator(".hs-view").inner_text()
        assert HOSTILE[0] in shown
        found = tokens_on(opened) if kind != "topk_tokens" else opened.locator(".hs-cell q").all_text_contents()
        for text, drawn in (
            (HOSTILE[1], "<!--<script>"),
            (HOSTILE[5], "&lt;b&gt;"),
            ("\ud83d", "\\ud83d"),
            ("\u2028\u2029", "\\u2028\\u2029"),
            ("\u202e...", "\\u202eabc\\u2066\\u061c\\u200f"),
            ("\x00...", "\\x00\\x07\\x1b[31m\\x7f\\x85"),
            ("", "∅"),
            ("emoji", HOSTILE[14]),
            ("unseen", "a\\xa0b\\u200d\\u{e0041}\\u3164"),
        ):
            assert drawn in found or kind == "topk_tokens", text


@pytest.mark.parametrize("kind", KINDS)
def test_what_takes_the_focus_has_a_name_and_shows_it(kind: str, chromium: "Browser", tmp_path: Path) -> None:
    with visit(chromium, saved([views_of(WORDS)[kind]], tmp_path)) as opened:
        controls = named_controls(opened)
        assert controls and all(name.strip() for _, name in controls), controls
        outlines = []
        for _ in controls:
            opened.keyboard.press("Tab")
            outlines.append(opened.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
            if opened.evaluate("document.activeElement === document.body"):
                outlines.pop()
                break
        assert outlines and set(outlines) <= {"solid", "auto"}
        assert opened.locator("canvas").count() == opened.locator("[role=img] canvas, button canvas").count()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [WORDS, [" word"] * 11 + ["x" * 3000]], ids=["words", "one long"])
def test_nothing_on_a_phone_is_wider_than_it(kind: str, tokens: list[str], chromium: "Browser", tmp_path: Path) -> None:
    path = saved([views_of(tokens)[kind]], tmp_path)
    with visit(chromium, path, width=390, height=844, touch=True) as opened:
        opened.locator(".hs-token, .hs-cell").nth(3).tap()
        wide = """[...document.querySelectorAll("body *")].filter((node) => node.getBoundingClientRect().right > 390.5)
          .filter((node) => !node.closest(".hs-scroll")).map((node) => node.tagName + "." + node.className)"""
        assert opened.evaluate(wide) == []
        assert opened.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("kind", KINDS)
def test_a_dark_page_is_dark(kind: str, chromium: "Browser", tmp_path: Path) -> None:
    path = saved([views_of(WORDS)[kind]], tmp_path)
    grounds, inks = [], []
    for theme in ("light", "dark"):
        with visit(chromium, path, theme=theme) as opened:
            grounds.append(brightness(opened.evaluate("getComputedStyle(document.body).backgroundColor")))
            inks.append(brightness(opened.evaluate("getComputedStyle(document.querySelector('.hs-view')).color")))
    assert grounds[0] > 230 and grounds[1] < 40
    assert inks[0] < 60 and inks[1] > 200


def test_a_page_follows_its_theme_and_the_notebook_around_it(chromium: "Browser", tmp_path: Path) -> None:
    view = attention_heads(torch.rand(2, 3, 3).tril(), ["a", " b", " c"])
    path = saved([view], tmp_path)
    dark = "document.documentElement.classList.contains('hs-dark')"
    blue = """(() => {
      const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
      copy.drawImage(document.querySelector(".hs-matrix canvas"), 0, 0);
      return copy.getImageData(0, 0, 1, 1).data[2];
    })()"""
    with visit(chromium, path, theme="dark") as opened:
        assert opened.evaluate(dark)
        opened.evaluate("document.documentElement.dataset.theme = 'light'")
        opened.wait_for_function(f"() => !{dark}")
        light = opened.evaluate(blue)
        opened.evaluate("document.documentElement.dataset.theme = 'dark'")
        opened.wait_for_function(f"() => {dark}")
        assert opened.evaluate(blue) > light  # the pictures were painted again
        opened.emulate_media(media="print")
        opened.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert not opened.evaluate(dark)
    outer = tmp_path / "outer.html"
    for attribute, is_dark in (
        ("data-jp-theme-light='false'", True),
        ("data-jp-theme-light='true'", False),
        ("data-vscode-theme-kind='vscode-dark'", True),
        ("data-vscode-theme-kind='vscode-light'", False),
    ):
        outer.write_text(f"<!doctype html><body {attribute}>{view._repr_html_()}", encoding="utf-8")
        with visit(chromium, outer, theme="light" if is_dark else "dark") as opened:
            frame = opened.frame_locator("iframe").locator("[data-drawn]")
            assert frame.evaluate(dark) is is_dark, attribute


def brightness(color: str) -> float:
    red, green, blue = map(int, re.findall(r"\d+", color)[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_views_in_one_notebook_do_not_disturb_each_other(chromium: "Browser", tmp_path: Path) -> None:
    views = [*views_of(WORDS).values(), colored_tokens([" word"] * 400, torch.randn(400))]
    path = tmp_path / "notebook.html"
    style = "<style>* { color: hotpink; } span { display: block !important; }</style>"
    frames = "".join(view._repr_html_() for view in views)
    path.write_text(f'<!doctype html><meta charset="utf-8">{style}<body>{frames}', encoding="utf-8")
    with visit(chromium, path) as opened:
        assert opened.locator("iframe").count() == len(views)
        for at in range(len(views)):
            frame = opened.frame_locator("iframe").nth(at)
            frame.locator("[data-drawn]").wait_for(state="attached")
            last = frame.locator(".hs-token, .hs-cell").last
            assert last.evaluate("getComputedStyle(document.body).display") == "block"
            assert last.evaluate("getComputedStyle(document.querySelector('.hs-view')).color") == "rgb(29, 36, 48)"
            last.hover()
            # The frame takes the height of what is in it, tooltip included.
            framed = opened.locator("iframe").nth(at).element_handle().content_frame()
            assert framed is not None
            whole = "document.documentElement.scrollHeight - document.documentElement.clientHeight <= 1"
            tip = "(document.querySelector('.hs-tip') ?? document.body).getBoundingClientRect()"
            seen = f"{tip}.top >= 0 && {tip}.bottom <= innerHeight"
            framed.wait_for_function(f"() => {whole} && {seen}")


def test_the_report_opens(chromium: "Browser", tmp_path: Path) -> None:
    report = write_report(small_model(), [STORY] * 8, tmp_path / "report", max_tokens=200, progress=False)
    source = report.page.read_text(encoding="utf-8")
    with visit(chromium, report.page) as opened:
        opened.locator(".main-svg").first.wait_for(state="attached")
        assert opened.locator(".js-plotly-plot").count() >= 6
        assert opened.locator(".heatmaplayer").count() >= 3
        assert opened.locator("[data-drawn=yes]").count() == source.count('class="hs-view"') >= 7
        assert opened.locator(".hs-matrix").count() == 1 and opened.locator(".hs-token").count() > 100
