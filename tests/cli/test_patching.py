"""`headscope patch`: what it prints and writes, and how it fails."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from headscope import HookedTransformer
from headscope.analysis.patching.activation import activation_patch
from headscope.analysis.patching.result import PatchingResult
from headscope.analysis.prompts.task import Task
from headscope.data.ioi import IOIDataset

Run = Callable[..., tuple[int, str, str]]
TABLE = (
    "prompt,correct,incorrect,corrupted\n"
    "When Mary and John went to the park John gave a ball to,Mary,John,"
    "When Mary and John went to the park Mary gave a ball to\n"
)


def test_drawn_prompts_are_patched_at_words(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ("--prompts", 4, "--sites", "attn_out, z", "--by-position", "--positions", "S2,end,-1", "--top", 3)
    code, printed, _ = run("patch", *flags, "--direction", "noising", "--out", out, "--no-progress")
    assert code == 0
    model = HookedTransformer.from_pretrained("headscope-demo")
    task = Task.from_ioi(IOIDataset("mixed", 4, model.tokenizer, prepend_bos=True, seed=0))
    options = {"direction": "noising", "by_position": True, "positions": ["S2", "end", -1], "progress": False}
    wanted = activation_patch(model, task, ["attn_out", "z"], **options)
    assert str(wanted) in printed and str(wanted.top(3)) in printed
    found = PatchingResult.load(out / "result.safetensors")
    assert torch.equal(found.values, wanted.values) and found.positions == ("S2", "end", -1)
    frame = pd.read_parquet(out / "patches.parquet")
    assert len(frame) == found.values.numel() and set(frame.position) == {"S2", "end", "-1"}
    page = (out / "patching.html").read_text(encoding="utf-8")
    assert page.count('class="plotly-graph-div"') == 2


def test_ones_own_prompts_are_patched(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    path.write_text(TABLE)
    flags = ("--task", path, "--sites", "resid_pre,z", "--positions", "1,end", "--scale", "metric")
    code, printed, _ = run("patch", *flags, "--out", tmp_path / "out", "--no-progress")
    assert code == 0 and "denoising: clean " in printed and " at end" in printed
    assert "values are the change of the logit difference" in printed
    page = (tmp_path / "out" / "patching.html").read_text(encoding="utf-8")
    assert page.count('class="plotly-graph-div"') == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sites", "resid_mdi"), "Unknown site 'resid_mdi'. Did you mean 'resid_mid'"),
        (("--prompts", 4, "--positions", "S3"), "Unknown position 'S3'. Did you mean"),
        (("--task", "FILE"), "needs corrupted prompts"),
    ],
)
def test_failures_are_one_line(flags: tuple[object, ...], message: str, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    path.write_text("prompt,correct,incorrect\nMary gave a book to,John,Mary\n")
    code, _, error = run("patch", *(path if flag == "FILE" else flag for flag in flags), "--no-progress")
    assert code == 1 and message in error and error.count("\n") == 1
