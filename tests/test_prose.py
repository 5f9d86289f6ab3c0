"""First lines of docstrings: an imperative sentence or a noun phrase, and American spelling, read by AST."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "headscope"
# A docstring that begins like a question names nothing and asks for nothing: say what is returned, or what it is.
QUESTION = re.compile(r"(What|How|Whether|Which|Where|Why|Who|As)\b")
BRITISH = re.compile(
    r"colour|centre|centring|behaviour|normalis|quantis|grey|neighbour|favour|modell|initialis|factoris|vectoris|unlabelled",
    re.IGNORECASE,
)


def first_lines(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield getattr(node, "lineno", 1), docstring.splitlines()[0]


def violations(source: str) -> list[str]:
    questions = [f"{line}: {first}" for line, first in first_lines(source) if QUESTION.match(first)]
    british = [
        f"{number}: {line.strip()}" for number, line in enumerate(source.splitlines(), 1) if BRITISH.search(line)
    ]
    return questions + british


def test_docstrings_begin_as_a_reference_does() -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{violation}"
        for path in sorted(SOURCE.rglob("*.py"))
        for violation in violations(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source, n_violations",
    [
        ('"""What a thing is."""', 1),
        ('def f():\n    """Whether it is so."""', 1),
        ('class C:\n    """A thing.\n\n    How it is made.\n    """', 0),
        ('def f():\n    """Return the colour of a thing."""', 1),
        ('def f():\n    """Return the color of a thing."""', 0),
    ],
)
def test_the_rule_finds_what_it_should(source: str, n_violations: int) -> None:
    assert len(violations(source)) == n_violations
