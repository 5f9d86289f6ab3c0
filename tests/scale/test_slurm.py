"""The job file for SLURM, run by bash: as one task of an array, and with all parts here."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "entropy.sh"


@pytest.mark.skipif(shutil.which("bash") is None, reason="a script for bash")
def test_parts_of_an_array_and_all_parts_here(tmp_path: Path) -> None:
    command = tmp_path / "headscope"
    command.write_text('#!/bin/sh\necho "$OMP_NUM_THREADS $*"\n')
    command.chmod(0o755)

    def said(**variables: str) -> list[str]:
        environment = {"PATH": "/usr/bin:/bin", "HEADSCOPE": str(command), **variables}
        arguments = ["bash", str(SCRIPT), "gpt2", "my story.txt", "runs/a b", "--baseline", "mean"]
        run = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
        return run.stdout.splitlines()

    def line(threads: int, part: str) -> str:
        options = f"--text my story.txt --out runs/a b --shard {part} --no-progress --baseline mean"
        return f"{threads} entropy gpt2 {options}"

    array = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "64"}
    assert said(**array, SLURM_CPUS_PER_TASK="8") == [line(8, "3/64")]
    assert said(PARTS="3") == [line(1, f"{number}/3") for number in range(3)]
