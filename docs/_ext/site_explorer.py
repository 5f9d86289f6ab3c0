"""The explorer of the demo model, a site within the site, which `headscope explore` writes when the package changes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from site_notebooks import SOURCE, package_state
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata

COMMAND = ("explore", "headscope-demo", "--max-tokens", "8192", "--no-progress", "--out")
logger = logging.getLogger(__name__)


def _write(app: Sphinx, error: Exception | None) -> None:
    # A preview of single pages has no explorer.
    if error is not None or app.builder.format != "html" or app.config.include_patterns != ["**"]:
        return
    kept = Path(app.doctreedir).parent / "explorer" / package_state()
    if not (kept / "index.html").is_file():
        shutil.rmtree(kept.parent, ignore_errors=True)
        start = "from headscope_command import main; main()"
        ran = subprocess.run(
            [sys.executable, "-c", start, *COMMAND, str(kept)],
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
            capture_output=True,
            text=True,
        )
        if ran.returncode:
            raise ExtensionError(f"headscope {' '.join(COMMAND)} failed: {ran.stderr}")
        logger.info("the explorer: %s", ran.stdout.strip().splitlines()[-1])
    shown = Path(app.outdir) / "explorer"
    if not (shown / kept.name).is_file():
        shutil.rmtree(shown, ignore_errors=True)
        shutil.copytree(kept, shown)
        (shown / kept.name).touch()


def setup(app: Sphinx) -> ExtensionMetadata:
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
