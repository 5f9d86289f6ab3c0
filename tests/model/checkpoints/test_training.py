"""Checkpoints of training: Pythia's and Stanford's by revision, the field's small models by file."""

from pathlib import Path
from typing import Any

import pytest

from headscope.errors import CheckpointError, InvalidInputError
from headscope.model.checkpoints.training import find_training_checkpoint, get_checkpoint_labels


def revision(name: str, **which: Any) -> tuple[int, int, str | None]:
    found = find_training_checkpoint(name, **which)
    return found.index, found.value, found.revision


def test_pythia() -> None:
    assert revision("pythia-70m", index=0) == (0, 0, "step0")
    assert revision("EleutherAI/pythia-1b-deduped", label=512) == (10, 512, "step512")
    assert revision("pythia-14m", index=11) == (11, 1000, "step1000")
    assert revision("pythia-14m", label="step143000") == (153, 143_000, "step143000")
    with pytest.raises(InvalidInputError, match=r"no checkpoint of step 1500\. The nearest: 1000, 2000, "):
        revision("pythia-14m", label=1500)
    with pytest.raises(InvalidInputError, match="between 0 and 153 for pythia-14m; got 154"):
        revision("pythia-14m", index=154)
    with pytest.raises(InvalidInputError, match="either checkpoint_index or checkpoint_value"):
        revision("pythia-14m", index=1, label=1)
    with pytest.raises(InvalidInputError, match="known for 'gpt2'"):
        revision("gpt2", index=1)


def test_the_first_pythia_was_saved_less_often() -> None:
    labels, kind = get_checkpoint_labels("pythia-19m-deduped-v0")
    assert kind == "step" and labels == [1000 * each for each in range(1, 144)]
    assert revision("pythia-v0", index=0) == (0, 1000, "step1000")
    with pytest.raises(InvalidInputError, match="no checkpoint of step 512"):
        revision("pythia-v0", label=512)


def test_stanford() -> None:
    labels, kind = get_checkpoint_labels("stanford-gpt2-small-a")
    assert kind == "step" and len(labels) == 609 and labels == sorted(set(labels))
    assert (labels[9:12], labels[47:50], labels[-1]) == ([90, 100, 150], [1950, 2000, 2100], 400_000)
    assert revision("stanford-gpt2-medium-e", label=20_000) == (228, 20_000, "checkpoint-20000")
    assert revision("stanford-crfm/eowyn-gpt2-medium-x777", index=-1) == (608, 400_000, "checkpoint-400000")


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names = ["config.json", "model_final.pth", "checkpoints/run_000002000000000.pth", "checkpoints/run_00000524288.pth"]
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repo, **options: names)
    return names


def test_small_models_are_read_from_their_files(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert get_checkpoint_labels("gelu-1l") == ([524_288, 2_000_000_000], "token")
    assert find_training_checkpoint("gelu-1l", index=0).file == "checkpoints/run_00000524288.pth"
    with pytest.raises(InvalidInputError, match="no checkpoint of token 7"):
        find_training_checkpoint("gelu-1l", label=7)
    files[:] = ["checkpoints/run_10.pth", "checkpoints/run_9.pth"]
    assert get_checkpoint_labels("gelu-1l") == ([9, 10], "step")
    files[:] = ["config.json"]
    with pytest.raises(InvalidInputError, match="no training checkpoints are known"):
        get_checkpoint_labels("gelu-1l")


def test_without_the_hub_files_cannot_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(self: Any, repo: str, **options: Any) -> list[str]:
        raise ConnectionError("no")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", unreachable)
    with pytest.raises(CheckpointError, match=r"listed on the hub, which cannot be reached \(ConnectionError\)"):
        get_checkpoint_labels("solu-2l")


def test_local_files_only_asks_nobody(files: list[str]) -> None:
    with pytest.raises(CheckpointError, match="listed on the hub, which cannot be reached"):
        get_checkpoint_labels("gelu-1l", local_files_only=True)
