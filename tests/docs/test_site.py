"""The built site, opened from its files: every page in light, dark and on a phone, its links, and its search.

`make docs` builds it; without that the tests fail and say so.
"""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest
from browser import CHROMIUM, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SITE = Path(__file__).parent.parent.parent / "build/docs/html"
# The explorer of the demo model is a site of its own, with tests of its own.
PAGES = sorted(path for path in SITE.rglob("*.html") if path.relative_to(SITE).parts[0] not in ("_static", "explorer"))

pytestmark = [
    pytest.mark.docs,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the PATH"),
]


class Written(HTMLParser):
    """What a page links to, loads, and can be linked to at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "author", "license"):
            self.loaded.append(given["href"])
        elif "src" in given:
            self.loaded.append(given["src"])


READ = {path: Written(path) for path in PAGES}


def named(path: Path) -> str:
    return path.relative_to(SITE).as_posix()


def test_the_site_was_built() -> None:
    assert {"index.html", "search.html", "choose.html"} <= set(map(named, PAGES)), "run make docs first"
    assert len(PAGES) > 60


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_links_lead_somewhere_and_nothing_is_loaded_from_outside(path: Path) -> None:
    page = READ[path]
    for address in set(page.loaded) - {"#"}:
        assert not re.match(r"(https?:)?//", address), address
        assert address.startswith("data:") or (path.parent / unquote(re.split(r"[?#]", address)[0])).is_file(), address
    for address in page.links:
        if re.match(r"https://|mailto:", address):
            continue
        file, _, place = address.partition("#")
        target = (path.parent / unquote(file.split("?")[0])).resolve() if file else path
        assert target.is_file(), address
        if place and target in READ:
            assert unquote(place) in READ[target].places, address


def brightness(page: "Page") -> float:
    red, green, blue = map(
        int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_a_page_opens_from_its_file(path: Path, chromium: "Browser") -> None:
    with visit(chromium, path, own=SITE) as page:
        assert page.locator("h1").count() == 1 or path.name == "search.html"
        assert brightness(page) > 200 and page.evaluate("document.documentElement.dataset.theme") == "light"
        for at in range(page.locator(".hs-figure").count()):
            page.locator(".hs-figure").nth(at).scroll_into_view_if_needed()
            page.locator(".hs-figure").nth(at).locator(".main-svg").first.wait_for(state="attached")
        frames = page.locator("article iframe[srcdoc]")
        for at in range(frames.count()):
            drawn = page.frame_locator("article iframe[srcdoc]").nth(at).locator("[data-drawn]")
            drawn.wait_for(state="attached")
        assert overflowing(page) == []
        page.emulate_media(color_scheme="dark")
        page.wait_for_function("() => document.documentElement.dataset.theme === 'dark'")
        page.wait_for_function("() => !document.getAnimations().length")
        assert brightness(page) < 60
        page.set_viewport_size({"width": 390, "height": 844})
        page.wait_for_timeout(60)
        assert overflowing(page) == []


def overflowing(page: "Page") -> list[str]:
    """What makes the page scroll sideways: the elements that reach furthest beyond it."""
    return page.evaluate(
        """() => {
        const wide = document.documentElement.scrollWidth, shown = innerWidth;
        if (wide <= shown) return [];
        const past = [...document.querySelectorAll("article *")].filter(
            (node) => node.getBoundingClientRect().right > shown + 1);
        return [`${wide} px of ${shown}`, ...past.slice(0, 3).map((node) => node.outerHTML.slice(0, 120))];
        }"""
    )


def found(page: "Page", words: str) -> Iterator[str]:
    """The pages that the search finds, best first."""
    page.goto(f"{(SITE / 'search.html').as_uri()}?q={words}")
    page.locator("#search-results .search-summary, #search-results p").first.wait_for()
    page.wait_for_function("() => /found|did not match/.test(document.querySelector('#search-results').innerText)")
    page.wait_for_timeout(300)
    for link in page.locator("ul.search li a").all():
        yield str(link.get_attribute("href"))


def test_the_search_works_from_a_file(chromium: "Browser") -> None:
    with visit(chromium, SITE / "search.html", own=SITE) as page:
        assert any("measure_entropy" in link for link in found(page, "measure_entropy"))
        assert any("concepts.html" in link for link in found(page, "faithfulness"))
        assert any("HS-TOKENS-01" in link for link in found(page, "HS-TOKENS-01"))
        assert list(found(page, "zyzzyva")) == []


def test_llms_txt_lists_every_page_in_the_contents() -> None:
    text = (SITE / "llms.txt").read_text(encoding="utf-8")
    listed = re.findall(r"\]\(([^)]+)\)", text)
    contents = re.findall(
        r'<li class="toctree-l[^>]*><a class="[^"]*internal" href="([^"#]+)\.html"',
        (SITE / "index.html").read_text(encoding="utf-8"),
    )
    assert len(contents) > 25 and listed == [f"_sources/{page}.md.txt" for page in dict.fromkeys(contents)]
    assert all((SITE / link).is_file() for link in listed)
    assert text.startswith("# headscope\n\n> ")
    assert {"_sources/choose.md.txt", "_sources/concepts.md.txt"} <= set(listed)
