"""What a long command says before it starts: what it runs, and about how long."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_models import small_model

from headscope.analysis.core.costs import Work
from headscope.analysis.core.progress import progress_bar
from headscope.cli.base import foretelling
from headscope.cli.base.foretelling import foretold
from headscope.report.plan import Part

Run = Callable[..., tuple[int, str, str]]

# Seconds for an operation and a call, as on a machine so slow that every command is long.
SLOW = Work(runs=3.0, layers=1e-6, rows=1e-6, heads=1e-6, products=1e-6)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foretelling, "_SHORT", 0.0)
    monkeypatch.setattr(foretelling, "measured_rates", lambda *_: SLOW)


COMMANDS: dict[str, tuple[list[str], str]] = {
    "entropy": (["entropy", "CHECKPOINT", "--max-tokens", "96"], "entropy: 96 tokens; about "),
    "ablate": (
        ["ablate", "CHECKPOINT", "--max-tokens", "96", "--heads", "0.1,mlp1", "--value", "mean"],
        "ablation: 96 tokens, 2 components, mean, patched, direct; about ",
    ),
    "copy-suppression": (
        ["copy-suppression", "headscope-demo", "--max-tokens", "64", "--heads", "0.1"],
        "on this machine: suppression (256 tokens, 1 head) ",
    ),
    "attribute": (["attribute", "headscope-demo", "--prompts", "8"], "attribution: 8 prompts; about "),
    "ioi": (["ioi", "headscope-demo", "--prompts", "8"], "on this machine: clean (8 prompts) "),
    "patch": (["patch", "headscope-demo", "--prompts", "4", "--sites", "z"], "patching: 4 prompts, z; about "),
    "heads": (["heads", "headscope-demo"], "head types: random tokens; about "),
    "train": (["train", "skip-trigram", "--config", "TMP/short.json"], "training: 12 steps; about "),
}


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(("args", "says"), COMMANDS.values(), ids=COMMANDS.keys())
def test_a_long_command_says_what_it_will_do(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.json").write_text('{"task": {"size": 200}, "training": {"steps": 12}}')
    filled = [arg.replace("CHECKPOINT", str(checkpoint)).replace("TMP", str(tmp_path)) for arg in args]
    code, printed, error = run(*filled)
    assert code == 0, error
    (line,) = (line for line in error.replace("\r", "\n").splitlines() if "on this machine" in line)
    assert says in line and line.endswith(".") and "on this machine" not in printed
    code, again, error = run(*filled, "--no-progress")
    assert (code, error) == (0, "") and ("on this machine" not in again)


def test_a_short_command_says_nothing_and_measures_nothing(
    run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Work:
        raise AssertionError("the machine was probed for a short command")

    monkeypatch.setattr(foretelling, "measured_rates", never)
    code, _, error = run("entropy", checkpoint, "--max-tokens", 96)
    assert code == 0 and "on this machine" not in error
    monkeypatch.undo()
    monkeypatch.setattr(foretelling, "_SHORT", 0.0)
    code, _, error = run("entropy", checkpoint, "--max-tokens", 96)
    assert code == 0 and "on this machine" not in error  # probed, and found to be short


@pytest.mark.usefixtures("slow")
def test_one_bar_is_over_all_parts(capsys: pytest.CaptureFixture[str]) -> None:
    parts = [Part(name, "4 runs", {name: Work(runs=4)}) for name in ("first", "second")]
    with foretold(small_model(), parts) as within:
        bar: Any = within.__self__  # type: ignore[attr-defined]
        with within("first"), progress_bar(2, "first") as inner:
            assert bar.share == 0
            inner.update()
            assert bar.share == 0.25
        assert bar.share == 0.5
    error = capsys.readouterr().err.replace("\r", "\n")
    assert error.startswith("About 20 s on this machine: first (4 runs) 10 s, second (4 runs) 10 s.\n")
