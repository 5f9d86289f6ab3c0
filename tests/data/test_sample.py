"""Which text stands for a model's training data, and how it is fetched."""

import random
import sys
import types
from typing import Any

import pytest

from headscope.data.sample import training_dataset
from headscope.data.small_english import documents
from headscope.errors import InvalidInputError, MissingDependencyError, UnknownNameError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A stand-in for the optional package, and what it was asked for."""
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, *, split: str, **options: Any) -> list[dict[str, str]]:
        asked.append((name, split, options))
        return [{"text": name}]

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_the_demo_model_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    state = random.getstate()
    rows = training_dataset("headscope-demo", "GPT2LMHeadModel")
    assert random.getstate() == state
    assert len(rows) == 2_000
    assert [row["text"] for row in rows[:5]] == list(documents(0, n=5))


@pytest.mark.parametrize(
    ("architecture", "hub_id"),
    [
        ("GPT2LMHeadModel", "stas/openwebtext-10k"),
        ("GPTNeoForCausalLM", "NeelNanda/pile-10k"),
        ("GPTNeoXForCausalLM", "NeelNanda/pile-10k"),
        ("GPTJForCausalLM", "NeelNanda/pile-10k"),
        ("OPTForCausalLM", "NeelNanda/pile-10k"),
        ("neel", "NeelNanda/c4-code-20k"),
        ("neel-solu-old", "NeelNanda/pile-10k"),
    ],
)
def test_a_model_of_the_hub_has_its_data_set(architecture: str, hub_id: str, calls: list[tuple[Any, ...]]) -> None:
    assert list(training_dataset("some-model", architecture, cache_dir="there")) == [{"text": hub_id}]
    assert calls == [(hub_id, "train", {"cache_dir": "there"})]


def test_what_is_not_known_is_told() -> None:
    with pytest.raises(UnknownNameError, match=r"'mine'\. .*GPTNeoXForCausalLM.* is None\. Set model\.dataset"):
        training_dataset("mine")
    with pytest.raises(UnknownNameError, match="this model's is 'LlamaForCausalLM'"):
        training_dataset("llama", "LlamaForCausalLM")
    with pytest.raises(InvalidInputError, match="takes no options; got {'split': 'test'}"):
        training_dataset("headscope-demo", split="test")


def test_without_the_datasets_package_the_command_to_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'headscope\[hf-datasets\]'"):
        training_dataset("gpt2", "GPT2LMHeadModel")
