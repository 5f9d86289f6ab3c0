"""Common style of all plotly figures: template, colors, titles, and text escaped from markup."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "DIVERGING",
    "PALETTE",
    "RISING",
    "house_template",
    "plot_text",
    "plot_title",
    "state_axis",
    "styled",
    "whole",
]

DIVERGING = "RdBu"
# The blue half of RdBu, for values that cannot be negative: blue means "more" everywhere.
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
    """Return the template of every figure: white background, faint grid, colors safe for color-blind readers."""
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
    """Escape text for a plotly title or label, which would read `<` as markup and `%{` as a placeholder.

    Lone surrogates are replaced. The text looks unchanged to a reader.
    """
    text = whole(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    return text.replace("%{", "%\u200b{")


def whole(text: str) -> str:
    """Replace lone surrogates, which no file can hold; markup is kept."""
    return text.encode("utf-8", "replace").decode("utf-8")


def plot_title(title: str, data: str) -> dict[str, Any]:
    """Make a title with the name of the data below it, truncated where it would run off the figure."""
    data = data if len(data) <= 110 else data[:109].rstrip() + "…"
    subtitle = {"text": f"on {plot_text(data)}" if data else "", "font": {"size": 13}}
    return {"text": title, "subtitle": subtitle}


def state_axis(labels: Sequence[str]) -> dict[str, Any]:
    """Make an x axis of states of the residual stream, with a label at each as long as there is room."""
    n = len(labels)
    angle, size = (0, 13) if n <= 7 else (-45, 13) if n <= 25 else (-90, 10)
    return {"title": {"text": "state"}, "type": "category", "tickangle": angle, "tickfont": {"size": size}}


def styled(figure: "go.Figure", title: str, data: str, **layout: Any) -> "go.Figure":
    """Give a figure the common style, a title, the name of its data, and more options of the layout; return it."""
    return figure.update_layout(template=house_template(), title=plot_title(title, data), **layout)
