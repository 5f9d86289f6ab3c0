"""`Guard`: who may ask, in front of everything that answers.

The server listens on this machine alone, yet every page that a browser has open can send requests to it. So a request
must name this server as its host (a name that was made to point here, by DNS rebinding, is refused), must not come from
another page (`Origin`, `Sec-Fetch-Site`; nothing is granted to other origins), and must bring the secret that only the
person who started the server was told: in the first link, which puts it in a cookie that scripts cannot read and other
sites cannot send, or in the header `X-Headscope-Token`. A body is JSON and read within limits before anybody parses it.
Answers carry a content policy that lets the page's own scripts run and nothing else.
"""

import asyncio
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

__all__ = ["CONTENT_POLICY", "Guard"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
_REFRESH = b'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url=/"><title>headscope</title>'


@dataclass(frozen=True)
class _Refusal:
    """The reason why a request goes no further."""

    status: int
    code: str
    message: str


class Guard:
    """An ASGI application in front of another.

    Args:
        app: The other.
        token: The secret.
        port: The port that is listened on.
        max_body: The most bytes of a request's body.
        body_seconds: How long a body may take to come.
    """

    def __init__(
        self, app: App, *, token: str, port: int, max_body: int = 256 * 2**10, body_seconds: float = 10.0
    ) -> None:
        self.app, self._token, self.cookie = app, token.encode(), f"headscope-{port}"
        self.max_body, self.body_seconds = max_body, body_seconds
        self._tickets: set[str] = set()
        self._hosts = {f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost")}
        # Browsers leave the port of http out where it is 80.
        self._hosts |= {b"127.0.0.1", b"localhost"} if port == 80 else set()
        self._origins = {b"http://" + host for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have it answered."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket, which nobody here speaks
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._stranger(scope)
        if refusal is None and self._brings_first_link(scope):
            await self._welcome(scope, send)
            return
        if refusal is None and self._brings_ticket(scope):
            self._tickets.discard(_queried(scope, "ticket")[0])
            await _answer(send, 200, [(b"content-type", b"text/html; charset=utf-8")], _REFRESH)
            return
        if refusal is None and not self._knows_token(scope):
            refusal = _Refusal(
                401, "no_token", "Open the link that headscope explore printed when it was started: it holds the token."
            )
        body = b""
        if refusal is None and scope["method"] == "POST":
            refusal, body = await self._body(scope, receive)
        if refusal is not None:
            await self._refuse(scope, send, refusal)
            return
        await self.app(scope, _replayed(body, receive), _with_headers(send))

    # Where a request comes from

    def _stranger(self, scope: Scope) -> _Refusal | None:
        """The reason to refuse where a request comes from or goes to; `None` if there is none."""
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return _Refusal(405, "bad_method", "Only GET, HEAD and POST are answered.")
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return _Refusal(421, "bad_host", "This server answers under its own address on this machine alone.")
        if any(origin not in self._origins for origin in _values(scope, b"origin")):
            return _Refusal(403, "bad_origin", "Requests of other pages are refused.")
        # Another port of this machine is the same site, to which the cookie goes, but not the same origin.
        if any(site not in (b"same-origin", b"none") for site in _values(scope, b"sec-fetch-site")):
            navigates = _values(scope, b"sec-fetch-mode") == [b"navigate"] and scope["method"] == "GET"
            if not (navigates and (self._brings_first_link(scope) or self._brings_ticket(scope))):
                return _Refusal(403, "bad_origin", "Requests of other pages are refused.")
        return None

    def _brings_first_link(self, scope: Scope) -> bool:
        given = _queried(scope, "token")
        return len(given) == 1 and self._is_token(given[0].encode("utf-8", "replace"))

    def _brings_ticket(self, scope: Scope) -> bool:
        given = _queried(scope, "ticket")
        return len(given) == 1 and given[0] in self._tickets

    def _knows_token(self, scope: Scope) -> bool:
        given = _values(scope, b"x-headscope-token")
        for header in _values(scope, b"cookie"):
            pairs = (pair.strip().partition(b"=") for pair in header.split(b";"))
            given += [value for name, _, value in pairs if name == self.cookie.encode()]
        return any(self._is_token(each) for each in given)

    def _is_token(self, given: bytes) -> bool:
        return hmac.compare_digest(given, self._token)

    async def _welcome(self, scope: Scope, send: Send) -> None:
        """Put the token in a cookie, and go on without it in the address.

        If the link was followed from another site, a redirect to the page would go without the cookie. So it goes to a
        page of ours in between, from which the next request brings it; and by a ticket that is good for this once,
        since the address of a page, unlike that of a redirect, stays in the browser's history.
        """
        cookie = f"{self.cookie}={self._token.decode()}; Path=/; HttpOnly; SameSite=Strict"
        place = "/"
        if b"cross-site" in _values(scope, b"sec-fetch-site"):
            ticket = secrets.token_urlsafe(16)
            self._tickets.add(ticket)
            place = f"/?ticket={ticket}"
        await _answer(send, 303, [(b"set-cookie", cookie.encode()), (b"location", place.encode())], b"")

    # The body

    async def _body(self, scope: Scope, receive: Receive) -> tuple[_Refusal | None, bytes]:
        kinds = _values(scope, b"content-type")
        if len(kinds) != 1 or kinds[0].split(b";")[0].strip().lower() != b"application/json":
            return _Refusal(415, "not_json", "A request's body must be application/json."), b""
        too_long = _Refusal(413, "too_long", f"A request may have {self.max_body} bytes at most.")
        if any(not size.isdigit() or len(size) > 12 or int(size) > self.max_body for size in _declared(scope)):
            return too_long, b""
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return _Refusal(400, "gone", "The request broke off."), b""
                    parts.append(message.get("body", b""))
                    if sum(map(len, parts)) > self.max_body:
                        return too_long, b""
                    if not message.get("more_body", False):
                        return None, b"".join(parts)
        except TimeoutError:
            return _Refusal(408, "too_slow", f"The request took more than {self.body_seconds:g} s to come."), b""

    async def _refuse(self, scope: Scope, send: Send, refusal: _Refusal) -> None:
        if scope["path"].startswith("/api/"):
            body = json.dumps({"error": {"code": refusal.code, "message": refusal.message}}).encode()
            headers = [(b"content-type", b"application/json")]
        else:
            body, headers = refusal.message.encode(), [(b"content-type", b"text/plain; charset=utf-8")]
        # What is left of a body is not read: the connection ends with the answer.
        await _answer(send, refusal.status, [*headers, (b"connection", b"close")], body)


def _values(scope: Scope, name: bytes) -> list[bytes]:
    """Return the values of a header, as often as it was sent."""
    return [value for key, value in scope["headers"] if key.lower() == name]


def _queried(scope: Scope, name: str) -> list[str]:
    """Return what a request for the first page has in its address under a name."""
    if scope["path"] != "/" or scope["method"] != "GET" or name.encode() not in scope["query_string"]:
        return []
    return parse_qs(scope["query_string"].decode("latin-1")).get(name, [])


def _declared(scope: Scope) -> Iterable[bytes]:
    return _values(scope, b"content-length")


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length, *_HEADERS]})
    await send({"type": "http.response.body", "body": body})


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then what the connection has to say."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> MutableMapping[str, Any]:
        return messages.pop() if messages else await receive()

    return replay


def _with_headers(send: Send) -> Send:
    """A `send` that adds the headers of safety to every answer."""

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            ours = {name for name, _ in _HEADERS}
            others = [(name, value) for name, value in message.get("headers", []) if name.lower() not in ours]
            message = {**message, "headers": [*others, *_HEADERS]}
        await send(message)

    return sending
