"""Run the notebooks' cells against headscope, and say which run.

    python tests/notebooks/run.py                       # a table of all cells
    python tests/notebooks/run.py ioi-exploration       # one notebook
    python tests/notebooks/run.py --errors              # with the tracebacks of the cells that do not run

The notebooks are read, as exported text, from the folder that the environment variable HEADSCOPE_NOTEBOOKS names; by
default from `shared/seeds` beside the repository. `table.py` holds what is changed in them and what should come of it.
"""

import argparse
import ast
import io
import linecache
import os
import re
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import plotly.io as pio
import torch
from huggingface_hub import constants as hub_constants

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cells import CellText, code_of, split
from stand_in import FIGURES, Figures, clear_output, display, local_rows, local_webtext, save_gpt2
from table import NOTEBOOKS, Cell

__all__ = ["Outcome", "folder", "main", "read", "run_notebook"]


@dataclass(frozen=True)
class Outcome:
    """What came of one cell.

    Attributes:
        cell: The cell's row in the table; `None` if it has none.
        label: As in `In [label]:`.
        lines: Lines of code it was found to have.
        ran: Whether it ran to its end; `None` if it was not tried.
        error: The last line of its error, or what is wrong with its row.
        trace: The whole of it.
        seconds: How long it took.
    """

    cell: Cell | None
    label: str
    lines: int = 0
    ran: bool | None = None
    error: str = ""
    trace: str = ""
    seconds: float = 0.0

    @property
    def problem(self) -> str:
        """In what the cell and its row in the table differ; empty if in nothing."""
        if self.cell is None:
            return "the cell is not in the table"
        if (self.label, self.lines) != (self.cell.label, self.cell.lines):
            found, listed = f"In [{self.label}], {self.lines} lines", f"In [{self.cell.label}], {self.cell.lines} lines"
            return f"the cell is {found} of code; the table has {listed}. {self.error}".rstrip()
        if self.cell.status == "runs" and not self.ran:
            return f"listed as running, and fails: {self.error}\n{self.trace}".rstrip()
        if self.cell.status == "download" and self.ran is False:
            return f"what stands in for it fails: {self.error}\n{self.trace}".rstrip()
        return ""


def folder() -> Path:
    """Where the notebooks are."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "seeds"
    return Path(os.environ.get("HEADSCOPE_NOTEBOOKS") or beside)


def read(name: str) -> list[CellText]:
    """The cells of a notebook of the folder."""
    return split((folder() / f"{name}.txt").read_text(encoding="utf-8"))


def prepared(cell: Cell, found: CellText) -> tuple[str, int]:
    """The code to run, and how many lines of it are the notebook's own.

    Raises:
        ValueError: If a text that should be replaced is not there.
        SyntaxError: If the code does not parse.
    """
    text, added = found.text, 0
    for change in cell.changes:
        if change.old not in text:
            raise ValueError(f"the table replaces {change.old!r}, which is not in the cell")
        text = text.replace(change.old, change.new, 1)
        added += change.new.count("\n") - change.old.count("\n")
    code = code_of(text, output=cell.output)
    return code, len(code.splitlines()) - added


def run_notebook(
    name: str, rows: Sequence[Cell], found: Sequence[CellText], *, hub: Path, work: Path
) -> Iterator[Outcome]:
    """Run a notebook's cells in order, each as far as the table says.

    The cells share one module, as in Jupyter, and what they change outside it is put back: see `_a_machine`.

    Args:
        name: The notebook's.
        rows: Its rows in the table.
        found: Its cells.
        hub: A Hugging Face cache with the stand-in for GPT-2.
        work: A folder of its own that may be written to.
    """
    module = types.ModuleType(f"notebook_{re.sub('[^a-z]', '_', name)}")
    vars(module).update(
        {function.__name__: function for function in (display, clear_output, local_rows, local_webtext)}
    )
    with _a_machine(module, hub, work):
        for number, text in enumerate(found, start=1):
            row = rows[number - 1] if number <= len(rows) else None
            yield _run_cell(f"<{name}, cell {number}>", row, text, module)
    for row in rows[len(found) :]:
        yield Outcome(row, "", error="the notebook has no such cell")


@contextmanager
def _a_machine(module: types.ModuleType, hub: Path, work: Path) -> Iterator[None]:
    """A machine such as the notebooks expect: a home with a token, GPT-2 in the cache, figures that go somewhere.

    What they change of it is put back in the end: the working directory, the environment, torch's global switch.
    """
    here, gradients, renderer = Path.cwd(), torch.is_grad_enabled(), pio.renderers.default
    home, start = work / "home", work / "work" / "notebooks" / "one"
    for directory in (home / ".huggingface", start):
        directory.mkdir(parents=True)
    (home / ".huggingface" / "token").write_text("hf_none")
    pio.renderers[FIGURES] = Figures()
    with (
        patch.dict(os.environ, HOME=str(home), USERPROFILE=str(home)),
        patch.object(hub_constants, "HF_HUB_CACHE", str(hub)),
        patch.object(hub_constants, "HF_HUB_OFFLINE", True),
        warnings.catch_warnings(),
    ):
        try:
            sys.modules[module.__name__] = module  # where dataclasses look for the module of their class
            os.chdir(start)
            torch.set_grad_enabled(True)
            pio.renderers.default = FIGURES
            yield
        finally:
            del sys.modules[module.__name__]
            os.chdir(here)
            torch.set_grad_enabled(gradients)
            pio.renderers.default = renderer


def _run_cell(where: str, cell: Cell | None, found: CellText, module: types.ModuleType) -> Outcome:
    if cell is None:
        return Outcome(None, found.label)
    try:
        code, lines = prepared(cell, found)
    except (ValueError, SyntaxError) as error:
        return Outcome(cell, found.label, error=f"{type(error).__name__}: {error}")
    ran, error, trace, start = None, "", "", time.perf_counter()
    if cell.status != "download":
        ran, error, trace = _executed(code, where, module)
    if not ran and cell.then:
        stood_in, *of_ours = _executed(cell.then, f"{where}, ours", module)
        if not stood_in:
            ran, (error, trace) = False, of_ours
    return Outcome(cell, found.label, lines, ran, error, trace, time.perf_counter() - start)


def _executed(code: str, where: str, module: types.ModuleType) -> tuple[bool, str, str]:
    """Run code, and show what its last expression gives, as Jupyter does: whether it ran; its error, short and long."""
    linecache.cache[where] = (len(code), None, code.splitlines(keepends=True), where)
    tree = ast.parse(code, where)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            exec(compile(tree, where, "exec"), module.__dict__)
            value = eval(compile(last, where, "eval"), module.__dict__) if last is not None else None
            if value is not None:
                display(value)
    # Whatever a cell raises is what is to be told of it.
    except Exception as error:  # noqa: BLE001
        short = traceback.format_exception_only(error)[-1].strip()
        return False, short, "".join(traceback.format_exception(error))
    return True, "", ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the number of cells that are not as it says is the exit status."""
    parser = argparse.ArgumentParser(description="Run the notebooks' cells against headscope, and say which run.")
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="its name without .txt; default: all")
    parser.add_argument("--errors", action="store_true", help="print the tracebacks of the cells that do not run")
    options = parser.parse_args(arguments)
    if not folder().is_dir():
        parser.error(f"no folder {folder()}; name it by the environment variable HEADSCOPE_NOTEBOOKS")
    names = options.notebooks or sorted(NOTEBOOKS.keys() | {path.stem for path in folder().glob("*.txt")})
    unknown = [name for name in names if not (folder() / f"{name}.txt").is_file()]
    if unknown:
        parser.error(f"no notebook {unknown[0]!r} in {folder()}")
    n_problems, counts = 0, Counter[str]()
    with tempfile.TemporaryDirectory() as directory:
        hub = Path(directory, "hub")
        with redirect_stderr(io.StringIO()):  # a progress bar
            save_gpt2(hub)
        for name in names:
            print(f"\n{name}")
            outcomes = run_notebook(name, NOTEBOOKS.get(name, ()), read(name), hub=hub, work=Path(directory, name))
            for number, outcome in enumerate(outcomes, start=1):
                print(_line(number, outcome))
                if options.errors and outcome.trace and not outcome.problem:
                    print(outcome.trace)
                n_problems += bool(outcome.problem)
                counts[outcome.cell.status if outcome.cell else "not in the table"] += 1
    print("\n" + ", ".join(f"{n} {status}" for status, n in counts.items()) + f"; {n_problems} not as listed")
    return min(n_problems, 100)


def _line(number: int, outcome: Outcome) -> str:
    cell = outcome.cell
    why = [*([cell.why] if cell and cell.why else []), *(change.why for change in (cell.changes if cell else ()))]
    status = "WRONG" if outcome.problem else cell.status if cell else ""
    return f"  {number:>2}  {f'In [{outcome.label}]':<10} {status:<9} {outcome.seconds:5.1f} s  " + (
        outcome.problem or "; ".join(dict.fromkeys(why))
    )


if __name__ == "__main__":
    sys.exit(main())
