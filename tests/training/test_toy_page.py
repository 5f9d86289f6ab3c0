"""The page of a toy model: what it says is what was measured, for each kind of model, and nothing half is left."""

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
import torch

from headscope.errors import InvalidInputError
from headscope.report import write_toy_report
from headscope.training.toy import train
from headscope.training.toy_tasks import induction_task, modular_addition_task, palindrome_task, skip_trigram_task
from headscope.views.html import CONTENT_POLICY

TASKS = {
    "skip-trigram": (lambda: skip_trigram_task(size=600, device="cpu"), {"along", "parts", "ov", "qk"}),
    "induction": (
        lambda: induction_task(size=100, length=12, d_vocab=16, device="cpu"), {"along", "scores", "composition"},
    ),
    "modular-addition": (lambda: modular_addition_task(p=7, device="cpu"), {"along", "grokking", "waves"}),
    "palindrome": (lambda: palindrome_task(size=100, device="cpu"), {"along", "scores", "composition"}),
}  # fmt: skip
CAPTIONS = {
    "training": "dotted lines", "along": "at the slider", "heads": "A head's mean", "parts": "z W_O W_U",
    "ov": "W_E W_V W_O W_U", "qk": "before the softmax", "scores": "on repeated random tokens",
    "composition": "Frobenius", "waves": "wave of each", "grokking": "by heart long before",
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_each_kind_of_model_has_its_figures(name: str, tmp_path: Path) -> None:
    make, figures = TASKS[name]
    task = make()
    cfg = replace(task.training, epochs=None, steps=4, batch_size=40, evaluate_every=2)
    result = train(
        task.model, task.data, cfg, validation=task.validation, out=tmp_path / "run", snapshots=[0, 4], progress=False
    )
    report = write_toy_report(
        task.model, task.validation, result, tmp_path / "page", run=tmp_path / "run", progress=False
    )
    page = report.page.read_text()
    shown = {figure for figure, words in CAPTIONS.items() if words in page}
    assert shown == figures | {"training", "heads"}
    assert f"{100 * result.final.signal_accuracy:.2f}&nbsp;%" in page
    assert f"{result.final.signal_loss:.4f}" in page
    assert ("noise" in page.split("<footer>")[0].split('id="training"')[0]) == bool((~task.validation.signal).any())
    # Nothing is asked of a network.
    written = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert CONTENT_POLICY in unescape(page) and not re.search(r'(?:src|href)="', written)
    heads = pd.read_parquet(tmp_path / "page" / "heads.parquet")
    assert heads["loss_without"].tolist() == pytest.approx(report.heads.loss_without.flatten().tolist())
    curve = pd.read_parquet(tmp_path / "page" / "training.parquet")
    assert curve["loss"].tolist() == pytest.approx(result.train.loss.tolist())
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == [
        "dynamics.parquet", "heads.parquet", "report.html", "training.parquet", "validation.parquet",
    ]  # fmt: skip


def test_prompts_are_answered_as_the_model_answers(tmp_path: Path) -> None:
    task = skip_trigram_task(size=600, device="cpu")
    result = train(task.model, task.data, replace(task.training, epochs=None, steps=2), progress=False)
    report = write_toy_report(task.model, task.validation, result, tmp_path, progress=False)
    page = report.page.read_text()
    rows = re.findall(r"<code>([\d ]+)</code></td><td>(\d+)</td><td[^>]*>(\d+)</td><td>([\d.]+)&nbsp;%", page)
    assert [int(label) for _, label, _, _ in rows] == list(range(10)), "one prompt for each answer"
    for prompt, label, answer, probability in rows:
        tokens = torch.tensor([[int(token) for token in prompt.split()]])
        said = task.model(tokens)[0, -1].detach().softmax(-1)
        assert int(said.argmax()) == int(answer) and 100 * float(said.max()) == pytest.approx(
            float(probability), abs=0.01
        )
        low, high = sorted((int(tokens[0, 0]), int(tokens[0, 2])))
        assert task.data.ANSWERS[low, high] == int(label)
    assert report.dynamics is None and "Along training" not in page
    assert "validation.parquet" not in page


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    task = skip_trigram_task(size=100, device="cpu")
    result = train(task.model, task.data, replace(task.training, epochs=None, steps=1), progress=False)
    (tmp_path / "file").write_text("here")
    with pytest.raises(InvalidInputError, match="cannot be written"):
        write_toy_report(task.model, task.data, result, tmp_path / "file", progress=False)
    task.data.signal[:] = False
    with pytest.raises(InvalidInputError, match="no row of data"):
        write_toy_report(task.model, task.data, result, tmp_path / "page", progress=False)
    assert not (tmp_path / "page").exists()
