"""What every test runs under: no network, types and shapes checked, one thread, a fixed seed."""

import os

# Before anything imports the Hugging Face libraries, which read these once. `hub` tests: HF_HUB_OFFLINE=0.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", os.environ["HF_HUB_OFFLINE"])
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Before anything imports Triton: without a GPU its programs are run by Python.
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

import jaxtyping
import typechecking

# Before anything imports headscope: checks every annotated argument, result and tensor shape.
jaxtyping.jaxtyped = typechecking.jaxtyped
jaxtyping.install_import_hook("headscope", "typechecking.checked")

import gc
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import pytest
import torch
from browser import headless
from families_report import FamiliesTable
from sizes import SetBudget

from headscope import differences
from headscope.ops.devices import budget

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# The models here are so small that a second thread only costs.
torch.set_num_threads(1)

# The same examples each time, on machines of any speed; `--hypothesis-profile=explore` looks further.
hypothesis.settings.register_profile("default-offline", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("default-offline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--families-table", type=Path, metavar="PAGE", help="write which checks passed on which family into this page"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(NoNotebook())
    page = config.getoption("--families-table", None)
    if page is not None and "PYTEST_XDIST_WORKER" not in os.environ:
        from headscope.model.checkpoints.families import FAMILIES

        examples = {name: family.examples for name, family in FAMILIES.items()}
        config.pluginmanager.register(FamiliesTable(page, examples))


class NoNotebook:
    """Forgets, before each test and example, that the alias was imported: by its own, or in search of them."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collectstart(self) -> None:
        differences._aliased = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        differences._aliased = False


# Models and their activations make millions of small objects, hardly any in circles: these are looked for seldom.
gc.set_threshold(20_000, 10, 10)


def pytest_collection_finish() -> None:
    """Let the collector of garbage pass over what stays to the end: ten thousand tests and the package."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let Python free at its end what was passed over: Triton's bindings list whatever is still there as leaked."""
    gc.unfreeze()


@pytest.fixture
def set_budget() -> Iterator[SetBudget]:
    """Compute with other sizes until the test is over: `set_budget(batch_tokens=7)`."""
    with ExitStack() as stack:
        yield lambda **sizes: stack.enter_context(budget(**sizes))


@pytest.fixture
def no_gradients() -> Iterator[None]:
    """Keep no graph, for modules marked with `pytest.mark.usefixtures("no_gradients")`."""
    with torch.no_grad():
        yield


# Without a GPU `torch.manual_seed` keeps, for when it finds one, the stack of whoever called it: 0.7 ms for each test.
_seed_torch = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start each test from the same global random state."""
    random.seed(0)
    np.random.seed(0)
    _seed_torch(0)


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """One headless browser for the tests of a file."""
    with headless() as browser:
        yield browser
