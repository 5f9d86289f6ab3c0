"""The reference and the glossary leave nothing out, and what the pages name exists."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "docs/_ext"))

from public_names import MODULES, public, results  # noqa: E402

# Those that git keeps: pages of errors are written, and notebooks copied, when the site is built.
FOLDERS = ("docs", "docs/reference", "src/headscope/assets/notebooks")
PAGES = [page for folder in FOLDERS for page in sorted((ROOT / folder).glob("*.md"))]


def found(name: str) -> object:
    """Return what a dotted name leads to, of a module or of a class in it."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            thing = import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            thing = getattr(thing, part)
        return thing
    raise AttributeError(name)


def test_every_public_name_is_on_a_page() -> None:
    shown: dict[str, set[str]] = {}
    for page in (ROOT / "docs/reference").glob("*.md"):
        for module, options in re.findall(r"```\{public\} (\S+)\n((?::.*\n)*)```", page.read_text(encoding="utf-8")):
            rooms = re.search(r":rooms: (.*)", options)
            shown.setdefault(module, set()).update(public(module, tuple(rooms[1].split()) if rooms else ()))
    assert shown == {module: set(import_module(module).__all__) for module in MODULES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_names_exists(page: Path) -> None:
    for target in re.findall(r"\{py:\w+\}`(?:[^`<]*<)?~?([\w.]+)>?`", page.read_text(encoding="utf-8")):
        found(target)


def test_the_glossary_has_every_axis() -> None:
    table = (ROOT / "docs/glossary.md").read_text(encoding="utf-8").split("## Words")[0]
    explained = {
        name for row in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE) for name in re.findall(r"\w+", row)
    }
    classes = [getattr(import_module(module), name) for module, name in results()]
    used = {axis for each in classes for array in each.arrays.values() for axis in array.axes.split()}
    assert used - explained == set()
    assert len(classes) > 20 and "layer" in used
