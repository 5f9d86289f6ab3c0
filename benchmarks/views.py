"""The token views beside CircuitsVis on the same data: bytes, time to build, time to the first picture.

Each library has a process of its own (`workers/views.py`) that builds each view with the same call and writes it as a
page that needs no network. Time to build is from the call to the page's text. Time to the first picture is from the
start of loading the page, in headless Chromium, until the frame after each view on it has drawn. Then ten views on one
page. Without `--peer` only headscope is measured.

    python benchmarks/views.py [--repeats 5] [--peer PYTHON_WITH_CIRCUITSVIS] [--json FILE]
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import Browser, TimeoutError, sync_playwright
from workers.protocol import Side, Worker, workers

import headscope

SCRIPT = Path(__file__).parent / "workers" / "views.py"
TEN = "ten views on one page"
LIMIT = 1 / 4
PATIENCE_MS = 60_000

# The views' own elements, and the moment when the last of them has been drawn and shown.
WATCH = """
  window.shown = new Promise((resolve) => {
    const look = () => {
      const views = [...document.querySelectorAll(".hs-view, [id^=circuits-vis]")];
      const drawn = views.filter((view) => [...view.children].some((child) => child.tagName !== "SCRIPT"));
      if (document.readyState === "complete" && views.length && drawn.length === views.length)
        requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now())));
      else setTimeout(look, 1);
    };
    look();
  });
"""
# Mean milliseconds to answer to a pointer on a token, layout included.
HOVER = """() => {
  const tokens = [...document.querySelectorAll(".hs-text .hs-token")].slice(-200);
  const start = performance.now();
  for (const token of tokens) {
    token.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
    document.body.offsetHeight;
  }
  return (performance.now() - start) / tokens.length;
}"""


def first_picture(browser: Browser, path: Path) -> tuple[float, float]:
    """Milliseconds until a page shows all its views (infinite: more than a minute), and to answer to a pointer there.

    The second is NaN for pages that are not ours.
    """
    page = browser.new_page()
    try:
        page.set_default_timeout(PATIENCE_MS)
        page.add_init_script(WATCH)
        page.goto(path.as_uri())
        shown = page.evaluate(
            f"Promise.race([window.shown, new Promise((no) => setTimeout(no, {PATIENCE_MS}, Infinity))])"
        )
        ours = page.locator(".hs-text .hs-token").count() > 0
        return shown, page.evaluate(HOVER) if ours else float("nan")
    except TimeoutError:
        return float("inf"), float("nan")
    finally:
        page.close()


def measure(worker: Worker, browser: Browser, names: list[str], repeats: int, path: Path) -> dict[str, float]:
    """Medians of one library's page with these views, after one that warms it up."""
    built = [worker.ask(task="build", names=names, save=str(path)) for _ in range(repeats + 1)][1:]
    shown = [first_picture(browser, path)]
    while len(shown) < repeats and shown[0][0] < PATIENCE_MS:
        shown.append(first_picture(browser, path))
    return {
        "bytes": built[0]["bytes"],
        "build_ms": 1e3 * statistics.median(one["seconds"] for one in built),
        "shown_ms": statistics.median(one for one, _ in shown),
        "hover_ms": statistics.median(hover for _, hover in shown),
    }


def numbers(found: dict[str, float]) -> str:
    return f"{found['bytes'] / 1e6:>8.3f} {found['build_ms']:>8.1f} {found['shown_ms']:>8.0f}"


def show(name: str, found: dict[str, dict[str, float]]) -> None:
    """One line: each library's numbers, and theirs over ours."""
    ours, *peers = found.values()
    line = f"{name:<35} {numbers(ours)} {ours['hover_ms']:>7.2f}"
    for peer in peers:
        line += f" | {numbers(peer)}"
        line += "".join(f" {peer[kind] / ours[kind]:>7.1f}" for kind in ("bytes", "build_ms", "shown_ms"))
    print(line, flush=True)


def check(results: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """What does not hold of: ten views in a quarter of the bytes, and each view faster to build."""
    wrong = []
    for name, found in results.items():
        ours, peer = found["headscope"], found["circuitsvis"]
        if name == TEN and ours["bytes"] > LIMIT * peer["bytes"]:
            wrong.append(f"{name}: {ours['bytes'] / peer['bytes']:.2f} of the bytes, above {LIMIT}")
        if ours["build_ms"] >= peer["build_ms"]:
            wrong.append(f"{name}: slower to build, {ours['build_ms']:.1f} ms against {peer['build_ms']:.1f} ms")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peer", type=Path, help="the Python of an environment with CircuitsVis")
    parser.add_argument("--only", default="", help="only the views whose line has this in its name")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("No chromium on the PATH, so nothing can be shown; Debian: apt-get install chromium.")
        return
    sides = [Side("headscope", sys.executable)]
    if options.peer:
        sides.append(Side("circuitsvis", str(options.peer.absolute())))
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        print(
            f"headscope {headscope.__version__}, torch {torch.__version__}, {options.threads} threads, Chromium "
            f"{browser.version}; medians of {options.repeats}"
        )
        print(f"{'':<35} {'MB':>8} {'build ms':>8} {'shown ms':>8} {'hover':>7}", end="")
        print(" | CircuitsVis: MB, build ms, shown ms; theirs over ours: bytes, build, shown" if options.peer else "")
        with workers(SCRIPT, sides, folder, options.threads) as asked:
            *ten, large = asked[0].ask(task="names")["names"]
            for label, names in [*((one, [one]) for one in ten), (TEN, ten), (large, [large])]:
                if options.only not in label:
                    continue
                found: dict[str, Any] = {}
                for side, worker in zip(sides, asked, strict=True):
                    path = folder / f"{side.library}.html"
                    found[side.library] = measure(worker, browser, names, options.repeats, path)
                results[label] = found
                show(label, found)
        browser.close()
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    wrong = check(results) if options.peer else []
    print("\n".join(wrong) if wrong else "every limit holds" if options.peer else "no peer was given to compare with")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
