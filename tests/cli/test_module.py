"""`python -m headscope`."""

import runpy
import sys

import pytest

from headscope import __version__


def test_the_package_is_the_command_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["headscope", "--version"])
    # Whoever collected the package's modules has imported it under its own name.
    monkeypatch.delitem(sys.modules, "headscope.__main__", raising=False)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("headscope", run_name="__main__")
    assert stopped.value.code == 0 and capsys.readouterr().out == f"headscope {__version__}\n"
