"""The pages of all heads: points, table, grid and search, against the numbers of the tree."""

import csv
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from browser import NEEDS_CHROMIUM, visit
from explorer_pages import hear, heard
from explorer_tree import KINDS, read, write_tree

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = NEEDS_CHROMIUM

Row = dict[str, Any]


def name(row: Row) -> str:
    return f"{row['layer']}.{row['head']}"


@pytest.fixture(scope="module")
def rows(tree: Path) -> dict[str, Row]:
    """The measures of each head, by its name."""
    return {name(row): row for row in read(tree, "scatter_data")}


@pytest.fixture(scope="module")
def labels(tree: Path) -> dict[str, str]:
    """The label of each measure, by its name."""
    return {measure["name"]: measure["label"] for measure in read(tree, "config")["measures"]}


def dots(page: "Page") -> dict[str, tuple[float, float]]:
    """Where each head stands in the plot."""
    page.wait_for_selector(".dots circle")
    read_dots = "all => all.map(dot => [dot.dataset.head, +dot.getAttribute('cx'), +dot.getAttribute('cy')])"
    return {head: (x, y) for head, x, y in page.locator(".dots circle").evaluate_all(read_dots)}


def selected(page: "Page") -> list[str]:
    # As the page itself has it: what the browser tells of addresses comes later.
    found = re.search(r"sel=([\d.,]+)", page.evaluate("location.hash"))
    return found[1].split(",") if found else []


def wait_for_rows(page: "Page", heads: list[str]) -> None:
    rows = "[...document.querySelectorAll('.heads tbody th')].map((cell) => cell.textContent.trim()).join()"
    page.wait_for_function(f"heads => {rows} === heads", arg=",".join(heads))


def assert_shown(text: str, value: float | None, error: float | None) -> None:
    """`text` says these numbers, to as many digits as it has."""
    if value is None:
        assert text == "–"
        return
    numbers = text.replace("−", "-").split(" ± ")
    assert len(numbers) == (1 if error is None else 2)
    for number, wanted in zip(numbers, (value, error), strict=False):
        digits = number.partition(".")[2]
        assert abs(float(number) - wanted) <= 0.5001 * 10.0 ** -len(digits), (text, value, error)


def assert_affine(places: list[float], values: list[float]) -> np.ndarray:
    """`places` are the values on one linear scale, to a tenth of a pixel; return its slope and start."""
    line = np.polyfit(values, places, 1)
    assert np.abs(np.polyval(line, values) - places).max() < 0.1
    return line


def pick(page: "Page", field: str, label: str) -> None:
    page.get_by_role("combobox", name=field, exact=True).select_option(label=label)


def test_heads_stand_where_their_measures_are(
    chromium: "Browser", tree: Path, rows: dict[str, Row], labels: dict[str, str]
) -> None:
    with visit(chromium, tree / "index.html", own=tree) as page:
        found = dots(page)
        assert found.keys() == rows.keys()
        across, up = zip(*found.values(), strict=True)
        line = assert_affine(across, [rows[head]["entropy_diff"] for head in found])
        assert line[0] > 0
        assert assert_affine(up, [rows[head]["ablation_total"] for head in found])[0] < 0

        pick(page, "Across", f"{labels['qk_distance']} (tokens)")
        pick(page, "Up", labels["induction_score"])
        pick(page, "Color", "Layer")
        assert page.get_by_label("Across: logarithmic").is_checked()  # as the measure asks for
        found = dots(page)
        missing = {head for head, row in rows.items() if row["induction_score"] is None}
        assert missing and found.keys() == rows.keys() - missing
        assert all(re.search(rf"\b{re.escape(head)}\b", page.inner_text(".unplaced")) for head in missing)
        across, up = zip(*found.values(), strict=True)
        assert_affine(across, [np.log(rows[head]["qk_distance"]) for head in found])
        assert_affine(up, [rows[head]["induction_score"] for head in found])
        fills = dict(
            page.locator(".dots circle").evaluate_all("all => all.map(dot => [dot.dataset.head, dot.style.fill])")
        )
        by_layer = {head.partition(".")[0]: fill for head, fill in fills.items()}
        assert len(set(by_layer.values())) == 4
        assert all(fill == by_layer[head.partition(".")[0]] for head, fill in fills.items())

        page.get_by_label("Across: logarithmic").uncheck()
        assert_affine([x for x, _ in dots(page).values()], [rows[head]["qk_distance"] for head in dots(page)])
        before = dots(page)
        page.reload()
        page.wait_for_selector(".dots circle")
        assert dots(page) == before
        page.keyboard.press("x")  # swaps the axes
        page.wait_for_function("() => location.hash.includes('y=qk_distance')")
        assert_affine([y for _, y in dots(page).values()], [rows[head]["qk_distance"] for head in dots(page)])


def test_dragging_selects_and_selected_heads_have_error_bars(
    chromium: "Browser", tree: Path, rows: dict[str, Row]
) -> None:
    with visit(chromium, tree / "index.html", own=tree) as page:
        found = dots(page)
        box = page.locator(".scatter svg").bounding_box()
        assert box is not None
        left, right = np.quantile([x for x, _ in found.values()], [0.3, 0.8])
        top, bottom = np.quantile([y for _, y in found.values()], [0.2, 0.7])
        wanted = [head for head, (x, y) in found.items() if left <= x <= right and top <= y <= bottom]
        assert 2 < len(wanted) < len(found)

        page.mouse.move(box["x"] + right, box["y"] + bottom)
        page.mouse.down()
        page.mouse.move(box["x"] + left, box["y"] + top, steps=2)
        assert page.locator(".brush").count() == 1
        page.mouse.up()
        assert page.locator(".brush").count() == 0
        assert selected(page) == sorted(wanted, key=list(rows).index)

        line = np.polyfit([rows[head]["entropy_diff"] for head in found], [x for x, _ in found.values()], 1)
        panel = page.get_by_label("Selected heads").locator("tr.values")
        assert panel.count() == len(wanted)
        for at, head in enumerate(selected(page)):
            row = rows[head]
            cells = panel.nth(at).locator("td").all_inner_texts()
            assert_shown(cells[0], row["entropy_diff"], row["entropy_diff_error"])
            assert_shown(cells[1], row["ablation_total"], row["ablation_total_error"])
            bar = page.locator(f"[data-selected='{head}'] path").first.get_attribute("d") or ""
            start, end = (float(number) for number in re.findall(r"[ML]([\d.]+)", bar))
            assert end - start == pytest.approx(2 * line[0] * row["entropy_diff_error"], rel=1e-3)

        other = next(head for head in found if head not in wanted)
        page.locator(f".dots [data-head='{other}']").click(modifiers=["Control"], force=True)
        assert set(selected(page)) == {*wanted, other}
        page.get_by_label(f"Remove {other}").click()
        assert set(selected(page)) == set(wanted)
        for key, first in (("2", "tr.chosen th"), ("3", ".cell.chosen")):  # the table and the grid select the same
            page.keyboard.press(key)
            page.wait_for_selector(first)
            assert page.locator(first).count() == len(wanted)
        page.keyboard.press("1")
        page.wait_for_selector("[data-selected]", state="attached")
        page.keyboard.press("Escape")
        page.wait_for_function("() => !location.hash.includes('sel=')")
        assert page.locator("[data-selected]").count() == 0


def test_pointing_tells_and_opens(chromium: "Browser", tree: Path, rows: dict[str, Row]) -> None:
    with visit(chromium, tree / "index.html", own=tree) as page:
        head = max(rows, key=lambda each: rows[each]["entropy_diff"])  # with nothing to its right
        page.locator(f".dots [data-head='{head}']").hover(force=True)
        tip = page.locator(".tip")
        assert tip.locator("b").inner_text() == head
        assert_shown(tip.locator("dd").first.inner_text(), rows[head]["entropy_diff"], rows[head]["entropy_diff_error"])
        record = read(tree, f"heads/L{rows[head]['layer']}H{rows[head]['head']}")
        near = {name(one): one["similarity"] for one in record["neighbors"] if name(one) != head}
        page.wait_for_selector("[data-neighbor]")
        told = dict(re.findall(r"([\d.]+) \(([\d.]+)\)", tip.inner_text()))
        assert {one: float(similarity) for one, similarity in told.items()} == pytest.approx(near, abs=0.006)

        page.locator(f".dots [data-head='{head}']").click(force=True)
        page.wait_for_function("head => location.hash === `#/head/${head}`", arg=head)
        page.go_back()
        page.locator(".scatter svg").focus()
        page.keyboard.press("ArrowRight")
        for _ in rows:  # on and on to the right, until there is nothing more
            page.keyboard.press("ArrowRight")
        assert tip.locator("b").inner_text() == head
        page.keyboard.press("Space")
        assert selected(page) == [head]
        page.keyboard.press("Enter")
        page.wait_for_function("head => location.hash === `#/head/${head}`", arg=head)


def test_filters_leave_out_the_same_heads_everywhere(
    chromium: "Browser", tree: Path, rows: dict[str, Row], labels: dict[str, str]
) -> None:
    kind, kind_label, _ = KINDS[0]

    def shown(page: "Page") -> set[str]:
        page.wait_for_selector(".dots circle")
        return set(page.locator(".dots circle:not(.faint)").evaluate_all("all => all.map(dot => dot.dataset.head)"))

    with visit(chromium, tree / "index.html", own=tree, place="#/?sel=0.1,2.3") as page:
        pick(page, "Kind", kind_label)
        assert shown(page) == {head for head, row in rows.items() if kind in row["kinds"]}
        pick(page, "Kind", "none")
        assert shown(page) == {head for head, row in rows.items() if not row["kinds"]}
        pick(page, "Kind", "any")
        pick(page, "First layer", "1")
        pick(page, "Last layer", "2")
        assert shown(page) == {head for head, row in rows.items() if 1 <= row["layer"] <= 2}
        page.get_by_role("button", name="Show all").click()
        assert shown(page) == rows.keys()

        pick(page, "Where", labels["suppression_score"] + " (logits)")
        page.get_by_label("Number", exact=True).fill("0.1")
        page.wait_for_function("() => location.hash.includes('where=')")
        assert shown(page) == {head for head, row in rows.items() if row["suppression_score"] > 0.1}
        pick(page, "Above or below", "<")
        assert shown(page) == {head for head, row in rows.items() if row["suppression_score"] < 0.1}
        passed = shown(page)
        assert f"{len(passed)} of {len(rows)} heads" in page.inner_text(".filtered")
        page.keyboard.press("Tab")
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("2")
        page.wait_for_selector(".heads tbody tr")
        assert set(page.locator(".heads tbody th").all_inner_texts()) == passed
        page.get_by_role("button", name="Show all").click()

        for text, wanted in (
            ("2.", {head for head in rows if head.startswith("2.")}),
            ("2.3", {"2.3"}),
            (kind_label.lower(), {head for head, row in rows.items() if kind in row["kinds"]}),
        ):
            page.get_by_label("Find").fill(text)
            wait_for_rows(page, [head for head in rows if head in wanted])
        page.get_by_label("Find").fill("")
        page.get_by_label("Selected only").check()
        wait_for_rows(page, ["0.1", "2.3"])


def test_the_table_sorts_and_copies_what_it_shows(
    chromium: "Browser", tree: Path, rows: dict[str, Row], labels: dict[str, str]
) -> None:
    def order(page: "Page") -> list[str]:
        return page.locator(".heads tbody th").all_inner_texts()

    with visit(chromium, tree / "index.html", own=tree, place="#/heads") as page:
        page.wait_for_selector(".heads tbody tr")
        assert order(page) == list(rows)
        for head in list(rows)[::5]:
            cells = page.locator(f"tr[data-head='{head}']")
            for measure in labels:
                text = cells.locator(f"[data-measure={measure}]").inner_text()
                assert_shown(text, rows[head][measure], rows[head][f"{measure}_error"])

        measured = [head for head, row in rows.items() if row["induction_score"] is not None]
        missing = [head for head in rows if head not in measured]
        rising = sorted(measured, key=lambda head: rows[head]["induction_score"])
        button = page.get_by_role("button", name=labels["induction_score"], exact=True)
        button.click()
        assert order(page) == [*rising[::-1], *missing]
        button.click()
        assert order(page) == [*rising, *missing]
        assert page.locator("th[aria-sort=ascending]").inner_text().startswith(labels["induction_score"])
        page.reload()
        page.wait_for_selector(".heads tbody tr")
        assert order(page) == [*rising, *missing]

        for group in ("Attention", "Prediction", "Copying", "Activity"):
            page.get_by_label(group, exact=True).uncheck()
        assert page.locator(".heads thead th").count() == 3 + 2
        page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
        hear(page, ".copy")
        page.get_by_role("button", name="Copy as CSV").click()
        heard(page, f"Copied {len(rows)} rows.")
        table = list(csv.DictReader(io.StringIO(page.evaluate("window.copied"))))
        assert [name(row) for row in table] == [*rising, *missing]
        for found in table:
            row = rows[name(found)]
            assert found["kinds"] == ";".join(row["kinds"]) and found["label"] == (row["label"] or "")
            assert set(found) == {"layer", "head", "kinds", "label"} | {
                f"{measure}{end}" for measure in ("ablation_direct", "ablation_total") for end in ("", "_error")
            }
            assert float(found["ablation_total"]) == row["ablation_total"]
            assert float(found["ablation_direct_error"]) == row["ablation_direct_error"]

        page.get_by_label(f"Select {rising[1]}").check()
        assert selected(page) == [rising[1]]
        page.get_by_label("Select all heads shown").check()
        assert selected(page) == list(rows)


def test_a_long_table_draws_what_is_in_view(chromium: "Browser", tmp_path: Path) -> None:
    path = write_tree(tmp_path, n_layers=15, n_heads=20, length=4, n_intervals=2)
    with visit(chromium, path, own=tmp_path, place="#/heads") as page:
        page.wait_for_selector(".heads tbody tr")
        drawn = page.locator(".heads tbody th")
        assert drawn.first.inner_text() == "0.0" and 10 < drawn.count() < 100
        page.locator(".heads").evaluate("box => box.scrollTo(0, box.scrollHeight)")
        page.wait_for_selector("tr[data-head='14.19']")
        assert drawn.last.inner_text() == "14.19" and drawn.count() < 100
        page.locator(".heads").evaluate("box => box.scrollTo(0, 3200)")
        page.wait_for_selector("tr[data-head='5.0']")
        box = page.locator(".heads").bounding_box()
        row = page.locator("tr[data-head='5.0']").bounding_box()
        head = page.locator(".heads thead").bounding_box()
        assert box and row and head
        assert row["y"] - box["y"] - head["height"] == pytest.approx(0, abs=2)  # row 100 of 32 pixels each
        page.emulate_media(media="print")
        page.wait_for_function("() => document.querySelectorAll('.heads tbody tr').length === 300")
        assert not page.locator(".top nav").is_visible()


def test_the_grid_shows_each_value(
    chromium: "Browser", tree: Path, rows: dict[str, Row], labels: dict[str, str]
) -> None:
    def opacities(page: "Page") -> dict[str, float]:
        style = "all => all.map(cell => [cell.dataset.head, +cell.style.getPropertyValue('--a')])"
        return dict(page.locator(".cell").evaluate_all(style))

    def opacity(share: float) -> Any:
        return pytest.approx(0.06 + 0.84 * share if share > 0.004 else 0, abs=1e-3)

    with visit(chromium, tree / "index.html", own=tree, place="#/grid?by=entropy_diff") as page:
        page.wait_for_selector(".cell")
        largest = max(abs(row["entropy_diff"]) for row in rows.values())
        for head, alpha in opacities(page).items():
            value = rows[head]["entropy_diff"]
            assert alpha == pytest.approx(
                0.06 + 0.84 * abs(value) / largest if abs(value) > 0.004 * largest else 0, abs=1e-3
            )
            cell = page.locator(f".cell[data-head='{head}']")
            assert float(cell.inner_text().replace("−", "-")) == pytest.approx(value, abs=0.00501)
            assert ("neg" in (cell.get_attribute("class") or "")) == (value < 0)
        assert page.locator(".legend .number").all_inner_texts() == [f"−{largest:.3f}", f"{largest:.3f}"]

        pick(page, "Measure", labels["induction_score"])
        missing = {head for head, row in rows.items() if row["induction_score"] is None}
        hatched = page.locator(".missing-cell").evaluate_all("all => all.map(cell => cell.dataset.head)")
        assert set(hatched) == missing
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("j")
        page.wait_for_function("() => location.hash.includes('by=duplicate_token_score')")
        values = {head: row["duplicate_token_score"] for head, row in rows.items()}
        low, high = min(values.values()), max(values.values())
        for head, alpha in opacities(page).items():
            assert alpha == opacity((values[head] - low) / (high - low))

        page.locator(".head-grid").focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
            page.keyboard.press(key)
        assert page.locator(".tip b").inner_text() == "1.1"
        page.keyboard.press("Space")
        assert selected(page) == ["1.1"]
        page.locator("[data-head='2.4']").hover()
        assert_shown(
            page.locator(".tip dd").first.inner_text(), values["2.4"], rows["2.4"]["duplicate_token_score_error"]
        )
        page.locator("[data-head='2.4']").click(modifiers=["Shift"])
        assert selected(page) == ["1.1", "2.4"]
        page.get_by_role("link", name="Compare").last.click()
        page.wait_for_function("() => location.hash.startsWith('#/compare/1.1/2.4')")
        page.go_back()
        page.locator("[data-head='3.0']").click()
        page.wait_for_function("() => location.hash === '#/head/3.0'")


def test_search_finds_every_list_that_has_the_token(chromium: "Browser", tree: Path) -> None:
    index = read(tree, "search")
    entries = list(zip(*(index[column] for column in ("token", "layer", "head", "where", "weight")), strict=True))

    wanted: dict[str, list[float]] = {}
    for token, _, _, where, weight in entries:
        if index["tokens"][token] == " Mary":
            wanted.setdefault(index["places"][where], []).append(abs(weight))
    heads = [read(tree, f"heads/L{layer}H{head}") for layer, head in read(tree, "config")["heads"]]
    for place in ("promoted", "suppressed"):  # each head's strongest, from the heads' own files
        listed = [[one for row in head["ov_table"] for one in row[place] if one["token"] == " Mary"] for head in heads]
        strongest = [max(abs(one["logit"]) for one in found) for found in listed if found]
        assert sorted(wanted[place]) == pytest.approx(sorted(strongest), rel=2e-3)

    with visit(chromium, tree / "index.html", own=tree, place="#/search?q=mar") as page:
        page.wait_for_selector("[data-place]")
        assert page.locator("[data-place]").count() == len(wanted) == 5
        for place, hits in wanted.items():
            section = page.locator(f"[data-place={place}]")
            assert section.locator("h2 .soft").inner_text() == str(len(hits))
            shown = [float(text.replace("−", "-")) for text in section.locator("td.number").all_inner_texts()]
            assert (np.sign(shown) == (-1 if place == "suppressed" else 1)).all()
            assert np.abs(shown) == pytest.approx(sorted(hits, reverse=True)[:20], abs=0.0006)
            assert set(section.locator("q").all_inner_texts()) == {" Mary"}
        pick(page, "Where", "Promotes")
        assert page.locator("[data-place]").count() == 1
        assert page.locator("[data-place] tbody tr").count() == len(wanted["promoted"])
        pick(page, "Where", "anywhere")
        page.get_by_label("Token", exact=True).fill("no such token")
        page.get_by_text("No head has").filter(has_text="no such token").wait_for()
        page.get_by_label("Token", exact=True).fill("i")
        page.wait_for_function("() => document.querySelectorAll('[data-place]').length === 5")
        assert {text.strip() for text in page.locator("q").all_inner_texts()} == {"i", "ing", "émigré"}
        page.locator("[data-place=key] tbody a").first.click()
        page.wait_for_function("() => location.hash.startsWith('#/head/')")
