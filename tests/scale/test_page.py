"""Every command of docs/scale.md, run as it stands there but for its sizes; those on a Ray cluster are marked `ray`."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import run_command
from streams import same_bits

from headscope.analysis.lens.entropy import EntropyResult

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
STORY = "When Mary and John went to the park, John gave a ball to Mary. Then Anna and Tom came, and Tom saw Mary. "
# Larger models and arrays than a test has time for, and folders that a test may not write to.
SMALLER = {"gpt2": "headscope-demo", "--array=0-63": "--array=0-2", "/shared/": "shared/"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [line for text in blocks("bash") for line in text.splitlines()]
ON_RAY = [line for line in COMMANDS if "--ray" in line]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the story and the examples, and commands that note what they are asked."""
    (tmp_path / "story.txt").write_text(STORY * 8, encoding="utf-8")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    commands = tmp_path / "bin"
    commands.mkdir()
    # What a script calls is run afterwards in this process, which need not import everything once more.
    script(commands / "headscope", 'printf "%s\\n" "$@" "" >> calls.txt')
    script(
        commands / "sbatch",
        """
        array=${1#--array=} script=$2
        shift 2
        for task in $(seq "${array%-*}" "${array#*-}"); do
            SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_MIN=${array%-*} SLURM_ARRAY_TASK_COUNT=$((${array#*-} + 1)) \\
                bash "$script" "$@"
        done
        """,
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def script(path: Path, content: str) -> None:
    path.write_text(f"#!/bin/bash\nset -eu\n{content}\n", encoding="utf-8")
    path.chmod(0o755)


def calls_of(line: str, here: Path) -> Iterator[list[str]]:
    """Run a line of the page by bash, and yield the arguments of each call of headscope."""
    for large, small in SMALLER.items():
        line = line.replace(large, small)
    subprocess.run(["bash", "-euc", line], check=True, cwd=here)
    calls = (here / "calls.txt").read_text(encoding="utf-8")
    (here / "calls.txt").unlink()
    for call in calls.removesuffix("\n\n").split("\n\n"):
        yield call.splitlines()


@pytest.mark.skipif(shutil.which("bash") is None, reason="a page for bash")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_the_page_says_without_a_cluster(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {}
    for line in COMMANDS:
        if line.startswith("pip install"):
            (extra,) = re.findall(r"headscope\[(\w+)\]", line)
            assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
            continue
        if line in ON_RAY:
            continue
        for arguments in calls_of(line, here):
            code, told[line], error = run_command(capsys, *arguments)
            assert code == 0, (line, error)
    assert len(told) + len(ON_RAY) + 1 == len(COMMANDS) == len(set(COMMANDS))
    assert "1 of 1 shards done, merged" in told["headscope status runs/story --workers"]
    names: dict[str, Any] = {}
    for text in blocks("python"):
        exec(text, names)
    folders = (Path("runs/story"), Path("runs/parts"), Path("shared/runs/story"))
    results = [EntropyResult.load(here / folder / "result.safetensors") for folder in folders]
    for each in results[1:]:
        same_bits(each, results[0])
    assert EntropyResult.load(here / "runs" / "mean" / "result.safetensors").info.options["baseline"] == "mean"
    assert EntropyResult.load(here / "runs" / "mapped" / "result.safetensors").info == names["entropy"].info


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_the_page_says_of_a_cluster(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'headscope[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    assert ["--ray local" in line for line in ON_RAY] == [True, False]
    for line, folder in zip(ON_RAY, ("runs/ray", "shared/runs/story"), strict=True):
        cluster = None if "--ray local" in line else Cluster(True, head_node_args={"num_cpus": 2})
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1" if cluster is None else cluster.address)  # not for local
        try:
            for arguments in calls_of(line, here):
                code, _, error = run_command(capsys, *arguments)
                assert code == 0, (line, error)
        finally:
            if cluster is not None:
                cluster.shutdown()
        EntropyResult.load(here / folder / "result.safetensors")
