"""`headscope migrate`: every form of import becomes one of ours that runs, and what could not is listed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]

# Before and after.
REWRITTEN = {
    "from transformer_lens import HookPoint, utils as u\n": "from headscope import HookPoint, utils as u\n",
    "import transformer_lens\ntransformer_lens.utils.to_numpy\n": "import headscope as transformer_lens\n"
    "transformer_lens.utils.to_numpy\n",
    "import transformer_lens as tl\ntl.HookPoint.add_hook\n": "import headscope as tl\ntl.HookPoint.add_hook\n",
    "import os, transformer_lens.utils as u  # both\n": "import os\nimport headscope.utils as u  # both\n",
    "import transformer_lens.utils\n": "import headscope as transformer_lens\n",
    "import transformer_lens.HookedTransformer as HT\n": "from headscope import HookedTransformer as HT\n",
    "from transformer_lens import utils, loading_from_pretrained as loading\n": "from headscope import utils\n"
    "from headscope.compat import loading\n",
    "from transformer_lens.utilities.tensors import to_numpy\n": "from headscope.utils import to_numpy\n",
    "from transformer_lens.train import train\n": "from headscope.training.epochs import train\n",
    "from transformer_lens.utils import *\n": "from headscope.utils import *\n",
    "from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache\n": "from headscope import "
    "HookedTransformerKeyValueCache as TransformerLensKeyValueCache\n",
    "try:\n    é = 1; from transformer_lens.components import (\n MLP,\n Attention,\n)\nfinally: pass\n": (
        "try:\n    é = 1; from headscope.model.parts.layers import MLP; "
        "from headscope.model.parts.attention import Attention\nfinally: pass\n"
    ),
    "if True:\r\n\tfrom transformer_lens.hook_points import HookPoint, LensHandle\r\n": (
        "if True:\r\n\tfrom headscope import HookPoint\r\n\tfrom headscope.model.hooks import LensHandle\r\n"
    ),
    "import circuitsvis as cv\ncv.attention.attention_heads\n": "import headscope.views as cv\n"
    "cv.attention.attention_heads\n",
    "from circuitsvis.tokens import colored_tokens\nimport circuitsvis.logits as l\n": (
        "from headscope.views.tokens import colored_tokens\nimport headscope.views.logits as l\n"
    ),
}
# What stays as it is, and the line that says so.
LEFT = {
    "from transformer_lens import HookedEncoder\n": "line 1: headscope does not support "
    "transformer_lens.HookedEncoder: only decoder-only models are supported.",
    "from transformer_lens import *\n": "line 1: from transformer_lens import *: name what you use of it",
    "import transformer_lens.components as c\n": "line 1: the names of transformer_lens.components are in several "
    "modules here: import them one by one",
    "import transformer_lens.weight_processing\n": "line 1: headscope does not support "
    "transformer_lens.weight_processing: see headscope.model.weights.processing.",
    "x = 'transformer_lens.utils'\n": "line 1: the string 'transformer_lens.utils' is not changed",
}
# What is rewritten, but is used in a way that has to be changed by hand.
USES = {
    "tl.loading.OFFICIAL_MODEL_NAMES": "tl.loading is headscope.compat.loading here",
    "tl.train.train": "tl.train is headscope.training.epochs here",
    "tl.utils.nope": "headscope does not support transformer_lens.utils.nope.",
    "tl.TransformerLensKeyValueCache": "is headscope.HookedTransformerKeyValueCache here",
    "tl.HookedEncoder": "only decoder-only models",
}


@pytest.mark.parametrize("before", REWRITTEN)
def test_imports_become_ours_and_run(run: Run, tmp_path: Path, before: str) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(before.encode())
    code, printed, _ = run("migrate", path)
    after = path.read_bytes().decode()
    assert after == REWRITTEN[before]
    assert code == 0 and "rewritten" in printed and "left" not in printed
    exec(after, {})
    run("migrate", path)
    assert path.read_bytes().decode() == after


@pytest.mark.parametrize("before", LEFT)
def test_what_could_not_be_rewritten_stays_and_is_listed(run: Run, tmp_path: Path, before: str) -> None:
    path = tmp_path / "a.py"
    path.write_text(before)
    code, printed, _ = run("migrate", path)
    assert code == 0 and path.read_text() == before
    assert printed == f"{path}: 0 imports rewritten\n  left: {LEFT[before]}\n"


@pytest.mark.parametrize("use", USES)
def test_uses_of_what_a_module_has_not_are_listed(run: Run, tmp_path: Path, use: str) -> None:
    path = tmp_path / "a.py"
    path.write_text(f"import transformer_lens as tl\nprint({use})\n")
    _, printed, _ = run("migrate", path)
    [left] = [line for line in printed.splitlines() if "left" in line]
    assert left.startswith("  left: line 2: ") and USES[use].removeprefix("tl.") in left


def test_one_statement_may_be_rewritten_in_part(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("from transformer_lens import (\n    HookedEncoder,  # BERT\n    utils,\n)\n")
    _, printed, _ = run("migrate", path)
    assert path.read_text() == "from transformer_lens import HookedEncoder\nfrom headscope import utils\n"
    assert "line 1: comments inside the import are not kept" in printed and "HookedEncoder" in printed


def test_a_dry_run_writes_nothing(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("import transformer_lens as tl\n")
    code, printed, _ = run("migrate", "--dry-run", path)
    assert (code, printed) == (0, f"{path}: 1 import to rewrite\n")
    assert path.read_text() == "import transformer_lens as tl\n"


def test_permissions_links_and_a_byte_order_mark_stay(run: Run, tmp_path: Path) -> None:
    path, link = tmp_path / "a.py", tmp_path / "link.py"
    path.write_bytes(b"\xef\xbb\xbfimport transformer_lens as tl\n")
    path.chmod(0o750)
    link.symlink_to(path)
    assert run("migrate", link)[0] == 0
    assert path.read_bytes() == b"\xef\xbb\xbfimport headscope as tl\n"
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o750
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.py", "link.py"]


def notebook(*sources: str | list[str]) -> dict[str, object]:
    cells = [{"cell_type": "code", "metadata": {}, "outputs": [], "source": source} for source in sources]
    text = {"cell_type": "markdown", "metadata": {}, "source": ["import transformer_lens"]}
    return {"cells": [text, *cells], "metadata": {"ü": 1}, "nbformat": 4, "nbformat_minor": 5}


@pytest.mark.parametrize("indent", [1, 2, None])
def test_notebooks_keep_all_but_their_imports(run: Run, tmp_path: Path, indent: int | None) -> None:
    before = notebook(
        ["%pip install transformer_lens\n", "import transformer_lens.utils as utils\n", "?utils"],
        "from transformer_lens import HookedTransformer",
        ["%%bash\n", "grep transformer_lens x"],
        ["from transformer_lens import HookedEncoder\n"],
        ["import transformer_lens as"],
        ["print(1)\n"],
    )
    after = notebook(
        ["%pip install transformer_lens\n", "import headscope.utils as utils\n", "?utils"],
        "from headscope import HookedTransformer",
        ["%%bash\n", "grep transformer_lens x"],
        ["from transformer_lens import HookedEncoder\n"],
        ["import transformer_lens as"],
        ["print(1)\n"],
    )
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps(before, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    code, printed, _ = run("migrate", path)
    assert code == 0 and path.read_text(encoding="utf-8") == json.dumps(after, indent=indent, ensure_ascii=False) + "\n"
    first, *left = printed.splitlines()
    assert first == f"{path}: 2 imports rewritten"
    assert left[0].startswith("  left: cell 5, line 1: headscope does not support transformer_lens.HookedEncoder")
    assert left[1].startswith("  left: cell 6, line 1: the cell is not valid Python") and len(left) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is neither a .py nor a .ipynb file."),
        ("a.py", b"x = 1\nimport transformer_lens as\n", "a.py, line 2: it is not valid Python"),
        ("a.py", b"\xff", "a.py is not UTF-8"),
        ("a.ipynb", b"{", "a.ipynb: it is not valid JSON"),
        ("a.ipynb", b"[]", "a.ipynb: it has no list of cells"),
        ("a.ipynb", b'{"cells": [1]}', "a.ipynb: cell 1 is not one of a notebook"),
        ("a.ipynb", b'{"cells": [{"cell_type": "code", "source": 1}]}', "a.ipynb: cell 1 is not one of a notebook"),
        ("a.py", None, "No such file or directory"),
    ],
)
def test_a_bad_file_is_one_line_and_nothing_is_written(
    run: Run, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    good, bad = tmp_path / "good.py", tmp_path / name
    good.write_text("import transformer_lens\n")
    if content is not None:
        bad.write_bytes(content)
    code, printed, err = run("migrate", good, bad)
    assert code == 1 and printed == ""
    assert message in err and err.count("\n") == 1
    assert good.read_text() == "import transformer_lens\n"
