"""Datasets by short names, one column of them, and single files."""

import json
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from datasets_stand_in import StandInDataset, StandInStream, datasets_module

from headscope.data.hub import DATASETS, download_file_from_hf, get_dataset, get_webtext, keep_single_column
from headscope.errors import InvalidInputError, MissingDependencyError, UnknownNameError


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    calls: list[tuple[str, dict[str, Any]]] = []

    def load_dataset(name: str, **options: Any) -> StandInDataset:
        calls.append((name, options))
        if options["split"] == "nonsense":
            raise ValueError('Unknown split "nonsense".')
        return StandInDataset({"text": ["one"], "id": [0]})

    monkeypatch.setitem(sys.modules, "datasets", datasets_module(load_dataset=load_dataset))
    return calls


@pytest.mark.parametrize("name, repo", [
    ("openwebtext", "stas/openwebtext-10k"), ("owt", "stas/openwebtext-10k"), ("pile", "NeelNanda/pile-10k"),
    ("c4", "NeelNanda/c4-10k"), ("code", "NeelNanda/code-10k"), ("python", "NeelNanda/code-10k"),
    ("c4_code", "NeelNanda/c4-code-20k"), ("c4-code", "NeelNanda/c4-code-20k"), ("wiki", "NeelNanda/wiki-10k"),
])  # fmt: skip
def test_short_names(loaded: list[tuple[str, dict[str, Any]]], name: str, repo: str) -> None:
    assert len(get_dataset(name, streaming=True)) == 1
    assert loaded == [(repo, {"split": "train", "streaming": True})]
    assert name in DATASETS and len(DATASETS) == 9


def test_web_text_is_shuffled_by_its_own_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"document {number}" for number in range(50)]
    module = datasets_module(load_dataset=lambda name, split: StandInDataset({"text": texts, "name": [name] * 50}))
    monkeypatch.setitem(sys.modules, "datasets", module)
    random.seed(0)
    first = get_webtext(6)
    random.seed(1)  # the order must not come from here
    again, other = get_webtext(6), get_webtext(7)
    assert first == again != other and first != texts
    assert sorted(first) == sorted(other) == sorted(texts)


def test_what_cannot_be_loaded_is_told(
    loaded: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown dataset 'pil'. Did you mean 'pile'.*load_dataset"):
        get_dataset("pil")
    assert loaded == []
    with pytest.raises(InvalidInputError, match="'NeelNanda/pile-10k' .* cannot be loaded: Unknown split"):
        get_dataset("pile", split="nonsense")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'headscope\[hf-datasets\]'"):
        get_dataset("pile")


def test_one_column() -> None:
    columns = {"text": ["one", "two"], "id": [0, 1]}
    for made in (StandInDataset(columns), StandInStream(columns)):
        assert keep_single_column(made, "text").columns == {"text": ["one", "two"]}  # type: ignore[attr-defined]
    with pytest.raises(UnknownNameError, match="Unknown column 'txt'. Did you mean 'text'"):
        keep_single_column(StandInDataset(columns), "txt")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of a repository on the hub."""

    def hf_hub_download(repo_id: str, filename: str, *, subfolder: str | None, cache_dir: Any, **_: Any) -> str:
        path = tmp_path / (subfolder or "") / filename
        if not path.is_file():
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"no {filename} in {repo_id}")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return tmp_path


def test_files_are_read_by_what_they_are(hub: Path) -> None:
    (hub / "sub").mkdir()
    (hub / "sub" / "config.json").write_text(json.dumps({"n_layer": 2, "name": "é"}), encoding="utf-8")
    (hub / "notes.txt").write_text("hello", encoding="utf-8")
    state = {"W": torch.arange(3.0)}
    for name in ("weights.pth", "weights"):
        torch.save(state, hub / name)
    assert download_file_from_hf("a/b", "config.json", "sub") == {"n_layer": 2, "name": "é"}
    assert download_file_from_hf("a/b", "notes.txt", subfolder=".") == str(hub / "notes.txt")
    for name, forced in (("weights.pth", False), ("weights", True)):
        found = download_file_from_hf("a/b", name, force_is_torch=forced)
        assert found.keys() == state.keys() and torch.equal(found["W"], state["W"])
    assert download_file_from_hf("a/b", "weights") == str(hub / "weights")


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("pickled code was run",))


def test_files_that_cannot_be_read_are_told(hub: Path) -> None:
    with pytest.raises(
        InvalidInputError, match="'x.json' of 'a/b' on the Hugging Face hub cannot be downloaded: no x.json"
    ):
        download_file_from_hf("a/b", "x.json")
    (hub / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="'broken.json' of 'a/b' .* is not valid JSON"):
        download_file_from_hf("a/b", "broken.json")
    (hub / "trap.pth").write_bytes(pickle.dumps(Trap(), protocol=2))
    (hub / "empty.pth").write_bytes(b"")
    (hub / "text.pth").write_text("not tensors", encoding="utf-8")
    for name in ("trap.pth", "empty.pth", "text.pth"):
        with pytest.raises(InvalidInputError, match=f"'{name}' .* is corrupt, or holds more than tensors"):
            download_file_from_hf("a/b", name)


def test_a_name_that_is_none_is_told() -> None:
    with pytest.raises(InvalidInputError, match="cannot be downloaded"):
        download_file_from_hf("a/b/c", "config.json")
