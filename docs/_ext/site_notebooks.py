"""Notebooks of the site: executed side by side before Sphinx reads them, with their figures drawn without a network.

myst-nb executes one notebook after the other, while it reads. Here those that are to be read, and are not in the cache,
are executed at once, each in a kernel of its own; then myst-nb finds them all. The cache belongs to one state of the
package: where its source changes, every notebook is executed anew.

A plotly figure is kept as its JSON, with the layout for narrow screens, and `_static/site.js` draws it with the one
copy of plotly.js that the site has. A headscope view stands in a frame, as in a notebook.
"""

import hashlib
import html
import json
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jupytext
import nbformat
from docutils import nodes
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.read import create_nb_reader
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata

PLOTLY = "application/vnd.plotly.v1+json"
SOURCE = Path(__file__).parent.parent.parent / "src"
logger = logging.getLogger(__name__)


def package_state(source: Path = SOURCE) -> str:
    """Return a digest of the package's files, without the notebooks themselves."""
    digest = hashlib.sha256()
    for path in sorted((source / "headscope").rglob("*")):
        place = path.relative_to(source).as_posix()
        if path.is_file() and "__pycache__" not in place and "/assets/notebooks/" not in f"/{place}":
            digest.update(place.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def figure_html(figure: dict[str, Any]) -> str:
    """Return what a page holds of a plotly figure: a box, and in it the figure as JSON."""
    import plotly.graph_objects as go

    from headscope.views.drawing.saving import figure_json

    drawn = go.Figure({name: figure[name] for name in ("data", "layout", "frames") if name in figure})
    height = int(drawn.layout.height or 450)
    return (
        f'<div class="hs-figure"><div style="min-height:{height}px"></div>'
        f'<script type="application/json">{figure_json(drawn)}</script></div>'
    )


def for_the_page(notebook: nbformat.NotebookNode) -> None:
    """Replace plotly's JSON in the outputs by HTML, in place.

    Raises:
        ValueError: If a cell printed to stderr, where warnings go, or has an output that no browser shows offline.
    """
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            if output.output_type == "stream" and output.name == "stderr":
                raise ValueError(f"cell {number} wrote to stderr: {output.text.strip()[:2000]}")
            data = output.get("data", {})
            if "application/vnd.jupyter.widget-view+json" in data:
                raise ValueError(f"cell {number} shows a widget, which needs a running kernel; use progress=False")
            if PLOTLY in data:
                output.data = nbformat.from_dict({"text/html": figure_html(json.loads(json.dumps(data[PLOTLY])))})


def execute(notebook: nbformat.NotebookNode, name: str, timeout: int) -> tuple[nbformat.NotebookNode, float, str]:
    """Execute a notebook in a folder of its own; return it, the seconds it took, and what went wrong, if anything."""
    with TemporaryDirectory() as folder:
        ran = single_nb_execution(notebook, cwd=folder, timeout=timeout, allow_errors=False, meta_override=True)
    if ran.err is not None:
        return notebook, ran.time, f"{name}: {ran.exc_string}"
    try:
        for_the_page(notebook)
    except ValueError as error:
        return notebook, ran.time, f"{name}: {error}"
    return notebook, ran.time, ""


def _copy_sources(app: Sphinx, config: Any) -> None:
    """Copy the notebooks, which are part of the package, to where they are pages: links in them start from there."""
    notebooks, pages = SOURCE / "headscope/assets/notebooks", Path(app.srcdir) / "notebooks"
    if pages.is_symlink():
        pages.unlink()
    wanted = {path.relative_to(notebooks): path.read_bytes() for path in notebooks.rglob("*.md")}
    for path in [*pages.rglob("*.md")]:
        if path.relative_to(pages) not in wanted:
            path.unlink()
    for name, content in wanted.items():
        page = pages / name
        if not page.is_file() or page.read_bytes() != content:
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_bytes(content)


def _set_cache(app: Sphinx, config: Any) -> None:
    """Keep the outputs in a folder named by the state of the package, so that all are made anew when it changes."""
    folder = Path(app.doctreedir).parent / "executed"
    config.nb_execution_cache_path = str(folder / package_state())
    if folder.is_dir():
        for old in folder.iterdir():
            if old != Path(config.nb_execution_cache_path):
                shutil.rmtree(old)
    # Read by the kernels. One thread each, since several kernels run at once; no progress bars.
    os.environ.update({"PLOTLY_RENDERER": "plotly_mimetype", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm, where ipywidgets is not installed
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])


def _execute_all(app: Sphinx, env: BuildEnvironment, names: list[str]) -> None:
    cache = get_cache(app.config.nb_execution_cache_path)
    waiting = {}
    for name in names:
        path = Path(env.doc2path(name))
        notebook = _read(env, path)
        if notebook is None:
            continue
        try:
            cache.match_cache_notebook(notebook)
        except KeyError:
            waiting[name] = (path, notebook)
    if not waiting:
        return
    workers = min(len(waiting), int(os.environ.get("DOCS_WORKERS") or min(4, os.cpu_count() or 1)))
    logger.info("executing %d notebooks, %d at a time", len(waiting), workers)
    failures, took = [], {}
    start = time.monotonic()
    with ProcessPoolExecutor(workers) as pool:
        jobs = {
            name: pool.submit(execute, notebook, name, app.config.nb_execution_timeout)
            for name, (_, notebook) in sorted(waiting.items(), key=lambda each: -each[1][0].stat().st_size)
        }
        for name, job in jobs.items():
            notebook, seconds, failure = job.result()
            if failure:
                failures.append(failure)
                continue
            logger.info("executed %s in %.1f s", name, seconds)
            took[name] = seconds
            bundle = CacheBundleIn(notebook, str(waiting[name][0]), data={"execution_seconds": seconds})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
    slowest = ", ".join(f"{name} {took[name]:.0f} s" for name in sorted(took, key=lambda name: -took[name])[:5])
    logger.info("executed all in %.1f s; the slowest: %s", time.monotonic() - start, slowest or "none")
    if failures:
        raise ExtensionError("notebooks failed:\n\n" + "\n\n".join(failures))


def _read(env: BuildEnvironment, path: Path) -> nbformat.NotebookNode | None:
    """Read a notebook as myst-nb will; None for a page without cells."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".md" or not content.startswith("---"):
        return None
    reader = create_nb_reader(str(path), env.myst_config, env.mystnb_config, content)
    return reader.read(content) if reader is not None else None


def _add_download(app: Sphinx, doctree: nodes.document, name: str) -> None:
    """Put a link to the notebook as .ipynb below the title of its page."""
    if name == "index" or app.builder.format != "html" or "kernelspec" not in app.env.metadata.get(name, {}):
        return
    title = next(doctree.findall(nodes.title), None)
    if title is None:
        return
    short = name.rsplit("/", 1)[-1]
    line = (
        f'<p class="hs-download"><a href="{html.escape(short)}.ipynb" download>Download this notebook (.ipynb)</a></p>'
    )
    title.parent.insert(title.parent.index(title) + 1, nodes.raw("", line, format="html"))


def _add_plotly(app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Load plotly.js on pages that have a figure."""
    if doctree is not None and any("hs-figure" in node.astext() for node in doctree.findall(nodes.raw)):
        app.add_js_file("figures.js", loading_method="defer", priority=700)
        app.add_js_file("plotly.min.js", loading_method="defer", priority=600)


def _write_files(app: Sphinx, error: Exception | None) -> None:
    """Write plotly.js, the script that fits figures, and each notebook as .ipynb."""
    if error is not None or app.builder.format != "html":
        return
    from plotly.offline import get_plotlyjs

    static = Path(app.outdir) / "_static"
    _write(static / "plotly.min.js", get_plotlyjs())
    _write(static / "figures.js", (SOURCE / "headscope/views/static/figures.js").read_text(encoding="utf-8"))
    for name in app.env.found_docs:
        if "kernelspec" in app.env.metadata.get(name, {}):
            notebook = jupytext.read(os.fspath(app.env.doc2path(name)))
            _write(Path(app.outdir) / f"{name}.ipynb", jupytext.writes(notebook, fmt="ipynb"))


def _write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> ExtensionMetadata:
    app.connect("config-inited", _copy_sources)
    app.connect("config-inited", _set_cache)
    app.connect("env-before-read-docs", _execute_all)
    app.connect("doctree-resolved", _add_download)
    app.connect("html-page-context", _add_plotly)
    app.connect("build-finished", _write_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
