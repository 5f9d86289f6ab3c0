"""`headscope scoreboard`: what it prints and writes, and how it fails."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from small_program import TRUTH, previous_token_program

Run = Callable[..., tuple[int, str, str]]


def test_a_folder_of_models_is_scored(run: Run, tmp_path: Path) -> None:
    previous_token_program().save_pretrained(tmp_path / "models" / "program")
    (tmp_path / "models" / "program" / "truth.json").write_text(json.dumps(TRUTH))
    for name in ("board.md", "board.parquet", "board.csv"):
        out = tmp_path / "out" / name
        code, printed, _ = run("scoreboard", tmp_path / "models", "--no-demo", "--out", out, "--no-progress")
        assert code == 0 and "| program" in printed and f"Written to {out}" in printed
    assert (tmp_path / "out" / "board.md").read_text().count("\n| program ") == 3
    for frame in (pd.read_parquet(tmp_path / "out" / "board.parquet"), pd.read_csv(out)):
        assert frame.model.tolist() == ["program"] and frame["components: zero ablation"].tolist() == [1.0]


def test_a_folder_without_known_models_is_refused(run: Run, tmp_path: Path) -> None:
    code, _, error = run("scoreboard", tmp_path)
    assert code == 1 and "no folder in it has a truth.json" in error
