"""`headscope report`, `compare`, `models`, `evaluate`: what they are given, write and print."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets_stand_in import StandInDataset, datasets_module
from small_models import STORY

from headscope import HookedTransformer
from headscope.analysis.ablation.ablate import ablate_heads
from headscope.cli import reports
from headscope.model.checkpoints.families import FAMILIES
from headscope.model.checkpoints.names import DEMO, HUB_MODELS
from headscope.report import Comparison
from headscope.report.model import measuring

Run = Callable[..., tuple[int, str, str]]


def test_report_writes_the_page_and_says_where(run: Run, checkpoint: Path, story: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, _ = run("report", checkpoint, "--text", story, "--out", out, "--max-tokens", 96, "--no-progress")
    assert code == 0
    assert str(out / "report.html") in printed
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "on story.txt" in text and "2 of 48 tokens" in text


def test_two_models_are_compared(run: Run, checkpoint: Path, story: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--text", story, "--out", out, "--max-tokens", 96, "--ablation-tokens", 0, "--no-progress")
    code, printed, _ = run("compare", checkpoint, checkpoint, *options)
    assert code == 0
    assert f"{out / 'comparison.html'} (and 4 tables beside it)" in printed
    text = (out / "comparison.html").read_text(encoding="utf-8")
    name = "/".join(checkpoint.parts[-2:])
    assert f"{name} (first)" in text and f"{name} (second)" in text and "on story.txt" in text


def test_what_a_comparison_is_given(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def write(first: HookedTransformer, second: HookedTransformer, texts: Any, out: Path, **options: Any) -> Comparison:
        given.extend((first.cfg.model_name, second.cfg.model_name, out, options))
        return Comparison(out, out / "comparison.html", (), (1.0, 1.0))

    monkeypatch.setattr(reports, "write_comparison", write)
    assert run("compare", checkpoint, "headscope-demo", "--out", tmp_path, "--seq-len", 20, "--no-progress")[0] == 0
    first, second, out, options = given
    assert second == "headscope-demo" != first and out == tmp_path
    assert options == {
        "names": ("/".join(checkpoint.parts[-2:]), "headscope-demo"), "describe": "generated small English",
        "max_tokens": 4096, "seq_len": 20, "ablation_tokens": 1024, "resume": False,
        "command": f"headscope compare {checkpoint} {second} --out {out} --seq-len 20 --no-progress --resume",
        "progress": False,
    }  # fmt: skip


def test_the_option_that_was_a_command_names_it(run: Run) -> None:
    for args in (("--compare", "a", "b"), ("gpt2", "--compare", "a"), ("--compare", "a", "b", "--n-heads", 0)):
        code, _, error = run("report", *args)
        assert (code, error) == (
            1,
            "Error: comparing two models is a command of its own: headscope compare A B. [HS-INPUT]\n",
        )
    assert "--compare" not in run("report", "--help")[1]


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
    assert (code, error) == (1, "Error: --text and --dataset are two texts: give one of them. [HS-INPUT]\n")
    code, _, again = run("compare", checkpoint, checkpoint, "--dataset", "owt", "--text", "a.txt")
    assert (code, again) == (1, error)


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


def test_a_report_that_was_stopped_goes_on(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--out", tmp_path, "--max-tokens", 96, "--sections", "loss,types,entropy", "--no-progress")
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "measure_entropy", _stopped)
        code, printed, error = run("report", checkpoint, *options)
    assert (code, printed) == (130, "") and len(error.splitlines()) == 1
    again = f"headscope report {checkpoint} {' '.join(map(str, options))} --resume"
    assert error.startswith(f"Stopped. {tmp_path / 'report.html'} has the sections that were done (loss, types), and")
    assert error.endswith(
        f"lacks entropy. What was measured is kept in {tmp_path / 'measured'}; to continue: {again}\n"
    )
    assert again in (tmp_path / "report.html").read_text(encoding="utf-8")
    code, _, error = run("report", checkpoint, *options)
    assert code == 1 and "holds the measurements of a report that was stopped" in error
    code, _, error = run("report", checkpoint, *options, "--seq-len", 24, "--resume")
    assert code == 1 and "data.shape is [2, 48] there and [4, 24] here" in error and len(error.splitlines()) == 1
    assert run(*shlex.split(again)[1:])[0] == 0
    assert not (tmp_path / "measured").exists() and (tmp_path / "entropy.parquet").exists()


def test_a_section_that_fails_is_told_and_the_page_stands(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise IndexError("index 7 is out of\nbounds")

    monkeypatch.setattr(measuring, "measure_entropy", failing)
    options = ("--out", tmp_path, "--max-tokens", 96, "--sections", "loss,entropy", "--no-progress")
    code, printed, error = run("report", checkpoint, *options)
    assert code == 1 and "report.html (and 1 table beside it)" in printed
    assert error.startswith(
        "Error: the page is not whole, for a part of it failed: entropy (IndexError: index 7 is out"
    )
    assert error.endswith(" --no-progress --resume\n") and len(error.splitlines()) == 1


def test_a_comparison_that_was_stopped_goes_on(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    options = ("--max-tokens", 96, "--ablation-tokens", 48, "--no-progress")
    assert run("compare", checkpoint, checkpoint, "--out", whole, *options)[0] == 0
    calls: list[object] = []

    def stopping(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return ablate_heads(*args, **kwargs) if len(calls) % 2 else _stopped()

    monkeypatch.setattr(measuring, "ablate_heads", stopping)
    out = tmp_path / "out"
    code, _, error = run("compare", checkpoint, checkpoint, "--out", out, *options)
    assert code == 130 and f"{out / 'comparison.html'} has the sections that were done (loss, entropy, types)" in error
    assert "Missing: <b>ablation</b>" in (out / "comparison.html").read_text(encoding="utf-8")
    calls.clear()
    monkeypatch.setattr(measuring, "predict_next_tokens", _stopped)
    code, _, error = run("compare", checkpoint, "headscope-demo", "--out", out, *options, "--resume")
    assert code == 1 and "second" not in error and "model." in error
    monkeypatch.undo()
    assert run("compare", checkpoint, checkpoint, "--out", out, *options, "--resume")[0] == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    for table in whole.glob("*.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(table), pd.read_parquet(out / table.name), check_exact=True)


def _stopped(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_report_makes_a_text_where_none_is_given(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    options = ("--max-tokens", 96, "--ablation-tokens", 0, "--no-task", "--no-progress")
    assert run("report", checkpoint, "--out", tmp_path, *options)[0] == 0
    assert "on generated small English" in (tmp_path / "report.html").read_text(encoding="utf-8")


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
    assert code == 1 and "Unknown family 'gemma9'" in error and "gemma3" in error


def test_evaluate_prints_the_card(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def evaluate(model: HookedTransformer, **options: Any) -> str:
        given.extend((model.cfg.model_name, options))
        return "the card's figures"

    monkeypatch.setattr(reports, "evaluate_demo", evaluate)
    assert run("evaluate", "--n-prompts", 20, "--seed", 9, "--no-progress") == (0, "the card's figures\n", "")
    assert given == ["headscope-demo", {"seed": 9, "n_prompts": 20, "progress": False}]


def test_a_checkpoint_of_another_family_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    code, _, error = run("report", tmp_path, "--no-progress")
    assert code == 1 and "model_type 't5'" in error
