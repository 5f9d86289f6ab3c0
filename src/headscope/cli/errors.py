"""`headscope explain`: more about an error, by the code that its message ends in."""

from typing import Annotated

import typer

from headscope.cli.base.commands import app, command
from headscope.errors import table

__all__ = ["explain"]


@command(app, "headscope explain HS-TOKENS-01")
def explain(
    code: Annotated[str, typer.Argument(help="Code at the end of an error's message.", show_default=False)],
) -> None:
    """Say why an error is raised, and what to do."""
    entry = table.explain(code)
    typer.echo(entry)
    if entry.related:
        typer.echo(f"\nRelated: {', '.join(entry.related)}")
