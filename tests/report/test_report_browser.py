"""The report and the comparison in a real browser: drawn as the data says, read by keyboard, on a phone, on paper."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import torch
from browser import NEEDS_CHROMIUM, named_controls, visit
from small_models import STORY, small_model

from headscope import HookedTransformer
from headscope.report import Comparison, Report, write_comparison, write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = NEEDS_CHROMIUM

HOSTILE = "<script>document.title='hacked'</script>"


@pytest.fixture(scope="module")
def models() -> tuple[HookedTransformer, HookedTransformer]:
    return small_model(model_name=HOSTILE), small_model(seed=1, n_layers=3)


@pytest.fixture(scope="module")
def report(models: tuple[HookedTransformer, HookedTransformer], tmp_path_factory: pytest.TempPathFactory) -> Report:
    out = tmp_path_factory.mktemp("report")
    story = STORY + HOSTILE
    return write_report(models[0], [story] * 8, out, describe=f"a story {HOSTILE}", max_tokens=200, progress=False)


@pytest.fixture(scope="module")
def comparison(
    models: tuple[HookedTransformer, HookedTransformer], tmp_path_factory: pytest.TempPathFactory
) -> Comparison:
    out = tmp_path_factory.mktemp("comparison")
    return write_comparison(*models, [STORY] * 8, out, max_tokens=200, progress=False)


@pytest.fixture(params=["report", "comparison"])
def written(request: pytest.FixtureRequest) -> Iterator[Path]:
    made: Report | Comparison = request.getfixturevalue(request.param)
    yield made.page


def drawn(page: "Page") -> int:
    """Return the number of figures, once each is drawn."""
    plots = page.locator(".plot-here[data-plotted]")
    n = page.locator(".plot").count()
    plots.nth(n - 1).wait_for(state="attached")
    assert plots.count() == n == page.locator(".js-plotly-plot").count()
    return n


def wait_for_top(page: "Page", selector: str, low: float, high: float) -> None:
    """Wait until the page has scrolled so that the top of an element is between these."""
    top = f"document.querySelector({selector!r}).getBoundingClientRect().top"
    page.wait_for_function(f"() => {low} <= {top} && {top} < {high}")


def column(page: "Page", table: int, at: int) -> list[str]:
    cells = page.locator("table.sortable").nth(table).locator(f"tbody td:nth-child({at + 1})")
    return cells.all_inner_texts()


def numbers(texts: list[str]) -> list[float]:
    return [float(found[0].replace("−", "-")) for text in texts if (found := re.search(r"[+−\d.]+", text))]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_drawn(chromium: "Browser", written: Path, theme: Any) -> None:
    source = written.read_text(encoding="utf-8")
    with visit(chromium, written, theme=theme) as page:
        assert drawn(page) >= 7
        assert page.locator("[data-drawn=yes]").count() == source.count('class="hs-view"') >= 4
        assert "hacked" not in page.title() or HOSTILE in page.title()
        # What is written is seen on what is behind it.
        ink, ground = (
            page.evaluate(f"getComputedStyle(document.body).{name}").strip("rgb()").split(", ")
            for name in ("color", "backgroundColor")
        )
        assert (sum(map(int, ink)) < sum(map(int, ground))) == (theme == "light")
        fills = page.locator(".plot .gtitle").evaluate_all("nodes => nodes.map(n => getComputedStyle(n).fill)")
        assert fills and set(fills) == {"rgb(51, 59, 71)" if theme == "light" else "rgb(213, 219, 227)"}


def test_a_map_is_colored_by_its_numbers(chromium: "Browser", report: Report) -> None:
    frame = pd.read_parquet(report.directory / "entropy.parquet")
    with visit(chromium, report.page) as page:
        drawn(page)
        maps = page.evaluate(
            """[...document.querySelectorAll("#by-head .plot-here")].map(plot => plot.calcdata
                .map(trace => [...trace[0].z].map(row => [...row])))"""
        )
        assert len(maps) == 3
        every, heads, increases = (torch.tensor(one) for one in maps)  # [panel, layer, component]
        for panel, name in enumerate(("diff", "marginal")):
            values = torch.tensor(frame[name].to_numpy()).view(2, 4)
            torch.testing.assert_close(every[panel].double(), values.double())
            torch.testing.assert_close(heads[panel].double(), values[:, :3].double())
            torch.testing.assert_close(increases[panel].double(), values[:, :3].double().clamp(min=0))


def test_tables_are_sorted_by_click_and_by_key(chromium: "Browser", report: Report) -> None:
    with visit(chromium, report.page) as page:
        table = page.locator("#ablation table.sortable")
        index = page.locator("table.sortable").evaluate_all(
            "(all) => all.indexOf(document.querySelector('#ablation table'))"
        )
        heads = table.locator("th")
        assert [heads.nth(at).get_attribute("aria-sort") for at in range(4)] == ["none", "descending", "none", "none"]
        patched = numbers(column(page, index, 1))
        assert len(patched) == 6 and patched == sorted(patched, reverse=True)
        heads.nth(2).locator("button").click()
        direct = numbers(column(page, index, 2))
        assert direct == sorted(direct, reverse=True) and direct != sorted(direct)
        page.keyboard.press("Enter")
        assert numbers(column(page, index, 2)) == sorted(direct)
        assert heads.nth(2).get_attribute("aria-sort") == "ascending"
        heads.nth(0).locator("button").focus()
        page.keyboard.press("Space")
        assert column(page, index, 0) == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
        assert [heads.nth(at).get_attribute("aria-sort") for at in range(4)] == ["ascending", "none", "none", "none"]


def test_sections_close_and_a_link_opens_them(chromium: "Browser", written: Path) -> None:
    with visit(chromium, written) as page:
        drawn(page)
        parts = page.locator("details.part")
        n = parts.count()
        page.get_by_role("button", name="Close all").click()
        assert page.locator("details.part[open]").count() == 0
        assert not page.locator("#by-head figure").first.is_visible()
        # From the summary to its section, which opens and is in sight.
        page.locator('#summary a.to[href="#layers"]').first.click()
        page.locator("#layers figure").first.wait_for(state="visible")
        assert page.locator("details.part[open]").count() == 1
        wait_for_top(page, "#layers h2", 0, 850)  # it scrolls there smoothly
        page.locator("#loss summary").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("details.part[open]").count() == 2
        page.get_by_role("button", name="Open all").click()
        assert page.locator("details.part[open]").count() == n
        figures = "[...document.querySelectorAll('.plot .main-svg:first-child')]"
        page.wait_for_function(f"() => {figures}.every((figure) => figure.clientWidth >= 600)")


def test_a_phone_shows_the_contents_on_demand(chromium: "Browser", written: Path) -> None:
    with visit(chromium, written, width=390, height=800, touch=True) as page:
        drawn(page)
        wide = page.locator("main *").evaluate_all(
            """all => all.filter(n => n.getBoundingClientRect().right > 391 && !n.closest(".plot, .scroll, .hs-view"))
                .map(n => `${n.tagName} ${n.className} ${n.textContent.slice(0, 30)}`)"""
        )
        assert page.evaluate("document.documentElement.scrollWidth") == 390, wide
        contents = page.locator("#contents")
        menu = page.get_by_role("button", name="Contents")
        assert not contents.is_visible() and menu.get_attribute("aria-expanded") == "false"
        menu.tap()  # which becomes a click a moment later
        contents.wait_for()
        assert menu.get_attribute("aria-expanded") == "true"
        page.keyboard.press("Escape")
        assert not contents.is_visible()
        menu.tap()
        page.locator('nav a[href="#types"]').tap()
        contents.wait_for(state="hidden")
        page.locator("#types h2").wait_for(state="visible")


def test_a_wide_page_has_the_contents_beside_it(chromium: "Browser", written: Path) -> None:
    with visit(chromium, written) as page:
        drawn(page)
        nav, main = page.locator("nav").bounding_box(), page.locator("main").bounding_box()
        assert nav is not None and main is not None and nav["x"] + nav["width"] <= main["x"]
        page.locator('nav a[href="#by-head"]').click()
        page.wait_for_selector('nav a[aria-current][href="#by-head"]')
        wait_for_top(page, "#by-head", -60, 60)
        stuck = page.locator("nav").bounding_box()
        assert stuck is not None and abs(stuck["y"]) < 2
        # What takes the focus says what it is.
        assert all(name.strip() for role, name in named_controls(page) if role in ("button", "link"))


def test_paper_has_everything_open_and_light(chromium: "Browser", written: Path) -> None:
    with visit(chromium, written, theme="dark") as page:
        drawn(page)
        page.get_by_role("button", name="Close all").click()
        page.evaluate(
            """() => addEventListener("beforeprint", () => { window.seen = {
                open: document.querySelectorAll("details:not([open])").length,
                widths: [...document.querySelectorAll(".plot-here")].map(n => n.layout.width),
                ink: [...document.querySelectorAll(".plot-here")].map(n => n.layout.font.color),
            }; })"""
        )
        paper = page.pdf(format="A4", print_background=True)
        seen = page.evaluate("window.seen")
        assert seen["open"] == 0 and set(seen["widths"]) == {660} and set(seen["ink"]) == {"#333b47"}
        assert paper.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", paper)) >= 4
        # And afterwards it is as before.
        page.wait_for_function("() => document.querySelectorAll('details[open]').length === 0")
        page.wait_for_function("() => document.querySelector('.plot-here').layout.font.color === '#d5dbe3'")


def test_both_models_are_on_the_page(chromium: "Browser", comparison: Comparison) -> None:
    loss = pd.read_parquet(comparison.directory / "comparison_loss.parquet")
    means = loss.groupby("model", sort=False).loss.mean()
    with visit(chromium, comparison.page) as page:
        drawn(page)
        rows = page.locator("#loss table tbody tr").all_inner_texts()
        assert [numbers([row.split("\t")[1]])[0] for row in rows] == pytest.approx(means.tolist(), abs=6e-4)
        assert HOSTILE in rows[0]
        names = page.locator("#loss .legendtext").all_text_contents()
        assert names == [HOSTILE, "small"]
