"""Run a notebook's cells in this environment, and keep what each computed: arrays, numbers, text and figures.

    python notebooks.py CELLS.json OUT [--first "import headscope.compat.transformer_lens"] [--seconds 60]

Needs IPython, not headscope. Each cell starts from its own random seed, so that two libraries that draw different
numbers when a model is made agree again in the next cell.
"""

import argparse
import contextlib
import io
import json
import math
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import plotly.io as pio
import torch
from IPython.core.interactiveshell import InteractiveShell
from plotly.io.base_renderers import ExternalRenderer

MOST_ELEMENTS = 20_000_000
LONGEST_TEXT = 1000
DEPTH = 3


class Stopped(BaseException):
    """The cell took too long; no `except Exception` of its own catches this."""


class Figures(ExternalRenderer):
    """Keeps the figures that are shown."""

    def __init__(self) -> None:
        self.shown: list[dict[str, Any]] = []

    def render(self, fig_dict: dict[str, Any]) -> None:
        self.shown.append(json.loads(pio.to_json(fig_dict, validate=False, engine="json")))


def arrays_of(name: str, value: Any, depth: int = DEPTH) -> Iterator[tuple[str, np.ndarray | str]]:
    """Yield the numbers and texts in a value, each with its place."""
    kind = type(value).__name__
    if isinstance(value, torch.Tensor):
        if not value.is_meta and not value.is_sparse:
            value = value.detach().cpu()
            yield name, (value.double() if value.is_floating_point() else value).resolve_conj().numpy()
    elif isinstance(value, bool | int | float | np.ndarray | np.number):
        array = np.asarray(value)
        if array.dtype.kind in "biufc":
            yield name, array
    elif isinstance(value, str):
        if len(value) <= LONGEST_TEXT and "</" not in value:  # pages look different, on purpose
            yield name, value
    elif kind == "FactoredMatrix":
        if math.prod(value.shape) <= MOST_ELEMENTS:
            yield name, value.AB.detach().double().numpy()
    elif depth and (isinstance(value, Mapping) or kind == "ActivationCache"):
        for key, each in list(value.items())[:2000]:
            yield from arrays_of(f"{name}[{key!r}]", each, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for i, each in enumerate(value[:2000]):
            yield from arrays_of(f"{name}[{i}]", each, depth - 1)


def plotted(figure: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the numbers of a figure's traces."""
    for i, trace in enumerate(figure.get("data", ())):
        for axis in ("x", "y", "z", "values"):
            values = trace.get(axis)
            with contextlib.suppress(TypeError, ValueError):  # categories, ragged rows
                yield f"figure trace {i} {axis}", np.asarray(values, dtype=float)


def run(cells: list[str], out: Path, first: str, seconds: float) -> None:
    """Run the cells, and write what came of each as soon as it is done."""
    figures = Figures()
    pio.renderers["kept"] = figures
    pio.renderers.default = "kept"
    shell = InteractiveShell.instance(colors="nocolor", history_manager=None)
    shell.showtraceback = lambda *_, **__: None

    def stop(*_: Any) -> None:
        raise Stopped(f"stopped after {seconds:g} s")

    signal.signal(signal.SIGALRM, stop)
    if first:
        shell.run_cell(first, store_history=False).raise_error()
    space = shell.user_ns
    for number, code in enumerate(cells):
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(number)
        before = {name: id(value) for name, value in space.items()}
        figures.shown.clear()
        start = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                done = shell.run_cell(code, store_history=False)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            took = time.perf_counter() - start
        pio.renderers.default = "kept"  # a notebook chooses one of its own
        error = done.error_before_exec or done.error_in_exec
        new = {n: v for n, v in space.items() if not n.startswith("_") and before.get(n) != id(v)}
        found: dict[str, np.ndarray | str] = {}
        held = 0
        for name, value in [*new.items(), ("displayed", done.result)]:
            for place, each in arrays_of(name, value):
                if isinstance(each, str):
                    found[place] = each
                elif held + each.size <= MOST_ELEMENTS:
                    found[place] = each
                    held += each.size
        for i, figure in enumerate(figures.shown):
            found |= {f"{place} of figure {i}": each for place, each in plotted(figure)}
        np.savez(out / f"{number}.npz", **{f"{i}": each for i, each in enumerate(found.values())})
        report = {
            "ran": error is None,
            "error": "" if error is None else f"{type(error).__name__}: {error}".strip()[:500],
            "seconds": took,
            "names": list(found),
            "figures": len(figures.shown),
        }
        (out / f"{number}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("cells", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--first", default="")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    run(json.loads(options.cells.read_text()), options.out, options.first, options.seconds)
    sys.exit(0)
