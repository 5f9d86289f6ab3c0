"""A page of somebody else's in the same browser, on the same machine, beside an explorer that is served."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import NEEDS_CHROMIUM
from live import folder_of, live_model, served

from headscope.explorer.serving.schemas import Answer, State
from headscope.explorer.serving.sessions import Sessions

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = NEEDS_CHROMIUM

# All that a page may try without asking: requests in the user's name, scripts and frames of the other server.
ATTACK = """<!doctype html><title>attack</title><script>
window.headscope = { receive: (name) => { window.stolen = name; } };
async function attack(address) {
  const outcomes = {};
  const tries = {
    read: () => fetch(`${address}/api/model`, { credentials: "include" }).then((answer) => answer.text()),
    // Of this nobody hears what came of it: it must not have been done.
    blind: () => fetch(`${address}/api/run`, { method: "POST", mode: "no-cors", credentials: "include",
      body: '{"prompt": "attack"}' }).then(() => Promise.reject()),
    json: () => fetch(`${address}/api/run`, { method: "POST", credentials: "include", body: '{"prompt": "attack"}',
      headers: { "Content-Type": "application/json" } }),
    script: () => new Promise((resolve, reject) => {
      const script = Object.assign(document.createElement("script"), { src: `${address}/heads/L0H0.js` });
      script.onload = resolve; script.onerror = reject; document.head.append(script);
    }),
    socket: () => new Promise((resolve, reject) => {
      const socket = new WebSocket(address.replace("http", "ws"));
      socket.onopen = resolve; socket.onerror = reject;
    }),
  };
  for (const [name, attempt] of Object.entries(tries)) {
    outcomes[name] = await attempt().then(() => "came through", () => "refused");
  }
  return { ...outcomes, stolen: window.stolen ?? null };
}
</script>"""


class Counted(Sessions):
    """Sessions that note what they are asked."""

    asked: tuple[str, ...] = ()

    def run(self, state: State, check=lambda: None) -> Answer:
        self.asked += (state.prompt,)
        return super().run(state, check)


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of another server on this machine: another origin, but the same site."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "index.html").write_text(ATTACK)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_other_pages_get_and_do_nothing(chromium: "Browser", elsewhere: str, tmp_path: Path) -> None:
    sessions = Counted(live_model())
    with served(folder_of(sessions.model, tmp_path), sessions) as server:
        address = f"http://127.0.0.1:{server.address.port}"
        context = chromium.new_context()
        try:
            ours = context.new_page()
            ours.goto(server.address.link)
            assert ours.title() == "explorer" and ours.url == f"{address}/"
            body = '{method: "POST", body: \'{"prompt": "ours"}\', headers: {"Content-Type": "application/json"}}'
            assert ours.evaluate(f"fetch('/api/run', {body}).then((answer) => answer.status)") == 200
            assert ours.evaluate("document.cookie") == ""  # no script reads the token
            theirs = context.new_page()
            for other in (elsewhere, elsewhere.replace("127.0.0.1", "localhost")):  # the same site, and another
                theirs.goto(other)
                outcomes = theirs.evaluate(f"attack({address!r})")
                assert outcomes.pop("stolen") is None
                assert set(outcomes.values()) == {"refused"}, outcomes
                frame = f"<iframe src='{address}/' onload='window.framed = true'></iframe>"
                theirs.evaluate("frame => { document.body.innerHTML = frame; }", frame)
                theirs.wait_for_function("() => window.framed")
                assert "explorer" not in [frame.title() for frame in theirs.frames]
        finally:
            context.close()
    assert sessions.asked == ("ours",)
