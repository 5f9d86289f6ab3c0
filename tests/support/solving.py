"""The exercises as the reader runs them: cell by cell, each cell's last value kept."""

import ast
import contextlib
import io
from pathlib import Path
from typing import Any

import jupytext

FOLDER = Path(__file__).parents[2] / "src/headscope/assets/notebooks/exercises"
NAMES = sorted(path.stem for path in FOLDER.glob("[0-9]*.md"))


def cells(name: str) -> list[str]:
    """The code cells of an exercise; the last is the solution."""
    notebook = jupytext.reads((FOLDER / f"{name}.md").read_text(encoding="utf-8"), fmt="md:myst")
    return [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell and return the value of its last line, which a notebook shows."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(tree, "cell", "exec"), names)
        return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)
