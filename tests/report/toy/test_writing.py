"""The page of a toy model: what it says is what was measured, for each kind of model, and nothing half is left."""

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
import torch
from report_pages import Page

from headscope.errors import InvalidInputError
from headscope.report import write_toy_report
from headscope.training.toy import train
from headscope.training.toy_tasks import induction_task, modular_addition_task, palindrome_task, skip_trigram_task
from headscope.views.html import CONTENT_POLICY

TASKS = {
    "skip-trigram": (lambda: skip_trigram_task(size=600, device="cpu"), {"parts", "ov", "qk"}),
    "induction": (lambda: induction_task(size=100, length=12, d_vocab=16, device="cpu"), {"types"}),
    "modular-addition": (lambda: modular_addition_task(p=7, device="cpu"), {"grokking", "waves"}),
    "palindrome": (lambda: palindrome_task(size=100, device="cpu"), {"types"}),
}
CAPTIONS = {
    "training": "dotted lines are", "along": "at the slider", "heads": "output is replaced by its mean",
    "parts": "All but the last row", "ov": "W_E W_V W_O W_U", "qk": "How a query scores",
    "types": "On repeated random tokens", "waves": "wave of each", "grokking": "can be memorized",
}  # fmt: skip
SECTIONS = {"ov": "circuits", "qk": "circuits", "types": "types", "waves": "waves"}


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
    text = report.page.read_text()
    page = Page(text)
    assert {figure for figure, words in CAPTIONS.items() if words in page.words} == figures | {
        "training", "heads", "along",
    }  # fmt: skip
    ids = {attrs["id"] for tag, attrs in page.elements if tag == "section"}
    chosen = {SECTIONS[figure] for figure in figures if figure in SECTIONS}
    assert ids == {"summary", "answers", "training", "along", "heads", "numbers"} | chosen
    links = [attrs.get("href") or "" for tag, attrs in page.elements if tag == "a"]
    assert {link[1:] for link in links if link.startswith("#")} == ids, "contents lead to each section"
    assert sorted(link for link in links if not link.startswith("#")) == sorted(path.name for path in report.tables)
    assert f"{100 * result.final.signal_accuracy:.2f} %" in page.words
    assert f"{result.final.signal_loss:.4f}" in page.words
    assert ("signal" in text.split("<tbody>")[1].split("</tbody>")[0]) == bool((~task.validation.signal).any())
    # Nothing is asked of a network, and the slider's frames are there.
    assert CONTENT_POLICY in unescape(text) and not any("src" in attrs for _, attrs in page.elements)
    drawn = [json.loads(each) for each in re.findall(r'<script type="application/json">(\{"data".*?)</script>', text)]
    assert [[frame["name"] for frame in each["frames"]] for each in drawn if each.get("frames")] == [["0", "4"]]
    heads = pd.read_parquet(tmp_path / "page" / "heads.parquet")
    assert heads["loss_without"].tolist() == pytest.approx(report.heads.loss_without.flatten().tolist())
    curve = pd.read_parquet(tmp_path / "page" / "training.parquet")
    assert curve["loss"].tolist() == pytest.approx(result.train.loss.tolist())
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == [
        "dynamics.parquet", *["head_types.parquet"] * ("types" in figures), "heads.parquet", "report.html",
        "training.parquet", "validation.parquet",
    ]  # fmt: skip


def test_prompts_are_answered_as_the_model_answers(tmp_path: Path) -> None:
    task = skip_trigram_task(size=600, device="cpu")
    result = train(task.model, task.data, replace(task.training, epochs=None, steps=2), progress=False)
    report = write_toy_report(task.model, task.validation, result, tmp_path, progress=False)
    page = report.page.read_text()
    number = r'</td><td data-value="[\d.]+">(?:<b>|<span class="number">)?'
    cells = rf"<code>([\d ]+)</code>{number}(\d+){number}(\d+)[^<]*(?:</b>)?{number}([\d.]+)\xa0%"
    rows = re.findall(cells, page)
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
    with pytest.raises(InvalidInputError, match="is a file; the report needs a folder"):
        write_toy_report(task.model, task.data, result, tmp_path / "file", progress=False)
    task.data.signal[:] = False
    with pytest.raises(InvalidInputError, match="no row of data"):
        write_toy_report(task.model, task.data, result, tmp_path / "page", progress=False)
    assert not (tmp_path / "page").exists()
