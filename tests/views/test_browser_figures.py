"""Plotly figures in a real browser: what is drawn is what the figures hold, for the helpers and for every result."""

import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from browser import NEEDS_CHROMIUM, visit

from headscope.views import bar, figure_page, hist, imshow, line, scatter
from headscope.views.drawing.maps import component_maps, position_maps

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from playwright.sync_api import Browser

pytestmark = NEEDS_CHROMIUM
DOCS = Path(__file__).parent.parent.parent / "docs"


def saved(figure: Any, folder: Path) -> Path:
    path = folder / "figure.html"
    path.write_text(figure_page(figure), encoding="utf-8")
    return path


def finite(values: Any) -> int:
    return sum(value is not None and value == value for value in np.ravel(np.asarray(values, dtype=object)))


def wait(opened: Any) -> None:
    opened.locator(".js-plotly-plot .main-svg").first.wait_for(state="attached")


def check_marks(figure: "go.Figure", opened: Any) -> None:
    """As many marks as there are numbers: lines, points, bars, pictures of heat maps."""
    of = {kind: [trace for trace in figure.data if trace.type == kind] for kind in ("scatter", "bar", "heatmap")}
    lines = [trace for trace in of["scatter"] if "lines" in (trace.mode or "lines")]
    points = [trace for trace in of["scatter"] if "markers" in (trace.mode or "")]
    count = opened.locator
    assert count(".scatterlayer .js-line").count() >= sum(finite(trace.y) > 1 for trace in lines)
    assert count(".scatterlayer .points .point").count() == sum(finite(trace.y) for trace in points)
    if not any(trace.type == "histogram" for trace in figure.data):
        assert count(".barlayer .point").count() == sum(finite(trace.y) for trace in of["bar"])
    assert count(".heatmaplayer image").count() == len(of["heatmap"])
    words = " ".join(count(".js-plotly-plot text").all_text_contents())
    for note in figure.layout.annotations:
        if note.text:
            assert note.text.partition("<")[0].split("&")[0] in words


def check_slider(figure: "go.Figure", opened: Any) -> None:
    """It stands where the figure says until it is moved, and then every mark is still there."""
    (slider,) = figure.layout.sliders
    at = "box.querySelector('.js-plotly-plot')._fullLayout.sliders[0].active"
    assert opened.evaluate(f"box => {at}") == (slider.active or 0)
    rail = opened.locator(".slider-rail-touch-rect").first
    box = rail.bounding_box()
    assert box is not None
    rail.click(position={"x": 3, "y": box["height"] / 2})
    handle = opened.element_handle()
    opened.page.wait_for_function(f"box => {at} === 0", arg=handle)
    # While a frame is drawn its maps are taken away and put back: wait for all of them.
    n_maps = sum(trace.type == "heatmap" for trace in figure.data)
    drawn_maps = "box.querySelectorAll('.heatmaplayer image').length"
    opened.page.wait_for_function(f"box => {drawn_maps} === {n_maps}", arg=handle)
    lines = [trace for trace in figure.data if trace.type == "scatter" and trace.mode == "lines+text"]
    names = [text for trace in lines for text in trace.text if text]
    drawn = opened.locator(".textpoint").all_text_contents()
    assert {name.strip() for name in names} <= {text.strip() for text in drawn}
    right = "(n) => n.getBoundingClientRect().x"
    for each in opened.locator(".scatterlayer .trace").all():
        text = each.locator(".textpoint").filter(has_text=re.compile(r"\S"))
        if text.count():  # where its line ends
            line = each.locator(".js-line").bounding_box()
            assert line is not None and text.first.evaluate(right) >= line["x"] + line["width"] - 2


def test_bars_are_as_high_as_their_numbers_and_a_click_hides_them(chromium: "Browser", tmp_path: Path) -> None:
    figure = bar([[1.0, -0.5], [0.25, 2.0]], x=["10.7", "10.7"], names=["zero", "mean"], return_fig=True)
    assert figure is not None
    with visit(chromium, saved(figure, tmp_path)) as opened:
        wait(opened)
        check_marks(figure, opened)
        boxes = [box.bounding_box() for box in opened.locator(".barlayer .point path").all()]
        heights = [box["height"] for box in boxes if box]
        assert np.array(heights) / heights[0] == pytest.approx([1.0, 0.5, 0.25, 2.0], rel=0.05)
        assert opened.locator(".xtick text").all_text_contents() == ["10.7", "10.7\u200b"]
        opened.locator(".legendtoggle").nth(1).click()
        opened.locator(".barlayer .point").nth(2).wait_for(state="detached")
        assert opened.locator(".barlayer .point").count() == 2


def test_a_heat_map_is_blue_above_and_red_below(chromium: "Browser", tmp_path: Path) -> None:
    figure = imshow([[1.0, -1.0], [0.0, 0.5]], x=["a", "a"], return_fig=True)
    assert figure is not None
    with visit(chromium, saved(figure, tmp_path)) as opened:
        wait(opened)
        pixels = opened.evaluate("""async () => {
          const image = document.querySelector(".heatmaplayer image"), copy = new Image();
          copy.src = image.getAttribute("href") || image.getAttribute("xlink:href");
          await copy.decode();
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [copy.width, copy.height];
          const context = canvas.getContext("2d", { willReadFrequently: true });
          context.drawImage(copy, 0, 0);
          return [[.25, .25], [.75, .25], [.25, .75], [.75, .75]].map(([x, y]) =>
            [...context.getImageData(Math.floor(x * copy.width), Math.floor(y * copy.height), 1, 1).data].slice(0, 3));
        }""")
        # RdBu, as plotly has it: its ends, its middle, and between middle and blue.
        for pixel, wanted in zip(pixels, [(5, 48, 97), (103, 0, 31), (247, 247, 247), (106, 172, 208)], strict=True):
            assert pixel == pytest.approx(wanted, abs=12)
        box = opened.locator(".heatmaplayer image").bounding_box()
        assert box is not None
        opened.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"])
        opened.locator(".hoverlayer .hovertext").wait_for()
        assert "−1" in (opened.locator(".hoverlayer").text_content() or "")


def test_a_slider_draws_its_step(chromium: "Browser", tmp_path: Path) -> None:
    figure = imshow(torch.eye(2).expand(3, 2, 2), animation_frame=0, animation_labels=["a", "b", "c"], return_fig=True)
    assert figure is not None
    with visit(chromium, saved(figure, tmp_path)) as opened:
        wait(opened)
        assert set("abc") <= set(opened.locator(".slider-group .slider-label").all_text_contents())
        opened.locator(".slider-rail-touch-rect").last.click()
        opened.locator(".slider-label").first.filter(has_text="b").wait_for()


@pytest.mark.parametrize(
    "figure",
    [
        lambda: line([[1.0, 2.0], [20.0, 10.0]], use_secondary_yaxis=True, return_fig=True),
        lambda: scatter([1.0, 2.0, 3.0], [3.0, 1.0, 2.0], add_line="y=x", return_fig=True),
        lambda: hist([[1.0, 2.0, 2.0], [3.0]], add_mean_line=True, return_fig=True),
    ],
    ids=["line", "scatter", "hist"],
)
def test_helpers_are_drawn(figure: Any, chromium: "Browser", tmp_path: Path) -> None:
    drawn = figure()
    with visit(chromium, saved(drawn, tmp_path)) as opened:
        wait(opened)
        check_marks(drawn, opened)
        if drawn.data[0].type == "histogram":  # two in one bin of the one, one in one of the other
            assert opened.locator(".barlayer .trace").count() == 2
        assert opened.locator(".shapelayer path").count() == len(drawn.layout.shapes)


def test_every_figure_of_the_gallery_is_drawn(
    chromium: "Browser", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(DOCS)
    gallery = importlib.import_module("gallery")
    figures = gallery.figures(draft=True)
    assert len(figures) >= 35
    path = tmp_path / "gallery.html"
    path.write_text(figure_page(*figures.values()), encoding="utf-8")
    with visit(chromium, path) as opened:
        for (name, figure), box in zip(figures.items(), opened.locator(".figure").all(), strict=True):
            wait(box)
            try:
                check_marks(figure, box)
                if figure.frames:
                    check_slider(figure, box)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from None
    sys.modules.pop("gallery")


def test_hostile_text_in_a_figure_is_text(chromium: "Browser", tmp_path: Path) -> None:
    hostile = ["</script><script>document.title='hacked'</script>", "<img src=x onerror=alert(1)>", "\ud83d", "\u2028"]
    figure = bar([1.0, 2.0, 3.0, 4.0], x=hostile, title=hostile[0], names=[hostile[1]], return_fig=True)
    with visit(chromium, saved(figure, tmp_path)) as opened:
        wait(opened)
        assert opened.title() == "headscope"
        assert opened.locator(".js-plotly-plot :is(img, script)").count() == 0


def test_a_phone_shows_panels_below_each_other_and_where_a_figure_scrolls(chromium: "Browser", tmp_path: Path) -> None:
    panels = component_maps({"diff": torch.randn(30, 9), "marginal": torch.randn(30, 9)}, title="T", data="", unit="")
    tokens = [f"word{at}" for at in range(40)]
    wide = position_maps(
        {"z": torch.randn(3, 40)}, rows=list("abc"), row_title="layer", positions=range(40), tokens=tokens, title="T",
        data="", unit="",
    )  # fmt: skip
    path = tmp_path / "figures.html"
    path.write_text(figure_page(panels, wide), encoding="utf-8")
    with visit(chromium, path, width=390, height=844, touch=True) as opened:
        wait(opened)
        opened.locator(".figure.hs-more").wait_for()
        fits, scrolls = opened.locator(".figure").all()
        assert fits.evaluate("box => box.scrollWidth - box.clientWidth") <= 0
        first, second = (map.bounding_box() for map in fits.locator(".heatmaplayer image").all())
        assert first is not None and second is not None
        assert second["y"] > first["y"] + first["height"] and second["x"] == first["x"]
        assert opened.evaluate("document.documentElement.scrollWidth") == 390
        assert "hs-more" in (scrolls.get_attribute("class") or "")
        scrolls.evaluate("box => box.scrollTo(9999, 0)")
        opened.locator(".figure.hs-more").wait_for(state="detached")
        # Turned on its side it has room, and is drawn as elsewhere.
        opened.set_viewport_size({"width": 844, "height": 390})
        fits.locator(f'.main-svg[height="{panels.layout.height}"]').first.wait_for(state="attached")
        first, second = (map.bounding_box() for map in fits.locator(".heatmaplayer image").all())
        assert first is not None and second is not None and second["y"] == first["y"]
