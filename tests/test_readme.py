"""The README's and the guides' examples run as they stand, but for opening a browser, and print what the pages show."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from headscope import cli

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "docs/analyses.md", "docs/own-work.md", "docs/command-line.md"]


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the language and the text of each fenced block, in order."""
    return re.findall(
        r"^```(\w+)\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )


@pytest.mark.parametrize("page", PAGES[:3])
def test_the_python_runs_and_prints_what_is_shown(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("story.txt").write_text("When Mary and John went to the park, John gave a ball to Mary.\n" * 9)
    names: dict[str, object] = {}
    printed, n_shown = "", 0
    for language, text in blocks(page):
        if language == "none":
            Path("prompts.csv").write_text(text)
        elif language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(text.replace(".show()", ""), names)
            printed = out.getvalue()
        elif language == "text":
            assert printed == text
            n_shown += 1
    assert n_shown == (page == "README.md")
    if page == "README.md":
        assert list(names["cache"].keys()) == ["blocks.2.attn.hook_pattern"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_it_names_exists(page: str) -> None:
    known = {group.name for group in cli.app.registered_groups} | {c.name for c in cli.app.registered_commands}
    lines = [line for language, text in blocks(page) if language == "bash" for line in text.splitlines()]
    named = {line.split()[1] for line in lines if line.startswith("headscope ")}
    named |= set(re.findall(r"`headscope ([a-z-]+)[ `]", (ROOT / page).read_text(encoding="utf-8")))
    assert named - {"COMMAND"} <= known and (named or page == "docs/analyses.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_within_the_repository_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        path, _, anchor = link.partition("#")
        if path.startswith("http"):
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, link
