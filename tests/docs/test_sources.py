"""The sources of the documentation's notebooks, without running them."""

import ast
import re
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / "src/headscope/assets/notebooks").rglob("*.md"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_text_that_parses(path: Path) -> None:
    notebook = jupytext.read(path)
    assert set(notebook.metadata) == {"jupytext", "kernelspec"}
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    for cell in code:
        assert not cell.outputs
        ast.parse(re.sub(r"^[!%].*", "", cell.source, flags=re.MULTILINE))  # without commands of the notebook's own
