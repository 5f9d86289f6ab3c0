"""`headscope train`: the recipes of the demo and of the toys."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headscope.cli import training
from headscope.training.trainer import TrainHistory

Run = Callable[..., tuple[int, str, str]]


def test_the_demo_is_trained_by_its_recipe(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def train_demo(out: Path, **options: Any) -> TrainHistory:
        given.extend((out, options))
        return TrainHistory(torch.tensor([9.0, 4.25]), torch.ones(2), 640, 61.2)

    monkeypatch.setattr(training, "train_demo", train_demo)
    code, printed, _ = run("train", "demo", "--out", tmp_path / "demo", "--steps", 6, "--seed", 3, "--no-progress")
    assert code == 0 and "loss 4.250 nats in the last of 2 steps, 61 s" in printed
    assert given == [tmp_path / "demo", {"seed": 3, "steps": 6, "progress": False}]


def test_a_toy_is_trained_and_resumed(run: Run, tmp_path: Path) -> None:
    config, out = tmp_path / "config.json", tmp_path / "toy"
    config.write_text('{"task": {"size": 3000}, "training": {"steps": 12, "batch_size": 200}}')
    command = ["train", "skip-trigram", "--config", config, "--seed", 1, "--out", out, "--no-progress"]
    code, printed, _ = run(*command)
    assert code == 0 and "12 steps" in printed and "signal" in printed
    assert {"report.html", "training.parquet", "dynamics.parquet"} <= {each.name for each in (out / "report").iterdir()}
    again, repeated, _ = run(*command, "--resume")
    assert again == 0 and repeated.splitlines()[2] == printed.splitlines()[2]
    code, _, error = run(*command)
    assert code == 1 and "already holds a run" in error
