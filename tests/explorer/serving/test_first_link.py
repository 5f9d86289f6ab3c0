"""The first link, followed from a page of another site: it opens the explorer and leaves its token nowhere."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

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

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f"<title>elsewhere</title><a href='{links[0]}'>the link</a>".encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
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
