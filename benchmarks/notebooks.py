"""Real notebooks on headscope and on TransformerLens, cell by cell: which run, and whether the values agree.

    python benchmarks/notebooks.py NOTEBOOK.ipynb ... --peer PYTHON_WITH_TRANSFORMER_LENS_3_9
        [--python PYTHON_WITH_HEADSCOPE] [--hub HF_CACHE] [--write docs/notebooks.md]

The notebooks are not part of this repository: the source distribution of TransformerLens has its demos
(`pip download --no-deps --no-binary :all: transformer_lens==3.0.0`). Each library runs them in an environment of its
own, which needs IPython and whatever else the notebooks import. For headscope one line is put in front,
`import headscope.compat.transformer_lens`; nothing else is changed for one library only. For both, shell commands are
left out, and what newer demos load with `TransformerBridge` is loaded with `HookedTransformer`, which it replaced.

Models come from a Hugging Face cache, offline. Without `--hub` it is a temporary one with random small models under
the names of GPT-2's sizes, so that cells about the real model's behavior run, and show nothing. Every array, number,
text and figure that a cell makes or changes is compared by its name: values agree if they differ by at most
`TOLERANCE` of the largest.
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "notebooks"))

from stand_in import save_gpt2  # noqa: E402

WORKER = Path(__file__).resolve().parent / "workers" / "notebooks.py"
ALIAS = "import headscope.compat.transformer_lens"
TOLERANCE = 1e-4
SIZES = ("gpt2", "distilgpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
BEGIN, END = "<!-- notebooks: written by benchmarks/notebooks.py -->", "<!-- end of notebooks -->"


@dataclass
class Verdict:
    """What came of one notebook.

    Attributes:
        name: The notebook's.
        cells: How many cells of code it has.
        ours: How many ran on headscope.
        theirs: How many ran on TransformerLens.
        values: How many values both made.
        seconds: How long cells that run on both took, on headscope and on TransformerLens.
        differ: Where values differ, each with by how much.
        failed: Cells that run on TransformerLens alone, with the error.
    """

    name: str
    cells: int
    ours: int = 0
    theirs: int = 0
    values: int = 0
    seconds: tuple[float, float] = (0.0, 0.0)
    differ: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def cells_of(path: Path) -> list[str]:
    """Return a notebook's cells of code as both libraries run them."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [portable("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]


def portable(code: str) -> str:
    """Leave out shell commands, and load with `HookedTransformer` what was loaded with its successor."""
    lines = [re.sub(r"^(\s*)[!%].*", r"\1pass", line) for line in code.splitlines()]
    code = "\n".join(lines)
    if "TransformerBridge" not in code and "enable_compatibility_mode" not in code:
        return code
    code = code.replace("from transformer_lens.model_bridge import", "from transformer_lens import")
    code = code.replace("TransformerBridge.boot_transformers", "HookedTransformer.from_pretrained")
    code = code.replace("TransformerBridge", "HookedTransformer")
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return code
    lines = code.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and "enable_compatibility_mode" in ast.unparse(node):
            assert node.end_lineno is not None
            lines[node.lineno - 1] = " " * node.col_offset + "pass"
            lines[node.lineno : node.end_lineno] = [""] * (node.end_lineno - node.lineno)
    return "\n".join(lines)


def run_in(python: str, cells: Path, out: Path, *, first: str, hub: Path, seconds: float, threads: int) -> None:
    """Run the cells in an environment's Python; a crash leaves the cells after it without a result."""
    variables = {**os.environ, "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
    variables |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    if not first:
        variables.pop("PYTHONPATH", None)  # headscope's sources
    with tempfile.TemporaryDirectory() as work:
        command = [python, str(WORKER), str(cells), str(out), "--first", first, "--seconds", str(seconds)]
        subprocess.run(command, env=variables, cwd=work, check=False, stdout=subprocess.DEVNULL)


def compared(name: str, n_cells: int, ours: Path, theirs: Path) -> Verdict:
    """Compare what both libraries left behind."""
    verdict = Verdict(name, n_cells)
    for number in range(n_cells):
        left, right = _outcome(ours, number), _outcome(theirs, number)
        verdict.ours += left["ran"]
        verdict.theirs += right["ran"]
        if right["ran"] and not left["ran"]:
            verdict.failed.append(f"cell {number}: {left['error']}")
        if not (left["ran"] and right["ran"]):
            continue
        verdict.seconds = (verdict.seconds[0] + left["seconds"], verdict.seconds[1] + right["seconds"])
        for place in left["values"].keys() & right["values"].keys():
            verdict.values += 1
            reason = difference(left["values"][place], right["values"][place])
            if reason:
                verdict.differ.append(f"cell {number}: {place} ({reason})")
    return verdict


def _outcome(folder: Path, number: int) -> dict[str, Any]:
    path = folder / f"{number}.json"
    if not path.is_file():
        return {"ran": False, "error": "the process ended before this cell", "values": {}}
    report = json.loads(path.read_text())
    with np.load(folder / f"{number}.npz") as arrays:
        report["values"] = {name: arrays[str(i)] for i, name in enumerate(report["names"])}
    return report


def difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Say in what two values differ; empty if in nothing."""
    if ours.shape != theirs.shape:
        return f"shape {ours.shape} and {theirs.shape}"
    if "U" in (ours.dtype.kind, theirs.dtype.kind):
        return "" if np.array_equal(ours, theirs) else "text"
    if not ours.size:
        return ""
    if not np.array_equal(np.isfinite(ours), np.isfinite(theirs)):
        return "other values are finite"
    ours, theirs = (np.where(np.isfinite(each), each, 0).astype(complex) for each in (ours, theirs))
    far = float(abs(ours - theirs).max() / max(abs(theirs).max(), 1e-9))
    return f"{far:.1e}" if far > TOLERANCE else ""


def stand_ins(hub: Path) -> None:
    """Put small random models into a Hugging Face cache under GPT-2's names."""
    save_gpt2(hub)
    gpt2 = hub / "models--openai-community--gpt2"
    for size in SIZES:
        for owner in ("openai-community--", "distilbert--", ""):
            place = hub / f"models--{owner}{size}"
            if not place.exists():
                shutil.copytree(gpt2, place)


def table(verdicts: Iterable[Verdict], reasons: dict[str, str]) -> list[str]:
    """Return the lines of a table of all notebooks."""
    lines = ["| notebook | cells | run on TransformerLens | run on headscope | values | differ | why |"]
    lines.append("|---|---:|---:|---:|---:|---:|---|")
    for v in verdicts:
        why = reasons.get(v.name, "")
        lines.append(f"| {v.name} | {v.cells} | {v.theirs} | {v.ours} | {v.values:,} | {len(v.differ)} | {why} |")
    return lines


def peer_version(python: str) -> str:
    """Return the version of TransformerLens in an environment."""
    command = [python, "-c", "from importlib.metadata import version; print(version('transformer_lens'))"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def written_reasons(page: str) -> dict[str, str]:
    """Return the reasons that stand in a page's table: they are written by hand, and kept."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {row[0]: row[6].strip() for row in rows if len(row) == 7}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the notebooks on both sides, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--peer", help="the Python of an environment with TransformerLens 3.9 and IPython")
    parser.add_argument("--python", default=sys.executable, help="that of one with headscope and IPython")
    parser.add_argument("--hub", type=Path, help="a Hugging Face cache with the models; default: small random ones")
    parser.add_argument("--seconds", type=float, default=60.0, help="the longest a cell may take")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="a page whose table is replaced")
    options = parser.parse_args(arguments)
    if not options.notebooks or options.peer is None:
        print("Notebooks and --peer are needed; see --help.")
        return
    page = options.write.read_text(encoding="utf-8") if options.write else ""
    verdicts = []
    with tempfile.TemporaryDirectory() as directory:
        hub = options.hub or Path(directory, "hub")
        if options.hub is None:
            stand_ins(hub)
        common = {"hub": hub.absolute(), "seconds": options.seconds, "threads": options.threads}
        for path in options.notebooks:
            cells = cells_of(path)
            file = Path(directory, f"{path.stem}.json")
            file.write_text(json.dumps(cells))
            ours, theirs = (Path(directory, f"{path.stem}-{side}") for side in ("ours", "theirs"))
            run_in(options.peer, file, theirs, first="", **common)
            run_in(options.python, file, ours, first=ALIAS, **common)
            verdict = compared(path.stem, len(cells), ours, theirs)
            verdicts.append(verdict)
            print(f"{verdict.name}: {verdict.cells} cells, {verdict.theirs} run there, {verdict.ours} here;", end=" ")
            print(f"{verdict.values:,} values, {len(verdict.differ)} differ;", end=" ")
            print("{:.1f} s here, {:.1f} there".format(*verdict.seconds), flush=True)
            for line in [*verdict.failed, *verdict.differ[:20]]:
                print("   ", line)
            for side in (ours, theirs):
                shutil.rmtree(side, ignore_errors=True)
    lines = table(verdicts, written_reasons(page))
    print("\n".join(lines))
    if options.write:
        version = peer_version(options.peer)
        note = f"Beside TransformerLens {version}; values agree within {TOLERANCE:g} of the largest."
        before, after = page.split(BEGIN)[0], page.split(END)[-1]
        text = "\n".join([BEGIN, "", *lines, "", note, "", END])
        options.write.write_text(before + text + after, encoding="utf-8")


if __name__ == "__main__":
    main()
