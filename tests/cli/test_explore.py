"""The command that measures every head and writes the explorer."""

from collections.abc import Callable
from pathlib import Path

import pytest

from headscope.explorer import read_tree
from headscope.explorer.measuring import exploring

Run = Callable[..., tuple[int, str, str]]
ARGS = ("explore", "--max-tokens", "512", "--seq-len", "32", "--sequences", "2", "--no-ablation", "--no-progress")


def test_the_command_writes_the_site(run: Run, tmp_path: Path) -> None:
    code, printed, error = run(*ARGS, "--out", str(tmp_path / "site"))
    assert (code, error) == (0, "")
    found = read_tree(tmp_path / "site")
    assert f"{tmp_path / 'site' / 'index.html'} (20 heads, " in printed and "MB with all files)" in printed
    assert "--no-ablation" in printed and found.config["pipeline_config"]["dataset_name"] == "generated small English"


def test_a_stop_says_how_to_go_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "site"
    with monkeypatch.context() as patch:
        patch.setattr(exploring, "detect_heads", stop)
        code, _, error = run(*ARGS, "--out", str(out))
    assert code == 130 and f"Stopped. What was measured is kept in {out / 'measured'}. To go on: " in error
    assert error.strip().endswith("--resume")
    code, printed, _ = run(*ARGS, "--out", str(out), "--resume")
    assert code == 0 and str(out / "index.html") in printed and not (out / "measured").exists()
