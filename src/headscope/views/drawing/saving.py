"""Plotly figures as files: offline HTML pages, and pictures (PNG, SVG, PDF) through the optional kaleido."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from headscope.errors import InvalidInputError, MissingDependencyError
from headscope.views.drawing.narrow import with_narrow_layout
from headscope.views.html import document, write

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["figure_json", "figure_page", "fitting_script", "save_figure"]

# A figure takes the page's background, and light text on a dark one; marks and the text on them keep their colors.
_STYLE = """<style>
:root { color-scheme: light dark; }
body { margin: 1rem; background: #ffffff; }
.figure { overflow-x: auto; }
@media (max-width: 640px) { .figure .modebar { display: none; } }
.js-plotly-plot :is(.main-svg, .svg-container) { background: transparent !important; }
.js-plotly-plot .main-svg :is(.bg, .plotbg) { fill: transparent !important; }
@media (prefers-color-scheme: dark) {
  body { background: #14181e; }
  .js-plotly-plot :is([class*="tick"], [class*="title"], .legend, .annotation, .slider-group) text,
  .js-plotly-plot text:is([class*="title"], .slider-label),
  .js-plotly-plot :is(.gtitle, .gtitle-subtitle) tspan { fill: #e4e8ee !important; }
}
</style>"""
_FADING = """@media screen {
  .hs-more { --fade: linear-gradient(to left, transparent, #000 3rem); -webkit-mask: var(--fade); mask: var(--fade); }
}
"""
_PICTURES = ("png", "svg", "pdf", "jpg", "jpeg", "webp")


def figure_page(*figures: "go.Figure", title: str = "headscope") -> str:
    """Make an offline HTML page of figures, one below the other, with plotly's script included once.

    Its content security policy forbids every request, so it looks and works the same anywhere; animations do not start
    by themselves. On a phone the panels of a figure stand below each other.

    Raises:
        InvalidInputError: If there is no figure.

    Example:
        >>> import plotly.graph_objects as go
        >>> figure_page(go.Figure(), title="Heads").splitlines()[6]
        '<title>Heads</title>'
    """
    if not figures:
        raise InvalidInputError("there is no figure to put on the page; give at least one.")
    from plotly.offline import get_plotlyjs

    parts = [
        f'<div class="figure"><div class="plotly-graph-div"></div><script type="application/json">'
        f"{figure_json(figure)}</script></div>"
        for figure in figures
    ]
    scripts = f"<script>{get_plotlyjs()}</script>\n<script>headscopeFigures.page()</script>"
    return document(_STYLE + fitting_script(), "\n".join([*parts, scripts]), title=title)


def figure_json(figure: "go.Figure") -> str:
    """Return a figure with its layout for narrow screens, as JSON for a script element: no `<` could end it."""
    return str(with_narrow_layout(figure).to_json()).replace("<", "\\u003c")


@cache
def fitting_script() -> str:
    """Return the script and style that fit figures to a narrow page and show where a box scrolls on."""
    script = (Path(__file__).parent.parent / "static" / "figures.js").read_text(encoding="utf-8")
    return f"<style>\n{_FADING}</style>\n<script>\n{script}</script>"


def save_figure(
    figure: "go.Figure",
    path: str | Path,
    *,
    width: int | None = None,
    height: int | None = None,
    scale: float = 2.0,
) -> Path:
    """Write a figure to a file, in the format of its suffix: `.html`, or a picture (`.png`, `.svg`, `.pdf`, ...).

    Pictures need `pip install 'headscope[static]'` and Chrome or Chromium, since kaleido draws them in a browser.

    Args:
        figure: A plotly figure, such as the views return.
        path: File to write.
        width: Width of a picture in pixels; by default the figure's own, or 700.
        height: Height of a picture in pixels; by default the figure's own, or 500.
        scale: Pixels of the file for each pixel of the figure; 2 is sharp in print.

    Raises:
        InvalidInputError: For another suffix, or a file that cannot be written.
        MissingDependencyError: For a picture, if kaleido or its browser is missing.

    Example:
        >>> save_figure(figure, "heads.pdf")  # doctest: +SKIP
    """
    path = Path(path)
    suffix = path.suffix.lower().removeprefix(".")
    if suffix in ("html", "htm"):
        content = figure_page(figure, title=path.stem).encode("utf-8")
    elif suffix in _PICTURES:
        content = _picture(figure, suffix, width, height, scale)
    else:
        raise InvalidInputError(
            f"cannot write a figure to {path.name}: its suffix must be .html, .{', .'.join(_PICTURES)}."
        )
    return write(path, content, "figure")


def _picture(figure: "go.Figure", kind: str, width: int | None, height: int | None, scale: float) -> bytes:
    if importlib.util.find_spec("kaleido") is None:
        raise MissingDependencyError(
            f"A {kind.upper()} of a figure is drawn by kaleido, which is not installed: pip install "
            "'headscope[static]'. It also needs Chrome or Chromium. (A .html file needs neither.)",
            code="HS-DEPENDENCY-01",
        )
    try:
        return bytes(figure.to_image(format=kind, width=width, height=height, scale=scale))
    except RuntimeError as error:  # raised by plotly when kaleido finds no browser
        raise MissingDependencyError(
            f"kaleido could not draw the {kind.upper()}; it needs Chrome or Chromium: install one (Debian: apt-get "
            f"install chromium; anywhere: plotly_get_chrome), or save a .html file. It said: {error}"
        ) from None
