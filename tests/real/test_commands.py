"""Each command on the pretrained model's file, from start to end."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import run_command
from smollm import PATH, TEXT
from torch import Tensor

from headscope import HookedTransformer
from headscope.analysis import AblationResult, Attribution, EntropyResult, HeadTypes, Task, attribute, measure_entropy
from headscope.data import IOIDataset

pytestmark = pytest.mark.real

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "160")

    def call(command: str, *args: object) -> str:
        code, printed, error = run_command(capsys, command, PATH, *args)
        assert code == 0, error
        return printed

    return call


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_prompt(run: Run) -> None:
    printed = run("prompt", "The capital of France is", "Paris", "--top-k", 3)
    assert "' Paris'" in printed and "<- the answer" in printed


def test_entropy(run: Run, story: Path, tmp_path: Path, model: HookedTransformer, tokens: Tensor) -> None:
    run("entropy", "--text", story, "--out", tmp_path / "run", "--no-progress")
    found, wanted = (
        EntropyResult.load(tmp_path / "run" / "result.safetensors"),
        measure_entropy(model, tokens, progress=False),
    )
    torch.testing.assert_close(found.diff, wanted.diff, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.marginal, wanted.marginal, rtol=0, atol=1e-4)


def test_ablate(run: Run, story: Path, tmp_path: Path) -> None:
    printed = run("ablate", "--text", story, "--heads", "18.6,23.0", "--out", tmp_path / "run", "--no-progress")
    found = AblationResult.load(tmp_path / "run" / "result.safetensors")
    assert found.loss_diff.shape[2] == 2 and "18.6" in printed and "23.0" in printed


def test_attribute(run: Run, tmp_path: Path, model: HookedTransformer) -> None:
    run("attribute", "--prompts", 3, "--out", tmp_path / "run", "--no-progress")
    found = Attribution.load(tmp_path / "run" / "result.safetensors")
    prompts = IOIDataset("mixed", N=3, tokenizer=model.tokenizer, prepend_bos=True)
    wanted = attribute(model, Task.from_ioi(prompts), progress=False)
    torch.testing.assert_close(found.heads, wanted.heads, rtol=0, atol=1e-4)


def test_patch(run: Run, tmp_path: Path) -> None:
    printed = run(
        "patch", "--prompts", 2, "--sites", "resid_pre", "--positions", "end", "--out", tmp_path, "--no-progress"
    )
    assert "resid_pre 2" in printed and list(tmp_path.glob("*.parquet")) and list(tmp_path.glob("*.html"))


def test_ioi(run: Run) -> None:
    printed = run("ioi", "--prompts", 4, "--rows", 2, "--no-progress")
    assert "ABBA: +" in printed and "Corrupted" in printed


def test_copy_suppression(run: Run, story: Path) -> None:
    printed = run(
        "copy-suppression", "--text", story, "--max-tokens", 16, "--heads", "24.4", "--no-ranks", "--no-progress"
    )
    assert "24.4" in printed and "explained" in printed


def test_heads(run: Run, tmp_path: Path) -> None:
    run("heads", "--prompts", 2, "--out", tmp_path, "--no-progress")
    found = HeadTypes.load(tmp_path / "result.safetensors")
    assert all("induction" in found.kinds_of(*head) for head in ((18, 6), (17, 5)))
    # Eight rows of each length ask for nine errors above the control: these two lack it at 12 tokens, high as they are.
    assert {"17.3", "17.4"} <= {score.label for score in found.undecided("induction") if score.value > 0.5}


def test_report(run: Run, story: Path, tmp_path: Path) -> None:
    options = ("--max-tokens", 16, "--ablation-tokens", 0, "--no-task", "--n-heads", 1, "--n-positions", 1)
    run("report", "--text", story, *options, "--out", tmp_path / "report", "--no-progress")
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert PATH.name in page and "18.6" in page and len(page) > 50_000
    assert 'stands <q class="token">&lt;|im_start|&gt;</q>, the tokenizer' in page
    # The file's numbers: the embedding is the unembedding too, and there are no biases.
    assert "<dt>Parameters</dt><dd>134,515,008</dd>" in page
    assert (tmp_path / "report" / "entropy.parquet").is_file()


@pytest.mark.slow
def test_compare(run: Run, story: Path, tmp_path: Path) -> None:
    run("compare", PATH, "--text", story, "--max-tokens", 16, "--out", tmp_path, "--no-progress")
    assert (tmp_path / "comparison.html").stat().st_size > 50_000
