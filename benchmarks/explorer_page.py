"""The explorer's pages in a browser: milliseconds from the request to the first picture, and to a head's page.

The demo model is measured, and its heads are repeated until there are 12 x 12 and 32 x 32 of them. Each page is opened
from its file in a fresh context of headless Chromium, so that nothing is cached but files by the system; it counts as
drawn when what it is about is in the page and a frame has been painted after that. Beside the time on the clock stands
the time that the page's own thread worked, which neighbors on the machine do not lengthen. Opening a head is timed
from a click on it in the plot of all heads.

    python benchmarks/explorer_page.py [--repeats 5]

What to expect, in bytes: script and style are 180 kB; of every head about 1 kB is read before the first picture (its
measures), and 70 to 120 kB when its page is opened.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from headscope import HookedTransformer
from headscope.data import repeated_random_tokens
from headscope.explorer import explore
from headscope.explorer.tree.writing import TreeWriter, head_file

PLACES = {
    "points": ("#/", ".dots circle"),
    "table": ("#/heads", ".heads tbody tr"),
    "grid": ("#/grid", ".cell"),
    "search": ("#/search?q=a", "[data-place]"),
}
PAINTED = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"


def repeated(source: Path, out: Path, n_layers: int, n_heads: int) -> Path:
    """A tree with the heads of another again and again; its page."""
    config = json.loads((source / "config.json").read_text("utf-8"))
    rows = json.loads((source / "scatter_data.json").read_text("utf-8"))
    writer = TreeWriter(out)
    places = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    many = []
    for at, (layer, head) in enumerate(places):
        row = rows[at % len(rows)]
        record = json.loads((source / f"{head_file(row['layer'], row['head'])}.json").read_text("utf-8"))
        writer.head({**record, "layer": layer, "head": head})
        many.append({**row, "layer": layer, "head": head})
    writer.finish({**config, "n_layers": n_layers, "n_heads": n_heads, "heads": places}, many)
    return out / "index.html"


def opened(browser: Browser, address: str, drawn: str) -> tuple[float, float]:
    """Milliseconds until a page is drawn: on the clock, and of its own thread."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    try:
        page = context.new_page()
        session = context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(address, wait_until="commit")
        page.wait_for_selector(drawn)
        clock: float = page.evaluate(PAINTED)
        metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
        return clock, 1000 * metrics["TaskDuration"]
    finally:
        context.close()


def head_opened(browser: Browser, address: str) -> float:
    """Milliseconds from a click on a head to its page."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    try:
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector(".dots circle")
        start: float = page.evaluate("() => { location.hash = '#/head/1.2'; return performance.now(); }")
        page.wait_for_selector(".strip")
        end: float = page.evaluate(PAINTED)
        return end - start
    finally:
        context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Pages are opened in Chromium, and there is none on the PATH. Debian: apt-get install chromium.")
    model = HookedTransformer.from_pretrained("headscope-demo")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        tokens = repeated_random_tokens(32, 32, d_vocab=model.cfg.d_vocab, bos=0)
        source = explore(model, tokens, Path(folder) / "demo", progress=False).directory
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        print(f"{'heads':>6}  {'page':8} {'ms':>6} {'ms of its thread':>18}   (medians of {options.repeats})")
        for n_layers, n_heads in ((12, 12), (32, 32)):
            started = time.perf_counter()
            page = repeated(source, Path(folder) / f"{n_layers}x{n_heads}", n_layers, n_heads)
            written = time.perf_counter() - started
            for name, (place, drawn) in PLACES.items():
                times = [opened(browser, page.as_uri() + place, drawn) for _ in range(options.repeats)]
                clock, thread = (statistics.median(each) for each in zip(*times, strict=True))
                print(f"{n_layers * n_heads:6}  {name:8} {clock:6.0f} {thread:18.0f}", flush=True)
            clock = statistics.median(head_opened(browser, page.as_uri()) for _ in range(options.repeats))
            size = sum(path.stat().st_size for path in page.parent.rglob("*"))
            print(
                f"{n_layers * n_heads:6}  a head   {clock:6.0f}      ({size / 1e6:.0f} MB, written in {written:.1f} s)"
            )
        browser.close()


if __name__ == "__main__":
    main()
