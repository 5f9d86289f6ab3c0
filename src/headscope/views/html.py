"""Self-contained HTML views of tokens: one small script and style sheet, inlined once per page.

A view is data. Its fragment holds that data as JSON in a script element of a type browsers do not run, with every `<`
escaped, and the page's single script draws it with `textContent`. So no token can end the element or become markup, and
nothing is ever fetched: the page's content security policy forbids it.
"""

import base64
import html
import json
import sys
import tempfile
import webbrowser
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from headscope.errors import InvalidInputError

__all__ = ["CONTENT_POLICY", "HtmlView", "bundle", "document", "page", "quantized", "write"]

# No requests at all: only inline script and style, and images made on the page itself.
CONTENT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)
_NOT_A_NUMBER = 255
_LEVELS = 254


@dataclass(frozen=True, repr=False)
class HtmlView:
    """An interactive view. `str(view)` is a whole page; in a notebook it displays itself.

    Attributes:
        kind: Name of the view for the script that draws it.
        data: The data to draw, ready for JSON.
        title: The heading; may be empty.

    Example:
        >>> view = HtmlView("tokens", {"tokens": ["</script>"], "values": [1.0]})
        >>> view.fragment().count("</script>")  # the end of the data, and none inside it
        1
    """

    kind: str
    data: Mapping[str, Any]
    title: str = ""

    def fragment(self) -> str:
        """Return the view alone, for a page with `bundle()` once and any number of views."""
        return (
            f'<div class="hs-view" data-kind="{html.escape(self.kind)}">'
            f'<script type="application/json">{_json({"title": self.title, **self.data})}</script></div>'
        )

    def __str__(self) -> str:
        return page([self], title=self.title or "headscope")

    def show_code(self) -> str:
        """Return the whole page, as `str(view)` does."""
        return str(self)

    def __repr__(self) -> str:
        return f"HtmlView({self.kind!r}, title={self.title!r}): .show(), .save(path), or str(view) for its HTML"

    def _repr_html_(self) -> str:
        # A frame keeps the notebook's styles and the view's apart; its script sets the height.
        return (
            '<iframe style="width:100%;height:420px;border:0" '
            f'title="{html.escape(self.title or self.kind)}" srcdoc="{html.escape(str(self))}"></iframe>'
        )

    def save(self, path: str | Path) -> Path:
        """Write the whole page to a self-contained file.

        Raises:
            InvalidInputError: If the file cannot be written.
        """
        return write(path, str(self).encode("utf-8"), "view")

    def show(self) -> None:
        """Show the view in the notebook's output, or from a plain Python session in the browser."""
        ipython = sys.modules.get("IPython")
        if ipython is not None and ipython.get_ipython() is not None:
            ipython.display.display(self)
            return
        directory = Path(tempfile.mkdtemp(prefix="headscope-"))
        webbrowser.open(self.save(directory / "view.html").as_uri())


@cache
def bundle() -> str:
    """Return the style sheet and the script that draw every view; a page needs them once, in its head or body."""
    static = Path(__file__).parent / "static"
    style = (static / "views.css").read_text(encoding="utf-8")
    script = (static / "views.js").read_text(encoding="utf-8")
    return f"<style>\n{style}</style>\n<script>\n{script}</script>"


def page(views: Iterable[HtmlView], *, title: str = "headscope") -> str:
    """Make a whole HTML page of views, one below the other."""
    return document(bundle(), "\n".join(view.fragment() for view in views), title=title)


def document(head: str, body: str, *, title: str) -> str:
    """Make an HTML document that works offline and on a phone."""
    # A lone surrogate cannot be written to a file; in the views' own data it is escaped.
    heading = html.escape(title.encode("utf-8", "replace").decode("utf-8"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{heading}</title>\n{head}\n</head>\n<body class="hs-page">\n{body}\n</body>\n</html>\n'
    )


def write(path: str | Path, content: bytes, kind: str) -> Path:
    """Write a view or figure to a file and return its path.

    Raises:
        InvalidInputError: If the file cannot be written.
    """
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise InvalidInputError(f"Cannot write the {kind} to {path}: {error.strerror or error}.") from None
    return Path(path)


def quantized(values: np.ndarray, low: float, high: float) -> str:
    """Encode values between `low` and `high` as base64 of one byte each: 0 to 254, and 255 for NaN.

    Example:
        >>> base64.b64decode(quantized(np.array([0.0, 0.5, 2.0, np.nan]), 0.0, 1.0)).hex()
        '007ffeff'
    """
    share = (np.clip(values, low, high) - low) / (high - low)
    levels = np.where(np.isnan(share), _NOT_A_NUMBER, np.rint(share * _LEVELS))
    return base64.b64encode(levels.astype(np.uint8).tobytes()).decode("ascii")


def _json(data: Mapping[str, Any]) -> str:
    """Write JSON that is safe in a script element: ASCII, no `<`, and `null` for NaN and infinities."""
    return json.dumps(_finite(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
