"""Every failure is one line and an exit code; help explains; defaults are those of the functions."""

import html
import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from own_process import run_program

from headscope.analysis.ablation.ablate import ablate_heads
from headscope.analysis.heads.types import detect_heads
from headscope.analysis.lens.entropy import measure_entropy
from headscope.analysis.patching.activation import activation_patch
from headscope.analysis.suppression.cspa import copy_suppression_preserving_ablation
from headscope.cli import analyses, explore, heads, main, patching, reports, suppression, tasks, training
from headscope.cli.base.commands import app, train
from headscope.compat.prompt import test_prompt as run_prompt
from headscope.data.ioi import IOIDataset
from headscope.explorer import explore as explore_heads
from headscope.model.checkpoints import files as tensor_file
from headscope.report import token_rows, write_comparison, write_report
from headscope.training.demo import train_demo
from headscope.training.demo_figures import evaluate_demo

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]


def test_the_version_is_shown(run: Run) -> None:
    code, printed, _ = run("--version")
    assert code == 0 and printed.startswith("headscope ")


COMMANDS = (
    "prompt", "entropy", "ablate", "heads", "patch", "ioi", "attribute", "report", "compare", "models", "evaluate",
    "copy-suppression", "migrate", "train", "merge", "status", "attention", "edges", "scoreboard", "notebooks",
    "explain", "explore",
)  # fmt: skip
TRAINED = ("demo", "skip-trigram", "induction", "modular-addition")


def test_every_command_is_known_here() -> None:
    assert {(each.name or each.callback.__name__).replace("_", "-") for each in app.registered_commands} == {
        name for name in COMMANDS if name != "train"
    }
    assert [each.name for each in train.registered_commands] == list(TRAINED)


@pytest.mark.parametrize(
    "command",
    [
        [],
        *([name] for name in COMMANDS if name != "train"),
        ["train"],
        *(["train", name] for name in TRAINED),
    ],
)
def test_help_explains(run: Run, command: list[str]) -> None:
    code, printed, _ = run(*command, "--help")
    assert code == 0
    assert f"Usage: headscope{''.join(' ' + word for word in command)}" in printed
    assert "headscope " + " ".join(command) in printed.split("Usage:", 1)[1]  # an example, or the first step


@pytest.mark.parametrize(
    ("command", "function"),
    [
        (reports.report, write_report),
        (explore.explore, explore_heads),
        (reports.compare, write_comparison),
        (reports.compare, token_rows),
        (analyses.prompt, run_prompt),
        (analyses.entropy, measure_entropy),
        (analyses.entropy, token_rows),
        (analyses.ablate, ablate_heads),
        (heads.heads, detect_heads),
        (patching.patch, activation_patch),
        (suppression.copy_suppression, copy_suppression_preserving_ablation),
        (tasks.ioi, IOIDataset),
        (training.demo, train_demo),
        (reports.evaluate, evaluate_demo),
    ],
)
def test_defaults_are_the_functions(command: Callable[..., object], function: Callable[..., object]) -> None:
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
    "no such section": (["report", "CHECKPOINT", "--sections", "loss,entropi"], "Did you mean 'entropy'"),
    "no section": (["report", "CHECKPOINT", "--sections", ","], "no section is asked for"),
    "a section without its task": (["report", "CHECKPOINT", "--sections", "task", "--no-task"], "leaves it out"),
    "no such text": (["report", "CHECKPOINT", "--text", "missing.txt"], "No such file: 'missing.txt'"),
    "empty text": (["report", "CHECKPOINT", "--text", "TMP/empty.txt"], "holds no text"),
    "binary text": (["report", "CHECKPOINT", "--text", "TMP/binary.txt"], "is not UTF-8: byte 3"),
    "text of no kind": (["report", "CHECKPOINT", "--text", "TMP/text.pdf"], "unknown suffix '.pdf'"),
    "one token": (
        ["report", "CHECKPOINT", "--text", "TMP/one.txt", "--seq-len", "2", "--max-tokens", "0"],
        "max_tokens",
    ),
    "out below a file": (
        ["report", "CHECKPOINT", "--out", "TMP/text.pdf/deep"],
        "is a file; the report needs a folder",
    ),
    "explore into a folder of others": (["explore", "CHECKPOINT", "--out", "TMP"], "is no file of an explorer"),
    "explore into a file": (
        ["explore", "CHECKPOINT", "--out", "TMP/text.pdf/deep"],
        "is a file; the explorer needs a folder",
    ),
    "serve what is no explorer": (["explore", "TMP", "--serve"], "holds no head explorer"),
    "serve a port out of range": (["explore", "TMP/tree", "--serve", "--port", "70000"], "from 0 to 65535; got 70000"),
    "serve a model that is not here": (
        ["explore", "TMP/tree", "--serve"],
        "cannot be loaded as 'nobody/nothing'",
    ),
    "a port of nothing": (["explore", "CHECKPOINT", "--port", "8000"], "--port goes with --serve"),
    "explore without tokens": (["explore", "CHECKPOINT", "--max-tokens", "0"], "max_tokens must be at least 1"),
    "entropy out is no run": (["entropy", "CHECKPOINT", "--out", "TMP"], "it has no manifest.json, and holds"),
    "resume without out": (["entropy", "CHECKPOINT", "--resume"], "name it with --out"),
    "no such head": (["ablate", "CHECKPOINT", "--heads", "9.0"], "9.0 does not exist: layers of"),
    "no head's name": (["ablate", "CHECKPOINT", "--heads", "first"], "'first' names no component"),
    "prompt type": (["ioi", "headscope-demo", "--prompt-type", "BAAB"], "BAAB"),
    "a task that is missing": (["ioi", "headscope-demo", "--task", "missing.csv"], "missing.csv"),
    "a bad row": (["attribute", "headscope-demo", "--task", "TMP/task.csv"], "line 3"),
    "toy resume": (["train", "skip-trigram", "--resume"], "name it with --out"),
    "toy config": (["train", "skip-trigram", "--config", "TMP/one.txt"], "is not JSON"),
    "toy config's parts": (
        ["train", "induction", "--config", "TMP/parts.json"],
        "'task' and 'training'; got ['model']",
    ),
    "toy option": (["train", "induction", "--config", "TMP/option.json"], "Unknown training option 'epoch'"),
    "an MLP": (["copy-suppression", "CHECKPOINT", "--heads", "MLP 0"], "mlp0 is no head"),
    "no sources": (["copy-suppression", "CHECKPOINT", "--top", "0"], "top is the share of sources"),
    "the same value twice": (
        ["ablate", "CHECKPOINT", "--value", "zero", "--value", "zero"],
        "values must be different",
    ),
    "seq_len": (["report", "CHECKPOINT", "--seq-len", "1000"], "seq_len must be between 2"),
    "empty answer": (["prompt", "CHECKPOINT", "Mary", ""], "the answer is empty"),
    "long prompt": (["prompt", "CHECKPOINT", "Mary " * 60, "John"], "context is n_ctx = 48"),
    "a second model that is missing": (["compare", "CHECKPOINT", "gtp2"], "Unknown model 'gtp2'. Did you mean 'gpt2'"),
    "corrupt checkpoint": (["prompt", "TMP/corrupt", "Mary", "John"], "config.json"),
    "no such code": (["explain", "HS-TOKENS-00"], "Did you mean 'HS-TOKENS-0"),
    "steps": (["train", "demo", "--steps", "0", "--out", "TMP/demo"], "steps must be at least 1; got 0"),
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
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "config.json").write_text('{"model_name": "nobody/nothing", "heads": [[0, 0]]}')
    (tmp_path / "tree" / "index.html").write_text("")
    before = sorted(tmp_path.iterdir())
    filled = [arg.replace("CHECKPOINT", str(checkpoint)).replace("TMP", str(tmp_path)) for arg in args]
    code, _, error = run(*filled, *([] if args[0] in ("prompt", "explain") else ["--no-progress"]))
    assert code == 1
    (line,) = error.splitlines()
    assert line.startswith("Error: ") and message in line
    assert sorted(tmp_path.iterdir()) == before


USAGE = {
    "no such command": (["bogus"], "No such command 'bogus'"),
    "no number": (["report", "--max-tokens", "many"], "'--max-tokens'"),
    "no answer": (["prompt", "gpt2"], "Missing argument"),
    "no second model": (["compare", "gpt2"], "Missing argument 'B'"),
    "no such option": (["report", "--nope"], "No such option: --nope"),
    "no such baseline": (["entropy", "--baseline", "median"], "is not one of 'zero', 'mean'"),
    "no such value": (
        ["ablate", "--value", "zero", "--value", "median"],
        "'median' is not one of 'zero', 'mean'",
    ),
    "no such effect": (["ablate", "--effect", "total"], "'total' is not one of 'patched', 'direct', 'indirect'"),
    "no such scale": (["ablate", "--scale", "none"], "is not one of 'final', 'own'"),
    "no such direction": (["patch", "--direction", "up"], "is not one of 'denoising', 'noising'"),
    "no heads": (["report", "--n-heads", "0"], "'--n-heads'"),
    "no rows of copy suppression": (["copy-suppression", "--rows", "0"], "'--rows'"),
    "fewer than no rows": (["ioi", "--rows", "-1"], "'--rows'"),
    **{f"{name} top": ([name, "--top", "0"], "'--top'") for name in ("entropy", "ablate", "attribute", "patch")},
    **{f"{name} out": ([name, "--out", "FILE"], "is a file") for name in ("entropy", "heads", "patch", "report")},
}


@pytest.mark.parametrize(("args", "message"), USAGE.values(), ids=USAGE.keys())
def test_wrong_usage_is_code_2(run: Run, args: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    code, printed, error = run(*(str(tmp_path / "file") if arg == "FILE" else arg for arg in args))
    assert (code, printed) == (2, "")
    assert "Usage: headscope" in error and message in " ".join(error.split()) and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


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
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_real_signal_keeps_what_is_done(checkpoint: Path, tmp_path: Path, stop: signal.Signals) -> None:
    out = tmp_path / "my report"
    args = ("report", checkpoint, "--out", out, "--max-tokens", 2**16, "--sections", "types,entropy")
    process = subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    deadline = time.monotonic() + 120
    while not (out / "measured" / "entropy").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(stop)
    printed, error = process.communicate(timeout=120)
    assert (process.returncode, printed) == (130, b"") and "Traceback" not in error.decode()
    again = f"headscope report {checkpoint} --out '{out}' --max-tokens 65536 --sections types,entropy --resume"
    told = error.decode().splitlines()[-1]
    assert "Stopped. " in told and "(types), and lacks entropy." in told and told.endswith(f"to continue: {again}")
    assert f"<code>{again}</code>" in html.unescape((out / "report.html").read_text(encoding="utf-8"))


def test_the_entry_point_is_main() -> None:
    (entry,) = entry_points(group="console_scripts", name="headscope")
    assert entry.load() is main


@pytest.mark.parametrize(("asked", "sleeps"), [(None, True), ("ACTIVE", False)])
def test_waiting_threads_sleep_unless_asked_to_spin(asked: str | None, sleeps: bool) -> None:
    unset = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"OMP_DISPLAY_ENV": "verbose"} | ({} if asked is None else {"OMP_WAIT_POLICY": asked})
    script = "import headscope_command"  # OpenMP says what it goes by as PyTorch loads it
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert ("GOMP_SPINCOUNT = '0'" in done.stderr) == sleeps


def test_ctrl_c_while_libraries_load_is_one_line() -> None:
    script = (
        "import builtins\n"
        "load = builtins.__import__\n"
        "def stopped(name, *rest):\n"
        "    if name == 'headscope.cli':\n"
        "        raise KeyboardInterrupt\n"
        "    return load(name, *rest)\n"
        "builtins.__import__ = stopped\n"
        "import headscope_command"
    )
    done = run_program(script)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Stopped.\n")
