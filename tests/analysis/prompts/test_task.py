"""Tasks: prompts and answers in tokens, against plain loops; and what is wrong with a row, said with its name."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from headscope import HookedTransformer
from headscope.analysis.core.stats import standard_errors
from headscope.analysis.prompts.answers import answer_difference, logit_difference
from headscope.analysis.prompts.task import Task
from headscope.data.ioi import IOIDataset
from headscope.errors import InvalidInputError, UnknownNameError

LONG = "When Mary and John went to the store, John gave a drink to"
SHORT = "Mary gave a book to"


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return HookedTransformer.from_pretrained("headscope-demo")


@pytest.fixture(scope="module")
def tokenizer(model: HookedTransformer) -> Any:
    return model.tokenizer


def logits_of(batch: int = 3, pos: int = 4, d_vocab: int = 9) -> torch.Tensor:
    return torch.randn(batch, pos, d_vocab, generator=torch.Generator().manual_seed(3))


def test_the_logit_difference_is_the_notebooks() -> None:
    logits, answers = logits_of(), torch.tensor([[1, 2], [3, 0], [8, 8]])
    correct, incorrect = logits[:, -1, :].gather(-1, answers).unbind(-1)
    torch.testing.assert_close(logit_difference(logits, answers, per_prompt=True), correct - incorrect)
    torch.testing.assert_close(logit_difference(logits, answers), (correct - incorrect).mean())
    assert float(logit_difference(logits, answers, True)[2]) == 0


def test_it_is_read_where_the_answer_is_predicted() -> None:
    logits, answers, at = logits_of(), torch.tensor([[1, 2], [3, 0], [8, 7]]), torch.tensor([3, 0, 2])
    expected = [float(logits[i, at[i], answers[i, 0]] - logits[i, at[i], answers[i, 1]]) for i in range(3)]
    found = logit_difference(logits, answers, per_prompt=True, positions=at)
    torch.testing.assert_close(found, torch.tensor(expected))
    torch.testing.assert_close(logit_difference(logits[range(3), at], answers, per_prompt=True), found)


def test_several_answers_are_averaged() -> None:
    logits = logits_of(2, 1)
    right, wrong = torch.tensor([[1, 2], [0, 0]]), torch.tensor([[3, 4, 5], [8, 7, 6]])
    expected = [
        sum(float(logits[i, 0, t]) for t in right[i]) / 2 - sum(float(logits[i, 0, t]) for t in wrong[i]) / 3
        for i in range(2)
    ]
    torch.testing.assert_close(answer_difference(logits, right, wrong), torch.tensor(expected))


def test_what_does_not_fit_logits_is_told() -> None:
    logits, answers = logits_of(), torch.tensor([[1, 2], [3, 0], [8, 7]])
    with pytest.raises(InvalidInputError, match="from 0 to 8; they go from 2 to 10"):
        logit_difference(logits, answers + 2)
    with pytest.raises(InvalidInputError, match="from 0 to 3; they go from 0 to 4"):
        logit_difference(logits, answers, positions=torch.tensor([0, 1, 4]))


def test_prompts_become_rows_of_tokens(model: HookedTransformer, tokenizer: Any) -> None:
    task = Task.from_prompts([LONG, SHORT], ["Mary", " John"], ["John", "Mary"], tokenizer, labels=["ABBA", "other"])
    rows = [[tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)] for text in (LONG, SHORT)]
    for i, row in enumerate(rows):
        assert task.clean_tokens[i, : len(row)].tolist() == row and int(task.positions[i]) == len(row) - 1
        assert task.attention_mask[i].tolist() == [j < len(row) for j in range(task.clean_tokens.shape[1])]
        assert task.str_tokens[i] == tuple(tokenizer.decode([token]) for token in row)
    assert len(task) == 2 and task.corrupted_tokens is None and task.labels == ("ABBA", "other")
    mary, john = (tokenizer.encode(name, add_special_tokens=False) for name in (" Mary", " John"))
    assert task.correct.tolist() == [mary, john] and task.incorrect.tolist() == [john, mary]
    assert task.answers == ((" Mary", " John"), (" John", " Mary"))
    alone = [model(model.to_tokens(text))[0, -1].detach() for text in (LONG, SHORT)]
    signs = (1, -1)
    expected = [s * float(a[mary[0]] - a[john[0]]) for a, s in zip(alone, signs, strict=True)]
    logits = model(task.clean_tokens, attention_mask=task.attention_mask).detach()
    found = task.logit_difference(logits, per_prompt=True)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(task.logit_difference(logits), found.mean())
    assert "without corrupted" in repr(task) and repr(LONG) in repr(task) and task.description.startswith("2 prompts")
    bare = Task.from_prompts([SHORT], ["John"], ["Mary"], tokenizer, prepend_bos=False)
    assert bare.clean_tokens[0].tolist() == rows[1][1:]


def test_templates_give_the_prompts_of_the_exploratory_notebook(tokenizer: Any) -> None:
    templates = [
        "When John and Mary went to the store, {} gave a drink to",
        "When Tom and James met, {} gave a ring to",
    ]
    pairs = [("Mary", "John"), ("Tom", "James")]
    task = Task.from_templates(templates, pairs, tokenizer)
    expected = [text.format(name) for text, names in zip(templates, pairs, strict=True) for name in names[::-1]]
    answers = [tuple(f" {name}" for name in names[::i]) for names in pairs for i in (1, -1)]
    assert list(task.prompts) == expected and list(task.answers) == answers
    assert task.corrupted_tokens is not None
    assert torch.equal(task.corrupted_tokens, task.clean_tokens[[1, 0, 3, 2]])
    assert task.clusters is not None and task.clusters.tolist() == [0, 0, 1, 1]
    taken = task[[3, 0, 1]].to("cpu").clusters
    assert taken is not None and taken.tolist() == [1, 0, 0]
    same = Task.from_templates(["So {} gave a drink to"], pairs, tokenizer)
    assert [prompt.split()[1] for prompt in same.prompts] == ["John", "Mary", "James", "Tom"]
    for bad, message in (
        (lambda: Task.from_templates(["So she gave it to"], pairs, tokenizer), "one gap {}"),
        (lambda: Task.from_templates(templates, pairs * 2, tokenizer), "2 templates and 4 pairs"),
        (
            lambda: Task.from_templates(templates, [pairs[0], ("Tom", "Zebedee")], tokenizer),
            "^pair 1 .'Tom', 'Zebedee'",
        ),
    ):
        with pytest.raises(InvalidInputError, match=message):
            bad()


@pytest.mark.parametrize("bos", [False, True])
def test_ioi_sentences_end_before_their_answer(tokenizer: Any, bos: bool) -> None:
    data = IOIDataset(N=30, tokenizer=tokenizer, prepend_bos=bos, seed=4)
    task = Task.from_ioi(data)
    flipped = data.gen_flipped_prompts("ABB->XYZ, BAB->XYZ")
    assert task.corrupted_tokens is not None and task.labels == tuple(data.orders)
    for i in range(30):
        end = int(data.word_idx["end"][i])
        assert int(task.positions[i]) == end and task.attention_mask[i].sum() == end + 1
        assert torch.equal(task.clean_tokens[i, : end + 1], data.toks[i, : end + 1])
        assert torch.equal(task.corrupted_tokens[i, : end + 1], flipped.toks[i, : end + 1])
        assert set(task.clean_tokens[i, end + 1 :].tolist()) <= {tokenizer.eos_token_id}
        assert "".join(task.str_tokens[i][bos:]) == task.prompts[i] == data.prompts[i]
        assert task.answers[i] == (f" {data.ioi_prompts[i]['IO']}", f" {data.ioi_prompts[i]['S']}")
        assert int(task.correct[i]) == data.io_tokenIDs[i] and int(task.incorrect[i]) == data.s_tokenIDs[i]
    assert all(torch.equal(task.word_idx[word], at) for word, at in data.word_idx.items())
    assert Task.from_ioi(data, None).corrupted_tokens is None
    given = Task.from_ioi(data, flipped).corrupted_tokens
    assert given is not None and torch.equal(given, task.corrupted_tokens)
    with pytest.raises(InvalidInputError, match="not aligned"):
        Task.from_ioi(data, IOIDataset(N=30, tokenizer=tokenizer, prepend_bos=bos, seed=5))


def test_a_task_can_be_cut_and_moved(tokenizer: Any) -> None:
    task = Task.from_ioi(IOIDataset(N=12, tokenizer=tokenizer))
    for key, numbers in ((slice(3, 6), [3, 4, 5]), ([7, 0], [7, 0]), (torch.tensor([11]), [11])):
        some = task[key]
        assert len(some) == len(numbers) and some.prompts == tuple(task.prompts[i] for i in numbers)
        assert torch.equal(some.clean_tokens, task.clean_tokens[numbers])
        assert torch.equal(some.word_idx["S2"], task.word_idx["S2"][numbers]) and some.corrupted_tokens is not None
    with pytest.raises(InvalidInputError, match="slice or a list"):
        task[20:]
    moved = task.to("cpu")
    assert torch.equal(moved.clean_tokens, task.clean_tokens) and moved.prompts == task.prompts
    assert all(torch.equal(moved.word_idx[word], at) for word, at in task.word_idx.items())


def test_tables(tokenizer: Any) -> None:
    tricky = "Mary said [bold]no[/bold] to"
    task = Task.from_prompts([LONG, tricky], ["Mary", "John"], ["John", "Mary"], tokenizer)
    found = torch.tensor([1.5, -0.25])
    frame = task.to_frame(found)
    assert list(frame.columns) == ["prompt", "correct", "incorrect", "label", "logit_difference"]
    assert frame["logit_difference"].tolist() == [1.5, -0.25] and frame["prompt"].tolist() == [LONG, tricky]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(task.table(found))
    console.print(task.table())
    text = console.export_text()
    assert text.count(tricky) == 2 and text.count("+1.500") == 1 and "' Mary'" in text and "-0.250" in text
    with pytest.raises(InvalidInputError, match="2 prompts, and 1 logit"):
        task.to_frame(found[:1])


def write(folder: Path, rows: Any, kind: str) -> Path:
    path = folder / f"my.{kind}"
    if isinstance(rows, str):
        path.write_text(rows, encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_table_of_ones_own(tmp_path: Path, tokenizer: Any) -> None:
    second, other = LONG.replace("went", "came"), LONG.replace("John gave", "Mary gave")
    fourth = other.replace("went", "came")
    csv = (
        "\ufeffprompt,correct,incorrect,corrupted,label\r\n"
        f'"{LONG}",Mary,John,"{other}",ABBA\r\n'
        f'"{second}", Mary,John,"{fourth}",\r\n'
    )
    rows = [
        {"prompt": LONG, "correct": "Mary", "incorrect": ["John"], "corrupted": other, "label": "ABBA"},
        {"prompt": second, "correct": " Mary", "incorrect": "John", "corrupted": fourth},
    ]
    read = [Task.read(write(tmp_path, content, kind), tokenizer) for content, kind in ((csv, "csv"), (rows, "jsonl"))]
    made = Task.from_prompts([LONG, second], ["Mary"] * 2, ["John"] * 2, tokenizer, corrupted=[other, fourth])
    for task in read:
        assert torch.equal(task.clean_tokens, made.clean_tokens) and torch.equal(task.correct, made.correct)
        assert task.corrupted_tokens is not None and made.corrupted_tokens is not None
        assert torch.equal(task.corrupted_tokens, made.corrupted_tokens) and task.labels == ("ABBA", "")
    assert all(task.clusters is None for task in read)
    several = Task.read(write(tmp_path, "prompt,correct,incorrect\nTom ran to,Mary|John,store\n", "csv"), tokenizer)
    assert several.correct.shape == (1, 2) and several.answers[0][0] == " Mary| John"
    inside = Task.read(
        write(tmp_path, 'prompt,correct,incorrect\n"It rained.\nTom ran to",Mary,John\n', "csv"), tokenizer
    )
    assert inside.prompts == ("It rained.\nTom ran to",)


def test_prompts_of_a_cluster_are_named(tmp_path: Path, tokenizer: Any) -> None:
    """The same clusters in lists, in both kinds of files and beside token ids; errors are then over clusters."""
    prompts = [SHORT, SHORT.replace("book", "ball"), LONG, LONG.replace("store", "park"), LONG.replace("drink", "ring")]
    names = ["Mary", "Mary", "", "4", "4"]
    answers = (["Mary"] * 5, ["John"] * 5)
    csv = "prompt,correct,incorrect,cluster\n" + "".join(
        f'"{prompt}",Mary,John,{name}\n' for prompt, name in zip(prompts, names, strict=True)
    )
    rows: list[dict[str, Any]] = [
        {"prompt": prompt, "correct": "Mary", "incorrect": "John", "cluster": name}
        for prompt, name in zip(prompts, ["Mary", "Mary", None, 4, "4"], strict=True)
    ]
    ids = [{**row, "prompt": [at + 1, 2], "correct": 3, "incorrect": 4} for at, row in enumerate(rows)]
    made = [
        Task.from_prompts(prompts, *answers, tokenizer, clusters=names),
        Task.from_prompts(prompts, *answers, tokenizer, clusters=torch.tensor([7, 7, 5, 4, 4])),
        *(Task.read(write(tmp_path, text, kind), tokenizer) for text, kind in ((csv, "csv"), (rows, "jsonl"))),
        Task.read(write(tmp_path, ids, "jsonl"), None),
        Task.from_tokens(torch.ones(5, 2).long(), correct=[3] * 5, incorrect=[4] * 5, clusters=["a", "a", None, 4, 4]),
    ]
    for task in made:
        assert task.clusters is not None and task.clusters.tolist() == [0, 0, 1, 2, 2]
    values = torch.tensor([1.0, 3.0, 5.0, 4.0, 7.0])
    away = [1 + 3 - 2 * 4.0, 5 - 4.0, 4 + 7 - 2 * 4.0]
    expected = (sum(each**2 for each in away) * 3 / 2) ** 0.5 / 5
    assert float(standard_errors(values[:, None], made[0].clusters)[0]) == pytest.approx(expected)
    unnamed = Task.from_prompts(prompts, *answers, tokenizer, clusters=[None, "", None, "", ""])
    assert unnamed.clusters is None


GOOD = {"prompt": LONG, "correct": "Mary", "incorrect": "John"}
BAD_ROWS = {
    "no prompt": ({"prompt": ""}, "'prompt' is missing or empty"),
    "answer left out": ({"correct": None}, "'correct' is missing or empty"),
    "no answers": ({"incorrect": []}, "'incorrect' is missing or empty"),
    "an empty answer": ({"incorrect": ["John", ""]}, "'incorrect' must be text"),
    "a number": ({"correct": 3}, "'correct' must be text; got 3"),
    "several tokens": ({"correct": "Zebedee"}, "the correct answer ' Zebedee' is . tokens, not one: .*one token"),
    "right and wrong": ({"incorrect": ["Tom", "Mary"]}, "' Mary' is both"),
    "a space too many": ({"prompt": LONG + " "}, "ends with a space"),
    "misaligned": ({"corrupted": LONG + " the"}, r"corrupted prompt has 16 tokens and the prompt 15.*' the'\] and \["),
    "not corrupted": ({"corrupted": LONG}, "nothing is corrupted"),
    "a bad label": ({"label": ["x"]}, "'label' must be text"),
    "a bad cluster": ({"cluster": 1.5}, "'cluster' must be a whole number or text, .* not independent; got 1.5"),
    "a cluster that is a list": ({"cluster": ["x"]}, "'cluster' must be a whole number or text"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named(case: str, tmp_path: Path, tokenizer: Any) -> None:
    change, message = BAD_ROWS[case]
    path = write(tmp_path, [GOOD, {**GOOD, **change}], "jsonl")
    with pytest.raises(InvalidInputError, match=rf"^my.jsonl, line 2: .*{message}"):
        Task.read(path, tokenizer)


HEADING = "prompt,correct,incorrect"
ROW = "Then Lucy saw,Mary,John"
MORE_ANSWERS = (
    '{"prompt":"a b","correct":"Mary","incorrect":"John"}\n\n{"prompt":"a","correct":["Tom","Lucy"],"incorrect":"John"}'
)
FILES = {
    "other numbers of answers": (MORE_ANSWERS, "jsonl", "line 3 has 2 correct answers, and my.jsonl, line 1 1"),
    "one without": (
        f"{HEADING},corrupted\n{ROW},Then Mary saw\n{ROW},\n",
        "csv",
        "line 3 has no corrupted prompt, and my.csv, line 2 one",
    ),
    "the first without": (
        f"{HEADING},corrupted\n{ROW},\n{ROW},Then Mary saw\n",
        "csv",
        "line 2 has no corrupted prompt, and my.csv, line 3 one",
    ),
    "a short line": (f"{HEADING}\nLucy saw,Mary\n", "csv", "line 2: 'incorrect' is missing"),
    "a long line": (f"{HEADING}\nTom, too, saw,Mary,John\n", "csv", "line 2: there are more fields"),
    "an open quote": (f'{HEADING}\n"{ROW}\n', "csv", "line 2: unexpected end"),
    "no such column": (f"prompt,correct,wrong\n{ROW}\n", "csv", "no column 'incorrect'; its first line names 'prompt'"),
    "nothing": ("", "csv", "no column 'prompt'; its first line names nothing"),
    "no rows": (f"{HEADING}\n", "csv", "has no rows"),
    "no lines": ("\n \n", "jsonl", "has no rows"),
    "no JSON": ('{"prompt": "Tom saw",\n', "jsonl", "line 1 is not JSON"),
    "no object": ('["Tom saw"]', "jsonl", "line 1 must be an object with prompt, correct, incorrect"),
    "another kind": ("x", "txt", "neither a .csv nor a .jsonl"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_is_told(case: str, tmp_path: Path, tokenizer: Any) -> None:
    text, kind, message = FILES[case]
    with pytest.raises(InvalidInputError, match=message):
        Task.read(write(tmp_path, text, kind), tokenizer)


def test_unknown_columns_missing_files_and_other_encodings(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(UnknownNameError, match="column 'corupted'. Did you mean 'corrupted'"):
        Task.read(write(tmp_path, [{**GOOD, "corupted": "x"}], "jsonl"), tokenizer)
    with pytest.raises(InvalidInputError, match="cannot be read: No such file"):
        Task.read(tmp_path / "none.csv", tokenizer)
    (tmp_path / "latin.csv").write_bytes("prompt,correct,incorrect\ncaf\u00e9,Mary,John\n".encode("latin-1"))
    with pytest.raises(InvalidInputError, match="is not UTF-8"):
        Task.read(tmp_path / "latin.csv", tokenizer)


def test_lists_that_do_not_fit(tokenizer: Any) -> None:
    with pytest.raises(InvalidInputError, match="2 prompts, and 1 of 'correct'"):
        Task.from_prompts([LONG, SHORT], ["Mary"], ["John"] * 2, tokenizer)
    with pytest.raises(InvalidInputError, match="2 prompts, and 3 of 'cluster'"):
        Task.from_prompts([LONG, SHORT], ["Mary"] * 2, ["John"] * 2, tokenizer, clusters=[1, 2, 2])
    with pytest.raises(InvalidInputError, match="at least one prompt"):
        Task.from_prompts([], [], [], tokenizer)
    with pytest.raises(InvalidInputError, match="^prompt 1: "):
        Task.from_prompts([LONG, SHORT], ["Mary", "Zebedee"], ["John"] * 2, tokenizer)
    task = Task.from_prompts([SHORT], ["John"], ["Mary"], tokenizer)
    parts: dict[str, Any] = dict(vars(task))
    for change, message in (
        ({"labels": ("a", "b")}, "1 prompts, and 2 of labels"),
        ({"positions": task.positions + 1}, "positions must be from 0 to"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            Task(**{**parts, **change})
