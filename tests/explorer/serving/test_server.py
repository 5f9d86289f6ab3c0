"""The server as it runs, on a port of this machine: who is answered, what is served, and what harms nobody."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hostile import HOSTILE
from hypothesis import given, settings
from hypothesis import strategies as st
from live import OTHER, PROMPT, client_of, folder_of, live_model, served

from headscope.explorer.serving.guard import CONTENT_POLICY
from headscope.explorer.serving.queue import Queue
from headscope.explorer.serving.schemas import MAX_CHANGES, MAX_CHARACTERS, Answer, Change, State
from headscope.explorer.serving.server import Server
from headscope.explorer.serving.sessions import Sessions
from headscope.explorer.tree.writing import BUNDLE

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def sessions() -> Sessions:
    return Sessions(live_model())


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    around = tmp_path_factory.mktemp("around")
    (around / "secret.json").write_text('"secret"')
    (around / "site").mkdir()
    folder = folder_of(sessions.model, around / "site")
    (folder / "means.safetensors").write_bytes(b"secret")
    (folder / "secret").write_text("secret")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "secret.json").write_text('"secret"')
    (folder / "out.json").symlink_to(around / "secret.json")
    (folder / "within.json").symlink_to(folder / "means.safetensors")
    (folder / "up").symlink_to(around)
    before = contents(folder)
    yield folder
    assert contents(folder) == before  # nothing is written


@pytest.fixture(scope="module")
def server(sessions: Sessions, folder: Path) -> Iterator[Server]:
    with served(folder, sessions) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with client_of(server) as client:
        yield client


def raw(server: Server, request: bytes, *, breaks_off: bool = False) -> tuple[int, bytes]:
    """Send bytes as they are; the status, 0 for none, and all that came back."""
    with socket.create_connection(("127.0.0.1", server.address.port), timeout=10) as connection:
        connection.sendall(request)
        if breaks_off:
            connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return int(answer.split(b" ", 2)[1]) if answer else 0, answer


def get(server: Server, path: str, **headers: str) -> tuple[int, bytes]:
    """A request whose path and headers nobody has tidied."""
    lines = [f"GET {path} HTTP/1.1", f"X-Headscope-Token: {server.address.token}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return raw(server, "\r\n".join([*lines, "", ""]).encode("latin-1"))


# What is answered


def test_answers_are_the_sessions(client: httpx.Client, sessions: Sessions) -> None:
    state = State(prompt=PROMPT, other=OTHER, changes=[Change(component="1.2", action="patch", positions=[3])])
    answer = Answer.model_validate_json(client.post("/api/run", json=state.model_dump()).content)
    assert answer.model_copy(update={"seconds": 0.0}) == sessions.run(state).model_copy(update={"seconds": 0.0})
    info = client.get("/api/model").json()
    assert info == sessions.info.model_dump() and info["max_tokens"] == 48
    patterns = client.post("/api/patterns", json={"state": state.model_dump(), "layer": 2}).json()
    assert len(patterns["before"]) == 1 and patterns["after"] != patterns["before"]


def test_pages_are_served_with_a_policy(client: httpx.Client, folder: Path) -> None:
    for path, file in (("/", "index.html"), ("/index.html", "index.html"), ("/heads/L0H0.js", "heads/L0H0.js")):
        answer = client.get(path)
        assert answer.status_code == 200 and answer.content == (folder / file).read_bytes()
        assert answer.headers["content-security-policy"] == CONTENT_POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert "unsafe" not in CONTENT_POLICY and "default-src 'none'" in CONTENT_POLICY
    for path in ("/nothing.js", "/heads/", "/heads/L9H9.js", "/api/nothing", "/docs", "/openapi.json"):
        answer = client.get(path)
        assert answer.status_code == 404 and answer.headers["content-security-policy"] == CONTENT_POLICY
    assert client.head("/index.html").status_code == 200


def test_a_folder_without_a_page_is_served_with_ours(sessions: Sessions, tmp_path: Path) -> None:
    """As others write one; nothing of theirs takes the place of a part of our page."""
    folder = folder_of(sessions.model, tmp_path)
    (folder / "index.html").unlink()
    (folder / "assets").mkdir()
    for name in ("explorer.js", "theirs.js"):
        (folder / "assets" / name).write_text("theirs")
    before = contents(folder)
    with served(folder, sessions) as server, client_of(server) as client:
        for path, name in (("/", "index.html"), *((f"/{name}", name) for name in ("index.html", "assets/explorer.js"))):
            assert client.get(path).content == (BUNDLE / name).read_bytes()
        assert client.get("/assets/theirs.js").text == "theirs"
        assert client.get("/config.json").content == (folder / "config.json").read_bytes()
        for path in ("/nothing.js", "/assets/", "/assets/nothing.css", "/assets/../../package.json"):
            assert client.get(path).status_code == 404
    assert contents(folder) == before


# Who is answered


def test_strangers_are_refused(server: Server) -> None:
    address = f"http://127.0.0.1:{server.address.port}"
    with httpx.Client(base_url=address) as stranger:
        for path in ("/", "/index.html", "/heads/L0H0.js", "/api/model"):
            assert stranger.get(path).status_code == 401
        assert stranger.post("/api/run", json={"prompt": PROMPT}).status_code == 401
        wrong = ("", "x", server.address.token[:-1], server.address.token + "x", "ünicode".encode().decode("latin-1"))
        for token in wrong:
            assert stranger.get("/api/model", headers={"X-Headscope-Token": token.encode("latin-1")}).status_code == 401
            assert stranger.get("/", params={"token": token}).status_code == 401
            cookie = f"headscope-{server.address.port}={token}".encode("latin-1")
            assert stranger.get("/", headers={b"Cookie": cookie}).status_code == 401
        # The cookie of a server on another port, and tokens beside each other.
        other = f"headscope-{server.address.port + 1}={server.address.token}"
        assert stranger.get("/", headers={"Cookie": other}).status_code == 401
        assert stranger.get(f"/?token=x&token={server.address.token}").status_code == 401
        assert stranger.get(f"/index.html?token={server.address.token}").status_code == 401
        assert stranger.post(f"/?token={server.address.token}", json={}).status_code == 401


def test_the_first_link_brings_the_cookie(server: Server) -> None:
    with httpx.Client() as browser:
        first = browser.get(server.address.link)
        assert first.status_code == 303 and first.headers["location"] == "/"
        cookie = first.headers["set-cookie"]
        assert all(part in cookie for part in ("HttpOnly", "SameSite=Strict", "Path=/"))
        assert "Domain" not in cookie
        page = browser.get(f"http://127.0.0.1:{server.address.port}/", headers={"Cookie": cookie.split(";")[0]})
        assert page.status_code == 200 and "explorer" in page.text
        # Followed from another site, a redirect would go without the cookie.
        elsewhere = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        linked = browser.get(server.address.link, headers=elsewhere)
        assert linked.status_code == 303 and "set-cookie" in linked.headers
        ticket = linked.headers["location"]
        assert ticket.startswith("/?ticket=") and server.address.token not in ticket
        between = httpx.URL(server.address.link).join(ticket)
        found = browser.get(between, headers=elsewhere)
        assert found.status_code == 200 and 'content="0;url=/"' in found.text
        assert browser.get(between, headers=elsewhere).status_code == 403  # good once
    assert httpx.get(between.copy_with(query=b"ticket=x"), headers=elsewhere).status_code == 403
    assert "token" not in repr(server.address).lower()


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:PORT", "127.0.0.1", "localhost", "127.0.0.1:1", "localhost.evil.example:PORT",
     "127.0.0.1:PORT.evil.example", "0.0.0.0:PORT", "[::1]:PORT", ""],
)  # fmt: skip
def test_a_name_that_was_made_to_point_here_is_refused(server: Server, host: str) -> None:
    assert get(server, "/", Host=host.replace("PORT", str(server.address.port)))[0] == 421


def test_a_request_names_one_host(server: Server) -> None:
    ours = f"127.0.0.1:{server.address.port}"
    assert get(server, "/", Host=ours)[0] == 200 and get(server, "/", HOST=f"LocalHost:{server.address.port}")[0] == 200
    assert get(server, "/")[0] == 400  # none
    assert get(server, "/", Host=ours, host="evil.example")[0] in (400, 421)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:PORT", "http://127.0.0.1:1", ""])
def test_other_pages_are_refused(server: Server, client: httpx.Client, origin: str) -> None:
    headers = {"Origin": origin.replace("PORT", str(server.address.port))}
    for answer in (
        client.post("/api/run", json={"prompt": PROMPT}, headers=headers),
        client.get("/api/model", headers=headers),
        client.get("/", headers=headers),
        client.request("OPTIONS", "/api/run", headers={**headers, "Access-Control-Request-Method": "POST"}),
    ):
        assert answer.status_code in (403, 405)
        assert not any(name.lower().startswith("access-control") for name in answer.headers)


def test_where_a_request_comes_from(server: Server, client: httpx.Client) -> None:
    ours = {"Origin": f"http://localhost:{server.address.port}", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/api/run", json={"prompt": PROMPT}, headers=ours).status_code == 200
    for site in ("cross-site", "same-site"):  # another port of this machine is the same site
        assert client.get("/api/model", headers={"Sec-Fetch-Site": site}).status_code == 403
        assert client.get("/", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}).status_code == 403
    # Forms of other pages, if a browser sent their cookie: what they can send is no JSON.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        body = json.dumps({"prompt": PROMPT})
        assert client.post("/api/run", content=body, headers={"Content-Type": kind}).status_code == 415
    for method in ("PUT", "DELETE", "PATCH", "TRACE"):
        assert client.request(method, "/api/run").status_code == 405


# What is served


@pytest.mark.parametrize(
    "path",
    ["/../secret.json", "/%2e%2e/secret.json", "/heads/..%2f..%2fsecret.json", "/heads/%2e%2e/%2e%2e/secret.json",
     "/..%5csecret.json", "/%2e%2e%5csecret.json", "//secret.json", "/./../secret.json", "/%252e%252e/secret.json",
     "/out.json", "/up/secret.json", "/up/", "/up", "/within.json", "/means.safetensors", "/secret",
     "/.hidden/secret.json", "/%00secret.json", "/secret.json%00.html", "/" + "a" * 5000, "//etc/passwd",
     "/%2fetc%2fpasswd", "/%ff%fe.json", "/C:%5csecret.json", "/index.html/secret.json"],
)  # fmt: skip
def test_nothing_else_is_served(server: Server, path: str) -> None:
    status, answer = get(server, path, Host=f"127.0.0.1:{server.address.port}")
    assert status in (404, 400) and b'"secret"' not in answer and b"root:" not in answer
    status, answer = get(server, f"http://127.0.0.1{path}", Host=f"127.0.0.1:{server.address.port}")
    assert status in (404, 400) and b'"secret"' not in answer


# Bodies

LITTLE = {"prompt": "The old dog"}
BODIES: dict[str, tuple[bytes | dict[str, Any], int]] = {
    "nothing": (b"", 422),
    "no JSON": (b"{", 422),
    "a number": (b"1", 422),
    "null": (b"null", 422),
    "no UTF-8": (b'{"prompt": "\xff"}', 400),
    "half a pair": (b'{"prompt": "\\ud83d"}', 422),
    "deep": (b"[" * 100_000, 400),
    "deep and closed": (b'{"prompt":' * 20_000 + b"1" + b"}" * 20_000, 400),
    "a number too long": (b'{"prompt": "a", "position": ' + b"9" * 5_000 + b"}", 400),
    "a large number": ({**LITTLE, "position": 10**30}, 422),
    "another field": ({**LITTLE, "__class__": "x"}, 422),
    "no text": ({"prompt": ["a"]}, 422),
    "empty text without BOS": ({"prompt": "", "prepend_bos": False}, 422),
    "a text too long": ({"prompt": "a" * (MAX_CHARACTERS + 1)}, 413),
    "too many tokens": ({"prompt": "the cat " * 40}, 413),
    "a position behind the end": ({**LITTLE, "position": 40}, 422),
    "a position as text": ({**LITTLE, "position": "1"}, 422),
    "a position as a fraction": ({**LITTLE, "position": 1.5}, 422),
    "a target out of range": ({**LITTLE, "target": 330}, 422),
    "no rows": ({**LITTLE, "top": 0}, 422),
    "too many changes": ({**LITTLE, "changes": [{"component": "0.0", "action": "zero"}] * (MAX_CHANGES + 1)}, 413),
    "no second prompt": ({**LITTLE, "changes": [{"component": "0.0", "action": "patch"}]}, 422),
    "another length": ({**LITTLE, "other": "The", "changes": [{"component": "0.0", "action": "patch"}]}, 422),
    "no mean": ({**LITTLE, "changes": [{"component": "0.0", "action": "mean"}]}, 422),
    "twice": ({**LITTLE, "changes": [{"component": "0.0", "action": "zero"}] * 2}, 422),
    "NaN": (b'{"prompt": "a", "changes": [{"component": "0.0", "action": "scale", "factor": NaN}]}', 422),
    "infinity": (b'{"prompt": "a", "changes": [{"component": "0.0", "action": "scale", "factor": 1e999}]}', 422),
    "a factor beside zero": ({**LITTLE, "changes": [{"component": "0.0", "action": "zero", "factor": 1.0}]}, 422),
    "no factor": ({**LITTLE, "changes": [{"component": "0.0", "action": "scale"}]}, 422),
    **{
        f"component {name!r}": ({**LITTLE, "changes": [{"component": name, "action": "zero"}]}, 422)
        for name in ("9.0", "0.9", "-1.0", "mlp7", "mixer0", "", "0", "0.0+0.1", "__class__", "٣.١", "mlp99999999999")
    },
    **{
        f"positions {positions}": (
            {**LITTLE, "changes": [{"component": "0.0", "action": "zero", "positions": positions}]}, 422
        )
        for positions in ([], [99], [-99], [True], [None], "all", [[0]])
    },
}  # fmt: skip


@pytest.mark.parametrize(("body", "status"), BODIES.values(), ids=BODIES)
def test_bad_bodies_are_refused_in_words(client: httpx.Client, body: bytes | dict[str, Any], status: int) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/api/run", content=content, headers=JSON)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] and 5 < len(error["message"]) < 500 and "Traceback" not in error["message"]


def test_large_bodies_are_not_read(server: Server, client: httpx.Client) -> None:
    for content in (b" " * 300_000, (b" " * 10_000 for _ in range(40))):
        try:
            assert client.post("/api/run", content=content, headers=JSON).status_code == 413
        except httpx.TransportError:
            pass  # the answer and the end of the connection came while the rest was being sent
    start = f"POST /api/run HTTP/1.1\r\nHost: 127.0.0.1:{server.address.port}\r\nContent-Type: application/json\r\n"
    start += f"X-Headscope-Token: {server.address.token}\r\n"
    for length in ("99999999999999999999", "-1", "1e3", "0x10", "5, 5000000"):
        status, _ = raw(server, f"{start}Content-Length: {length}\r\n\r\n{{}}".encode())
        assert status in (400, 413)
    assert raw(server, f"{start}Content-Length: 500\r\n\r\n{{}}".encode(), breaks_off=True)[0] in (0, 400)
    assert raw(server, b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000)[0] in (0, 400)
    assert raw(server, b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03")[0] in (0, 400)
    assert client.get("/api/model").status_code == 200


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
COMPONENTS = st.sampled_from(["0.0", "1.2", "mlp0", "mlp2", "9.9", "x"]) | st.text(max_size=6)
CHANGES = st.fixed_dictionaries(
    {"component": COMPONENTS, "action": st.sampled_from(["zero", "scale", "patch", "mean", "x"])},
    optional={"factor": SCALARS, "positions": st.none() | st.lists(st.integers(-9, 9), max_size=4)},
)
STATES = st.fixed_dictionaries(
    {"prompt": st.sampled_from([PROMPT, "a b", ""]) | st.text(max_size=12)},
    optional={
        "other": st.none() | st.just(PROMPT) | st.text(max_size=12),
        "changes": st.lists(CHANGES, max_size=3) | VALUES,
        "position": st.integers(-4, 4) | SCALARS,
        "target": st.none() | st.integers(-1, 400),
        "top": st.integers(-1, 400) | SCALARS,
        "prepend_bos": st.none() | st.booleans(),
    },
)


@settings(max_examples=40)
@given(
    body=STATES | VALUES, path=st.sampled_from(["run", "patterns", "pattern", "why"]), places=st.tuples(*[VALUES] * 4)
)
def test_whatever_comes_is_answered(client: httpx.Client, body: Any, path: str, places: tuple[Any, ...]) -> None:
    asked = (
        body if path == "run" else {"state": body, **dict(zip(("layer", "head", "query", "key"), places, strict=True))}
    )
    answer = client.post(f"/api/{path}", content=json.dumps(asked), headers=JSON)
    assert answer.status_code in (200, 400, 413, 422), answer.text
    assert answer.status_code == 200 or set(answer.json()["error"]) == {"code", "message"}


@settings(max_examples=25)
@given(content=st.binary(max_size=200))
def test_bytes_are_answered(client: httpx.Client, content: bytes) -> None:
    assert client.post("/api/run", content=content, headers=JSON).status_code in (400, 422)


def test_hostile_prompts_come_back_as_data(client: httpx.Client, sessions: Sessions) -> None:
    for text in HOSTILE:
        answer = client.post("/api/run", content=json.dumps({"prompt": text, "other": None}), headers=JSON)
        if (
            len(text) > MAX_CHARACTERS
            or "\ud83d" in text
            or len(sessions.model.to_tokens(text, truncate=False)[0]) > 48
        ):
            assert answer.status_code in (413, 422)
            continue
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
        assert answer.json()["ids"] == sessions.model.to_tokens(text)[0].tolist()
        assert sessions.model.tokenizer.decode(answer.json()["ids"][1:]) == text


# Many at once, and those that fail


class Blocking(Sessions):
    """Sessions whose runs of the prompt `wait` last until they are let go, or given up."""

    def __init__(self) -> None:
        super().__init__(live_model())
        self.goes_on = threading.Event()
        self.begun = threading.Semaphore(0)
        self.ended: list[str] = []

    def run(self, state: State, check: Callable[[], None] = lambda: None) -> Answer:
        if state.prompt == "die":
            raise RuntimeError("a defect")
        if state.prompt == "wait":
            self.begun.release()
            try:
                while not self.goes_on.wait(0.01):
                    check()
            except Exception as error:
                self.ended.append(type(error).__name__)
                raise
        return super().run(state, check)


@pytest.fixture
def blocking() -> Blocking:
    return Blocking()


def ask(server: Server, prompt: str, page: str | None = None) -> httpx.Response:
    with client_of(server, **({} if page is None else {"X-Headscope-Page": page})) as client:
        return client.post("/api/run", json={"prompt": prompt})


def eventually(holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + 10
    while not holds() and time.monotonic() < until:
        time.sleep(0.01)
    return holds()


def test_fifty_clients_at_once(blocking: Blocking, folder: Path) -> None:
    expected = blocking.run(State(prompt=PROMPT)).before
    with served(folder, blocking, Queue(waiting=16)) as server, ThreadPoolExecutor(50) as clients:
        first = clients.submit(ask, server, "wait")
        assert blocking.begun.acquire(timeout=10)
        answers = [clients.submit(ask, server, PROMPT) for _ in range(49)]
        # Fifteen wait behind the first; the others are told at once to come again.
        assert eventually(lambda: sum(each.done() for each in answers) == 34)
        refused = [each.result() for each in answers if each.done()]
        assert all(each.status_code == 503 and each.headers["retry-after"] for each in refused)
        assert ask(server, "").status_code == 503
        blocking.goes_on.set()
        served_ones = [each for each in (each.result() for each in answers) if each.status_code == 200]
        assert len(served_ones) == 15 and first.result().status_code == 200
        for each in served_ones:
            assert Answer.model_validate_json(each.content).before == expected
        assert ask(server, PROMPT).status_code == 200


def test_a_client_that_goes_away_is_not_computed_for(blocking: Blocking, folder: Path) -> None:
    with served(folder, blocking) as server:
        with client_of(server) as client, pytest.raises(httpx.ReadTimeout):
            client.post("/api/run", json={"prompt": "wait"}, timeout=0.2)
        assert eventually(lambda: blocking.ended == ["CancelledError"])
        assert ask(server, PROMPT).status_code == 200


def test_a_newer_request_of_the_same_page_takes_the_place_of_an_older(blocking: Blocking, folder: Path) -> None:
    queue = Queue()
    with served(folder, blocking, queue) as server, ThreadPoolExecutor(5) as clients:
        under_way = clients.submit(ask, server, "wait", "one")
        assert blocking.begun.acquire(timeout=10)
        other = clients.submit(ask, server, "wait", "two")
        waiting = clients.submit(ask, server, PROMPT, "three")
        assert eventually(lambda: len(queue) == 3)
        newer = clients.submit(ask, server, "wait", "three"), clients.submit(ask, server, "wait", "one")
        for given_up in (waiting, under_way):  # before or while it was computed
            assert given_up.result().status_code == 499 and given_up.result().json()["error"]["code"] == "cancelled"
        blocking.goes_on.set()
        assert [each.result().status_code for each in (other, *newer)] == [200] * 3


def test_time_is_limited_waiting_included(blocking: Blocking, folder: Path) -> None:
    with served(folder, blocking, Queue(seconds=0.3)) as server, ThreadPoolExecutor(2) as clients:
        slow, behind = clients.submit(ask, server, "wait"), clients.submit(ask, server, "wait")
        for answer in (slow.result(), behind.result()):
            assert answer.status_code == 504 and answer.json()["error"]["code"] == "timed_out"
        blocking.goes_on.set()
        assert ask(server, PROMPT).status_code == 200


def test_a_request_that_fails_harms_no_other(
    blocking: Blocking, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with served(folder, blocking) as server:
        answer = ask(server, "die")
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal"
        assert "a defect" not in answer.text and answer.headers["content-security-policy"] == CONTENT_POLICY
        assert ask(server, PROMPT).status_code == 200
        assert not any(point.has_hooks() for point in blocking.model.hook_points())


def test_a_server_started_again_has_another_secret(sessions: Sessions, folder: Path) -> None:
    with served(folder, sessions) as before:
        pass
    with served(folder, sessions, port=before.address.port) as after:
        assert after.address.port == before.address.port and after.address.token != before.address.token
        with client_of(before) as client:
            assert client.get("/api/model").status_code == 401
        assert ask(after, PROMPT).status_code == 200
