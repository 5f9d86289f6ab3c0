"""The command line, run in this process."""

import pytest

from headscope import cli


def run_command(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """Return the exit code, and what was printed and written to standard error."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err
