"""A page of sections as one HTML file: everything inlined, nothing fetched."""

from datetime import datetime
from pathlib import Path

from markupsafe import Markup

from headscope.analysis.storage.manifest import headscope_version
from headscope.report.blocks import Page
from headscope.views.drawing.saving import figure_json, fitting_script
from headscope.views.html import CONTENT_POLICY, HtmlView, bundle

__all__ = ["render_page"]

_TEMPLATES = Path(__file__).parent.parent / "templates"


def render_page(page: Page) -> str:
    """Render the whole page by its template; plotly and the views' script are on it once."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["json"] = lambda figure: Markup(figure_json(figure))
    environment.filters["fragment"] = lambda view: Markup(view.fragment())
    environment.tests["view"] = lambda drawing: isinstance(drawing, HtmlView)
    style, script = (Markup((_TEMPLATES / f"report.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js"))
    return environment.get_template("report.html.j2").render(
        page=page,
        policy=CONTENT_POLICY,
        bundle=Markup(bundle() + fitting_script()),
        plotly=Markup(get_plotlyjs()),
        style=style,
        script=script,
        version=headscope_version(),
        date=datetime.now().strftime("%d %B %Y, %H:%M"),
    )
