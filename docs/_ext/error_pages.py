"""Pages of the errors, written from `headscope.errors.table` before Sphinx looks for sources.

There is one a code, and an index. They are in no table of contents, whose hundred lines would stand beside every page;
the index and the search lead there.
"""

import re
import textwrap
from pathlib import Path

from sphinx.application import Sphinx

from headscope.errors.entry import Entry
from headscope.errors.table import ENTRIES

FOLDER = "errors"
_INTRODUCTION = """# Errors

An error of headscope says what was wrong, the value, what is allowed and how to fix it, and ends in a code in brackets:

```text
InvalidInputError: tokens must be between 0 and d_vocab - 1 = 1023; got 5000. ... [HS-TOKENS-01]
```

Each code has a page here: the message, why it is raised, and what to do. The search finds it by its code, and
`headscope explain HS-TOKENS-01` prints it. In a program, `error.code` is the code, `error.message` the text before it.
Every class is a subclass of `headscope.errors.HeadscopeError` and of the builtin that stands beside it, so that
`except ValueError` catches an `InvalidInputError`. A failed call leaves nothing behind: hooks are removed, and files
are whole or not there.

Memory that runs out is not an error of headscope's own: PyTorch raises `torch.OutOfMemoryError`. Give a smaller
`batch_size`, keep less in a cache (`names_filter`), or see what a run takes in [Scale]({scale}).
"""


# What the examples are given, as a reader would write it.
_GIVEN = {
    "torch": ("import torch",),
    "folder": ("import tempfile", "from pathlib import Path"),
    r"HookedTransformer|model|task[,)]": ("from headscope import HookedTransformer",),
    r"task[,)]": ("from headscope.analysis import Task", "from headscope.data import IOIDataset"),
    r"model|task[,)] ": ('model = HookedTransformer.from_pretrained("headscope-demo")',),
    r"task[,)] ": ("task = Task.from_ioi(IOIDataset(N=4, tokenizer=model.tokenizer, seed=0))",),
    "folder ": ("folder = Path(tempfile.mkdtemp())",),
}


def write_pages(app: Sphinx) -> None:
    """Write the pages that changed."""
    docs = Path(app.srcdir)
    folder = docs / FOLDER
    folder.mkdir(exist_ok=True)
    pages = {"index.md": _index(docs), **{f"{entry.code}.md": _page(entry, docs) for entry in ENTRIES}}
    for path in folder.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _index(docs: Path) -> str:
    lines = [_INTRODUCTION.replace("{scale}", _path("scale.md", docs))]
    for kind in ENTRIES:
        if not kind.is_class:
            continue
        lines += [f"## {kind.error}", f"[{kind.code}]({kind.code}.md): {kind.title}. {kind.cause}", ""]
        lines += [f"- {_link(entry)}: {entry.title}" for entry in _reasons(kind)]
        lines.append("")
    return "\n".join(lines)


def _page(entry: Entry, docs: Path) -> str:
    lines = ["---", "orphan: true", "---", f"# {entry.code}: {entry.title}", ""]
    (kind,) = (each for each in ENTRIES if each.is_class and each.error == entry.error)
    whole = f"{{py:obj}}`~headscope.errors.{entry.error}`"
    lines += [whole if entry.is_class else f"{whole}, like all of {_link(kind)}", ""]
    if entry.symptom:
        shown = f"{entry.error}: {entry.symptom} [{entry.code}]"
        shown = textwrap.fill(shown, 90, break_long_words=False, break_on_hyphens=False)
        lines += ["## Symptom", "", "```text", shown, "```", ""]
    if entry.example:
        lines += ["from, for example:", "", "```python", _whole(entry.example), "```", ""]
    lines += ["## Cause", "", entry.cause, "", "## Repair", "", entry.repair, ""]
    if entry.is_class and _reasons(entry):
        lines += ["## Reasons with a page of their own", ""]
        lines += [*(f"- {_link(each)}: {each.title}" for each in _reasons(entry)), ""]
    lines += [
        "## Related",
        "",
        *(f"- {_related(each, docs)}" for each in entry.related),
        "- [All errors](index.md)",
        "",
    ]
    return "\n".join(lines)


def _whole(example: str) -> str:
    """Return an example with what it is given before it."""
    used = [lines for names, lines in _GIVEN.items() if re.search(rf"\b({names.strip()})", example)]
    return "\n".join([*(line for lines in used for line in lines), *([""] if used else []), example.strip()])


def _reasons(kind: Entry) -> list[Entry]:
    return [entry for entry in ENTRIES if not entry.is_class and entry.error == kind.error]


def _link(entry: Entry) -> str:
    return f"[{entry.code}]({entry.code}.md)"


def _related(name: str, docs: Path) -> str:
    for entry in ENTRIES:
        if entry.code == name:
            return f"{_link(entry)}: {entry.title}"
    return f"[]({_path(name, docs)})" if name.endswith(".md") else f"{{py:obj}}`{name}`"


def _path(page: str, docs: Path) -> str:
    """Return the way from a page of errors to a page of the documentation.

    Raises:
        FileNotFoundError: If there is no such page.
    """
    (docs / page).stat()
    return f"../{page}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
