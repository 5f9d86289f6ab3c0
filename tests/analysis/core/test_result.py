"""Results: saved whole or not at all, loaded as they were, refused when they are something else."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from headscope.analysis.core.result import (
    HeadScore,
    Ranking,
    Result,
    RunInfo,
    check_option,
    component_label,
    masked_mean,
    rank_components,
)
from headscope.errors import CheckpointError, InvalidInputError
from headscope.model.checkpoints import files as tensor_file

INFO = RunInfo("tiny", ("fold_ln",), "a story", 2, 1234, {"scale": "final", "lens_bias": True, "k": 3})


@dataclass(frozen=True)
class Scores(Result):
    kind: ClassVar[str] = "scores"
    values: Tensor
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Other(Result):
    kind: ClassVar[str] = "other"
    values: Tensor


@pytest.fixture
def scores() -> Scores:
    return Scores(INFO, torch.arange(6.0).view(2, 3).T, ("a", "b"))


def test_a_result_goes_through_a_file(scores: Scores, tmp_path: Path) -> None:
    path = scores.save(str(tmp_path / "deep" / "scores.safetensors"))
    assert path == tmp_path / "deep" / "scores.safetensors" and path.is_file()
    again = Scores.load(path)
    assert type(again) is Scores
    assert torch.equal(again.values, scores.values) and again.values.dtype == scores.values.dtype
    assert again.labels == scores.labels and again.info == INFO and again.info.processing == ("fold_ln",)
    assert [each.name for each in path.parent.iterdir()] == ["scores.safetensors"]
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(again.values, scores.values), "it reads from the file still"


def test_a_result_is_frozen(scores: Scores) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        scores.labels = ()  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        INFO.model = "x"  # type: ignore[misc]


def test_a_failed_save_leaves_the_old_file(scores: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scores.save(tmp_path / "scores.safetensors")
    old = path.read_bytes()

    def fail(tensors: Any, file: Path, **options: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(tensor_file, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        dataclasses.replace(scores, labels=("c",)).save(path)
    assert path.read_bytes() == old and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("contents", [b"", b"garbage", b"\xff" * 100])
def test_a_file_that_is_no_result_is_said(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "scores.safetensors"
    path.write_bytes(contents)
    with pytest.raises(CheckpointError, match="scores.safetensors"):
        Scores.load(path)


def test_another_kind_of_file_is_said(scores: Scores, tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    with pytest.raises(CheckpointError, match="not a readable"):
        Scores.load(path)
    with pytest.raises(CheckpointError, match="not a readable"):
        Scores.load(tmp_path)
    Other(INFO, torch.ones(2)).save(path)
    with pytest.raises(CheckpointError, match="holds 'other', not 'scores'"):
        Scores.load(path)
    save_file({"values": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not 'scores'"):
        Scores.load(path)


@pytest.mark.parametrize("metadata", [
    {}, {"fields": "not json"}, {"fields": "[]"}, {"fields": "{}"}, {"fields": '{"info": {}}'},
    {"fields": json.dumps({"info": dataclasses.asdict(INFO)})},
    {"fields": json.dumps({"info": dataclasses.asdict(INFO), "labels": ["a"], "surplus": 1})},
    {"fields": json.dumps({"info": {**dataclasses.asdict(INFO), "surplus": 1}, "labels": ["a"]})},
])  # fmt: skip
def test_a_damaged_header_is_said(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = tmp_path / "scores.safetensors"
    save_file({"values": torch.ones(2)}, path, metadata={"kind": "scores", **metadata})
    with pytest.raises(CheckpointError, match="scores.safetensors"):
        Scores.load(path)


def test_a_run_says_what_it_was() -> None:
    assert str(INFO) == (
        "tiny (weight processing: fold_ln) on a story: 2 sequences, 1,234 positions; scale=final, lens_bias=True, k=3"
    )
    assert str(RunInfo("tiny", (), "x", 1, 1)) == "tiny (weight processing: none) on x: 1 sequences, 1 positions"


def test_labels() -> None:
    assert component_label(10, 7) == "10.7" and component_label(10, None) == "MLP 10"
    assert HeadScore(10, 7, 0.5).label == "10.7" and HeadScore(3, None, 0.5).label == "MLP 3"


def test_rankings() -> None:
    values = torch.tensor([[1.0, -5.0, 9.0], [3.0, 2.0, -9.0]])

    def ranked(k: int, **options: Any) -> list[tuple[str, float]]:
        ranking = rank_components(values, k, n_heads=2, name="score", unit="nats", **options)
        assert isinstance(ranking, Ranking) and isinstance(ranking, tuple)
        return [(score.label, score.value) for score in ranking]

    assert ranked(2) == [("1.0", 3.0), ("1.1", 2.0)]
    assert ranked(9, largest=False) == [("0.1", -5.0), ("0.0", 1.0), ("1.1", 2.0), ("1.0", 3.0)]
    assert ranked(2, mlps=True) == [("MLP 0", 9.0), ("1.0", 3.0)]
    assert ranked(1, mlps=True, largest=False) == [("MLP 1", -9.0)]
    text = str(rank_components(values, 2, n_heads=2, name="score", unit="nats"))
    assert text.splitlines() == ["         score (nats)", "1.0      +3.0000", "1.1      +2.0000"]
    assert repr(Ranking([], name="nothing")).strip() == "nothing"
    with pytest.raises(InvalidInputError, match="k must be at least 1; got 0"):
        ranked(0)
    with pytest.raises(InvalidInputError, match=r"\[2, 3, 1\].*mean\(\)"):
        rank_components(values[..., None], 1, n_heads=2, name="score")


def test_options() -> None:
    check_option("by", "a", ("a", "b"))
    with pytest.raises(InvalidInputError, match="by must be one of 'a', 'b'; got 'c'"):
        check_option("by", "c", ("a", "b"))


def test_means_over_what_counts() -> None:
    values = torch.tensor([[[1.0, torch.nan], [3.0, 8.0]]])
    assert masked_mean(values, (-2, -1)).tolist() == [4.0]
    assert masked_mean(values, (-1,)).tolist() == [[1.0, 5.5]]
    assert masked_mean(values.half(), (-2, -1)).dtype == torch.float16
