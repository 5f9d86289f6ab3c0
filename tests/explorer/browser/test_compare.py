"""Two heads side by side: their differences with errors, and everything on the same scales."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import NEEDS_CHROMIUM, visit
from explorer_pages import as_shown, go, look
from explorer_tree import read

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = NEEDS_CHROMIUM

ONE, TWO = "1.2", "3.0"


def open_pair(page: "Page", one: str = ONE, two: str = TWO) -> None:
    page.wait_for_function(
        "title => document.querySelector('h1')?.textContent === title && document.querySelector('[data-part=texts]')",
        arg=f"{one} and {two}",
    )


def test_differences_have_their_errors(chromium: "Browser", tree: Path) -> None:
    heads = [read(tree, f"heads/L{name[0]}H{name[2]}") for name in (ONE, TWO)]
    with visit(chromium, tree / "index.html", place=f"#/compare/{ONE}/{TWO}", own=tree) as page:
        open_pair(page)
        rows = look(
            page,
            """return all('.measures tr[data-measure]').map((row) => [row.dataset.measure,
            ...[1, 2, 3].map((at) => row.cells[at].textContent), row.cells[3].classList.contains('clear'),
            all('circle', row).map((mark) => mark.getAttribute('class'))])""",
        )
        assert len(rows) == len(read(tree, "config")["metrics"])
        for name, first, second, difference, clear, marks in rows:
            one, two = (head["measures"][name] for head in heads)
            assert marks == ["one", "two"]
            for text, own in ((first, one), (second, two)):
                value, _, error = text.partition(" ± ")
                assert own["value"] == as_shown(value) and own["error"] == as_shown(error)
            value, _, error = difference.partition(" ± ")
            expected, spread = two["value"] - one["value"], math.hypot(one["error"], two["error"])
            assert expected == as_shown(value) and spread == as_shown(error)
            assert clear == (abs(expected) > 2 * spread)


def test_charts_share_their_scales(chromium: "Browser", tree: Path) -> None:
    heads = [read(tree, f"heads/L{name[0]}H{name[2]}") for name in (ONE, TWO)]
    with visit(chromium, tree / "index.html", place=f"#/compare/{ONE}/{TWO}", own=tree) as page:
        open_pair(page)
        shares = [head["qk_distance_histogram"]["bin_values"] for head in heads]
        shares = [[value / sum(values) for value in values] for values in shares]
        top = max(map(max, shares))
        for kind, values in zip(("one", "two"), shares, strict=True):
            bars = look(page, f"return all('.bars i.{kind}').map((node) => parseFloat(node.style.height))")
            assert bars == pytest.approx([100 * value / top for value in values], abs=0.02)
        for at, name in ((0, "output_norm_histogram"), (2, "histogram")):
            spreads = [head[name]["bin_values"] for head in heads]
            spreads = [[value / sum(values) for value in values] for values in spreads]
            top = max(map(max, spreads))
            for side, values in enumerate(spreads):
                drawn = f"return all('rect', all('.distribution')[{at + side}]).map((bar) => bar.height.baseVal.value)"
                heights = look(page, drawn)
                assert heights == pytest.approx([96 * value / top for value in values], abs=0.01)
        # Both lists' tokens are framed in both.
        for at, name in ((0, "top_query_tokens"), (2, "top_key_tokens")):
            both = set.intersection(*({row["token"] for row in head[name]} for head in heads))
            framed = look(
                page, f"return [0, 1].map((side) => all('tr.shared', all('table.weights')[{at} + side]).length)"
            )
            assert framed == [sum(row["token"] in both for row in head[name][:10]) for head in heads]
        # The same text in both, kept apart from each other.
        texts = look(page, "return all('.sequence').map((node) => node.dataset.sequence)")
        assert texts == [str(heads[0]["sequences"][0]["sequence_id"])] * 2
        page.locator(".strip-token[data-at='3']").first.click()
        assert look(page, "return all('.sequence').map((node) => all('.pinned', node).length)") == [1, 0]
        assert page.url.endswith(f"#/compare/{ONE}/{TWO}")


def test_heads_are_picked_and_swapped(chromium: "Browser", tree: Path) -> None:
    with visit(chromium, tree / "index.html", place="#/compare", own=tree) as page:
        open_pair(page, "0.0", "0.1")
        page.select_option("[aria-label='First head']", ONE)
        open_pair(page, ONE, "0.1")
        page.select_option("[aria-label='Second head']", TWO)
        open_pair(page)
        page.keyboard.press("x")
        open_pair(page, TWO, ONE)
        page.click("[aria-label=Swap]")
        open_pair(page)
        go(page, "#/compare/1.2/7.7")
        page.wait_for_selector(".notice:has-text('7.7')")
