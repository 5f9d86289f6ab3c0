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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["heads", "--serve", "--text", "book.txt"], "--text goes with measuring"),
        (["heads", "--serve", "--max-tokens", "32768"], "--max-tokens goes with measuring"),  # its default
        (["heads", "--serve", "--no-ablation"], "--no-ablation goes with measuring"),
        (["heads", "--serve", "--resume"], "--resume goes with measuring"),
        (["heads", "--serve", "--out=other"], "'heads' and --out are two folders to serve"),
        (["--no-browser"], "--no-browser goes with --serve."),
        (["--browser"], "--browser goes with --serve."),
        (["--port", "80"], "--port goes with --serve."),
        (["--model", "gpt2"], "--model goes with --serve."),
    ],
)
def test_options_of_the_other_use_are_refused(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, given: list[str], said: str
) -> None:
    monkeypatch.setattr(explore, "serve_folder", lambda *_, **__: pytest.fail("it was served"))
    monkeypatch.setattr(explore, "explore_heads", lambda *_, **__: pytest.fail("it was measured"))
    code, printed, error = run("explore", *given)
    assert code == 1 and printed == "" and said in error
