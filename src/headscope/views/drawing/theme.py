"""The look that all plotly figures share: template, colours, titles, and text that is not read as markup."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["DIVERGING", "PALETTE", "RISING", "house_template", "plot_text", "plot_title", "whole"]

DIVERGING = "RdBu"
# The blue half of RdBu, for what cannot be negative: blue means "more" everywhere.
RISING = (
    (0.0, "rgb(247,247,247)"),
    (0.2, "rgb(209,229,240)"),
    (0.4, "rgb(146,197,222)"),
    (0.6, "rgb(67,147,195)"),
    (0.8, "rgb(33,102,172)"),
    (1.0, "rgb(5,48,97)"),
)
PALETTE = ("#2a6fb0", "#d1602d", "#2e9673", "#8d63b8", "#b98a0a", "#6c7889")


def house_template() -> "go.layout.Template":
    """The look of every figure: white ground, faint grid, colours told apart by colour-blind readers too."""
    import plotly.graph_objects as go

    axis = {"gridcolor": "rgba(128,128,128,0.22)", "zerolinecolor": "rgba(128,128,128,0.55)", "automargin": True}
    return go.layout.Template(
        layout={
            "font": {
                "family": 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif',
                "size": 13,
                "color": "#333b47",
            },
            "title": {"font": {"size": 16}, "x": 0.01, "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"t": 14}},
            "colorway": list(PALETTE),
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "xaxis": axis,
            "yaxis": axis,
            "modebar": {
                "bgcolor": "rgba(0,0,0,0)",
                "color": "rgba(128,128,128,0.7)",
                "activecolor": "rgb(128,128,128)",
            },
            "margin": {"l": 60, "r": 20, "t": 60, "b": 50},
            "colorscale": {"diverging": DIVERGING},
        }
    )


def plot_text(text: str) -> str:
    """Text for a plotly title or label, which would read `<` as markup and `%{` as a gap to fill.

    A half surrogate pair is replaced. What is read by eye stays as it was.
    """
    text = whole(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    return text.replace("%{", "%\u200b{")


def whole(text: str) -> str:
    """Text without half surrogate pairs, which no file can hold; for what may have markup of its own."""
    return text.encode("utf-8", "replace").decode("utf-8")


def plot_title(title: str, data: str) -> dict[str, Any]:
    """A title over the name of the data it is about, which is cut where it would run off the figure."""
    data = data if len(data) <= 80 else data[:79].rstrip() + "…"
    subtitle = {"text": f"on {plot_text(data)}" if data else "", "font": {"size": 13}}
    return {"text": title, "subtitle": subtitle}
