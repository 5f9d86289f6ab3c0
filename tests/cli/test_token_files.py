"""Models without a tokenizer on files of token ids: `headscope entropy`, `patch`, `attribute` and `ioi`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_program import TRUTH, previous_token_program
from tiny import tiny_model, tiny_tokens

from headscope.analysis import NumberMetric, Task, activation_patch, measure_entropy
from headscope.analysis.patching.result import PatchingResult
from headscope.data.token_files import read_tokens
from headscope.errors import InvalidInputError, MissingTokenizerError

Run = Callable[..., tuple[int, str, str]]
ROWS = [[3, 1, 2, 0], [3, 0, 1, 1]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    previous_token_program().save_pretrained(folder)
    return folder


def write(path: Path, rows: Any) -> Path:
    if path.suffix == ".npy":
        np.save(path, np.array(rows, dtype=np.uint16))
    elif path.suffix == ".safetensors":
        save_file({"tokens": torch.tensor(rows), "other": torch.zeros(1)}, path)
    else:
        path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".json"])
def test_tokens_are_read_from_any_of_the_files(tmp_path: Path, suffix: str) -> None:
    assert read_tokens(write(tmp_path / f"tokens{suffix}", ROWS)).tolist() == ROWS
    assert read_tokens(write(tmp_path / f"row{suffix}", ROWS[0])).tolist() == ROWS[:1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "[[1, 2], [3]]", "cannot be read as tokens"),
        ("a.json", "[[1.5, 2.0]]", "holds torch.float32"),
        ("a.json", "[]", "holds torch.float32"),
        ("a.json", "{", "cannot be read as tokens"),
        ("a.json", '{"tokens": [[1, 2, 3]]}', r"it holds a dict, not a list of rows such as \[\[3, 1, 2"),
        ("a.json", '"1, 2"', "it holds a str, not a list"),
        ("a.json", "7", "it holds a int, not a list"),
        ("a.json", "[[null, 1]]", "cannot be read as tokens: Could not infer dtype of NoneType"),
        ("a.json", '[{"tokens": [1, 2]}]', "cannot be read as tokens: Could not infer dtype of dict"),
        ("a.json", "[[1, 99999999999999999999]]", "cannot be read as tokens: Overflow"),
        ("a.npy", "no array", "cannot be read as tokens"),
        ("a.safetensors", "no tensors", "cannot be read as tokens"),
        ("a.bin", "", "is no file of tokens"),
        ("b.npy", None, "is no file"),
    ],
)
def test_what_holds_no_tokens_says_why(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInputError, match=said):
        read_tokens(tmp_path / name)


def test_what_is_no_array_of_ids_says_why(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        np.savez(file, tokens=np.array(ROWS))
    with pytest.raises(InvalidInputError, match=r"a.npy cannot be read as tokens: .*magic string"):
        read_tokens(path)
    np.save(path, np.array([[1, 2**64 - 3]], dtype=np.uint64))
    with pytest.raises(InvalidInputError, match="18446744073709551613 is too large for a token id"):
        read_tokens(path)
    np.save(path, np.array([["1", "2"]]))
    with pytest.raises(InvalidInputError, match=r"cannot be read as tokens: .*can't convert"):
        read_tokens(path)
    np.save(path, np.array(ROWS, dtype=np.uint64))
    assert read_tokens(path).tolist() == ROWS


def test_several_tensors_need_a_name(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(InvalidInputError, match="none of them named 'tokens'"):
        read_tokens(tmp_path / "a.safetensors")


def test_entropy_is_measured_on_a_file_of_tokens(run: Run, tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    model.save_pretrained(tmp_path / "model")
    tokens = tiny_tokens(3, 8)
    file = write(tmp_path / "tokens.npy", tokens.tolist())
    code, printed, _ = run("entropy", tmp_path / "model", "--text", file, "--no-progress", "--top", 2)
    wanted = measure_entropy(model, tokens, describe="tokens.npy", progress=False)
    assert code == 0 and str(wanted.top(1)).splitlines()[1] in printed and "tokens.npy" in printed


def rows_of(numerical: bool = False) -> list[dict[str, Any]]:
    rows = []
    for each in TRUTH["examples"]:
        at = each["position"]
        row = {"prompt": each["clean"], "corrupted": each["corrupted"], "position": at}
        right, wrong = each["output"][at], each["corrupted_output"][at]
        if not numerical:
            rows.append({**row, "correct": right, "incorrect": wrong})
        elif (right == 0) != (wrong == 0):
            rows.append({**row, "correct": float(right == 0), "incorrect": float(wrong == 0)})
    return rows


def as_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("numerical", [False, True])
def test_prompts_of_token_ids_are_patched(run: Run, tmp_path: Path, program: Path, numerical: bool) -> None:
    file = as_lines(tmp_path / "my.jsonl", rows_of(numerical))
    out = tmp_path / "out"
    code, printed, _ = run("patch", program, "--task", file, "--sites", "z,mlp_out", "--out", out, "--no-progress")
    assert code == 0 and "z (1 layers x 2 heads): 0.0 +1.000" in printed
    assert f"share of the {'metric' if numerical else 'logit difference'}" in printed
    found = PatchingResult.load(out / "result.safetensors")
    task = Task.read(file, None)
    wanted = activation_patch(previous_token_program(), task, ["z", "mlp_out"], progress=False)
    torch.testing.assert_close(found.values, wanted.values)
    assert isinstance(task.metric, NumberMetric) is numerical
    code, printed, _ = run("attribute", program, "--task", file, "--no-progress")
    assert code == 0
    assert run("ioi", program, "--task", file, "--no-progress")[0] == 0


BAD: dict[str, tuple[list[dict[str, Any]], str]] = {
    "text among ids": ([rows_of()[0], {**rows_of()[1], "prompt": "a b"}], "line 2: 'prompt' is text"),
    "one without a corrupted prompt": ([rows_of()[0], {**rows_of()[1], "corrupted": None}], "has no 'corrupted'"),
    "no answer": ([{"prompt": [1, 2], "correct": 1}], "has no 'incorrect'"),
    "several numbers": ([{**rows_of()[0], "correct": 0.5, "incorrect": [0.0, 1.0]}], "one for each prompt"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_of_ids_are_named(tmp_path: Path, case: str) -> None:
    rows, said = BAD[case]
    with pytest.raises(InvalidInputError, match=said):
        Task.read(as_lines(tmp_path / "my.jsonl", rows), None)


def test_text_needs_a_tokenizer(tmp_path: Path, run: Run, program: Path) -> None:
    file = as_lines(tmp_path / "my.jsonl", [{"prompt": "a", "correct": "b", "incorrect": "c"}])
    with pytest.raises(MissingTokenizerError, match="lists of token ids"):
        Task.read(file, None)
    code, _, error = run("patch", program, "--task", file)
    assert code == 1 and "no tokenizer" in error


def test_a_report_leaves_out_what_needs_next_tokens(run: Run, tmp_path: Path, program: Path) -> None:
    file = write(tmp_path / "tokens.json", [each["clean"] for each in TRUTH["examples"]])
    code, printed, error = run("report", program, "--text", file, "--out", tmp_path / "report", "--no-progress")
    assert code == 0, error
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "tokens.json" in page and not (tmp_path / "report" / "loss.parquet").exists()
    code, _, error = run("report", program, "--text", file, "--sections", "loss", "--out", tmp_path / "other")
    assert code == 1 and "reads 5 tokens and predicts among 4 others" in error
