"""The application: the pages of a folder, and the questions of the live page."""

import asyncio
import re
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from headscope.errors import HeadscopeError
from headscope.explorer.serving.queue import CancelledError, Queue, QueueFullError, TimedOutError
from headscope.explorer.serving.runs import Check
from headscope.explorer.serving.schemas import (
    Answer,
    ErrorAnswer,
    ModelInfo,
    OnePatternAnswer,
    OnePatternRequest,
    PatternsAnswer,
    PatternsRequest,
    State,
    WhyAnswer,
    WhyRequest,
)
from headscope.explorer.serving.sessions import Sessions, TooLongError
from headscope.explorer.tree.writing import BUNDLE

__all__ = ["make_app", "schema"]

T = TypeVar("T")
_STATUSES = {CancelledError: 499, TimedOutError: 504, QueueFullError: 503, TooLongError: 413}
_SERVED = {".html", ".js", ".css", ".json", ".svg", ".png", ".ico", ".txt"}
_router = APIRouter(prefix="/api")


def make_app(sessions: Sessions, folder: Path, queue: Queue) -> FastAPI:
    """Return the application, which answers everybody: a `Guard` belongs in front of it.

    Args:
        sessions: What answers the live page.
        folder: An explorer's folder, whose files are served; the package's own page if it has none.
        queue: Who runs the model.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()

    app = _bare_app(lifespan=lifespan)
    app.state.sessions, app.state.queue = sessions, queue
    _add_errors(app)
    app.mount("/", _Pages(folder))
    return app


def schema() -> dict[str, Any]:
    """Return the schema of the questions and answers, as OpenAPI."""
    return _bare_app().openapi()


def _bare_app(**options: Any) -> FastAPI:
    app = FastAPI(
        title="headscope live",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        responses={"default": {"model": ErrorAnswer}},
        **options,
    )
    app.include_router(_router)
    return app


@_router.get("/model")
async def _model(request: Request) -> ModelInfo:
    sessions: Sessions = request.app.state.sessions
    return sessions.info


@_router.post("/run")
async def _run(state: State, request: Request) -> Answer:
    return await _asked(request, lambda sessions, check: sessions.run(state, check))


@_router.post("/patterns")
async def _patterns(asked: PatternsRequest, request: Request) -> PatternsAnswer:
    return await _asked(request, lambda sessions, check: sessions.patterns(asked, check))


@_router.post("/pattern")
async def _pattern(asked: OnePatternRequest, request: Request) -> OnePatternAnswer:
    return await _asked(request, lambda sessions, check: sessions.pattern(asked, check))


@_router.post("/why")
async def _why(asked: WhyRequest, request: Request) -> WhyAnswer:
    return await _asked(request, lambda sessions, check: sessions.why(asked, check))


async def _asked(request: Request, work: Callable[[Sessions, Check], T]) -> T:
    """Have the model answer, as long as the client is there and its page asks for nothing newer of the kind."""
    sessions, queue = request.app.state.sessions, request.app.state.queue
    page = request.headers.get("x-headscope-page", "")[:64]
    name = (page, request.url.path) if page else None
    answering = asyncio.ensure_future(queue.run(lambda check: work(sessions, check), instead_of=name))
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise CancelledError("the client went away.")
        answer: T = answering.result()
        return answer
    finally:
        answering.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    """Wait until the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Pages(StaticFiles):
    """The files of an explorer: what is of another kind, or lies outside the folder, does not exist."""

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder, html=True)
        if not (folder / "index.html").is_file():
            # Data that others wrote: the page goes in front, so that nothing of theirs is taken for a part of it.
            self.all_directories.insert(0, BUNDLE)

    def lookup_path(self, path: str) -> tuple[str, Any]:
        """Return a file's path and status; nothing for a file that is not served."""
        if "\\" in path or any(part.startswith(".") for part in path.split("/") if part != "."):
            return "", None
        found, status = super().lookup_path(path)
        if status is not None and not stat.S_ISDIR(status.st_mode) and Path(found).suffix.lower() not in _SERVED:
            return "", None
        return found, status


def _add_errors(app: FastAPI) -> None:
    """Have all errors told alike."""

    @app.exception_handler(HeadscopeError)
    async def refused(_: Request, error: HeadscopeError) -> Response:
        name = type(error).__name__.removesuffix("Error")
        status = next((status for kind, status in _STATUSES.items() if isinstance(error, kind)), 422)
        return _told(status, re.sub(r"(?<=.)(?=[A-Z])", "_", name).lower(), error.message)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{where}: {first['msg']}" if where else str(first["msg"])
        if first["type"] in ("string_too_long", "too_long"):
            return _told(413, "too_long", message)
        return _told(422, "invalid_input", message)

    @app.exception_handler(HTTPException)
    async def not_there(_: Request, error: HTTPException) -> Response:
        return _told(error.status_code, "not_found" if error.status_code == 404 else "bad_request", str(error.detail))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return _told(500, "internal", f"The request failed ({type(error).__name__}); the server goes on.")


def _told(status: int, code: str, message: str) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)
