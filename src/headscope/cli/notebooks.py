"""`headscope notebooks`: the tutorials, studies and exercises of the documentation, as notebooks to run and change."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope.cli.base.commands import app, command, say
from headscope.errors import MissingDependencyError
from headscope.model.checkpoints.files import write_bytes

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = ["notebooks"]

_SOURCES = Path(__file__).parents[1] / "assets" / "notebooks"

# What only the documentation's site can follow: a link to a page, and the name of a thing in the reference.
_LINK = re.compile(r"\[([^\]]*)\]\(([\w./-]+)\.md(?:#[\w-]*)?\)")
_NAME = re.compile(r"\{py:\w+\}`~?([^`]+)`")


@command(app, "headscope notebooks", "headscope notebooks my-notebooks --force")
def notebooks(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write them to.", file_okay=False)] = Path(
        "notebooks"
    ),
    force: Annotated[
        bool,
        typer.Option("--force", help="Overwrite notebooks that were changed or run; the changes are lost."),
    ] = False,
) -> None:
    """Write the documentation's notebooks to a folder, to run and change in Jupyter."""
    written, kept = [], []
    for source in sources():
        path = folder / source.relative_to(_SOURCES).with_suffix(".ipynb")
        content = _notebook(source).encode()
        if not path.exists() or (force and path.read_bytes() != content):
            write_bytes(path, content)
            written.append(path)
        elif path.read_bytes() != content:
            kept.append(path)
    for path in written:
        typer.echo(path)
    for path in kept:
        say(f"{path}: left as it is, since it was changed or run; --force writes it anew")
    if not written and not kept:
        typer.echo(f"All notebooks are in {folder} already.")


def sources() -> list[Path]:
    """Return the notebooks that are shipped, as MyST Markdown, and none of the pages beside them."""
    pages = sorted(_SOURCES.rglob("*.md"))
    return [page for page in pages if "\nkernelspec:\n" in page.read_text(encoding="utf-8")]


def _notebook(source: Path) -> str:
    """Return a MyST Markdown notebook as JSON: the same text each time, so that a file that was changed is known."""
    try:
        import jupytext
    except ImportError:
        raise MissingDependencyError(
            "notebooks are written by jupytext, which is not installed: pip install 'headscope[notebooks]' (with "
            "JupyterLab, to run them)."
        ) from None

    notebook: NotebookNode = jupytext.read(source, fmt="md:myst")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        if cell.cell_type == "markdown":
            cell.source = _by_itself(cell.source, source.parent)
    notebook.metadata.pop("jupytext", None)
    return str(jupytext.writes(notebook, fmt="ipynb"))


def _by_itself(text: str, folder: Path) -> str:
    """Return Markdown whose links lead to the notebooks written beside it.

    Those to pages of the site become text, with the page's source in the repository.
    """

    def link(found: re.Match[str]) -> str:
        words, target = found.groups()
        if (folder / f"{target}.md").is_file():
            return f"[{words}]({target}.ipynb)"
        page = target.removeprefix("../").removeprefix("../")
        return words if page.startswith("errors/") else f"{words} (`docs/{page}.md`)"  # pages of errors are generated

    return _NAME.sub(r"`\1`", _LINK.sub(link, text))
