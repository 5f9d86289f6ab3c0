"""A tree of drawn numbers, written once for the tests of a file."""

from pathlib import Path

import pytest
from explorer_tree import write_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tree of 4 layers of 6 heads."""
    return write_tree(tmp_path_factory.mktemp("tree"), n_layers=4, n_heads=6).parent
