"""The first link, followed from a page of another site: it opens the explorer and leaves its token nowhere."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from wsgiref.simple_server import make_server

import pytest
from browser import NEEDS_CHROMIUM, PATIENCE_MS
from live import folder_of, live_model, served

from headscope.explorer.serving.sessions import Sessions

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = NEEDS_CHROMIUM


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """A page of another site, and what it is to say."""
    links: list[str] = []

    def answer(_: object, respond: Callable[..., object]) -> list[bytes]:
        respond("200 OK", [("Content-Type", "text/html")])
        return [f"<title>elsewhere</title><a href='{links[0]}'>the link</a>".encode()]

    with make_server("127.0.0.1", 0, answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}/", links  # another site than 127.0.0.1
        server.shutdown()
        thread.join()


def test_a_link_on_another_site_leaves_no_token_behind(
    chromium: "Browser", elsewhere: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, links = elsewhere
    model = live_model()
    with served(folder_of(model, tmp_path), Sessions(model)) as server:
        links.append(server.address.link)
        page = chromium.new_context().new_page()
        shown: list[str] = []
        page.on("framenavigated", lambda frame: shown.append(frame.url))
        page.set_default_timeout(PATIENCE_MS)
        page.goto(address)
        page.get_by_text("the link").click()
        page.wait_for_url(f"http://127.0.0.1:{server.address.port}/")
        assert page.title() == "explorer"
        assert shown[0] == address and shown[-1] == f"http://127.0.0.1:{server.address.port}/"
        assert not any("token" in url for url in shown)
        page.context.close()
