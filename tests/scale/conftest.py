"""The model of the sharded runs, and batches small enough for it to have several."""

import pytest
from sizes import SetBudget
from streams import make_model

from headscope import HookedTransformer


@pytest.fixture(scope="session")
def model() -> HookedTransformer:
    return make_model()


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch, set_budget: SetBudget) -> None:
    """Batches of two rows or one; files need not be forced to the disk."""
    set_budget(batch_tokens=16)
    monkeypatch.setattr("os.fsync", lambda _: None)
