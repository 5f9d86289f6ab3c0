import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from headscope import HookedTransformer
from headscope.errors import InvalidInputError
from headscope.training import demo
from headscope.training.demo import train_demo

FILES = {
    "config.json",
    "ioi_prompts.jsonl",
    "model.safetensors",
    "sample.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module", autouse=True)
def few_documents_for_the_tokenizer():
    """A tenth of the time; the whole number is tested where the tokenizer is."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(demo, "_TOKENIZER_DOCUMENTS", 2000)
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "trained"
    train_demo(out, steps=4, progress=False)
    return out


def test_a_whole_checkpoint_is_written_and_nothing_else(directory):
    assert {path.name for path in directory.iterdir()} == FILES


def test_transformers_reads_the_checkpoint_as_gpt2(directory):
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    assert type(theirs).__name__ == "GPT2LMHeadModel"
    ours = HookedTransformer.from_pretrained_no_processing(str(directory))
    tokens = torch.randint(ours.cfg.d_vocab, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=2e-5, rtol=1e-5)


def test_the_same_seed_gives_the_same_checkpoint(directory, tmp_path):
    history = train_demo(tmp_path, steps=4, progress=False)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (directory / name).read_bytes(), name
    assert history.loss.shape == (4,)


def test_another_seed_gives_other_weights(directory, tmp_path):
    train_demo(tmp_path, seed=1, steps=2, progress=False)
    name = "model.safetensors"
    assert (tmp_path / name).read_bytes() != (directory / name).read_bytes()


def test_a_few_steps_already_lower_the_loss(tmp_path):
    history = train_demo(tmp_path, steps=12, progress=False)
    # Each stage has a loss of its own; the first has a quarter of the steps.
    assert float(history.loss[2]) < float(history.loss[0]) - 0.05
    assert float(history.loss[-1]) < float(history.loss[0]) - 0.3


def test_a_lost_temporary_folder_does_not_lose_the_training(tmp_path, monkeypatch):
    """Nothing is written beside `out` before training is over."""
    train = demo.train_language_model

    def watched(*args, **kwargs):
        assert list(tmp_path.iterdir()) == []
        return train(*args, **kwargs)

    monkeypatch.setattr(demo, "train_language_model", watched)
    train_demo(tmp_path / "new", steps=2, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"new"}


def test_prompts_are_one_object_a_line(directory):
    lines = (directory / "ioi_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 24
    for line in lines:
        assert set(json.loads(line)) == {"prompt", "answer", "wrong", "order"}


def test_what_is_refused_leaves_nothing_behind(tmp_path):
    with pytest.raises(InvalidInputError, match="steps must be at least .*; got 0"):
        train_demo(tmp_path / "new", steps=0, progress=False)
    assert not (tmp_path / "new").exists()
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(InvalidInputError, match="is a file"):
        train_demo(taken, steps=4, progress=False)
    assert taken.read_text() == "mine"
