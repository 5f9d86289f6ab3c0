"""The pretrained model, loaded once a worker; without its file every test here is skipped."""

from dataclasses import replace

import pytest
import torch
from smollm import PATH, TEXT, RealRun

from headscope import HookedTransformer
from headscope.analysis import Task
from headscope.data import IOIDataset


@pytest.fixture(scope="session", autouse=True)
def _the_file() -> None:
    if not PATH.is_file():
        pytest.skip(f"make real-model fetches SmolLM2-135M-Instruct; it is not at {PATH}")


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def model(_the_file: None) -> HookedTransformer:
    return HookedTransformer.from_pretrained(str(PATH))


@pytest.fixture(scope="session")
def real_run(model: HookedTransformer) -> RealRun:
    return RealRun(model)


@pytest.fixture(scope="session")
def tokens(model: HookedTransformer) -> torch.Tensor:
    return model.to_tokens(TEXT)


@pytest.fixture(scope="session")
def acts(real_run: RealRun, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return real_run(tokens)


@pytest.fixture(scope="session")
def ioi(model: HookedTransformer) -> IOIDataset:
    return IOIDataset("mixed", N=24, tokenizer=model.tokenizer, prepend_bos=True)


@pytest.fixture(scope="session")
def task(model: HookedTransformer) -> Task:
    """Two prompts of equal length."""
    prompts = IOIDataset("ABBA", N=20, tokenizer=model.tokenizer, prepend_bos=True)
    ends = prompts.word_idx["end"]
    alike = (ends == ends.mode().values).nonzero()[:2, 0]
    task = Task.from_ioi(prompts[alike])
    length = int(ends.mode().values) + 1
    assert bool(task.attention_mask[:, :length].all())
    return replace(
        task,
        clean_tokens=task.clean_tokens[:, :length],
        corrupted_tokens=task.corrupted_tokens[:, :length],
        attention_mask=task.attention_mask[:, :length],
    )
