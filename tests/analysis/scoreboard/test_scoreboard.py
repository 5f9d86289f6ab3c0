"""The scoreboard: its scores against plain counting, what it reads of a truth, and a program of known answers on it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_program import CFG, TRUTH, previous_token_program

from headscope.analysis import KnownModel, Truth, scoreboard
from headscope.analysis.scoreboard.board import known_models
from headscope.analysis.scoreboard.known_tasks import known_task, share_right
from headscope.analysis.scoreboard.methods import COMPONENTS, EDGES, _scored
from headscope.analysis.scoreboard.scoring import auroc, found
from headscope.errors import InvalidInputError


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.booleans()), min_size=2, max_size=20))
def test_the_area_is_the_share_of_pairs_in_order(parts: list[tuple[float, bool]]) -> None:
    scores = {str(at): score for at, (score, _) in enumerate(parts)}
    true = [str(at) for at, (_, is_true) in enumerate(parts) if is_true]
    idle = [str(at) for at, (_, is_true) in enumerate(parts) if not is_true]
    area = auroc(scores, true, idle)
    if not true or not idle:
        assert area != area
        return
    # The trapezoids under the curve of true against false positives, threshold by threshold.
    points = [(0.0, 0.0)]
    for least in sorted(set(scores.values()), reverse=True):
        rates = (sum(scores[label] >= least for label in some) / len(some) for some in (idle, true))
        points.append(tuple(rates))  # type: ignore[arg-type]
    under = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False))
    assert area == pytest.approx(under)


def test_what_has_no_score_or_none_that_is_a_number_is_last() -> None:
    assert auroc({"a": 1.0, "b": float("nan")}, ["a"], ["b", "c"]) == 1.0
    assert auroc({"b": 0.0}, ["a"], ["b"]) == 0.0


def test_rounding_counts_as_nothing() -> None:
    assert _scored(("a", "b", "c"), torch.tensor([-2.0, 1e-7, float("nan")])) == {"a": 2.0, "b": 0.0, "c": 0.0}


def test_precision_and_recall_are_of_what_was_named() -> None:
    counts = found(["a", "b"], ["b", "c", "d"])
    assert (counts.right, counts.wrong, counts.missed) == (1, 1, 2)
    assert counts.precision == 0.5 and counts.recall == pytest.approx(1 / 3)
    nothing = found([], [])
    assert nothing.precision != nothing.precision and nothing.recall != nothing.recall


TRUTHS: dict[str, dict[str, Any]] = {
    "programs": {"roles": {"0.0": {"writes": ["previous_token_1"]}, "MLP 0": {}}, "idle": ["0.1"]},
    "labels of the field": {"roles": {"L0H0": "previous-token head", "mlp0": ""}, "idle": ["L0H1"]},
    "a list of roles": {"roles": ["blocks.0.attn.0", "blocks.0.mlp"], "kinds": {"Previous token head": ["0.0"]}},
    "what was derived": {"roles": {}, "derived": {"0.0": "previous token", "M0": "?"}, "idle_by_measurement": ["0.1"]},
    "kinds and pairs": {"roles": {"0.0": None, "0:1": {}}, "kinds": {"previous_token": "0.0"}, "idle": ["MLP0"]},
}


@pytest.mark.parametrize("case", TRUTHS)
def test_a_truth_is_read_in_any_of_the_fields_words(case: str) -> None:
    truth = Truth.of(TRUTHS[case], CFG)
    true = {"0.0", "0.1"} if case == "kinds and pairs" else {"0.0", "mlp0"}
    assert truth.true == true and truth.idle == {"0.0", "0.1", "mlp0"} - true
    assert truth.kinds["previous_token"] == {"0.0"}


@pytest.mark.parametrize(
    "edge",
    [["0.0", "final"], "0.0 -> final", {"from": "L0H0", "to": "logits"}, {"sender": "0.0", "receiver": "unembed"}],
)
def test_an_edge_is_read_in_any_form(edge: Any) -> None:
    assert Truth.of({"edges": [edge]}, CFG).edges == {("0.0", "final")}


def test_inputs_of_heads_and_words_for_tokens_are_read() -> None:
    example = {"clean": ["bos", "a", "b"], "output": [None, "a", "b"], "position": 2}
    data = {"edges": [["MLP 0", "0.1.k"], ["0.0", "0.1", "q"]], "examples": [example, {"clean": [1]}],
            "vocab_in": {"a": 0, "b": 1, "bos": 2}, "vocab_out": {"a": 1, "b": 0}}  # fmt: skip
    truth = Truth.of(data, CFG)
    assert truth.edges == {("mlp0", "0.1.k"), ("0.0", "0.1.q")}
    assert truth.examples[0].clean == (2, 0, 1) and truth.examples[0].output == (None, 1, 0)
    assert truth.special == (2,) and truth.bos == 2 and "an example is left out" in truth.notes[0]


def test_a_truth_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"names '7\.0'"):
        Truth.of({"roles": {"7.0": {}}}, CFG)
    path = tmp_path / "truth.json"
    path.write_text("[1]")
    with pytest.raises(InvalidInputError, match="must hold an object"):
        Truth.read(path, CFG)
    path.write_text("{")
    with pytest.raises(InvalidInputError, match="cannot be read as JSON"):
        Truth.read(path, CFG)
    with pytest.raises(InvalidInputError, match="no folder in it has a truth.json"):
        known_models(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program, and a folder whose weights are missing."""
    folder = tmp_path_factory.mktemp("models")
    previous_token_program().save_pretrained(folder / "program")
    (folder / "program" / "truth.json").write_text(json.dumps(TRUTH))
    (folder / "broken").mkdir()
    (folder / "broken" / "truth.json").write_text(json.dumps(TRUTH))
    return folder


def test_a_program_is_scored_and_a_broken_model_loses_no_other(folder: Path) -> None:
    board = scoreboard(folder, progress=False)
    broken, program = board
    assert broken.name == "broken" and "it does not load" in broken.notes[0]
    assert program.right == 1.0 and (program.n_true, program.n_idle) == (1, 2)
    assert set(program.components) == set(COMPONENTS) and set(program.edges) == set(EDGES)
    assert set(program.components.values()) == {1.0} and set(program.edges.values()) == {1.0}
    assert program.circuit is not None and program.circuit.precision == program.circuit.recall == 1.0
    assert program.labels.precision == program.labels.recall == 1.0
    assert program.idle_labelled == program.labels_reinitialized == 0 and program.unseen == ()
    frame = board.to_frame()
    assert frame["components: activation patching"].tolist()[1] == 1.0 and frame["circuit_recall"][1] == 1.0
    assert "| program" in str(board) and "- broken: it does not load" in board.markdown()


def test_examples_without_corrupted_prompts_are_paired_with_others() -> None:
    model = previous_token_program()
    examples = [{key: each[key] for key in ("clean", "output")} for each in TRUTH["examples"]]
    truth = Truth.of({**TRUTH, "examples": examples}, CFG)
    task = known_task(model, truth)
    assert task.corrupted_tokens is not None and (task.correct != task.incorrect).all()
    assert share_right(model, truth, task) == 1.0


def test_an_output_may_be_a_number() -> None:
    model = previous_token_program()
    # The logit of output 0 is 1 where the token before is 0, and 0 elsewhere.
    examples = [
        {**each, **{key: [float(out == 0) for out in each[key]] for key in ("output", "corrupted_output")}}
        for each in TRUTH["examples"]
    ]
    data = {**TRUTH, "examples": examples, "output": "numerical"}
    truth = Truth.of(
        {**data, "examples": [{k: v for k, v in each.items() if k != "position"} for each in examples]}, CFG
    )
    board = scoreboard([KnownModel("number", lambda: model, truth)], progress=False)
    assert board[0].right == 1.0 and board[0].components["activation patching"] == 1.0
    assert board[0].components["direct attribution"] == 1.0


def test_a_part_that_never_varies_is_named() -> None:
    truth = Truth.of({**TRUTH, "roles": {**TRUTH["roles"], "0.1": {}}, "idle": ["MLP 0"]}, CFG)
    score = scoreboard([KnownModel("program", previous_token_program, truth)], progress=False)[0]
    assert score.unseen == ("0.1",) and score.notes[0] == "patching shows no effect of 0.1"
    assert score.components["activation patching"] == 0.75
