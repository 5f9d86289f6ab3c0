"""`llms.txt`: the contents of the site for language models, with a link to the plain text of each page."""

from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import toctree
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata


def contents(app: Sphinx) -> Iterator[str]:
    """Yield the lines of the file, in the order of the tables of contents."""
    summary = app.env.get_doctree(app.config.root_doc).next_node(nodes.paragraph)
    yield from (f"# {app.config.project}", "", f"> {summary.astext()}".replace("\n", " ") if summary else "", "")
    yield from ("Each link is the source of a page, in markdown; notebooks are without their outputs.", "")
    seen = {app.config.root_doc}
    for table in app.env.get_doctree(app.config.root_doc).findall(toctree):
        yield from (f"## {table.get('caption') or 'Pages'}", "")
        for _, name in table["entries"]:
            yield from _page(app, name, 0, seen)
        yield ""


def _page(app: Sphinx, name: str, depth: int, seen: set[str]) -> Iterator[str]:
    if name in seen or name not in app.env.titles:
        return
    seen.add(name)
    source = app.env.doc2path(name, base=False)
    yield f"{'  ' * depth}- [{app.env.titles[name].astext()}](_sources/{source}.txt)"
    for below in app.env.toctree_includes.get(name, ()):
        yield from _page(app, below, depth + 1, seen)


def _write(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        (Path(app.outdir) / "llms.txt").write_text("\n".join(contents(app)), encoding="utf-8")


def setup(app: Sphinx) -> ExtensionMetadata:
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
