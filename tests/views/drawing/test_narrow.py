"""Layouts for narrow screens: panels below each other, bars above their maps, titles in lines, nothing cut."""

from typing import Any

import plotly.graph_objects as go
import pytest
import torch
from plotly.subplots import make_subplots

from headscope.views import imshow
from headscope.views.drawing.maps import component_maps, position_maps
from headscope.views.drawing.narrow import with_narrow_layout

WORDS: dict[str, str] = {"title": "Loss difference when ablated", "data": "a text", "unit": "nats"}


def changes(figure: go.Figure) -> dict[str, Any]:
    return dict(with_narrow_layout(figure).layout.meta["narrow"]["changes"])


def heights(figure: go.Figure) -> list[float]:
    """Of the panels, in pixels of the narrow figure, from the top; they must not overlap."""
    made = changes(figure)
    area = made["height"] - made["margin.t"] - made["margin.b"]
    ups = [value for path, value in made.items() if path.startswith("yaxis") and path.endswith(".domain")]
    assert all(above[0] > below[1] for above, below in zip(ups, ups[1:], strict=False))
    return [area * (high - low) for low, high in ups]


@pytest.mark.parametrize(("layers", "heads"), [(2, 2), (30, 9), (32, 32)])
@pytest.mark.parametrize("own", [False, True])
def test_maps_stand_below_each_other_as_high_as_side_by_side(layers: int, heads: int, own: bool) -> None:
    maps = {name: torch.randn(layers, heads) for name in ("zero", "mean", "zero, direct", "mean, direct")}
    figure = component_maps(maps, **WORDS, own_scales=own)
    wide = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    wanted = [wide * (axis.domain[1] - axis.domain[0]) for axis in figure.select_yaxes()]
    assert heights(figure) == pytest.approx(wanted, abs=2)
    made = changes(figure)
    assert {path: value for path, value in made.items() if path.startswith("xaxis") and "domain" in path} == {
        f"xaxis{number}.domain": [0.0, 1.0] for number in ("", 2, 3, 4)
    }
    # Each panel has the names that a row or column has once, and a bar for each scale.
    assert [made[f"yaxis{n}.title.text"] for n in ("", 2, 3, 4)] == ["layer"] * 4
    assert [made[f"xaxis{n}.title.text"] for n in ("", 2, 3, 4)] == ["head"] * 4
    bars = [path for path in made if path.endswith("colorbar.orientation")]
    assert len(bars) == (4 if own else 1)


def test_the_figure_itself_keeps_its_layout() -> None:
    figure = component_maps({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, **WORDS)
    figure.layout.meta = {"own": 1}
    copy = with_narrow_layout(figure)
    assert copy.layout.meta["own"] == 1 and "narrow" not in figure.layout.meta
    copy.layout.meta = figure.layout.meta
    assert copy == figure


def test_long_titles_are_broken_into_lines() -> None:
    figure = go.Figure(go.Bar(x=["a"], y=[1.0])).update_layout(
        title={"text": "Change of overconfidence without each head (model: +0.042)", "subtitle": {"text": "word " * 30}}
    )
    made = changes(figure)
    for path, width in (("title.text", 38), ("title.subtitle.text", 48)):
        lines = made[path].split("<br>")
        assert len(lines) > 1 and max(map(len, lines)) <= width
    assert made["margin.t"] > 2 * 21 + 4 * 17
    marked = go.Figure(go.Bar(y=[1.0])).update_layout(title=f"<b>{'bold ' * 20}</b><br>second")
    assert changes(marked)["title.text"] == marked.layout.title.text


@pytest.mark.parametrize(("n", "fits"), [(12, True), (40, False)])
def test_many_tokens_keep_their_width_and_scroll(n: int, fits: bool) -> None:
    figure = position_maps(
        {"z": torch.randn(3, n)}, rows=["0", "1", "2"], row_title="layer", positions=range(n),
        tokens=[f"word{at}" for at in range(n)], **WORDS,
    )  # fmt: skip
    narrow = with_narrow_layout(figure).layout.meta["narrow"]
    assert (narrow["width"] == 0) is fits and narrow["changes"]["xaxis.tickangle"] == -90
    if not fits:
        assert narrow["width"] >= 12 * n  # each label has its own place


def test_a_legend_moves_below_and_shared_axes_get_their_labels_back() -> None:
    figure = go.Figure([go.Scatter(y=[1, 2], name="one"), go.Scatter(y=[2, 1], name="two")])
    made = changes(figure)
    assert made["legend.orientation"] == "h" and made["legend.y"] < 0
    assert "legend.y" not in changes(figure.update_layout(legend={"x": 0.1, "y": 0.9}))
    cells = {"z": torch.ones(2, 3, dtype=torch.bool)}
    hatched = component_maps({"z": torch.randn(2, 3)}, whole=["MLP"], idle=cells, rule="p < 0.05", **WORDS)
    plain = component_maps({"z": torch.randn(2, 3)}, whole=["MLP"], **WORDS)
    made, before = changes(hatched), changes(plain)
    assert made["legend.yref"] == "paper" and -2 < made["legend.y"] < 0  # its own was within the whole figure
    assert made["height"] - before["height"] == made["margin.b"] - before["margin.b"] < 40  # one line
    assert "legend.font.size" not in made
    long = component_maps({"z": torch.randn(2, 3)}, idle=cells, rule="the largest of 20 cells, 95% for all", **WORDS)
    assert changes(long)["legend.font.size"] == 10
    facets = imshow(torch.randn(2, 3, 3), facet_col=0, return_fig=True)
    assert facets is not None and facets.layout.yaxis2.showticklabels is False
    assert changes(facets)["yaxis2.showticklabels"] is True


def test_figures_without_axes_and_axes_over_others_are_understood() -> None:
    pie = go.Figure(go.Pie(values=[1, 2]))
    assert with_narrow_layout(pie) is pie
    two = make_subplots(specs=[[{"secondary_y": True}]]).add_scatter(y=[1]).add_scatter(y=[2], secondary_y=True)
    assert [path for path in changes(two) if path.endswith("domain")] == ["xaxis.domain", "yaxis.domain"]
