"""The command line: what it prints, and that every failure is one line and an exit code."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets_stand_in import StandInDataset, datasets_module
from small_models import STORY, save_checkpoint

from headscope import HookedTransformer, cli
from headscope.analysis.ablation.ablate import ablate_heads
from headscope.analysis.ablation.result import AblationResult
from headscope.analysis.core import batches as core_batches
from headscope.analysis.lens.entropy import EntropyAccumulator, EntropyResult, measure_entropy
from headscope.analysis.prompts.attribution import attribute
from headscope.analysis.prompts.attribution_result import Attribution
from headscope.analysis.prompts.task import Task
from headscope.analysis.suppression.circuit_ranks import weights_circuit_ranks
from headscope.analysis.suppression.cspa import copy_suppression_preserving_ablation
from headscope.cli import analyses, reports, suppression, tasks, training
from headscope.compat.prompt import test_prompt as run_prompt
from headscope.data.ioi import IOIDataset
from headscope.model.checkpoints import files as tensor_file
from headscope.model.checkpoints.families import FAMILIES
from headscope.model.checkpoints.hub import DEMO, HUB_MODELS
from headscope.report import token_rows, write_comparison, write_report
from headscope.training.demo import train_demo
from headscope.training.demo_figures import evaluate_demo

ROOT = Path(__file__).parent.parent
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text(STORY * 3, encoding="utf-8")
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("TERMINAL_WIDTH", "200")

    def call(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


def test_report_writes_the_page_and_says_where(run: Run, checkpoint: Path, story: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, _ = run("report", checkpoint, "--text", story, "--out", out, "--max-tokens", 96, "--no-progress")
    assert code == 0
    assert str(out / "report.html") in printed
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "on story.txt" in text and "2 of 48 tokens" in text


def test_report_compares_two(run: Run, checkpoint: Path, story: Path, tmp_path: Path) -> None:
    out, both = tmp_path / "out", ("--compare", checkpoint, checkpoint)
    options = ("--max-tokens", 96, "--ablation-tokens", 0, "--no-progress")
    code, printed, _ = run("report", *both, "--text", story, "--out", out, *options)
    assert code == 0
    assert f"{out / 'comparison.html'} (and 4 tables beside it)" in printed
    text = (out / "comparison.html").read_text(encoding="utf-8")
    name = "/".join(checkpoint.parts[-2:])
    assert f"{name} (first)" in text and f"{name} (second)" in text and "on story.txt" in text
    code, _, error = run("report", "gpt2", *both)
    assert code == 1 and error == "Error: --compare takes both models itself; 'gpt2' is a third one. Leave it out.\n"


@pytest.mark.parametrize(
    "option", [("--n-heads", 2), ("--n-positions", 3), ("--task", "ioi"), ("--no-task",)], ids=lambda option: option[0]
)
def test_what_a_comparison_does_not_take_is_refused(run: Run, checkpoint: Path, option: tuple[object, ...]) -> None:
    code, _, error = run("report", "--compare", checkpoint, checkpoint, *option)
    assert code == 1
    assert error == f"Error: {option[0]} is for the page about one model, and has no part in --compare. Leave it out.\n"


def test_report_takes_a_dataset(run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load_dataset(repo: str, **_: object) -> StandInDataset:
        asked.append(repo)
        return StandInDataset({"text": [STORY] * 4})

    monkeypatch.setitem(sys.modules, "datasets", datasets_module(load_dataset=load_dataset))
    options = ("--max-tokens", 96, "--ablation-tokens", 0, "--no-progress")
    code, _, _ = run("report", checkpoint, "--dataset", "owt", "--out", tmp_path, *options)
    assert code == 0 and asked == ["stas/openwebtext-10k"]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "on the dataset owt" in text and "2 of 48 tokens" in text
    monkeypatch.setitem(sys.modules, "datasets", None)
    code, _, error = run("report", checkpoint, "--dataset", "owt", "--out", tmp_path, *options)
    assert code == 1 and "pip install 'headscope[hf-datasets]'" in error and len(error.splitlines()) == 1
    code, _, error = run("report", checkpoint, "--dataset", "owd", *options)
    assert code == 1 and "owd" in error and "owt" in error
    code, _, error = run("report", checkpoint, "--dataset", "owt", "--text", "a.txt")
    assert (code, error) == (1, "Error: --text and --dataset are two texts: give one of them.\n")


def test_report_takes_a_task(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    names = (("Mary", "John"), ("John", "Mary"))
    rows = [
        {
            "prompt": f"When {one} and {two} went to the store, {wrong} gave a drink to",
            "correct": right,
            "incorrect": wrong,
        }
        for one, two in names
        for right, wrong in names
    ]
    prompts.write_text("\n".join(json.dumps(row) for row in rows * 4), encoding="utf-8")
    options = ("--max-tokens", 48, "--ablation-tokens", 0, "--out", tmp_path / "out", "--no-progress")
    code, printed, error = run("report", checkpoint, "--task", prompts, *options)
    assert code == 0, error
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert 'id="task"' in text and len(pd.read_parquet(tmp_path / "out" / "task_prompts.parquet")) == 16
    assert run("report", checkpoint, "--no-task", *options)[0] == 0
    assert 'id="task"' not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    code, _, error = run("report", checkpoint, "--task", "ioi", *options)
    assert code == 1 and "the model reads 48" in error and len(error.splitlines()) == 1
    code, _, error = run("report", checkpoint, "--task", tmp_path / "missing.csv", *options)
    assert code == 1 and "missing.csv" in error
    code, _, error = run("report", checkpoint, "--task", "ioi", "--no-task", *options)
    assert code == 1 and "give one of them" in error


def test_report_makes_a_text_where_none_is_given(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    code, _, _ = run("report", checkpoint, "--out", tmp_path, "--max-tokens", 96, "--no-progress")
    assert code == 0
    assert "generated small English" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_prompt_prints_the_test(run: Run, checkpoint: Path) -> None:
    code, printed, _ = run("prompt", checkpoint, "Mary gave a drink to", "John", "--top-k", 3, "--no-bos")
    model = HookedTransformer.from_pretrained(str(checkpoint))
    expected = run_prompt("Mary gave a drink to", "John", model, print_details=False, prepend_bos=False, top_k=3)
    assert (code, printed) == (0, f"{expected}\n")


def test_entropy_prints_and_saves(run: Run, checkpoint: Path, story: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, printed, _ = run(
        "entropy",
        checkpoint,
        "--text",
        story,
        "--out",
        out,
        "--top",
        2,
        "--no-lens-bias",
        "--scale",
        "own",
        "--no-progress",
    )
    assert code == 0
    model = HookedTransformer.from_pretrained(str(checkpoint))
    tokens = token_rows(model, [STORY * 3])
    expected = measure_entropy(model, tokens, lens_bias=False, scale="own", describe="story.txt", progress=False)
    loaded = EntropyResult.load(out / "result.safetensors")
    assert loaded.info == expected.info
    torch.testing.assert_close(loaded.diff, expected.diff)
    for ranking in (expected.top(2), expected.top(2, largest=False)):
        for score in ranking:
            assert f"{score.label:<8}{score.value:>+9.4f}" in printed
    assert f"final  {expected.resid[-1]:7.3f}" in printed
    assert printed.endswith(f"Saved to {out / 'result.safetensors'}\n")


def test_entropy_goes_on_after_ctrl_c(
    run: Run, checkpoint: Path, story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["entropy", checkpoint, "--text", story, "--seq-len", 8, "--baseline", "mean", "--no-progress"]
    code, wanted, _ = run(*command)
    assert code == 0
    out = tmp_path / "run"
    update, n_updates = EntropyAccumulator.update, 0

    def stopping(self: EntropyAccumulator, batch: core_batches.Batch) -> None:
        nonlocal n_updates
        n_updates += 1
        if n_updates == 3:
            raise KeyboardInterrupt
        update(self, batch)

    monkeypatch.setattr(core_batches, "BLOCK_TOKENS", 32)
    monkeypatch.setattr(EntropyAccumulator, "update", stopping)
    code, printed, error = run(*command, "--out", out)
    assert (code, printed) == (130, "")
    (line,) = error.splitlines()
    assert line == f"Stopped. What was measured is kept in {out}: the same command with --resume goes on."
    code, _, error = run(*command, "--out", out)
    assert code == 1 and "holds a run already" in error and "--resume" in error
    code, _, error = run(*command, "--out", out, "--resume", "--scale", "own")
    assert code == 1 and "options.scale is 'final' there and 'own' here" in error
    n_before = n_updates
    code, printed, _ = run(*command, "--out", out, "--resume")
    assert (code, printed) == (0, f"{wanted}\nSaved to {out / 'result.safetensors'}\n")
    n_after = n_updates
    assert run(*command, "--out", out, "--resume") == (0, printed, "") and n_updates == n_after > n_before


def test_models_are_all_listed(run: Run) -> None:
    code, printed, _ = run("models")
    assert code == 0
    for name in (DEMO, *(hub.hub_id for hub in HUB_MODELS), *(hub.name for hub in HUB_MODELS), *FAMILIES):
        assert name in printed


def test_one_family_says_which_processing_applies(run: Run) -> None:
    code, printed, _ = run("models", "--family", "gemma2")
    assert code == 0 and "Gemma2ForCausalLM" in printed and "google/gemma-2-2b" in printed
    assert "applies: fold_ln, fold_value_biases" in printed
    assert "not center_unembed: a soft cap on the logits" in printed
    code, _, error = run("models", "--family", "gemma9")
    assert code == 1 and "Unknown family 'gemma9'" in error and "gemma2" in error


def test_train_demo_writes_a_checkpoint(run: Run, tmp_path: Path) -> None:
    code, printed, _ = run("train", "demo", "--out", tmp_path / "demo", "--steps", 6, "--no-progress")
    assert code == 0
    assert "of 6 steps" in printed
    assert HookedTransformer.from_pretrained(str(tmp_path / "demo")).cfg.n_layers == 5


def test_evaluate_prints_every_figure_of_the_card(run: Run) -> None:
    code, printed, _ = run("evaluate", "--n-prompts", 20, "--no-progress")
    assert code == 0
    for figure in ("mean logit difference", "repeated half", "Previous-token heads", "Induction heads", "Name movers"):
        assert figure in printed


def test_the_version_is_shown(run: Run) -> None:
    code, printed, _ = run("--version")
    assert code == 0 and printed.startswith("headscope ")


def test_ablate_prints_the_ends_and_places(run: Run, checkpoint: Path, story: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, printed, _ = run(
        "ablate", checkpoint, "--text", story, "--value", "mean", "--heads", "0.1, 1.0+1.2,MLP 1", "--max-tokens", 96,
        "--positions", 2, "--out", out, "--no-progress",
    )  # fmt: skip
    assert code == 0 and "story.txt" in printed
    result = AblationResult.load(out / "result.safetensors")
    assert (result.values, result.effects) == (("mean",), ("patched", "direct"))
    assert result.component_labels == ("0.1", "1.0+1.2", "MLP 1")
    for effect in result.effects:
        (section,) = [part for part in printed.split("\n\n") if part.startswith(f"mean, {effect}")]
        lines = [f"  {s.label:<12}{s.loss_diff:>+9.4f} ± {s.error:.4f}" for s in result.top(3, effect=effect)]
        assert section.splitlines()[1:] == lines
    best = result.top(1)[0].label
    assert f"Where {best} helps most" in printed and f"Where {best} costs most" in printed
    assert str(result.top_positions(2, component=best)) in printed


def test_copy_suppression_prints_every_head_asked_for(run: Run, tmp_path: Path) -> None:
    command = (
        "copy-suppression", "headscope-demo", "--heads", "3.2, 1.3", "--max-tokens", 128, "--seq-len", 128,
        "--no-progress", "--out", tmp_path / "run",
    )  # fmt: skip
    code, printed, _ = run(*command)
    assert code == 0 and f"Saved to {tmp_path / 'run' / 'result.safetensors'}" in printed
    assert run(*command)[0] == 1 and run(*command, "--resume")[1] == printed
    printed = printed.partition("\n\nSaved to")[0]
    lines = printed.splitlines()
    assert lines[2].split() == "head explained KL mean KL CSPA anti-ind. IOI OV bottom 10 QK top 10".split()
    rows = {line.split()[0]: line.split()[1:] for line in lines[3:]}
    assert list(rows) == ["3.2", "1.3"] and all(len(cells) == 7 for cells in rows.values())
    model = HookedTransformer.from_pretrained("headscope-demo")
    ranks = weights_circuit_ranks(model, ["3.2"], progress=False)
    assert rows["3.2"][-2:] == [f"{float(ranks.ov_bottom):.1%}", f"{float(ranks.qk_top):.1%}"]


def test_ioi_shows_prompts_and_differences(run: Run) -> None:
    code, printed, _ = run("ioi", "headscope-demo", "--prompts", 12, "--rows", 2, "--seed", 3, "--no-progress")
    assert code == 0 and "... and 10 more" in printed
    model = HookedTransformer.from_pretrained("headscope-demo")
    task = Task.from_ioi(IOIDataset(N=12, tokenizer=model.tokenizer, prepend_bos=True, seed=3))
    with torch.no_grad():
        clean = task.logit_difference(model(task.clean_tokens, attention_mask=task.attention_mask), per_prompt=True)
        corrupted = task.logit_difference(model(task.corrupted_tokens, attention_mask=task.attention_mask))
    assert f"Logit difference: {float(clean.mean()):+.3f} on average" in printed
    assert f"Corrupted, with the same answers: {float(corrupted):+.3f}." in printed
    assert f"{float(clean[0]):+.3f}" in printed


def test_a_task_of_ones_own_is_attributed(run: Run, tmp_path: Path) -> None:
    path, out = tmp_path / "my.csv", tmp_path / "out"
    path.write_text(
        "prompt,correct,incorrect,label\n"
        "When Mary and John went to the park John gave a ball to,Mary,John,one\n"
        "When Adam and Claire met Adam gave a ring to,Claire,Adam,two\n"
    )
    code, printed, _ = run("attribute", "headscope-demo", "--task", path, "--top", 2, "--out", out, "--no-progress")
    assert code == 0
    model = HookedTransformer.from_pretrained("headscope-demo")
    wanted = attribute(model, Task.read(path, model.tokenizer), progress=False)
    for score in (*wanted.top(2), *wanted.top(2, largest=False)):
        assert f"  {score.label:<8}{score.value:>+9.4f}" in printed
    found = Attribution.load(out / "result.safetensors")
    assert torch.equal(found.components, wanted.components)
    assert sorted(each.name for each in out.iterdir()) == [
        "attribution.html", "components.parquet", "result.safetensors", "states.parquet",
    ]  # fmt: skip


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
    assert code == 1 and "holds a run already" in error


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["report"],
        ["prompt"],
        ["entropy"],
        ["ablate"],
        ["copy-suppression"],
        ["models"],
        ["evaluate"],
        ["train"],
        ["train", "demo"],
    ],
)
def test_help_explains(run: Run, command: list[str]) -> None:
    code, printed, _ = run(*command, "--help")
    assert code == 0
    assert f"Usage: headscope{''.join(' ' + word for word in command)}" in printed
    assert "headscope " + " ".join(command) in printed.split("Usage:", 1)[1]  # an example, or the first step


@pytest.mark.parametrize(
    ("command", "function", "renamed"),
    [
        (reports.report, write_report, {}),
        (reports.report, write_comparison, {}),
        (analyses.prompt, run_prompt, {}),
        (analyses.entropy, measure_entropy, {}),
        (analyses.entropy, token_rows, {}),
        (analyses.ablate, ablate_heads, {}),
        (suppression.copy_suppression, copy_suppression_preserving_ablation, {}),
        (tasks.ioi, IOIDataset, {"seed": "seed", "prompt_type": "prompt_type"}),
        (training.demo, train_demo, {}),
        (reports.evaluate, evaluate_demo, {}),
    ],
)
def test_defaults_are_the_functions(
    command: Callable[..., object], function: Callable[..., object], renamed: dict[str, str]
) -> None:
    ours = inspect.signature(command).parameters
    theirs = inspect.signature(function).parameters
    shared = [name for name in ours if name in theirs and theirs[name].default is not inspect.Parameter.empty]
    assert len(shared) >= 2
    for name in shared:
        default = theirs[name].default
        if isinstance(default, tuple):
            assert tuple(ours[name].default) == default, name
            continue
        assert ours[name].default == (Path(default) if name == "out" and default is not None else default), name


BAD = {
    "unknown model": (["report", "gtp2"], "Unknown model 'gtp2'. Did you mean 'gpt2'"),
    "no such checkpoint": (["report", "./missing"], "does not exist"),
    "no such text": (["report", "CHECKPOINT", "--text", "missing.txt"], "No such file: 'missing.txt'"),
    "empty text": (["report", "CHECKPOINT", "--text", "TMP/empty.txt"], "holds no text"),
    "binary text": (["report", "CHECKPOINT", "--text", "TMP/binary.txt"], "is not UTF-8: byte 3"),
    "text of no kind": (["report", "CHECKPOINT", "--text", "TMP/text.pdf"], "unknown suffix '.pdf'"),
    "one token": (
        ["report", "CHECKPOINT", "--text", "TMP/one.txt", "--seq-len", "2", "--max-tokens", "0"],
        "max_tokens",
    ),
    "out is a file": (["report", "CHECKPOINT", "--out", "TMP/text.pdf"], "is a file; the report needs a folder"),
    "out below a file": (["report", "CHECKPOINT", "--out", "TMP/text.pdf/deep"], "cannot be written"),
    "entropy out is a file": (["entropy", "CHECKPOINT", "--out", "TMP/text.pdf"], "is a file; a run is kept in"),
    "entropy out is no run": (["entropy", "CHECKPOINT", "--out", "TMP"], "it has no manifest.json, and holds"),
    "resume without out": (["entropy", "CHECKPOINT", "--resume"], "say which by --out"),
    "top": (["entropy", "CHECKPOINT", "--top", "0"], "top must be at least 1"),
    "no such head": (["ablate", "CHECKPOINT", "--heads", "9.0"], "9.0 does not exist: layers of"),
    "no head's name": (["ablate", "CHECKPOINT", "--heads", "first"], "'first' names no component"),
    "prompt type": (["ioi", "headscope-demo", "--prompt-type", "BAAB"], "BAAB"),
    "rows": (["ioi", "headscope-demo", "--rows", "-1"], "rows must be at least 0"),
    "a task that is missing": (["ioi", "headscope-demo", "--task", "missing.csv"], "missing.csv"),
    "a bad row": (["attribute", "headscope-demo", "--task", "TMP/task.csv"], "line 3"),
    "attribute top": (["attribute", "headscope-demo", "--top", "0"], "top must be at least 1"),
    "attribute out": (["attribute", "headscope-demo", "--out", "TMP/text.pdf"], "is a file; give a folder"),
    "toy resume": (["train", "skip-trigram", "--resume"], "say which by --out"),
    "toy config": (["train", "skip-trigram", "--config", "TMP/one.txt"], "is no JSON"),
    "toy config's parts": (
        ["train", "induction", "--config", "TMP/parts.json"],
        "'task' and 'training'; got ['model']",
    ),
    "toy option": (["train", "induction", "--config", "TMP/option.json"], "Unknown training option 'epoch'"),
    "an MLP": (["copy-suppression", "CHECKPOINT", "--heads", "MLP 0"], "MLP 0 is no head"),
    "no sources": (["copy-suppression", "CHECKPOINT", "--top", "0"], "top is the share of sources"),
    "ablate top": (["ablate", "CHECKPOINT", "--top", "0"], "top must be at least 1"),
    "the same value twice": (
        ["ablate", "CHECKPOINT", "--value", "zero", "--value", "zero"],
        "values must be different",
    ),
    "seq_len": (["report", "CHECKPOINT", "--seq-len", "1000"], "seq_len must be between 2"),
    "empty answer": (["prompt", "CHECKPOINT", "Mary", ""], "the answer is empty"),
    "long prompt": (["prompt", "CHECKPOINT", "Mary " * 60, "John"], "context is n_ctx = 48"),
    "corrupt checkpoint": (["prompt", "TMP/corrupt", "Mary", "John"], "config.json"),
    "steps": (["train", "demo", "--steps", "0", "--out", "TMP/demo"], "steps is 0"),
}


@pytest.mark.parametrize(("args", "message"), BAD.values(), ids=BAD.keys())
def test_a_failure_is_one_line(run: Run, args: list[str], message: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "one.txt").write_text("a")
    (tmp_path / "text.pdf").write_text("not a folder")
    (tmp_path / "binary.txt").write_bytes(b"abc\xff\xfe\x00")
    (tmp_path / "task.csv").write_text("prompt,correct,incorrect\nMary gave a book to,John,Mary\nTom saw,,Mary\n")
    (tmp_path / "parts.json").write_text('{"model": {}}')
    (tmp_path / "option.json").write_text('{"training": {"epoch": 3}}')
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "config.json").write_text("{")
    before = sorted(tmp_path.iterdir())
    filled = [arg.replace("CHECKPOINT", str(checkpoint)).replace("TMP", str(tmp_path)) for arg in args]
    code, _, error = run(*filled, *([] if args[0] == "prompt" else ["--no-progress"]))
    assert code == 1
    (line,) = error.splitlines()
    assert line.startswith("Error: ") and message in line
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "args",
    [
        ["bogus"],
        ["report", "--max-tokens", "many"],
        ["prompt", "gpt2"],
        ["report", "--nope"],
        ["entropy", "--baseline", "median"],
        ["ablate", "--effect", "total"],
    ],
)
def test_wrong_usage_is_code_2(run: Run, args: list[str]) -> None:
    code, _, error = run(*args)
    assert code == 2
    assert "Usage: headscope" in error and "Traceback" not in error


def test_the_disk_failing_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tmp_path: Path
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28), "somewhere")

    monkeypatch.setattr(tensor_file, "save_file", full)
    command = ["entropy", checkpoint, "--max-tokens", 48, "--out", tmp_path / "x", "--no-progress"]
    code, _, error = run(*command)
    (line,) = error.splitlines()
    assert code == 1 and line.startswith(f"Error: {tmp_path / 'x' / 'entropy.safetensors'} could not be written: No sp")
    monkeypatch.undo()
    assert run(*command, "--resume")[0] == 0


def test_a_file_that_cannot_be_written_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tmp_path: Path
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28), "somewhere")

    monkeypatch.setattr(reports, "write_report", full)
    code, _, error = run("report", checkpoint, "--out", tmp_path / "x", "--no-progress")
    assert (code, error) == (1, "Error: No space left on device: somewhere\n")


def test_ctrl_c_is_one_line_and_130(
    run: Run, monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tmp_path: Path
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reports, "write_report", stop)
    assert run("report", checkpoint, "--out", tmp_path / "out", "--no-progress") == (130, "", "Stopped.\n")
    assert list(tmp_path.iterdir()) == []


def command(*args: object) -> list[str]:
    return [sys.executable, "-c", "from headscope.cli import main; main()", *map(str, args)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


def test_a_closed_pipe_is_no_traceback() -> None:
    process = subprocess.Popen(command("models"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert error == b""


@pytest.mark.slow
def test_a_real_signal_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    args = ("report", checkpoint, "--out", tmp_path / "out", "--max-tokens", 10**7)
    process = subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    deadline = time.monotonic() + 120
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)  # until it has begun
    process.send_signal(signal.SIGINT)
    printed, error = process.communicate(timeout=120)
    assert (process.returncode, printed) == (130, b"")
    assert error.decode().splitlines()[-1].endswith("Stopped.") and "Traceback" not in error.decode()
    assert list(tmp_path.iterdir()) == []


def test_the_entry_point_is_main() -> None:
    done = subprocess.run(command("--version"), capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.startswith("headscope ")


def test_a_checkpoint_of_another_family_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    code, _, error = run("report", tmp_path, "--no-progress")
    assert code == 1 and "model_type 't5'" in error
