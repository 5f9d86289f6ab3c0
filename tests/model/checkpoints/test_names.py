"""Short names: every name of TransformerLens 3.9.0 is a model on the hub, or is refused with the reason."""

from pathlib import Path
from typing import Any

import pytest

from headscope import HookedTransformer
from headscope.errors import CheckpointError, UnknownNameError
from headscope.model.checkpoints import hub
from headscope.model.checkpoints.hub import find_checkpoint
from headscope.model.checkpoints.names import DEMO, HUB_IDS, HUB_MODELS, unknown_model

# Written down apart from the table under test, as the names are in TransformerLens.
LINES = (Path(__file__).parent / "transformer_lens_names.txt").read_text(encoding="utf-8").splitlines()[1:]
NAMES = [(name, line.split()[0]) for line in LINES for name in line.split()]
# Names of models that are elsewhere on the hub now, or never were there under that name.
ELSEWHERE = {
    "gpt2": "openai-community/gpt2", "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large", "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2", "llama-7b-hf": "huggyllama/llama-7b", "llama-13b-hf": "huggyllama/llama-13b",
    "llama-30b-hf": "huggyllama/llama-30b", "llama-65b-hf": "huggyllama/llama-65b",
    "bigcode/santacoder": "bigcode/gpt_bigcode-santacoder",
}  # fmt: skip
REASONS = {
    "google-bert/": r"encoder models \(BERT\) are not supported", "google-t5/": r"encoder-decoder models \(T5\)",
    "facebook/hubert": "encoder models of speech", "facebook/wav2vec2": "encoder models of speech",
    "openai/gpt-oss": "gpt-oss models are not supported yet", "Qwen/Qwen-": "first generation need code of their own",
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The repositories that are asked for, of which none is fetched."""
    repositories: list[str] = []

    def ask(repo: str, weights: bool, options: dict[str, Any]) -> Path:
        repositories.append(repo)
        return Path(repo)

    monkeypatch.setattr(hub, "_from_hub", ask)
    return repositories


def test_the_list_is_whole() -> None:
    assert len(LINES) == 249 and len(NAMES) == 663 and len({name for name, _ in NAMES}) == 663


@pytest.mark.parametrize("name, official", NAMES)
def test_every_name_of_transformer_lens(asked: list[str], name: str, official: str) -> None:
    reason = next((reason for start, reason in REASONS.items() if official.startswith(start)), None)
    if reason is not None:
        with pytest.raises(CheckpointError, match=f"model '{name}' cannot be loaded: .*{reason}"):
            find_checkpoint(name)
        assert asked == []
        return
    find_checkpoint(name)
    assert asked == [ELSEWHERE.get(official, official)]


def test_the_case_of_a_short_name_does_not_matter(asked: list[str]) -> None:
    for name in ("GPT2-Small", "llama-2-7B", "Gelu-1L"):
        find_checkpoint(name)
    assert asked == ["openai-community/gpt2", "meta-llama/Llama-2-7b-hf", "NeelNanda/GELU_1L512W_C4_Code"]


def test_the_tokenizer_of_an_unsupported_model_can_be_had(asked: list[str]) -> None:
    find_checkpoint("google-bert/bert-base-uncased", weights=False)
    assert asked == ["google-bert/bert-base-uncased"]


@pytest.mark.parametrize("name", ["someone/bert-base-uncased", "bert-lovers/gpt2-finetuned", "someone/qwen-7b-like"])
def test_models_of_others_are_not_refused_for_their_names(asked: list[str], name: str) -> None:
    find_checkpoint(name)
    assert asked == [name]


def test_the_reason_is_given_by_from_pretrained_too() -> None:
    with pytest.raises(CheckpointError, match="encoder models"):
        HookedTransformer.from_pretrained("bert-base-cased")


@pytest.mark.parametrize("name", ["mamba-130m", "roberta-base", "rwkv-4-169m", "zzzzzz", "", "6b"])
def test_no_name_of_another_family_is_suggested(name: str) -> None:
    message = str(unknown_model(name))
    assert "Did you mean" not in message and "headscope models" in message and "owner/model" in message


@pytest.mark.parametrize("name, family", [("qwen1.5", "qwen"), ("lama-7b", "llama"), ("gemma-4-2b", "gemma")])
def test_suggestions_are_of_the_family(name: str, family: str) -> None:
    suggested = str(unknown_model(name)).split("'")[3:-2:2]
    assert suggested and all(each.startswith(family) for each in suggested), suggested


def test_the_table_of_models() -> None:
    names = [name.lower() for model in HUB_MODELS for name in (model.name, *model.aliases)]
    assert len(names) == len(set(names)) == len(HUB_IDS) and DEMO not in names
    assert all(model.hub_id.count("/") == 1 for model in HUB_MODELS)
    assert len({model.hub_id for model in HUB_MODELS}) == len(HUB_MODELS)
    with pytest.raises(UnknownNameError):
        find_checkpoint("gpt2-tiny")
