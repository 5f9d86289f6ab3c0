"""Pictures of every view and of the report, taken by headless Chromium: light, dark, and as wide as a phone.

    python docs/screenshots.py [--out docs/images/views] [--only NAME ...] [--no-report]
    python docs/screenshots.py --real [--only NAME ...]
    python docs/screenshots.py --explorer [--only NAME ...]

The examples are those of `gallery.py`; the report is that of `headscope report headscope-demo`. With `--real` they are
the figures of docs/real-model.md, in docs/images/real, of the model that `make real-model` fetches. With `--explorer`
they are pages of the demo model's head explorer, in docs/images/explorer. Pictures have few colors, so that each is
small.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gallery import figures, real_figures, token_views
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from headscope import views

MODES = {
    "light": {"viewport": {"width": 1000, "height": 300}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1000, "height": 300}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 300}, "color_scheme": "light", "is_mobile": True, "has_touch": True},
}
# What a visitor does before the picture is taken: points at a token, or clicks it.
HOVER = {
    "text_neuron_activations": 8,
    "colored_tokens": 8,
    "colored_tokens_multi": 8,
    "topk_tokens": 9,
    "topk_samples": 5,
}
CLICK = {"token_log_probs": 13, "direct_effects": 12}
REAL_MODEL = Path(
    os.environ.get("HEADSCOPE_REAL_MODEL", "~/.cache/headscope/SmolLM2-135M-Instruct.Q4_1.gguf")
).expanduser()
REPORT_HEIGHT = 2400  # of the report, its top
EXPLORER = {
    "overview": "#/?sel=0.1,0.3,1.2&log=y",
    "table": "#/heads?sort=-ablation_total&sel=0.1,0.3,1.2&groups=prediction,ablation,copying,activity",
    "grid": "#/grid?by=induction_score&sel=0.1,0.3,1.2",
    "head": "#/head/1.2",
}
EXPLORER_WIDTH, EXPLORER_HEIGHT = 1280, 1180


def pages(folder: Path, only: list[str], report: bool, real: bool) -> Iterator[tuple[str, str]]:
    """The name and the address of each page to take pictures of."""
    asked = set(only) - {"report"}
    drawn = {}
    if (asked or not only) and not real:
        drawn = {name: str(view) for name, view in token_views().items()}
    if asked - drawn.keys() or not only:
        plots = real_figures(REAL_MODEL) if real else figures()
        drawn |= {name: views.figure_page(figure, title=name) for name, figure in plots.items()}
    for name, text in drawn.items():
        if not only or name in asked:
            path = folder / f"{name}.html"
            path.write_text(text, encoding="utf-8")
            yield name, path.as_uri()
    if report and not real and (not only or "report" in only):
        headscope("report", "headscope-demo", "--out", str(folder / "report"))
        (path,) = (folder / "report").glob("*.html")
        yield "report", path.as_uri()


def explorer_pages(folder: Path, only: list[str]) -> Iterator[tuple[str, str]]:
    """The name and the address of each page of the explorer to take pictures of."""
    headscope("explore", "headscope-demo", "--out", str(folder / "explorer"))
    for name, place in EXPLORER.items():
        if not only or name in only:
            yield name, (folder / "explorer" / "index.html").as_uri() + place


def headscope(*arguments: str) -> None:
    """Run a command of the package."""
    command = "from headscope.cli import main; main()"
    subprocess.run([sys.executable, "-c", command, *arguments], check=True, stdout=subprocess.DEVNULL)


def act(page: Page, name: str) -> None:
    """Do what a visitor would."""
    pointed = page.locator(".hs-token, .hs-cell")
    if name in HOVER:
        pointed.nth(HOVER[name]).dispatch_event("pointerover")
    if name in CLICK:
        pointed.nth(CLICK[name]).dispatch_event("click")


def take(browser: Browser, name: str, address: str, mode: str, *, explorer: bool) -> bytes:
    """One picture, as PNG of few colors."""
    context = browser.new_context(**MODES[mode])
    try:
        page = context.new_page()
        width = MODES[mode]["viewport"]["width"]
        if explorer and mode != "phone":
            width = EXPLORER_WIDTH
        page.set_viewport_size({"width": width, "height": 900 if explorer else 300})
        page.goto(address)
        if explorer:
            page.wait_for_selector("main h1")
        act(page, name)
        page.wait_for_timeout(400)
        height = page.evaluate("document.documentElement.scrollHeight")
        if name == "report":
            height = min(height, REPORT_HEIGHT)
        if explorer:
            height = min(height, EXPLORER_HEIGHT)
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(200)
        taken = page.screenshot()
    finally:
        context.close()
    whole = Image.open(io.BytesIO(taken)).convert("RGB")
    small = whole.quantize(128, method=Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
    packed = io.BytesIO()
    small.save(packed, "PNG", optimize=True)
    return packed.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="docs/images/views by default; real or explorer with that option")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these views alone")
    parser.add_argument("--no-report", action="store_true", help="leave out the report")
    parser.add_argument("--real", action="store_true", help="the pretrained model's figures instead")
    parser.add_argument("--explorer", action="store_true", help="the pages of the demo model's head explorer instead")
    options = parser.parse_args()
    kind = "real" if options.real else "explorer" if options.explorer else "views"
    out = options.out or Path(__file__).parent / "images" / kind
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Pictures are taken by Chromium, and there is none on the PATH. Debian: apt-get install chromium.")
    modes = ("light", "phone") if options.real else tuple(MODES)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        if options.explorer:
            shown = explorer_pages(Path(folder), options.only)
        else:
            shown = pages(Path(folder), options.only, not options.no_report, options.real)
        for name, address in shown:
            for mode in modes:
                picture = out / f"{name}-{mode}.png"
                picture.write_bytes(take(browser, name, address, mode, explorer=options.explorer))
                print(f"{picture} {picture.stat().st_size / 1024:.0f} KB", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
