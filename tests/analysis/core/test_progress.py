"""Progress bars: one on the terminal, which moves within its steps."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from own_process import run_program
from small_models import small_model

from headscope.analysis.ablation.ablate import ablate_heads
from headscope.analysis.core import progress
from headscope.analysis.core.costs import layer_operations, row_operations, run_operations
from headscope.analysis.core.progress import Bar, each_step, mark_safe, progress_bar, watching
from headscope.analysis.lens.entropy import measure_entropy
from headscope.ops.kernels import cpu_kernels


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The lines that are shown on the terminal."""
    shown: list[Any] = []

    class Line(progress.tqdm):  # type: ignore[name-defined,misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.positions: list[float] = []
            shown.append(self)

        def update(self, n: float | None = 1) -> None:
            super().update(n)
            self.positions.append(self.n)

    monkeypatch.setattr(progress, "tqdm", Line)
    return shown


def test_an_inner_bar_moves_the_outer_one_by_its_share_of_the_step(lines: list[Any]) -> None:
    with progress_bar(10, "outer") as outer:
        outer.step = 4
        with progress_bar(2, "inner") as inner:
            inner.update()
            assert outer.position == 2
            inner.update()
        outer.update(4)
        # A second bar within one step does not take back what the first did.
        outer.step = 6
        for share in (0.5, 0.25):
            with progress_bar(1, "inner") as inner:
                inner.update(share)
        assert outer.position == 4 + 3
        outer.update(6)
    (line,) = lines
    assert line.positions == [2, 4, 4, 7, 7, 10] and line.desc == "outer"


def test_bars_that_are_not_shown_leave_the_outer_one_alone(lines: list[Any]) -> None:
    with progress_bar(2, "outer") as outer:
        with progress_bar(2, "inner", shown=False) as inner:
            inner.update(2)
        assert (inner.share, outer.position) == (1, 0)
    assert len(lines) == 1
    with progress_bar(None, "nobody knows") as bar:
        bar.update(3)
        assert (bar.share, bar.position) == (0, 3)


def test_a_bar_closed_late_takes_no_place_from_others(lines: list[Any]) -> None:
    left = each_step([1, 2, 3], "left in the middle")
    with progress_bar(1, "outer"):
        next(left)
    # The outer bar is closed: what comes now has a line of its own, even when the one inside is closed in its midst.
    with progress_bar(4, "next") as bar:
        left.close()  # type: ignore[attr-defined]
        with progress_bar(1, "within") as inner:
            inner.update()
        assert bar.position == 1
    assert [line.desc for line in lines] == ["outer", "next"]


def test_watching_moves_one_bar_for_whatever_opens_some(lines: list[Any]) -> None:
    seen: list[tuple[str, float]] = []

    class Watched(Bar):
        def moved_within(self, inner: Bar) -> None:
            seen.append((inner.name, inner.share))

    with watching(Watched(1, "all")):
        assert list(each_step("ab", "letters")) == ["a", "b"]
    assert seen == [("letters", 0.5), ("letters", 1.0)] and not lines
    list(each_step("ab", "letters"))
    assert len(lines) == 1


@pytest.mark.parametrize("analysis", [measure_entropy, ablate_heads])
def test_an_analysis_of_one_batch_moves_within_it(analysis: Any, lines: list[Any]) -> None:
    model = small_model()
    analysis(model, torch.randint(3, 40, (4, 24), generator=torch.Generator().manual_seed(0)))
    n_passes, line = (2 if analysis is ablate_heads else 1), lines[-1]  # means, and then effects
    assert line.total == 96 * n_passes == line.positions[-1]
    assert len([at for at in line.positions if line.initial < at < line.total]) >= n_passes - 1
    assert line.positions == sorted(line.positions)


def test_later_layers_are_cheaper() -> None:
    model = small_model()
    n, layer, row = model.cfg.n_layers, layer_operations(model), row_operations(model)
    weights = sum(weight.numel() for weight in model.blocks.parameters())
    assert layer == 2 * weights / n and row == 2 * model.cfg.d_model * model.cfg.d_vocab_out
    assert [run_operations(model, at) for at in range(n + 1)] == [row + layer * (n - at) for at in range(n + 1)]


def test_a_bar_says_how_much_is_safe(lines: list[Any]) -> None:
    mark_safe(1)  # where no bar is open, nothing is said
    with progress_bar(10, "outer") as outer:
        assert str(outer) == ""
        outer.update(5)
        outer.step = 4
        with progress_bar(100, "inner") as inner:
            inner.update(50)
            assert not lines[0].postfix
            mark_safe(25)
            assert str(inner) == "safe: 25%" and str(outer) == lines[0].postfix == "safe: 60%"
    with progress_bar(None, "unknown") as bar:
        mark_safe(12345)
        assert str(bar) == "safe: 12,345"


def test_bars_that_tqdm_was_told_to_leave_out_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # As by TQDM_DISABLE=1, which tqdm reads when it is imported.
    monkeypatch.setattr(progress, "tqdm", partial(progress.tqdm, disable=True))
    with progress_bar(3, "layers") as bar:
        bar.update(2)
        bar.mark_safe(1)
        bar.total = 4
    assert (bar.position, str(bar)) == (2, "safe: 25%")


# A single loop of the kernels, twice, as two threads of an analysis or two analyses would need it.
COMPILES = """
import sys, torch
from headscope.analysis.core.progress import progress_bar
from headscope.ops.kernels.cpu_kernels import CpuKernels
with progress_bar(2, "tiles", shown=sys.argv[1] == "shown"):
    CpuKernels.prepared(torch.zeros(2, 3))
    CpuKernels.prepared(torch.zeros(1, 2, 3, dtype=torch.float32).mT)
"""


@pytest.mark.skipif(not cpu_kernels._PACKS, reason="here nothing is compiled for this")
def test_a_bar_says_once_that_loops_are_compiled_and_only_then(tmp_path: Path) -> None:
    said = []
    for shown, folder in (("hidden", "a"), ("shown", "b"), ("shown", "b")):
        done = run_program(COMPILES, shown, environment={"NUMBA_CACHE_DIR": str(tmp_path / folder)})
        assert done.returncode == 0, done.stderr
        said.append(done.stderr.count("compiling headscope's loops for this processor"))
    assert said == [0, 1, 0], "hidden, compiled, and read from disk"
