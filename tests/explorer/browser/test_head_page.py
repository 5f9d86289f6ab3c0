"""A head's page: its measures among all heads, its texts and whom each token looks at, its tokens and charts."""

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from browser import NEEDS_CHROMIUM, named_controls, visit
from explorer_pages import as_shown, go, look, opacity
from explorer_tree import read, write_tree
from hostile import HOSTILE

from headscope import HookedTransformer
from headscope.data.small_english import documents
from headscope.explorer import explore
from headscope.report import token_rows

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = NEEDS_CHROMIUM

NAME = "2.1"


def open_head(page: "Page", name: str = NAME) -> None:
    page.wait_for_selector(f"h1:text-is('Head {name}') >> xpath=../.. >> .part")


def attention(sequence: dict[str, Any]) -> dict[tuple[int, int], float]:
    """The kept weights of a text, by query and key."""
    n = sequence["seq_len"]
    pairs = zip(sequence["attention_indices"], sequence["attention_values"], strict=True)
    return {divmod(index, n): value for index, value in pairs}


def test_measures_stand_among_those_of_all_heads(chromium: "Browser", tree: Path) -> None:
    config, rows, head = read(tree, "config"), read(tree, "scatter_data"), read(tree, "heads/L2H1")
    with visit(chromium, tree / "index.html", place=f"#/head/{NAME}", own=tree) as page:
        open_head(page)
        assert NAME in page.title()
        shown = look(page, "return rows('.measures tbody tr[data-measure]')")
        names = look(page, "return all('.measures tr[data-measure]').map((row) => row.dataset.measure)")
        ticks = look(
            page,
            """return all('.measures .standing').map((svg) =>
                [one('.ticks', svg).getAttribute('d'), one('circle', svg).getAttribute('cx')])""",
        )
        assert sorted(names) == sorted(config["metrics"]) and len(ticks) == len(names)
        for name, (label, value, rank, _, count), (drawn, place) in zip(names, shown, ticks, strict=True):
            measure = next(each for each in config["measures"] if each["name"] == name)
            own = head["measures"][name]
            number, _, error = value.partition(" ± ")
            assert own["value"] == as_shown(number) and own["error"] == as_shown(error)
            assert (value[0] in "+−") == (measure["diverging"] or own["value"] < 0)
            known = [row[name] for row in rows if row[name] is not None]
            assert rank == f"{1 + sum(other > own['value'] for other in known)} of {len(known)}"
            assert label.startswith(measure["label"]) and measure["unit"] in label
            assert count == f"{own['count']:,} {measure['count_unit']}"
            assert drawn.count("M") == len(known) and f"M{place} " in drawn  # the mark stands on its own tick
        unnamed = [role for role, name in named_controls(page) if not name and role != "main"]
        assert not unnamed


def test_kinds_say_their_evidence(chromium: "Browser", tree: Path) -> None:
    row = next(row for row in read(tree, "scatter_data") if row["kinds"])
    name, head = f"{row['layer']}.{row['head']}", read(tree, f"heads/L{row['layer']}H{row['head']}")
    with visit(chromium, tree / "index.html", place=f"#/head/{name}", own=tree) as page:
        open_head(page, name)
        assert page.locator(".kinds li").all_text_contents() == [
            f"{kind['label']} {'sure' if kind['sure'] else 'not sure'}{kind['evidence']}" for kind in head["kinds"]
        ]


def test_a_token_shows_what_it_attends_to_and_what_attends_to_it(chromium: "Browser", tree: Path) -> None:
    head = read(tree, "heads/L2H1")
    sequence = head["sequences"][0]
    weights = attention(sequence)
    n, tokens = sequence["seq_len"], sequence["tokens"]
    pick = max(range(n // 2), key=lambda key: sum(weights.get((query, key), 0) for query in range(key + 1, n)))
    to = [weights.get((pick, key), 0.0) for key in range(n)]
    by = [weights.get((query, pick), 0.0) if query != pick else 0.0 for query in range(n)]
    place = "location.hash"  # as the page itself has it: what the browser tells of addresses comes later
    state = """const card = one('.sequence');
        return [all('.strip-token', card).map(alpha), all('.strip-token', card).map(from)];"""
    with visit(chromium, tree / "index.html", place=f"#/head/{NAME}", own=tree) as page:
        open_head(page)
        card = page.locator(".sequence").first
        # At rest: what the head writes at each token, from the smallest of all its texts to the largest; what is not
        # counted, at the first token and above a text's own norm, is at an end.
        kept = [
            [norm for norm in each["output_norms"][1:] if norm <= each["output_norm"]] for each in head["sequences"]
        ]
        low, high = min(map(min, kept)), max(map(max, kept))
        assert max(norm for each in head["sequences"] for norm in each["output_norms"]) > high
        at_rest = look(page, "return all('.strip-token', one('.sequence')).map(alpha)")
        assert at_rest == pytest.approx(
            [0.42 * min(max((norm - low) / (high - low), 0), 1) for norm in sequence["output_norms"]], abs=1e-3
        )

        card.locator(f".strip-token[data-at='{pick}']").hover()
        shown_to, shown_by = look(page, state)
        assert shown_to == pytest.approx([opacity(weight) for weight in to], abs=1e-3)
        assert shown_by == pytest.approx([opacity(weight) for weight in by], abs=1e-3)
        best = sorted((key for key in range(n) if to[key]), key=lambda key: -to[key])[:5]
        listed = look(
            page,
            """return all('.spoken p:first-child .listed').map((node) =>
                [Number(one('.place', node).textContent), one('b', node).textContent])""",
        )
        assert [to[key] for key, _ in listed] == [to[key] for key in best]
        for key, text in listed:
            assert 100 * to[key] == as_shown(text.replace("\xa0%", ""))

        # Kept by a click: it outlives the mouse and a reload, until Escape.
        card.locator(f".strip-token[data-at='{pick}']").click()
        page.mouse.move(0, 0)
        assert look(page, state)[0] == shown_to
        assert f"seq={sequence['sequence_id']}" in page.evaluate(place) and f"token={pick}" in page.evaluate(place)
        page.reload()
        open_head(page)
        assert look(page, state) == [shown_to, shown_by]
        card.locator(".strip").focus()
        page.keyboard.press("Escape")
        assert "token=" not in page.evaluate(place)
        # By keyboard: arrows move, Enter keeps.
        for key in ("Home", "ArrowRight", "ArrowRight"):
            page.keyboard.press(key)
        assert look(page, state)[0] == pytest.approx(
            [opacity(weights.get((2, key), 0.0)) for key in range(n)], abs=1e-3
        )
        page.keyboard.press("Enter")
        assert "token=2" in page.evaluate(place)
        page.keyboard.press("Enter")
        page.keyboard.press("Escape")
        assert "token=" not in page.evaluate(place)

        # The square: a cell says its weight, and marks its two tokens.
        square = card.locator(".pattern")
        square.scroll_into_view_if_needed()
        box = square.bounding_box()
        assert box is not None
        query, key = max(weights, key=lambda pair: weights[pair])
        square.hover(position={"x": (key + 0.5) * box["width"] / n, "y": (query + 0.5) * box["height"] / n})
        said = look(page, "return one('.spoken').textContent")
        assert f"{query} attends to" in said
        percent = look(page, "return one('.spoken b').textContent")
        assert 100 * weights[query, key] == as_shown(percent.replace("\xa0%", ""))
        marked = look(page, "return all('.strip-token.at', one('.sequence')).map((node) => Number(node.dataset.at))")
        assert sorted(marked) == sorted({query, key})
        square.focus()
        page.keyboard.press("Home")
        page.keyboard.press("ArrowDown")
        assert look(page, "return one('.spoken').textContent").startswith(
            f"{plain(tokens[1])}1 attends to {plain(tokens[0])}0"
        )
        # What is painted: the strongest weight is the strongest color, and where nothing was kept there is none.
        painted = look(
            page,
            """const canvas = one('.sequence .pattern canvas');
            const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            return Array.from({ length: canvas.width * canvas.height }, (_, i) => pixels[4 * i + 3] / 255);""",
        )
        assert painted == pytest.approx([opacity(weights.get(divmod(i, n), 0.0)) for i in range(n * n)], abs=0.006)


def plain(token: str) -> str:
    return token.replace("\n", "↵").replace("\t", "⇥")


def quoted(token: str) -> str:
    """As in a table, where a token of spaces alone has them marked."""
    return plain(token) if token.strip(" ") else "␣" * len(token)


def test_texts_of_every_level_and_links_to_one(chromium: "Browser", tree: Path) -> None:
    sequences = read(tree, "heads/L2H1")["sequences"]
    levels = defaultdict(list)
    for sequence in sequences:
        levels["top" if sequence["rank"] == "top" else str(sequence["interval"])].append(sequence)
    shown = "return all('.sequence').map((node) => [Number(node.dataset.sequence), words('.strip-token', node)])"
    with visit(chromium, tree / "index.html", place=f"#/head/{NAME}", own=tree) as page:
        open_head(page)
        choices = look(page, "return all('.switch input').map((node) => node.value)")
        assert choices == ["top"] + sorted((level for level in levels if level != "top"), key=int, reverse=True)
        for choice in ("1", "5", "top"):
            page.locator(f".switch input[value='{choice}']").check(force=True)
            found = look(page, shown)
            assert [number for number, _ in found] == [each["sequence_id"] for each in levels[choice]]
            for (_, texts), each in zip(found, levels[choice], strict=True):
                assert [text.replace("↵\n", "\n").replace("⇥", "\t") for text in texts] == each["tokens"]
        # A text's own link opens its level with its pattern large.
        wanted = levels["3"][0]["sequence_id"]
        go(page, f"#/head/{NAME}?seq={wanted}")
        page.wait_for_selector(f".sequence.linked[data-sequence='{wanted}'] .pattern")
        assert look(page, "return one('.switch input:checked').value") == "3"
        page.click(".sequence.linked button")
        page.wait_for_selector(".sequence.linked .thumb canvas")
        page.click(".sequence.linked .thumb")
        page.wait_for_selector(".sequence.linked .pattern")


def test_charts_and_tables_are_the_files(chromium: "Browser", tree: Path) -> None:
    head = read(tree, "heads/L2H1")
    with visit(chromium, tree / "index.html", place=f"#/head/{NAME}", own=tree) as page:
        open_head(page)
        values = head["qk_distance_histogram"]["bin_values"]
        bars = look(page, "return all('.bars .stem i').map((node) => parseFloat(node.style.height))")
        assert bars == pytest.approx([100 * value / max(values) for value in values], abs=0.01)
        assert look(page, "return words('.bars .column > span')") == ["0", "1", "2", "4", "8", "16"]
        titles = look(page, "return all('.bars .stem').map((node) => node.title.split(':')[0])")
        assert titles == [f"distance {name}" for name in ("0", "1", "2–3", "4–7", "8–15", "16–31")]
        for part, name in enumerate(("output_norm_histogram", "histogram")):
            values = head[name]["bin_values"]
            heights = look(
                page,
                f"return all('rect', all('.distribution')[{part}]).map((node) => Number(node.getAttribute('height')))",
            )
            assert heights == pytest.approx([96 * value / max(values) for value in values], abs=0.01)
        for button in page.locator(".listing .quiet, [data-part=ov] .quiet").all():
            button.click()
        tables = look(
            page,
            """return all('table.weights').map((table) => [...table.rows].map((row) =>
                [one('th', row).textContent, row.cells[row.cells.length - 1].textContent]))""",
        )
        for found, name in zip(tables[:2], ("top_query_tokens", "top_key_tokens"), strict=True):
            assert [quoted(each["token"]) for each in head[name]] == [token for token, _ in found]
            assert all(
                100 * each["weight"] == as_shown(text.replace("\xa0%", ""))
                for each, (_, text) in zip(head[name], found, strict=True)
            )
        assert [f"{quoted(each['query'])} → {quoted(each['key'])}" for each in head["token_pairs"]] == [
            pair for pair, _ in tables[2]
        ]
        # What may be missing from a share is said, and the shares that are no larger are pale.
        notes = look(
            page, "return all('.listing .lost').map((note) => note.textContent.match(/up to ([\\d.]+)\\s%,/)[1])"
        )
        assert notes == ["30.0", "11.0"]
        pale = look(page, "return all('.weights').map((table) => all('.pale', table).length)")
        assert pale == [
            sum(each["weight"] <= head["statistics"][f"{lost}_lost"] for each in head[name])
            for name, lost in (
                ("top_query_tokens", "query_tokens"),
                ("top_key_tokens", "key_tokens"),
                ("token_pairs", "token_pairs"),
            )
        ]
        rows = look(
            page,
            """const logits = (cell) => all('li', cell).map((node) =>
                [one('q', node).textContent, one('small', node).textContent]);
            return all('.ov tbody tr').map(({ cells: [token, share, up, down] }) =>
                [token.textContent, share.textContent, logits(up), logits(down)]);""",
        )
        for (token, share, promoted, suppressed), each in zip(rows, head["ov_table"], strict=True):
            assert token == quoted(each["token"]) and 100 * each["share"] == as_shown(share.replace("\xa0%", ""))
            for shown, wanted in ((promoted, each["promoted"]), (suppressed, each["suppressed"])):
                assert [quoted(one["token"]) for one in wanted[:5]] == [text for text, _ in shown]
                assert all(one["logit"] == as_shown(text) for one, (_, text) in zip(wanted, shown, strict=False))
        near = look(
            page,
            """return all('.neighbors li').map((node) => [one('a', node).getAttribute('href'),
                one('.value', node).textContent, one('a.quiet', node).getAttribute('href')])""",
        )
        for (link, similarity, compared), each in zip(near, head["neighbors"], strict=True):
            other = f"{each['layer']}.{each['head']}"
            assert (link, compared) == (f"#/head/{other}", f"#/compare/{NAME}/{other}")
            assert each["similarity"] == as_shown(similarity)


def test_keys_links_and_the_menu_lead_to_other_heads(chromium: "Browser", tree: Path) -> None:
    with visit(chromium, tree / "index.html", place="#/head/0.5", own=tree) as page:
        open_head(page, "0.5")
        page.keyboard.press("n")
        open_head(page, "1.0")
        page.keyboard.press("p")
        open_head(page, "0.5")
        page.click("[aria-label='Next head, 1.0']")
        open_head(page, "1.0")
        page.select_option("[aria-label='Head to show']", "3.5")
        open_head(page, "3.5")
        page.keyboard.press("n")  # the last has none after it
        page.go_back()
        open_head(page, "1.0")
        page.keyboard.press("c")
        page.wait_for_function("() => location.hash === '#/compare/1.0/1.1'")
        go(page, "#/head/9.9")
        assert "not in this tree" in (page.locator(".notice").text_content() or "")


def test_trees_of_others_show_what_is_missing(chromium: "Browser", tmp_path: Path) -> None:
    """Of a tree with the fields of HeadVis alone, the rest is said to be missing, and nothing breaks."""
    page_path = write_tree(tmp_path, n_layers=1, n_heads=2)
    config = read(tmp_path, "config")
    for name in ("measures", "kinds", "format_version", "generator"):
        del config[name]
    save(tmp_path, "config", config)
    rows = [
        {"layer": row["layer"], "head": row["head"], "induction_score": 0.25} for row in read(tmp_path, "scatter_data")
    ]
    save(tmp_path, "scatter_data", rows)
    theirs = ("sequences", "qk_distance_histogram", "top_query_tokens", "top_key_tokens", "histogram", "statistics")
    for name in ("heads/L0H0", "heads/L0H1"):
        head = read(tmp_path, name)
        head = {key: head[key] for key in ("layer", "head", *theirs)}
        for sequence in head["sequences"]:
            for key in ("rank", "output_norm", "output_norms"):
                del sequence[key]
        save(tmp_path, name, head)
    with visit(chromium, page_path, place="#/head/0.0", own=tmp_path) as page:
        open_head(page, "0.0")
        missing = look(
            page,
            "return all('.part').filter((part) => one(':scope > .missing', part)).map((part) => part.dataset.part)",
        )
        assert missing == ["ov", "neighbors"]
        assert page.locator(".measures .missing").count() == len(config["metrics"]) - 1
        assert page.locator(".facts").text_content() == "Sequences64"
        assert page.locator(".sequence").count() > 0 and page.locator(".switch input[value=top]").count() == 0
        go(page, "#/compare/0.0/0.1")
        page.wait_for_selector(".compare-page .part")
        assert page.locator(".compare-page .missing").count() > 0


BROKEN_HEADS: dict[str, Any] = {
    "empty": {},
    "nothing": dict.fromkeys(("sequences", "histogram", "measures", "kinds", "statistics", "ov_table")),
    "empty parts": {
        name: {}
        for name in (
            "sequences",
            "qk_distance_histogram",
            "histogram",
            "top_key_tokens",
            "ov_table",
            "neighbors",
            "kinds",
        )
    },
    "other shapes": {
        "measures": {"constructor": 3, "__proto__": None, "qk_distance": {"value": "x"}},
        "statistics": {"n_samples": "64", "toString": 1},
        "top_key_tokens": [{"token": None, "weight": 1}, {"token": "a", "weight": "x"}, 5, None],
        "histogram": {"bin_edges": [0, 1], "bin_values": []},
        "qk_distance_histogram": {"bin_edges": [0, 0, 1], "bin_values": [1, 2]},
        "sequences": [{"tokens": ["only"], "sequence_id": 1}, {"tokens": []}, 7],
        "kinds": [{"label": "no name"}],
        "neighbors": [{"layer": 10**9, "head": 0, "similarity": 1}],
    },
}


def test_damaged_and_minimal_trees_are_drawn_as_far_as_they_go(chromium: "Browser", tmp_path: Path) -> None:
    page_path = write_tree(tmp_path, n_layers=2, n_heads=2)
    whole = read(tmp_path, "heads/L0H0")
    # All that `read_tree` asks for; a measure by the name that others give it, and rows that hold more.
    minimal = {"heads": [[0, 0], [1, 1]], "metrics": ["previous_token_score", "constructor"]}
    save(tmp_path, "config", minimal)
    save(tmp_path, "scatter_data", [{"layer": 0, "head": 0, "previous_token_score": 0.25, "kinds": ["__proto__", 3]}])
    first = whole["sequences"][0]
    far = {**first, "seq_len": 10**6, "attention_indices": [10**6, 3 * 10**6 + 2, -1, 10**13, 1.5]}
    far["attention_values"] = [0.5, 0.25, 1, 1, None]
    save(tmp_path, "heads/L0H0", {**whole, "sequences": [far]})
    measures = "return rows('.measures tbody tr[data-measure]').map((row) => row.slice(0, 2))"
    with visit(chromium, page_path, place="#/head/0.0", own=tmp_path, forgiven="ERR_FILE_NOT_FOUND") as page:
        open_head(page, "0.0")
        shown = [["prev token score", "0.250"], ["constructor", "not measured"]]
        without = {**whole, "measures": {"previous_token_score": {"value": 0.25, "error": None, "count": None}}}
        assert look(page, measures)[1] == shown[1]
        page.locator(".strip-token[data-at='3']").first.hover()
        assert look(page, "return one('.spoken b').textContent").startswith("25.0")  # row 3, column 2 of a million
        for place, drawn in (("#/", ".scatter svg"), ("#/heads", ".heads tbody tr"), ("#/grid", ".cell")):
            go(page, place)
            page.wait_for_selector(drawn)
            assert page.locator(".notice").count() == 0, place
        for name, broken in {"known by another name": without, **BROKEN_HEADS}.items():
            save(tmp_path, "heads/L0H0", broken)
            page.goto("about:blank")
            page.goto(f"{page_path.as_uri()}#/head/0.0")
            open_head(page, "0.0")
            assert look(page, measures) == shown, name
            assert page.locator(".part").count() == 6 and page.locator(".notice").count() == 0, name
        for config, said in (
            ({"heads": [[0, "0"]]}, "names no heads"),
            ({**minimal, "format_version": 2}, "format version 2"),
            (5, "names no heads"),
        ):
            save(tmp_path, "config", config)
            page.reload()
            page.locator(f".notice:has-text('{said}')").wait_for()


def save(folder: Path, name: str, data: Any) -> None:
    text = json.dumps(data)
    (folder / f"{name}.json").write_text(text)
    (folder / f"{name}.js").write_text(f"headscope.receive({json.dumps(name)}, {text});")


def test_hostile_tokens_are_text(chromium: "Browser", tmp_path: Path) -> None:
    path = write_tree(tmp_path, n_layers=1, n_heads=2, model=HOSTILE[0], words=tuple(HOSTILE))
    tokens = read(tmp_path, "heads/L0H0")["sequences"][0]["tokens"]
    with visit(chromium, path, place="#/head/0.0", own=tmp_path) as page:
        open_head(page, "0.0")
        for at in range(0, len(tokens), 5):
            page.locator(f".sequence >> nth=0 >> [data-at='{at}']").dispatch_event("pointerover")
        go(page, "#/compare/0.0/0.1")
        page.wait_for_selector(".compare-page .part")
        go(page, f"#/head/{HOSTILE[0]}")
        page.wait_for_selector(".notice")
        assert page.title() != "hacked" and "hacked" in page.title()  # in the model's name, as text
        assert page.locator("main script, main img").count() == 0


def test_phones_and_paper_show_all(chromium: "Browser", tree: Path) -> None:
    for name in (f"head/{NAME}", f"compare/{NAME}/1.0"):
        with visit(chromium, tree / "index.html", place=f"#/{name}", own=tree, width=390, touch=True) as page:
            page.wait_for_selector(".sequence")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            page.emulate_media(media="print")
            assert not page.locator(".head-title nav").is_visible()


@pytest.mark.usefixtures("no_gradients")
def test_the_demo_shows_what_its_heads_do(chromium: "Browser", tmp_path: Path) -> None:
    """From text to page: what a token is shown to attend to and to write is what a run with hooks gives."""
    model = HookedTransformer.from_pretrained("headscope-demo")
    rows = token_rows(model, documents(1), max_tokens=384, seq_len=32)
    explore(model, rows, tmp_path / "site", sequences=2, ablation_tokens=64, progress=False)
    (layer, head), name = (1, 2), "1.2"
    with visit(chromium, tmp_path / "site" / "index.html", place=f"#/head/{name}", own=tmp_path / "site") as page:
        open_head(page, name)
        number = int(look(page, "return one('.sequence').dataset.sequence"))
        _, cache = model.run_with_cache(rows[number : number + 1])
        pattern = cache["pattern", layer][0, head]
        norms = (cache["z", layer][0, :, head] @ model.blocks[layer].attn.W_O[head]).norm(dim=-1)
        assert float(norms[1:].max()) == as_shown(look(page, "return one('.sequence-about b').textContent"))
        query = len(pattern) - 3
        page.locator(f".sequence >> nth=0 >> [data-at='{query}']").hover()
        shown = look(page, "return all('.strip-token', one('.sequence')).map(alpha)")
        # As kept: the eight largest weights of a row, in thousandths, from 0.005 on.
        kept = pattern[query].topk(8)
        expected = torch.zeros(len(pattern)).scatter(0, kept.indices, kept.values)
        rounded = [round(weight, 3) if weight >= 0.005 else 0.0 for weight in expected.tolist()]
        assert shown == pytest.approx([opacity(weight) for weight in rounded], abs=2e-3)
