"""`serve`: what it refuses before it listens, and how it ends."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import PROMPT, client_of, folder_of, live_model, served

from headscope import HookedTransformer
from headscope.errors import CheckpointError, InvalidInputError, MissingDependencyError
from headscope.explorer import serve
from headscope.explorer.serving.sessions import Sessions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(live_model(), tmp_path)


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises((InvalidInputError, CheckpointError, MissingDependencyError)) as caught:
        serve(folder, open_browser=False, **options)
    return str(caught.value)


def test_what_cannot_be_served_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert "holds no head explorer" in refused(tmp_path_factory.mktemp("empty"))
    assert "n_layers = 3, and 'small' has 2" in refused(folder, model=live_model(n_layers=2))
    said = refused(folder)
    assert "cannot be loaded as 'small'" in said and "--model" in said
    assert "--model" not in refused(folder, model="no/such/folder")
    assert "from 0 to 65535; got -1" in refused(folder, port=-1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refused(folder, port=taken.getsockname()[1])
        assert "is taken by another program" in said and "--port" in said
    assert "'small' attends in both directions" in refused(folder, model=live_model(attention_dir="bidirectional"))
    for model in ({"model_name": ""}, {"model_name": "", "pipeline_config": {"model": 5}}):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **model}))
        assert "does not say what model it is of: name it with --model" in refused(folder)


def test_without_the_extra_it_says_how_to_install_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    said = refused(folder)
    assert "needs uvicorn" in said and "pip install 'headscope[live]'" in said


def test_it_ends_by_ctrl_c(folder: Path) -> None:
    said: list[str] = []
    seen: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def look() -> None:
        try:
            with httpx.Client(follow_redirects=True, verify=False) as browser:
                seen.append(browser.get(said[0].splitlines()[0]).status_code)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 1:
            threading.Thread(target=look).start()

    serve(folder, model=live_model(), open_browser=False, say=say)
    assert seen == [200] and said[-1] == "Stopped." and signal.getsignal(signal.SIGINT) == before
    with pytest.raises(httpx.ConnectError):
        httpx.get(said[0].splitlines()[0], verify=False)


def test_one_that_was_killed_is_started_again(tmp_path: Path) -> None:
    model = HookedTransformer.from_pretrained("headscope-demo")
    folder = folder_of(model, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    paths = os.pathsep.join([str(Path(__file__).parents[3] / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = ["-uc", "from headscope_command import main; main()", "explore", str(folder), "--serve", "--no-browser"]
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    try:
        assert process.stdout is not None
        link = httpx.URL(process.stdout.readline().strip())
        with httpx.Client(follow_redirects=True, verify=False) as browser:
            assert "explorer" in browser.get(link).text
    finally:
        process.kill()
        process.communicate()
    assert link.port is not None
    with served(folder, Sessions(model), port=link.port) as again, client_of(again) as client:
        assert client.post("/api/run", json={"prompt": PROMPT}).status_code == 200
        assert httpx.get(link, verify=False).status_code == 401
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
