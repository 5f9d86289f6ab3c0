"""Prompts of one's own, and what is wrong with them: every command that takes a task names the row in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headscope.views.html import CONTENT_POLICY

Run = Callable[..., tuple[int, str, str]]
PROMPT = "When Mary and John went to the park, John gave a ball to"
OTHER = "When Mary and John went to the park, Mary gave a ball to"
GOOD = {"prompt": PROMPT, "correct": "Mary", "incorrect": "John", "corrupted": OTHER}

# What is changed in the second of three rows, and what the message must say beside its place.
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": ""}, "'prompt' is missing or empty"),
    "no right answer": ({"correct": ""}, "'correct' is missing or empty"),
    "an answer of many tokens": ({"correct": "Bartholomewsky"}, "Give an answer of one token"),
    "both right and wrong": ({"incorrect": "Mary"}, "' Mary' is both a correct and an incorrect answer"),
    "another length": ({"corrupted": f"{OTHER} her"}, "not aligned"),
    "nothing corrupted": ({"corrupted": PROMPT}, "nothing is corrupted"),
    "no corrupted prompt": ({"corrupted": ""}, "give it for all or none"),
    "a space at the end": ({"prompt": f"{PROMPT} "}, "ends with a space"),
}
FILES: dict[str, tuple[str, bytes, str]] = {
    "a missing column": ("a.csv", b"prompt,correct\nx,y\n", "has no column 'incorrect'; its first line names"),
    "an unknown column": ("a.csv", b"prompt,correct,incorrect,corupted\na,b,c,d\n", "Did you mean 'corrupted'"),
    "too many fields": ("a.csv", b"prompt,correct,incorrect\nYes, she saw,A,B\n", "a.csv, line 2: there are more"),
    "no end of a quote": ("a.csv", b'prompt,correct,incorrect\n"Mary saw,John,Tom\n', "a.csv, line 2"),
    "no JSON": ("a.jsonl", b'\n{"prompt": "x"\n', "a.jsonl, line 2 is not JSON"),
    "a list in JSON": ("a.jsonl", b"[1, 2]\n", "a.jsonl, line 1 must be an object"),
    "a number in JSON": ("a.jsonl", b'{"prompt": 1, "correct": "a", "incorrect": "b"}', "'prompt' must be text; got 1"),
    "not UTF-8": ("a.csv", b"prompt,correct,incorrect\n\xff\xfe,a,b\n", "is not UTF-8"),
    "nothing": ("a.csv", b"", "has no column 'prompt'; its first line names nothing"),
    "no rows": ("a.csv", b"prompt,correct,incorrect\n", "has no rows"),
    "no lines": ("a.jsonl", b"\n\n", "has no rows"),
    "another kind": ("a.txt", b"x", "is neither a .csv nor a .jsonl file"),
}  # fmt: skip


def check_failed(found: tuple[int, str, str], *parts: str) -> None:
    """Exit code 1, nothing printed, and one line that has all of these."""
    code, printed, error = found
    assert code == 1 and not printed, printed
    (line,) = error.splitlines()
    assert line.startswith("Error: ") and all(part in line for part in parts), line


@pytest.mark.parametrize("command", ["ioi", "attribute", "patch", "heads"])
def test_every_command_names_the_row(command: str, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    path.write_text(f'prompt,correct,incorrect\n"{PROMPT}",Mary,John\n"{PROMPT}",Mary,Mary\n', encoding="utf-8")
    flags = () if command == "ioi" else ("--out", tmp_path / "out")
    found = run(command, "--task", path, *flags, "--no-progress")
    check_failed(found, "my.csv, line 3", "both a correct and an incorrect answer")
    assert not (tmp_path / "out").exists(), "nothing is written of what failed"


@pytest.mark.parametrize("case", ROWS)
def test_a_bad_row_is_named(case: str, run: Run, tmp_path: Path) -> None:
    change, message = ROWS[case]
    path = tmp_path / "my.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (GOOD, {**GOOD, **change}, GOOD)), encoding="utf-8")
    check_failed(run("ioi", "--task", path, "--no-progress"), "my.jsonl, line 2", message)


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_is_told(case: str, run: Run, tmp_path: Path) -> None:
    name, content, message = FILES[case]
    (tmp_path / name).write_bytes(content)
    check_failed(run("ioi", "--task", tmp_path / name, "--no-progress"), name, message)


def test_a_folder_and_nothing_are_no_tasks(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    check_failed(run("ioi", "--task", tmp_path / "a.csv", "--no-progress"), "a.csv cannot be read: Is a directory")
    check_failed(run("ioi", "--task", tmp_path / "b.csv", "--no-progress"), "b.csv cannot be read: No such file")
    check_failed(run("heads", "--task", "oi", "--no-progress"), "oi is neither a .csv nor a .jsonl file")


def test_a_page_allows_no_request_and_fits_a_phone(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    path.write_text(f'prompt,correct,incorrect,corrupted\n"{PROMPT}",Mary,John,"{OTHER}"\n', encoding="utf-8")
    for command, name in (("attribute", "attribution"), ("patch", "patching")):
        code, _, error = run(command, "--task", path, "--out", tmp_path / command, "--no-progress")
        assert code == 0, error
        page = (tmp_path / command / f"{name}.html").read_text(encoding="utf-8")
        head = page.partition("</head>")[0]
        assert CONTENT_POLICY in head and "width=device-width" in head and "prefers-color-scheme: dark" in head
        assert page.count("<!doctype html>") == 1
