"""The guard by itself: bodies that come slowly or never, and what is no request for a page."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from headscope.explorer.serving.guard import Guard

Messages = list[MutableMapping[str, Any]]


def answers(received: Messages, **scope: Any) -> tuple[Messages, list[bytes]]:
    """What a guard sends when these messages come, and the bodies that it lets through; after them nothing comes."""
    sent: Messages = []
    passed: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            passed.append((await receive())["body"])
            await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Content-Type-Options", b"any")]})

    async def receive() -> MutableMapping[str, Any]:
        if not received:
            await asyncio.sleep(60)
        return received.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1:80"), (b"x-headscope-token", b"token"), (b"content-type", b"application/json")]
    request = {"type": "http", "method": "POST", "path": "/api/run", "query_string": b"", "headers": headers, **scope}
    guard = Guard(app, token="token", port=80, max_body=8, body_seconds=0.05)
    asyncio.run(guard(request, receive, send))
    return sent, passed


def part(body: bytes, *, more: bool) -> MutableMapping[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.parametrize(
    ("received", "status"),
    [
        ([part(b"1234", more=True), part(b"5678", more=False)], 200),
        ([part(b"1234", more=True), part(b"56789", more=True)], 413),
        ([part(b"1234", more=True)], 408),
        ([part(b"1234", more=True), {"type": "http.disconnect"}], 400),
    ],
)
def test_bodies_are_read_within_limits(received: Messages, status: int) -> None:
    (start, *_), passed = answers(received)
    assert start["status"] == status and passed == ([b"12345678"] if status == 200 else [])
    kinds = [value for name, value in start["headers"] if name.lower() == b"x-content-type-options"]
    assert kinds == [b"nosniff"]


def test_what_is_no_request_for_a_page() -> None:
    assert answers([], type="websocket")[0] == [{"type": "websocket.close", "code": 1008}]
    assert answers([], type="lifespan") == ([], [])
    # The port that browsers leave out.
    hosts = [(b"host", b"localhost"), (b"x-headscope-token", b"token"), (b"origin", b"http://localhost")]
    assert answers([part(b"", more=False)], method="GET", headers=hosts)[0][0]["status"] == 200
