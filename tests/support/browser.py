"""Pages in a headless Chromium, driven by Playwright: what they draw, what they say, what they ask of a network.

with headless() as browser, visit(browser, path) as page:
    page.hover(".hs-token")
# here it has been checked that the console stayed quiet and nothing left the page
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_CHROMIUM = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the PATH"),
]

# Browsers paint and answer on a loaded machine too; what takes longer than this is broken.
PATIENCE_MS = 60_000


@contextmanager
def headless() -> Iterator["Browser"]:
    """A browser of its own, closed at the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visit(
    browser: "Browser",
    path: Path | str,
    *,
    width: int = 1280,
    height: int = 900,
    theme: Literal["light", "dark"] = "light",
    touch: bool = False,
    place: str = "",
    own: Path | str | None = None,
    forgiven: str | None = None,
) -> Iterator["Page"]:
    """Open a page, and at the end fail on anything its console said and any address it asked for.

    `path` is a file or the address of a server; `place` is what its address has after the path (`"#/heads"`); files in
    the folder `own`, or addresses that begin with it, may be asked for. Lines of the console that match `forgiven` are
    let pass.
    """
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, has_touch=touch, is_mobile=touch
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    heard, asked = listen(page)
    address = path if isinstance(path, str) else path.as_uri()
    try:
        page.goto(address + place)
        yield page
        page.wait_for_timeout(1)  # what was said until now is told first
    finally:
        context.close()
    allowed = address if own is None else own if isinstance(own, str) else f"{own.as_uri()}/"
    beyond = [each for each in asked if each != address + place and not each.startswith(allowed)]
    said = [line for line in heard if forgiven is None or not re.search(forgiven, line)]
    trouble = said + [f"asked for {each}" for each in beyond]
    if trouble:
        raise AssertionError("; ".join(trouble))


def listen(page: "Page") -> tuple[list[str], list[str]]:
    """The console's lines and uncaught errors, and the addresses asked for; both grow while the page is open."""
    heard: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
    # plotly rejects with nothing where a click on its slider overtakes the last; an error has a message.
    page.on(
        "pageerror", lambda error: heard.append(f"uncaught: {error.message}") if error.message != "undefined" else None
    )
    page.on("request", lambda request: asked.append(request.url) if _outside(request.url) else None)
    page.on("websocket", lambda socket: asked.append(socket.url))
    return heard, asked


def _outside(address: str) -> bool:
    return not address.startswith(("data:", "blob:", "about:"))


def named_controls(page: "Page") -> list[tuple[str, str]]:
    """Role and accessible name of all that can take the focus, as a screen reader is told."""
    session = page.context.new_cdp_session(page)
    nodes: list[dict[str, Any]] = session.send("Accessibility.getFullAXTree")["nodes"]
    return [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if node["role"]["value"] != "RootWebArea"
        and any(entry["name"] == "focusable" and entry["value"]["value"] for entry in node.get("properties", []))
    ]
