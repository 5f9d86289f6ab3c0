"""The frame around all pages of the explorer: addresses, keys, themes, and what is said where data are missing."""

from pathlib import Path
from typing import TYPE_CHECKING

from browser import NEEDS_CHROMIUM, visit
from explorer_tree import read

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = NEEDS_CHROMIUM


def test_keys_and_links_go_to_the_pages(chromium: "Browser", tree: Path) -> None:
    with visit(chromium, tree / "index.html", own=tree) as page:
        page.wait_for_selector("main")
        assert read(tree, "config")["model_name"] in page.title()
        for key, place in (("2", "#/heads"), ("3", "#/grid"), ("/", "#/search"), ("c", "#/compare"), ("1", "#/")):
            page.keyboard.press(key)
            page.wait_for_function("place => location.hash === place", arg=place)
            assert page.locator("nav [aria-current=page]").get_attribute("href") == place
