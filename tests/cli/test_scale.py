"""Runs in shards from the command line: parts and their merge, workers, and what is refused."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from streams import tensors_of

from headscope.analysis.lens.entropy import EntropyResult
from headscope.cli import scale
from headscope.errors import MissingDependencyError
from headscope.model.transformer import HookedTransformer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(checkpoint: Path, story: Path) -> list[object]:
    options = ["--text", story, "--max-tokens", 64, "--seq-len", 8, "--shard-tokens", 16, "--baseline", "mean"]
    return ["entropy", checkpoint, *options, "--no-progress"]


def test_parts_are_merged(run: Run, command: list[object], tmp_path: Path, set_budget: Callable[..., None]) -> None:
    set_budget(batch_tokens=16)
    out = tmp_path / "run"
    part = [*command, "--out", out]
    code, printed, _ = run(*part, "--shard", "0/2")
    assert code == 0 and "This part is measured. 2 of 4 shards of 'means'" in printed and "1, 3 are not" in printed
    told = run("status", out)[1]
    assert "means: 2 of 4 shards done" in told and told.endswith("\nentropy: not begun\n")
    assert f":{os.getpid()}: 2 shards, " in run("status", out, "--workers")[1]
    code, _, error = run("merge", out, "--no-progress")
    assert code == 1 and "2 of 4 shards of 'means'" in error
    code, printed, _ = run(*part, "--shard", "1/2")  # merges the means, and goes on to the entropies
    assert code == 0 and "2 of 4 shards of 'entropy'" in printed
    code, printed, _ = run(*part, "--shard", "0/2")
    assert code == 0 and printed.endswith(f"Saved to {out}/result.safetensors\n")
    code, printed, _ = run("merge", out, "--no-progress")
    assert code == 0 and "story.txt" in printed and f"Saved to {out}/result.safetensors" in printed
    assert run("status", out)[1].endswith("merged\nThe result is there.\n")
    assert run(*command[:2], *command[2:8], "--baseline", "mean", "--no-progress", "--out", tmp_path / "one")[0] == 0
    parts, one = (tensors_of(EntropyResult.load(tmp_path / name / "result.safetensors")) for name in ("run", "one"))
    for (
        name,
        values,
    ) in one.items():  # added in another order, which differences show
        torch.testing.assert_close(parts[name], values, rtol=1e-6 if name.endswith("_error") else 0, atol=0)


def test_merge_loads_the_model_in_the_dtype_of_the_run(
    run: Run, command: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "run", [*command[:-3], "--no-progress", "--dtype", "bfloat16"]
    for part in ("0/2", "1/2"):
        assert run(*options, "--out", out, "--shard", part)[0] == 0
    result = out / "result.safetensors"
    before = tensors_of(EntropyResult.load(result))
    result.unlink()
    devices: list[object] = []
    load = HookedTransformer.from_pretrained
    monkeypatch.setattr(
        HookedTransformer,
        "from_pretrained",
        lambda *args, **given: devices.append(given.get("device")) or load(*args, **given),
    )
    code, _, error = run("merge", out, "--device", "cpu", "--no-progress")
    assert code == 0, error
    assert devices == ["cpu"]
    torch.testing.assert_close(tensors_of(EntropyResult.load(result)), before, rtol=0, atol=0)


def test_what_does_not_go_together(run: Run, command: list[object], tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run"]
    for options, message in (
        (["--shard", "0/2"], "--shard needs a folder that workers share"),
        ([*out, "--shard", "3"], "--shard is a part I of N, written I/N, such as 3/64; got '3'"),
        ([*out, "--shard", "2/2"], "parts are numbered from 0 to 1; got 2"),
        ([*out, "--shard", "0/2", "--workers", 2], "--workers and --shard are two ways to share a run"),
        ([], "--shard-tokens goes with --workers, --ray or --shard"),
        ([*out, "--workers", 2, "--gpus", 1], "--gpus goes with --ray"),
    ):
        code, _, error = run(*command, *options)
        assert code == 1 and message in error, error
    assert not (tmp_path / "run").exists()
    code, _, error = run("status", tmp_path / "none")
    assert code == 1 and "is no run's folder" in error


def test_gpus_of_a_ray_clusters_workers(
    run: Run, command: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []

    def ray(address: str, **options: object) -> None:
        asked.append({"address": address, **options})
        raise MissingDependencyError("no cluster here.")

    monkeypatch.setattr(scale, "Ray", ray)
    code, _, error = run(*command, "--out", tmp_path / "run", "--ray", "auto", "--gpus", 0.5, "--worker-lines")
    assert code == 1 and "no cluster here" in error
    assert asked[0]["address"] == "auto" and asked[0]["gpus"] == 0.5 and asked[0]["tells_workers"] is True
