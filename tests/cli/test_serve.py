"""`headscope explore --serve`: what its options come to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headscope.cli import explore


@pytest.mark.parametrize(
    ("given", "folder", "options"),
    [
        (["heads", "--serve"], "heads", {"model": None, "port": 0, "open_browser": True}),
        (["--serve"], "explorer", {"model": None, "port": 0, "open_browser": True}),
        (["--serve", "--out", "other"], "other", {"model": None, "port": 0, "open_browser": True}),
        (
            ["heads", "--serve", "--port", "8765", "--model", "checkpoint", "--no-browser"],
            "heads",
            {"model": "checkpoint", "port": 8765, "open_browser": False},
        ),
    ],
)
def test_options_go_to_the_server(
    run: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    folder: str,
    options: dict[str, Any],
) -> None:
    asked: list[tuple[Path, dict[str, Any]]] = []

    def serve(folder: Path, *, say: Callable[[str], Any], **options: Any) -> None:
        asked.append((folder, options))
        say("a link")

    monkeypatch.setattr(explore, "serve_folder", serve)
    assert run("explore", *given) == (0, "a link\n", "")
    assert asked == [(Path(folder), options)]
