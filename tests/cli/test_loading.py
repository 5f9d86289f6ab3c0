"""How the model of a command is loaded, as its options say."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_models import STORY

from headscope import HookedTransformer
from headscope.analysis import EntropyResult, measure_entropy
from headscope.cli import app
from headscope.report import token_rows

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--max-tokens", "40", "--seq-len", "20", "--no-progress")


@pytest.fixture(scope="module")
def without_tokenizer(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "checkpoint-500"
    folder.mkdir()
    for file in checkpoint.iterdir():
        if not file.name.startswith("tokenizer") and file.suffix in (".json", ".safetensors"):
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_dtype_is_the_models(run: Run, checkpoint: Path, story: Path, tmp_path: Path) -> None:
    args = ("entropy", str(checkpoint), "--text", str(story), "--out", str(tmp_path / "run"), *QUICK)
    code, _, failed = run(*args, "--dtype", "bfloat16", "--device", "cpu")
    assert code == 0, failed
    model = HookedTransformer.from_pretrained(checkpoint, dtype=torch.bfloat16)
    expected = measure_entropy(model, token_rows(model, [STORY * 3], max_tokens=40, seq_len=20), progress=False)
    kept = EntropyResult.load(tmp_path / "run" / "result.safetensors")
    assert torch.equal(kept.diff, expected.diff)
    whole = HookedTransformer.from_pretrained(checkpoint)
    tokens = token_rows(whole, [STORY * 3], max_tokens=40, seq_len=20)
    assert not torch.equal(kept.diff, measure_entropy(whole, tokens, progress=False).diff)


def test_options_end_with_their_command(run: Run, checkpoint: Path, story: Path, tmp_path: Path) -> None:
    args = ("entropy", str(checkpoint), "--text", str(story), *QUICK)
    before, after = (run(*args, "--out", str(tmp_path / name)) for name in ("before", "after"))
    assert run(*args, "--dtype", "bfloat16")[0] == 0 and before[0] == after[0] == 0
    results = [EntropyResult.load(tmp_path / name / "result.safetensors").diff for name in ("before", "after")]
    assert torch.equal(*results)


def test_another_models_tokenizer(run: Run, checkpoint: Path, without_tokenizer: Path) -> None:
    args = ("prompt", str(without_tokenizer), "once there was", "a", "--top-k", "1")
    code, _, failed = run(*args)
    assert code == 1 and "HS-TOKENIZER-01" in failed and "--tokenizer" in failed
    code, printed, failed = run(*args, "--tokenizer", str(checkpoint))
    assert code == 0, failed
    assert "Answer token" in printed


def test_mapped_weights_give_the_same_numbers(run: Run, checkpoint: Path, story: Path, tmp_path: Path) -> None:
    saved = HookedTransformer.from_pretrained(checkpoint).save_pretrained(tmp_path / "saved")
    args = ("entropy", str(saved), "--text", str(story), *QUICK)
    assert run(*args, "--out", str(tmp_path / "whole"))[0] == 0
    code, _, failed = run(*args, "--mapped", "--out", str(tmp_path / "mapped"))
    assert code == 0, failed
    whole, mapped = (EntropyResult.load(tmp_path / name / "result.safetensors").diff for name in ("whole", "mapped"))
    assert torch.equal(whole, mapped)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--mapped",), "are rewritten when they are loaded"),
        (("--device", "cudda"), "'cudda' cannot be used"),
        (("--dtype", "float8"), "'float8' is not one of"),
        (("--tokenizer", "./missing"), "does not exist"),
    ],
)
def test_what_cannot_be_is_refused(run: Run, checkpoint: Path, options: tuple[str, ...], says: str) -> None:
    code, _, failed = run("prompt", str(checkpoint), "once", "there", *options)
    assert code != 0 and says in failed


def test_mapped_weights_stay_as_they_are(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    saved = HookedTransformer.from_pretrained(checkpoint).save_pretrained(tmp_path / "saved")
    code, _, failed = run("prompt", str(saved), "once", "there", "--mapped", "--dtype", "bfloat16")
    assert code == 1 and "--dtype bfloat16 would copy" in failed


def test_every_command_with_a_model_can_say_how(run: Run) -> None:
    with_model = {"report", "compare", "explore", "heads", "prompt", "entropy", "ablate", "copy-suppression", "ioi",
                  "attribute", "attention", "patch", "edges", "evaluate"}  # fmt: skip
    names = {(each.name or "") for each in app.registered_commands}
    assert {name for name in names if "--tokenizer" in run(name, "--help")[1]} == with_model


def test_help_fits_a_narrow_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, printed, _ = run("report", "--help")
    assert code == 0 and max(map(len, printed.splitlines())) <= 80
    assert "  --text <path>" in printed and "│" not in printed
