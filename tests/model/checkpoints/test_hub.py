"""From names to directories: short names, hub ids in a cache, and what a machine without a network says."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from tiny import randomize, tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from headscope import HookedTransformer
from headscope.errors import CheckpointError, UnknownNameError
from headscope.model.checkpoints.hub import find_checkpoint

COMMIT = "0123456789012345678901234567890123456789"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, on a machine that is offline."""
    path = tmp_path / "hub"
    path.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(path))
    return path


def put_in(cache: Path, repo: str) -> Path:
    """A tiny GPT-2 as the hub's client would have stored it."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, n_positions=10, vocab_size=330))
    randomize(model)
    model.save_pretrained(snapshot)
    tiny_tokenizer(eos_token="<eos>").save_pretrained(snapshot)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.mark.parametrize("name", ["openai-community/gpt2", "gpt2", "gpt2-small"])
def test_a_cached_model_loads_without_a_network(cache: Path, name: str) -> None:
    snapshot = put_in(cache, "openai-community/gpt2")
    assert find_checkpoint(name) == snapshot
    model = HookedTransformer.from_pretrained(name)
    assert model.cfg.model_name == name and model.cfg.n_layers == 1
    assert model("Mary gave").shape[-1] == 330


def test_what_is_cached_without_a_tokenizer_still_loads_offline(cache: Path) -> None:
    snapshot = put_in(cache, "someone/model")
    for path in snapshot.glob("tokenizer*"):
        path.unlink()
    assert find_checkpoint("someone/model") == snapshot
    assert HookedTransformer.from_pretrained("someone/model").tokenizer is None


@pytest.mark.parametrize("absent", ["model.safetensors", "config.json"])
def test_an_incomplete_copy_is_not_taken_for_the_model(cache: Path, absent: str) -> None:
    (put_in(cache, "someone/model") / absent).unlink()
    with pytest.raises(CheckpointError, match=r"'someone/model'.*headscope-demo"):
        find_checkpoint("someone/model")


def test_a_download_that_stopped_between_shards_is_not_taken_for_the_model(cache: Path) -> None:
    snapshot = put_in(cache, "someone/model")
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="or not all of it"):
        find_checkpoint("someone/model")
    (snapshot / "model-00002-of-00002.safetensors").write_bytes(b"")
    assert find_checkpoint("someone/model") == snapshot


def test_offline_a_hub_id_that_is_not_cached_is_said(cache: Path) -> None:
    for name in ("someone/model", "gpt2-xl"):
        with pytest.raises(
            CheckpointError, match=r"not in the local cache.*local checkpoint directory.*headscope-demo"
        ):
            find_checkpoint(name)
    assert list(cache.glob("models--*/snapshots/*/*")) == []


@pytest.mark.parametrize("name, nearest", [
    ("gtp2", "'gpt2'"), ("gpt-2-small", "'gpt2-small'"), ("headscope_demo", "'headscope-demo'"),
    ("qwen1.5", "'qwen1.5-7b'"), ("zzzzzz", "`headscope models` lists"),
])  # fmt: skip
def test_an_unknown_name_gives_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"Unknown model '{name}'.*{nearest}.*owner/model"):
        HookedTransformer.from_pretrained(name)


@pytest.mark.parametrize("name", ["someone/bad--name", "some one/model", "someone/model?", "-someone/model"])
def test_an_id_that_cannot_be_one_is_said(cache: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="hub"):
        find_checkpoint(name)


@pytest.mark.parametrize("name", ["/no/such/place", "./none", "../none", "~/none", "a/b/c"])
def test_a_path_that_does_not_exist_is_said(name: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist.*directory with config.json"):
        find_checkpoint(name)


def test_a_file_is_not_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "model.safetensors").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "owner" / "model.safetensors"), "owner/model.safetensors"):
        with pytest.raises(CheckpointError, match="is a file"):
            find_checkpoint(name)


def test_an_empty_name_is_refused() -> None:
    with pytest.raises((CheckpointError, UnknownNameError)):
        find_checkpoint("")


@pytest.mark.parametrize("error, message", [
    (GatedRepoError, "gated.*hf auth login"), (RepositoryNotFoundError, "no public model"),
    (HfHubHTTPError, "cannot be reached"), (ConnectionError, "cannot be reached"), (TimeoutError, "cannot be reached"),
])  # fmt: skip
def test_what_the_hub_answers_is_said(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], message: str
) -> None:
    from huggingface_hub import snapshot_download

    def answer(repo: str, *, local_files_only: bool, **options: Any) -> str:
        if local_files_only:
            return snapshot_download(repo, local_files_only=True, **options)
        made = error.__new__(error)
        made.args = ("no",)
        raise made

    monkeypatch.setattr("huggingface_hub.snapshot_download", answer)
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint("someone/model")


def test_the_network_is_asked_for_what_is_missing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import snapshot_download

    snapshot = put_in(cache, "someone/model")
    kept = cache.parent / "kept"
    shutil.copytree(snapshot, kept)
    asked: list[list[str]] = []

    def download(repo: str, *, local_files_only: bool, allow_patterns: list[str], **options: Any) -> str:
        if not local_files_only:
            asked.append(allow_patterns)
            shutil.copytree(kept, snapshot, dirs_exist_ok=True)
        return snapshot_download(repo, local_files_only=True, allow_patterns=allow_patterns, **options)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_checkpoint("someone/model") == snapshot and asked == []
    for pattern in ("tokenizer*", "*.safetensors", "config.json"):
        asked.clear()
        for path in snapshot.glob(pattern):
            path.unlink()
        assert find_checkpoint("someone/model") == snapshot
        assert len(asked) == 1 and not any("bin" in each for each in asked[0]), pattern
        assert sorted(p.name for p in snapshot.iterdir()) == sorted(p.name for p in kept.iterdir())


def test_loading_leaves_the_global_random_state_alone(cache: Path) -> None:
    put_in(cache, "someone/model")
    state = torch.get_rng_state()
    HookedTransformer.from_pretrained("someone/model")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_folder_that_is_no_model_says_what_it_is(tmp_path: Path) -> None:
    adapter, trained = tmp_path / "adapter", tmp_path / "trained"
    (trained / "checkpoint-500").mkdir(parents=True)
    (trained / "checkpoint-500" / "config.json").write_text("{}")
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "gpt2", "peft_type": "LORA"}')
    with pytest.raises(CheckpointError, match=r"an adapter of PEFT for 'gpt2': merge the two"):
        HookedTransformer.from_pretrained(adapter)
    with pytest.raises(CheckpointError, match=r"checkpoint-500 has one: give '.*trained/checkpoint-500'"):
        HookedTransformer.from_pretrained(trained)
