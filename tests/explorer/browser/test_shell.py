"""The frame around all pages of the explorer: addresses, keys, themes, any text, narrow screens, missing data."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import NEEDS_CHROMIUM, named_controls, visit
from explorer_pages import at_once, look
from explorer_tree import read, write_tree
from hostile import HACK, HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = NEEDS_CHROMIUM

# Pages of all heads, and what stands on each once it is drawn.
PLACES = {
    "#/": ".dots circle",
    "#/heads": ".heads tbody tr",
    "#/grid": ".cell",
    "#/search?q=a": "[data-place] tbody tr",
}


def go(page: "Page", place: str) -> None:
    page.evaluate("place => { location.hash = place; }", place)
    page.wait_for_selector(PLACES[place])


def test_keys_and_links_go_to_the_pages(chromium: "Browser", tree: Path) -> None:
    with visit(chromium, tree / "index.html", own=tree) as page:
        page.wait_for_selector("main")
        assert read(tree, "config")["model_name"] in page.title()
        for key, place in (("2", "#/heads"), ("3", "#/grid"), ("/", "#/search"), ("c", "#/compare"), ("1", "#/")):
            page.keyboard.press(key)
            page.wait_for_selector(f"nav [aria-current=page][href='{place}']")
            if key == "/":
                page.wait_for_selector("input:focus")
                page.keyboard.press("Escape")  # out of the field, where letters are text
        page.keyboard.press("?")
        assert {"Table", "Swap the axes", "Select it, or let it go"} <= set(page.locator("dialog dd").all_inner_texts())
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="detached")
        for nowhere in ("nowhere", "constructor", "__proto__"):
            go(page, "#/grid")
            page.evaluate("place => { location.hash = place; }", f"#/{nowhere}")
            page.wait_for_function("place => document.title.startsWith('Not found')")
            assert "There is no such page." in page.inner_text("main")
        page.get_by_role("link", name="All heads").click()
        page.wait_for_selector(PLACES["#/"])


def test_a_page_answers_from_its_first_frame_on(chromium: "Browser", tree: Path) -> None:
    with visit(chromium, tree / "index.html", own=tree, place="#/grid") as page:
        page.wait_for_selector(PLACES["#/grid"])
        at_once(page, ".search-fields input", "window.focused = document.activeElement === node;")
        go(page, "#/search?q=a")
        assert page.evaluate("window.focused")
        at_once(page, ".head-page", "node.dispatchEvent(new KeyboardEvent('keydown', { key: 'n', bubbles: true }));")
        look(page, "location.hash = '#/head/0.1';")
        page.wait_for_function("() => location.hash === '#/head/0.2'")
        # A choice in a menu, made before the page was painted, is shown as it is in the address.
        choose = "node.value = '2'; node.dispatchEvent(new Event('change', { bubbles: true }));"
        at_once(page, "[aria-label='First layer']", f"{choose} window.title = document.title;")
        go(page, "#/heads")
        page.wait_for_function("() => location.hash.includes('layers=2-3')")
        assert page.locator(".heads tbody tr").count() == 12
        assert page.evaluate("window.title").startswith("Table")


def test_the_theme_is_the_systems_until_one_is_chosen(chromium: "Browser", tree: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with visit(chromium, tree / "index.html", own=tree, theme="dark") as page:
        page.wait_for_selector(".top")
        dark = page.evaluate(f"() => {ground}")
        page.keyboard.press("t")
        light = page.evaluate(f"() => {ground}")
        assert (dark, light) == ("rgb(20, 24, 30)", "rgb(255, 255, 255)")
        page.reload()
        page.wait_for_selector(".top")
        assert page.evaluate(f"() => {ground}") == light
        page.get_by_role("button", name="Theme: light").click()
        assert page.evaluate(f"() => {ground}") == dark
        page.get_by_role("button", name="Theme: dark").click()
        page.emulate_media(color_scheme="light")
        assert page.evaluate(f"() => {ground}") == light


def test_every_control_has_a_name_and_narrow_pages_fit(chromium: "Browser", tree: Path) -> None:
    with visit(chromium, tree / "index.html", own=tree, place="#/?sel=1.2,3.0", width=390, touch=True) as page:
        for place, drawn in PLACES.items():
            go(page, place) if place != "#/" else page.wait_for_selector(drawn)
            if page.get_by_role("button", name="Filter").count():
                page.get_by_role("button", name="Filter").click()
            assert [role for role, name in named_controls(page) if not name.strip()] == []
            assert page.evaluate("() => document.documentElement.scrollWidth") <= 390, place


def test_a_touch_points_and_another_opens(chromium: "Browser", tree: Path) -> None:
    with visit(chromium, tree / "index.html", own=tree, width=390, touch=True) as page:
        dot = page.locator(".dots [data-head='2.2']")
        dot.tap(force=True)
        pointed = page.locator(".tip b").inner_text()
        assert page.evaluate("() => location.hash") == ""
        dot.tap(force=True)
        page.wait_for_function("head => location.hash === `#/head/${head}`", arg=pointed)
        go(page, "#/grid")
        page.locator(".cell[data-head='2.2']").tap()
        assert page.locator(".tip b").inner_text() == "2.2"
        page.locator(".cell[data-head='2.2']").tap()
        page.wait_for_function("() => location.hash === '#/head/2.2'")


def test_no_text_of_a_tree_is_obeyed(chromium: "Browser", tmp_path: Path) -> None:
    texts = tuple(HOSTILE)
    path = write_tree(tmp_path, n_layers=3, n_heads=4, model=HOSTILE[0], words=texts, texts=texts)
    markup = "() => document.querySelectorAll('#app :is(script, img, iframe, style, link, [onclick])').length"
    with visit(chromium, path, own=tmp_path) as page:
        for place, drawn in PLACES.items():
            go(page, place) if place != "#/" else page.wait_for_selector(drawn)
            assert page.evaluate(markup) == 0, place
            assert "hacked" not in page.title().replace(HOSTILE[0], "")
        page.get_by_label("Token", exact=True).fill("script>")
        page.wait_for_function("() => location.hash.includes('script')")
        assert HOSTILE[0] in page.locator("tbody q").all_inner_texts()
        go(page, "#/heads")
        assert HOSTILE[0] in page.inner_text(".heads thead")
        assert HACK in page.inner_text(".brand")


def test_an_incomplete_tree_says_what_is_missing(chromium: "Browser", tmp_path: Path) -> None:
    path = write_tree(tmp_path, n_layers=2, n_heads=2)
    (tmp_path / "search.js").unlink()
    with pytest.raises(AssertionError, match="ERR_FILE_NOT_FOUND"), visit(chromium, path, own=tmp_path) as page:
        page.wait_for_selector(PLACES["#/"])
        page.keyboard.press("/")
        page.get_by_text("This tree has no index of tokens.").wait_for()
        (tmp_path / "config.js").unlink()
        page.reload()
        page.get_by_text("The data of this page are not there.").wait_for()
        assert "config.js could not be read" in page.inner_text("main")


def test_the_content_policy_holds_on_a_file(chromium: "Browser", tree: Path) -> None:
    tries = """async () => {
      window.broken = [];
      document.addEventListener("securitypolicyviolation", (event) => broken.push(event.effectiveDirective));
      const inline = document.createElement("script");
      inline.textContent = "document.title = 'hacked'";
      document.head.append(inline);
      const other = document.createElement("script");
      other.src = "http://127.0.0.1:9/x.js";
      document.head.append(other);
      const image = new Image();
      image.src = "http://127.0.0.1:9/x.png";
      await fetch("http://127.0.0.1:9/").catch(() => {});
    }"""
    with (
        pytest.raises(AssertionError, match="Content Security Policy"),
        visit(chromium, tree / "index.html", own=tree) as page,
    ):
        page.wait_for_selector(PLACES["#/"])
        page.evaluate(tries)
        page.wait_for_function("() => broken.length >= 4")
        assert page.evaluate("broken.sort()") == ["connect-src", "img-src", "script-src-elem", "script-src-elem"]
        assert "hacked" not in page.title()
        later = "try { eval('1'); done('ran'); } catch (error) { done(error.name); }"
        assert page.evaluate(f"() => new Promise((done) => setTimeout(() => {{ {later} }}))") == "EvalError"
