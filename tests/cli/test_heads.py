"""`headscope heads`: what it prints and writes, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from headscope import HookedTransformer
from headscope.analysis.circuits.circuit_result import Circuit
from headscope.analysis.heads.types_result import HeadTypes
from headscope.data.ioi import IOIDataset

Run = Callable[..., tuple[int, str, str]]


def test_kinds_that_need_no_task(run: Run) -> None:
    code, printed, _ = run("heads", "--no-progress")
    assert code == 0
    assert "previous token" in printed and "0.3" in printed and "K-composition with 0.3" in printed
    assert "name copier" not in printed


def test_a_narrow_window_leaves_the_evidence_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, printed, _ = run("heads", "--no-progress")
    assert "K-composition" not in printed and "In a wider window" in printed


def test_a_task_with_its_circuit_is_written(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "heads"
    code, printed, _ = run("heads", "--task", "ioi", "--prompts", 32, "--circuit", "--out", out, "--no-progress")
    assert code == 0
    assert "name copier" in printed and "subject suppressor" in printed and "raises both names" not in printed
    assert "Paths of the circuit" in printed and str(out) in printed
    types, circuit = HeadTypes.load(out / "result.safetensors"), Circuit.load(out / "circuit.safetensors")
    assert [score.label for score in types.heads("subject_suppressor")][0] == "3.2" and "3.2" in circuit.nodes
    frame = pd.read_parquet(out / "heads.parquet")
    assert set(frame[frame.labelled & (frame.kind == "previous_token")].label) == {"0.3"}
    assert len(pd.read_parquet(out / "paths.parquet")) == len(circuit.inputs)
    page = (out / "heads.html").read_text(encoding="utf-8")
    assert page.count("plotly-graph-div") >= 4 and "K-composition of induction heads" in page


def test_a_text_takes_the_place_of_random_tokens(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("When Mary and John went to the store, John gave a drink to Mary. " * 40, encoding="utf-8")
    code, printed, _ = run("heads", "--text", path, "--no-progress")
    assert code == 0 and "pieces of a text said" in printed and "0.3" in printed


def test_prompts_of_ones_own(run: Run, tmp_path: Path) -> None:
    tokenizer = HookedTransformer.from_pretrained("headscope-demo").tokenizer
    names = IOIDataset(N=1, tokenizer=tokenizer).names[:5]
    pairs = [(a, b) for a in names for b in names if a != b][:12]
    lines = ["prompt,correct,incorrect"]
    for io, s in pairs:
        lines.append(f'"When {io} and {s} went to the park, {s} gave a ball to",{io},{s}')
        lines.append(f'"When {s} and {io} went to the park, {s} gave a ball to",{io},{s}')
    path = tmp_path / "my.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    code, printed, error = run("heads", "--task", path, "--no-progress")
    assert code == 0, error
    assert "name copier" in printed or "subject suppressor" in printed
    path.write_text("prompt,correct,incorrect\nThen Mary gave a ball to,John,Mary\n", encoding="utf-8")
    code, _, error = run("heads", "--task", path, "--no-progress")
    assert code == 1 and "prompt 0" in error and "right answer 0 times" in error


def test_what_cannot_be(run: Run, tmp_path: Path) -> None:
    code, _, error = run("heads", "--circuit", "--no-progress")
    assert code == 1 and "name one with --task" in error
    code, _, error = run("heads", "--task", tmp_path / "none.csv", "--no-progress")
    assert code == 1 and "none.csv" in error
