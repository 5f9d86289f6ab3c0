"""The command line: flags to functions, errors to one line.

Anything headscope raises on purpose, and a disk or file that fails, ends in one line on stderr and exit code 1; wrong
usage in 2; Ctrl-C in 130.
"""

import os
import sys
from typing import Annotated, NoReturn

import typer

from headscope.analysis.storage.manifest import headscope_version
from headscope.cli import (
    analyses,
    attention,
    edges,
    errors,
    explore,
    heads,
    migrate,
    notebooks,
    patching,
    reports,
    scale,
    scoreboard,
    suppression,
    tasks,
    training,
)
from headscope.cli.base.commands import app, arguments, fail, stopped
from headscope.errors import HeadscopeError

__all__ = [
    "analyses",
    "app",
    "attention",
    "edges",
    "errors",
    "explore",
    "heads",
    "main",
    "migrate",
    "notebooks",
    "patching",
    "reports",
    "scale",
    "scoreboard",
    "suppression",
    "tasks",
    "training",
]


# The commands as --help lists them, by what one wants to do; the first panels are where a newcomer starts.
PANELS = {
    "A model at a glance": ("report", "explore", "compare", "heads", "prompt"),
    "Measured on a text": ("entropy", "ablate", "copy-suppression"),
    "Tasks and circuits": ("ioi", "attribute", "attention", "patch", "edges", "scoreboard"),
    "Long runs": ("status", "merge"),
    "Models": ("models", "evaluate", "train"),
    "Help": ("notebooks", "explain", "migrate"),
}


def _into_panels() -> None:
    of_command = {name: panel for panel, names in PANELS.items() for name in names}
    listed = list(of_command)
    for command in app.registered_commands:
        command.rich_help_panel = of_command[command.name or ""]
    for group in app.registered_groups:
        group.rich_help_panel = of_command[group.name or ""]
    app.registered_commands.sort(key=lambda each: listed.index(each.name or ""))


_into_panels()


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"headscope {headscope_version()}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of headscope itself."""


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    try:
        arguments.set(sys.argv[1:] if args is None else args)
        app(args, prog_name="headscope")
    except HeadscopeError as error:
        fail(str(error))
    except BrokenPipeError:
        # Whoever read our output has gone; keep Python from flushing to it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
    except KeyboardInterrupt as stop:
        stopped(stop)
    sys.exit(0)
