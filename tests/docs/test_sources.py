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


def test_the_first_steps_are_the_same_wherever_they_stand() -> None:
    def steps(page: str) -> list[str]:
        text = (ROOT / page).read_text(encoding="utf-8")
        blocks = "".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
        commands = [line.split(" #")[0].strip() for line in blocks.splitlines()]
        return [line for line in commands if line == "make report" or line.startswith(".venv/bin/")]

    first = steps("docs/index.md")
    assert len(first) == 4
    assert first == steps("src/headscope/assets/notebooks/first-hour.md") == steps("README.md")[:4]
