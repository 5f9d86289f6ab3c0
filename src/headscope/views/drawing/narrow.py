"""Layouts of plotly figures for a screen as narrow as a phone: panels below each other, titles in several lines.

The changes travel in the figure's `layout.meta`; on a narrow page `static/figures.js` makes them.
"""

import math
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["with_narrow_layout"]

# Pixels; letters are estimated by their mean width.
_SCREEN, _SIDES = 330, 62
_TITLE_LINE, _SUBTITLE_LINE, _PANEL_LINE, _BAR = 21, 17, 18, 38
_AXIS_TITLE, _TICKS, _LETTER, _LABEL, _LEGEND_LINE = 36, 28, 7, 14, 22
_SQUARE, _CHART = 280, 230
_DEFAULT = {"height": 450, "t": 60, "b": 50}


def with_narrow_layout(figure: "go.Figure") -> "go.Figure":
    """Return a copy of a figure that carries the changes of its layout for a narrow screen in `layout.meta`.

    With these, panels stand below each other at the height they have side by side, color bars lie above their
    maps, legends below, and titles are broken into lines. A figure without axes is returned as it is.

    Example:
        >>> from plotly.subplots import make_subplots
        >>> figure = make_subplots(cols=2, subplot_titles=["left", "right"]).add_scatter(y=[1], row=1, col=1)
        >>> figure = with_narrow_layout(figure.add_scatter(y=[2], row=1, col=2))
        >>> figure.layout.xaxis2.domain, figure.layout.meta["narrow"]["changes"]["xaxis2.domain"]
        ((0.55, 1.0), [0.0, 1.0])
    """
    import plotly.graph_objects as go

    plain = figure.to_plotly_json()
    layout = plain["layout"]
    panels = _panels(plain)
    if not panels or not isinstance(layout.get("meta", {}), dict):
        return figure
    changes, least = _narrow(plain, panels)
    copy = go.Figure(figure)
    copy.layout.meta = {**layout.get("meta", {}), "narrow": {"changes": changes, "width": least}}
    return copy


@dataclass
class _Panel:
    """Axes drawn over each other, and what belongs to them.

    Attributes:
        x, y: Names of the axes in the layout.
        across, up: Their domains.
        labels: The words on the x axis, if it has words.
        is_map: True for a heat map.
        end: Where the x axis ends: before the words at the ends of lines, if there are such.
        title: Index of the annotation above it.
        bar: The color axis whose bar lies above it.
    """

    x: str
    y: str
    across: tuple[float, float]
    up: tuple[float, float]
    labels: list[str] = field(default_factory=list)
    is_map: bool = False
    end: float = 1.0
    title: int | None = None
    bar: str | None = None


def _panels(plain: dict[str, Any]) -> list[_Panel]:
    """Find the panels, row by row."""
    layout = plain["layout"]
    panels: dict[tuple[str, str], _Panel] = {}
    barred = set()
    for trace in plain["data"]:
        if trace["type"] not in ("scatter", "bar", "heatmap", "histogram"):
            return []
        x, y = (_axis_name(trace.get(f"{each}axis") or each) for each in "xy")
        over = layout.get(y, {}).get("overlaying")
        y = _axis_name(over) if over else y
        across, up = (tuple(layout.get(name, {}).get("domain") or (0.0, 1.0)) for name in (x, y))
        panel = panels.setdefault((x, y), _Panel(x, y, across, up))
        panel.is_map |= trace["type"] == "heatmap"
        if trace.get("mode") == "lines+text":
            panel.end = 0.76
        words = layout.get(x, {}).get("ticktext")
        words = trace.get("x") if words is None else words
        # Numbers may be packed, into a dict.
        if words is not None and not isinstance(words, dict) and len(words) and isinstance(words[0], str):
            panel.labels = list(dict.fromkeys([*panel.labels, *words]))
        bar = trace.get("coloraxis")
        if bar and bar not in barred and layout.get(bar, {}).get("showscale") is not False:
            barred.add(bar)
            panel.bar = bar
    for number, note in enumerate(layout.get("annotations", ())):
        for panel in panels.values():
            middle, top = sum(panel.across) / 2, panel.up[1]
            if note.get("xref") == note.get("yref") == "paper" and not note.get("showarrow"):
                if abs(note.get("x", 0.5) - middle) < 0.02 and abs(note.get("y", 0) - top) < 0.02:
                    panel.title = number
    return sorted(panels.values(), key=lambda panel: (-panel.up[1], panel.across[0]))


def _narrow(plain: dict[str, Any], panels: list[_Panel]) -> tuple[dict[str, Any], int]:
    """Return the changes of the layout by their paths, and the least width."""
    layout = plain["layout"]
    margin = {side: layout.get("margin", {}).get(side, _DEFAULT[side]) for side in "tb"}
    height = (layout.get("height") or _DEFAULT["height"]) - margin["t"] - margin["b"]
    changes: dict[str, Any] = {"width": None, "autosize": True, "margin.l": 48, "margin.r": 14}
    head = _titles(layout, changes)
    least = 0
    above, inside, below = [], [], []
    for panel in panels:
        lines = _panel_title(layout, panel, changes)
        above.append(_PANEL_LINE * lines + 8 + (_BAR if panel.bar else 0))
        is_square = any(layout.get(name, {}).get("scaleanchor") for name in (panel.x, panel.y))
        least_height = 120.0 if panel.is_map else _CHART
        inside.append(_SQUARE if is_square else max(least_height, height * (panel.up[1] - panel.up[0])))
        below.append(_axes(layout, panel, panels, changes))
        if layout.get(panel.x, {}).get("ticktext") is not None:
            least = max(least, _SIDES + _LABEL * len(panel.labels))
    area = sum(above) - above[0] + sum(inside) + sum(below) - below[-1]
    top = area
    for number, panel in enumerate(panels):
        top -= above[number] if number else 0
        high, low = top / area, (top - inside[number]) / area
        changes[f"{panel.x}.domain"], changes[f"{panel.y}.domain"] = [0.0, panel.end], [max(0.0, low), high]
        if panel.title is not None:
            place = {"x": 0.5, "y": high + (_BAR if panel.bar else 0) / area, "font.size": 14}
            changes |= {f"annotations[{panel.title}].{name}": value for name, value in place.items()}
        if panel.bar:
            bar = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": high + 2 / area, "yanchor": "bottom"}
            # The unit stands at the last tick: plotly moves the figure's title by the size of a title above a bar.
            unit = layout[panel.bar].get("colorbar", {}).get("title", {}).get("text") or ""
            bar |= {"len": 0.8, "thickness": 9, "xpad": 0, "ypad": 2, "nticks": 5, "title.text": ""}
            bar |= {"ticksuffix": f" {unit}", "showticksuffix": "last"}
            changes |= {f"{panel.bar}.colorbar.{name}": value for name, value in bar.items()}
        top -= inside[number] + below[number]
    if layout.get("updatemenus") and layout.get("sliders"):  # the slider below the buttons
        changes |= {"sliders[0].x": 0.0, "sliders[0].len": 1.0, "sliders[0].pad.t": 100}
    foot = below[-1] + _legend(plain, below[-1] / area, changes)
    changes |= {"margin.t": head + above[0], "margin.b": foot, "height": round(head + above[0] + area + foot)}
    return changes, least if least > _SCREEN + 20 else 0


def _titles(layout: dict[str, Any], changes: dict[str, Any]) -> int:
    """Break the title and the line below it; return the height of both."""
    title = layout.get("title", {})
    lines, soft = _broken(title.get("text"), 34), _broken(title.get("subtitle", {}).get("text"), 48)
    if lines:
        changes |= {"title.text": "<br>".join(lines)}
    if soft:
        changes |= {"title.subtitle.text": "<br>".join(soft)}
    return 18 + _TITLE_LINE * len(lines) + (_SUBTITLE_LINE * len(soft) + 10 if soft else 0)


def _panel_title(layout: dict[str, Any], panel: _Panel, changes: dict[str, Any]) -> int:
    if panel.title is None:
        return 0
    lines = _broken(layout["annotations"][panel.title].get("text"), 38)
    changes[f"annotations[{panel.title}].text"] = "<br>".join(lines)
    return len(lines)


def _axes(layout: dict[str, Any], panel: _Panel, panels: list[_Panel], changes: dict[str, Any]) -> int:
    """Give a panel the names that its row or column has once; return the height of what is below it."""
    for name, letter, among in ((panel.x, "x", "across"), (panel.y, "y", "up")):
        same = [each for each in panels if getattr(each, among) == getattr(panel, among)]
        titles = [layout.get(getattr(each, letter), {}).get("title", {}).get("text") for each in same]
        found = layout.get(name, {}).get("title", {}).get("text") or next((title for title in titles if title), None)
        if found:
            changes[f"{name}.title.text"] = found
        if layout.get(name, {}).get("showticklabels") is False and layout.get(name, {}).get("matches"):
            changes[f"{name}.showticklabels"] = True
    axis = layout.get(panel.x, {})
    if axis.get("visible") is False:
        return 12
    height = _AXIS_TITLE if changes.get(f"{panel.x}.title.text") else 0
    widest = max(map(len, panel.labels), default=0)
    if len(panel.labels) * max(widest * _LETTER, 12) > _SCREEN - _SIDES and widest > 2:
        changes |= {f"{panel.x}.tickangle": -90, f"{panel.x}.tickfont.size": 10}
        return height + 14 + _LETTER * min(widest, 16)
    return height + _TICKS


def _legend(plain: dict[str, Any], below: float, changes: dict[str, Any]) -> int:
    """Put the legend below the last panel; return its height, 0 if there is none, or it lies within a panel."""
    layout = plain["layout"]
    legend = layout.get("legend", {})
    # Heatmaps are in a legend only when told to be.
    has_entry = [trace.get("showlegend", trace.get("type") != "heatmap") for trace in plain["data"]]
    names = [trace.get("name") or "" for trace, shown in zip(plain["data"], has_entry, strict=True) if shown]
    is_shown = layout.get("showlegend", len(names) > 1 or any(trace.get("showlegend") for trace in plain["data"]))
    is_inside = legend.get("orientation") != "h" and 0 <= legend.get("x", 1.02) < 0.9
    if not is_shown or is_inside:
        return 0
    place = {"orientation": "h", "x": 0.0, "xanchor": "left", "y": -below, "yref": "paper", "yanchor": "top"}
    changes |= {f"legend.{name}": value for name, value in place.items()}
    widest = max(len(name) * _LETTER + 50 for name in names)
    longest = 6 * max(map(len, names))  # pixels in letters of size 12
    if longest + 36 > _SCREEN:  # smaller ones, or the end would be cut
        changes["legend.font.size"] = max(8, 12 * (_SCREEN - 36) // longest)
    a_line = max(1, (_SCREEN - 20) // widest)
    return 8 + _LEGEND_LINE * math.ceil(len(names) / a_line)


def _broken(text: str | None, width: int) -> list[str]:
    """Break text into lines; what has markup has its own."""
    if not text:
        return []
    return text.split("<br>") if "<" in text else textwrap.wrap(text, width, break_long_words=True)


def _axis_name(short: str) -> str:
    """Return the name in the layout of an axis that traces call `x2`."""
    return f"{short[0]}axis{short[1:]}"
