"""The field's notebooks run on headscope, cell by cell, as `notebooks/table.py` says; and what reads and runs them.

`python tests/notebooks/run.py` prints the same as a table.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import plotly.io as pio
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "notebooks"))

from cells import CellText, code_of, split
from run import Outcome, folder, main, read, run_notebook
from stand_in import save_gpt2
from table import NOTEBOOKS, Cell, Change

there = pytest.mark.skipif(
    not folder().is_dir(), reason=f"no folder of notebooks at {folder()}; HEADSCOPE_NOTEBOOKS can name another"
)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face cache with the stand-in for GPT-2."""
    path = tmp_path_factory.mktemp("hub")
    save_gpt2(path)
    return path


@there
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_cells_do_as_the_table_says(name: str, hub: Path, tmp_path: Path) -> None:
    outcomes = list(run_notebook(name, NOTEBOOKS[name], read(name), hub=hub, work=tmp_path))
    found = [f"cell {number}: {outcome.problem}" for number, outcome in enumerate(outcomes, 1) if outcome.problem]
    assert not found, "\n".join(found)
    assert any(outcome.ran for outcome in outcomes)


@there
def test_the_table_has_every_notebook() -> None:
    assert {path.stem for path in folder().glob("*.txt")} == NOTEBOOKS.keys()


def test_the_table_gives_reasons() -> None:
    for cell in (cell for cells in NOTEBOOKS.values() for cell in cells):
        assert bool(cell.why) == (cell.status != "runs")
        assert all(change.why for change in cell.changes)


# Reading


EXPORT = """\
# A title

In [1]:
import os

def double(x):

    return 2 * x

double(3)

6

Prose about it.

In [ ]:

# a comment first
text = '''In

between'''

# A heading

In [12]:
double(
"""


def test_a_notebook_is_split_at_its_marks() -> None:
    assert [(cell.label, cell.text.strip("\n").split("\n")[0]) for cell in split(EXPORT)] == [
        ("1", "import os"),
        ("", "# a comment first"),
        ("12", "double("),
    ]
    assert split("no cells\nx In [1]:\n") == []


def test_code_ends_before_outputs_and_prose() -> None:
    first, second, third = (cell.text for cell in split(EXPORT))
    assert code_of(first) == "import os\n\ndef double(x):\n\n    return 2 * x\n\ndouble(3)\n"
    assert code_of(second) == "# a comment first\ntext = '''In\n\nbetween'''\n"
    with pytest.raises(SyntaxError):
        code_of(third)


@pytest.mark.parametrize(
    "output",
    [
        "", "3", "-0.5", "'text'", "torch.Size([8, 500])", "(torch.Size([2]), torch.Size([3]))", "array([1, 2])",
        "tensor([[ 1,  2],\n        [ 3,  4]])", "tensor([1.5], device='mps:0')", "tensor(0.1, grad_fn=<AddBackward0>)",
        "dict_keys(['a', 'b'])", "{'a': 1, 'b': None}", "[(' Mary', ' John'),\n (' Tom', ' Sid')]",
        "torch.Size([50, 200]) \n\n['<|endoftext|>', 'Oh',", "  0%|          | 0/156 [00:00<?, ?it/s]",
        "# A heading", "# A heading\n\n## Another", "In short",
    ],
)  # fmt: skip
def test_what_a_cell_printed_is_not_its_code(output: str) -> None:
    code = "x = 1\n\nx\n"
    assert code_of(f"\n{code}\n{output}\n\nMore.\n\n") == code


@pytest.mark.parametrize(
    "code", ["x", "f(3)", "x.shape, x.dtype", "os.chdir('..')", "x = 1", "[f(i) for i in x]", "-x"]
)
def test_a_last_line_of_code_is_kept(code: str) -> None:
    assert code_of(f"x = 1\n\n{code}\n\nProse follows.") == f"x = 1\n\n{code}\n"


def test_an_output_that_looks_like_code_can_be_named() -> None:
    text = "print(cfg)\n\nConfig(n=1)\n\nProse."
    assert code_of(text) == "print(cfg)\n\nConfig(n=1)\n"
    assert code_of(text, output="Config(") == "print(cfg)\n"
    with pytest.raises(ValueError, match="no paragraph begins"):
        code_of(text, output="print(")


# Running


def outcomes(rows: Sequence[Cell], codes: Sequence[str], work: Path) -> list[Outcome]:
    found = [CellText(str(number), code) for number, code in enumerate(codes, 1)]
    return list(run_notebook("made-up", rows, found, hub=work, work=work))


@pytest.mark.parametrize(
    ("row", "code", "problem"),
    [
        (Cell("1", 1), "x = 1", ""),
        (Cell("1", 1), "1 / 0", "listed as running, and fails: ZeroDivisionError"),
        (Cell("1", 1, "download", "?"), "1 / 0", ""),
        (Cell("1", 1, "download", "?", then="1 / 0"), "x", "what stands in for it fails: ZeroDivisionError"),
        (Cell("1", 2), "x = 1", r"the cell is In \[1\], 1 lines of code; the table has In \[1\], 2 lines"),
        (Cell("2", 1), "x = 1", r"the cell is In \[1\], 1 lines of code; the table has In \[2\], 1 lines"),
        (Cell("1", 1), "x = (", "the cell is .* SyntaxError"),
        (Cell("1", 1, changes=(Change("y", "x", "?"),)), "x = 1", "the cell is .*the table replaces 'y'"),
        (Cell("1", 1, changes=(Change("1 / 0", "1\n2", "?"),)), "1 / 0", ""),
    ],
)
def test_a_cell_that_differs_from_its_row_is_told(tmp_path: Path, row: Cell, code: str, problem: str) -> None:
    (outcome,) = outcomes([row], [code], tmp_path)
    if problem:
        with pytest.raises(AssertionError, match=problem):
            raise AssertionError(outcome.problem)
    else:
        assert outcome.problem == ""


def test_cells_and_rows_without_each_other_are_told(tmp_path: Path) -> None:
    more_cells = outcomes([Cell("1", 1)], ["x = 1", "x"], tmp_path / "a")
    more_rows = outcomes([Cell("1", 1), Cell("2", 1)], ["x = 1"], tmp_path / "b")
    assert [outcome.problem for outcome in more_cells] == ["", "the cell is not in the table"]
    assert more_rows[0].problem == "" and more_rows[1].problem.endswith("the notebook has no such cell")


def test_cells_share_names_and_leave_the_process_as_it_was(tmp_path: Path) -> None:
    codes = [
        "import os, warnings, plotly.io as pio, torch\nwarnings.simplefilter('ignore')",
        "os.chdir('..')\nos.environ['HF_TOKEN'] = open(os.path.expanduser('~/.huggingface/token')).read()",
        "torch.set_grad_enabled(False)",
        "from dataclasses import dataclass\n\n@dataclass\nclass Point:\n    x: 'int' = 1",
        "fig = pio.from_json('{\"data\": [{\"y\": [1, 2]}]}')\nfig.show(config={'staticPlot': True})\nfig",
        "Point()",
    ]
    before = (Path.cwd(), dict(os.environ), [*warnings.filters], pio.renderers.default)
    rows = [Cell(str(number), len(code.split("\n"))) for number, code in enumerate(codes, 1)]
    assert [outcome.problem for outcome in outcomes(rows, codes, tmp_path)] == [""] * len(codes)
    after = (Path.cwd(), dict(os.environ), [*warnings.filters], pio.renderers.default)
    assert after == before
    assert torch.is_grad_enabled()
    assert "notebook_made_up" not in sys.modules


def test_the_table_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "another.txt").write_text("In [1]:\nx = 1\n\nIn [2]:\nx\n")
    monkeypatch.setenv("HEADSCOPE_NOTEBOOKS", str(tmp_path))
    assert main(["another"]) == 2
    assert capsys.readouterr().out.count("the cell is not in the table") == 2
    with pytest.raises(SystemExit, match="2"):
        main(["ioi-exploration"])
    monkeypatch.setenv("HEADSCOPE_NOTEBOOKS", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "HEADSCOPE_NOTEBOOKS" in capsys.readouterr().err
