"""`headscope notebooks`: every shipped notebook is written, none that was changed is lost."""

import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from headscope.cli import notebooks

Run = Callable[..., tuple[int, str, str]]

SOURCE = """---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# A question

```{code-cell} ipython3
print(1 + 1)
```

The answer.
"""
LINKED = """{py:func}`~headscope.analysis.measure_entropy`, [the task](exercises/task.md#a-question), [each
number](../analyses.md#entropy) and [a paper](https://arxiv.org/abs/2310.04625)."""


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two notebooks in place of those that are shipped, one in a folder of its own."""
    folder = tmp_path / "shipped"
    (folder / "exercises").mkdir(parents=True)
    (folder / "question.md").write_text(SOURCE.replace("The answer.", LINKED), encoding="utf-8")
    (folder / "exercises" / "index.md").write_text("# A page\n", encoding="utf-8")
    (folder / "exercises" / "task.md").write_text(SOURCE.replace("1 + 1", "2 + 2"), encoding="utf-8")
    monkeypatch.setattr(notebooks, "_SOURCES", folder)


def test_all_that_are_shipped_are_written_and_valid(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    code, printed, error = run("notebooks", out)
    expected = [out / path.relative_to(notebooks._SOURCES).with_suffix(".ipynb") for path in notebooks.sources()]
    assert (code, error) == (0, "") and expected
    assert printed.splitlines() == [str(path) for path in expected]
    assert sorted(path for path in out.rglob("*") if path.is_file()) == sorted(expected)
    for path in expected:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert notebook.metadata.kernelspec.name == "python3"
        code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert code_cells and not any(cell.outputs for cell in code_cells)
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        assert ".md)" not in text and ".md#" not in text and "{py:" not in text


@pytest.mark.usefixtures("shipped")
def test_cells_are_those_of_the_source(run: Run, tmp_path: Path) -> None:
    run("notebooks", tmp_path / "out")
    cells = nbformat.read(tmp_path / "out" / "exercises" / "task.ipynb", as_version=4).cells
    assert [(cell.cell_type, cell.source) for cell in cells] == [
        ("markdown", "# A question"),
        ("code", "print(2 + 2)"),
        ("markdown", "The answer."),
    ]


@pytest.mark.usefixtures("shipped")
def test_links_lead_to_notebooks_or_are_text(run: Run, tmp_path: Path) -> None:
    run("notebooks", tmp_path / "out")
    assert nbformat.read(tmp_path / "out" / "question.ipynb", as_version=4).cells[-1].source == (
        "`headscope.analysis.measure_entropy`, [the task](exercises/task.ipynb), each\nnumber (`docs/analyses.md`) and "
        "[a paper](https://arxiv.org/abs/2310.04625)."
    )


@pytest.mark.usefixtures("shipped")
def test_a_changed_notebook_is_kept_unless_forced(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("notebooks", out)
    first = (out / "question.ipynb").read_bytes()
    assert run("notebooks", out) == (0, f"All notebooks are in {out} already.\n", "")

    (out / "question.ipynb").write_bytes(first.replace(b"A question", b"My question"))
    (out / "exercises" / "task.ipynb").unlink()
    code, printed, error = run("notebooks", out)
    assert (code, printed) == (0, f"{out / 'exercises' / 'task.ipynb'}\n")
    assert error.startswith(f"{out / 'question.ipynb'}: left as it is") and "--force" in error
    assert b"My question" in (out / "question.ipynb").read_bytes()

    assert run("notebooks", out, "--force") == (0, f"{out / 'question.ipynb'}\n", "")
    assert (out / "question.ipynb").read_bytes() == first


@pytest.mark.usefixtures("shipped")
def test_without_jupytext_the_extra_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jupytext", None)
    code, printed, error = run("notebooks", tmp_path / "out")
    assert (code, printed) == (1, "") and "pip install 'headscope[notebooks]'" in error
    assert not (tmp_path / "out").exists()
