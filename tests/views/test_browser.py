"""Pages in a real browser: everything is drawn, the console stays quiet, and nothing is asked of a network."""

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from small_models import STORY, small_model

from headscope.report import write_report
from headscope.views.attention import attention_heads
from headscope.views.html import page
from headscope.views.tokens import colored_tokens

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the PATH"),
]

HOSTILE = [
    "<|end|>",
    "</script><script>document.title='hacked'</script>",
    "<!--",
    "\ud83d",
    "\u202e",
    "\n",
    "",
    "\U0001f381",
]


class Visit:
    """What a browser made of a page: the DOM after its scripts ran, the console's lines, the addresses asked for."""

    def __init__(self, path: Path, work: Path) -> None:
        log = work / "net.json"
        assert BROWSER is not None
        done = subprocess.run(
            [
                BROWSER,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-default-apps",
                "--disable-sync",
                f"--user-data-dir={work / 'profile'}",
                "--enable-logging=stderr",
                f"--log-net-log={log}",
                "--window-size=1280,2000",
                "--virtual-time-budget=10000",
                "--dump-dom",
                path.as_uri(),
            ],
            capture_output=True,
            timeout=120,
            check=True,
        )
        self.dom = done.stdout.decode("utf-8", "replace")
        self.console = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if ":CONSOLE" in line]
        # The page's own requests carry its origin, "null" for a file; the browser's own errands do not.
        events = json.loads(log.read_text(encoding="utf-8", errors="replace"))["events"]
        starts = [event["params"] for event in events if "url" in event.get("params", {})]
        self.requests = {start["url"] for start in starts if start.get("initiator", "").startswith(("null", "file:"))}


class Seen(HTMLParser):
    """The text of a page, element by element of a class."""

    def __init__(self, dom: str) -> None:
        super().__init__()
        self.classes: list[str] = []
        self.tags: list[str] = []
        self.feed(dom)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.classes += (dict(attrs).get("class") or "").split()


def test_the_report_opens(tmp_path: Path) -> None:
    report = write_report(small_model(), [STORY] * 8, tmp_path / "report", max_tokens=200, progress=False)
    visit = Visit(report.page, tmp_path)
    assert visit.console == []
    assert visit.requests <= {report.page.as_uri()}
    seen = Seen(visit.dom)
    # Each of six figures was drawn, and each view.
    assert seen.classes.count("main-svg") >= 6
    assert seen.classes.count("heatmaplayer") >= 3
    source = report.page.read_text(encoding="utf-8")
    assert visit.dom.count('data-drawn="yes"') == source.count('class="hs-view"') >= 7
    assert seen.classes.count("hs-matrix") == 1 and seen.classes.count("hs-token") > 100


def test_hostile_tokens_show_as_text(tmp_path: Path) -> None:
    n = len(HOSTILE)
    weights = torch.rand(2, n, n).tril()
    values = torch.randn(n)
    values[1] = torch.nan
    views = [
        attention_heads(weights, HOSTILE, attention_head_names=["<b>0.1</b>", "0.2"], focus=3, title="<i>"),
        colored_tokens(HOSTILE, values, notes=["</script>"] * n, marked=[1]),
    ]
    path = tmp_path / "views.html"
    path.write_text(page(views, title="quiet"), encoding="utf-8")
    visit = Visit(path, tmp_path)
    assert visit.console == []
    assert visit.requests <= {path.as_uri()}
    seen = Seen(visit.dom)
    assert "<title>quiet</title>" in visit.dom
    assert seen.classes.count("hs-token") == 2 * n
    assert "&lt;b&gt;0.1&lt;/b&gt;" in visit.dom and "b" not in seen.tags[: seen.tags.index("p")]
    assert "&lt;/script&gt;&lt;script&gt;document.title='hacked'" in visit.dom
    assert "\\ud83d" in visit.dom and "\\u202e" in visit.dom and "↵" in visit.dom and "∅" in visit.dom


def test_the_check_sees_what_goes_wrong(tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        "<!doctype html><title>x</title><script>console.error('oh no')</script>"
        "<img src='http://127.0.0.1:9/pixel.png'><script>missing()</script>"
    )
    visit = Visit(path, tmp_path)
    assert any("oh no" in line for line in visit.console)
    assert any("missing is not defined" in line for line in visit.console)
    assert "http://127.0.0.1:9/pixel.png" in visit.requests
