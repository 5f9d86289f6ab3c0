"""The server as it runs, on a port of this machine."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from live import PROMPT, client_of, folder_of, live_model, served

from headscope.explorer.serving.schemas import Answer, Change, State
from headscope.explorer.serving.server import Server
from headscope.explorer.serving.sessions import Sessions


@pytest.fixture(scope="module")
def sessions() -> Sessions:
    return Sessions(live_model())


@pytest.fixture(scope="module")
def folder(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(sessions.model, tmp_path_factory.mktemp("explorer"))


@pytest.fixture(scope="module")
def server(sessions: Sessions, folder: Path) -> Iterator[Server]:
    with served(folder, sessions) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with client_of(server) as client:
        yield client


def test_answers_are_the_sessions(client: httpx.Client, sessions: Sessions) -> None:
    state = State(prompt=PROMPT, changes=[Change(component="1.2", action="zero")])
    answer = Answer.model_validate_json(client.post("/api/run", json=state.model_dump()).content)
    assert answer.model_copy(update={"seconds": 0.0}) == sessions.run(state).model_copy(update={"seconds": 0.0})
