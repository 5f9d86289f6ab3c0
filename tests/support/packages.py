"""Packages that others built on TransformerLens: the marks of the tests that run them on headscope."""

import importlib.util

import pytest


def marks(package: str) -> list[pytest.MarkDecorator]:
    """Return the marks of a module of tests of a package: off by default, and skipped where it is not installed."""
    missing = importlib.util.find_spec(package) is None
    return [
        pytest.mark.compat,
        pytest.mark.filterwarnings("ignore"),  # of theirs
        pytest.mark.skipif(missing, reason=f"{package} is not installed: run `make compat`"),
    ]
