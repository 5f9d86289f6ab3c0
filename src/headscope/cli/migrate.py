"""`headscope migrate`: scripts and notebooks that import TransformerLens, rewritten to import headscope."""

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.base.commands import app, command
from headscope.compat.migration import Migrated, migrate_notebook, migrate_source
from headscope.errors import InvalidInputError
from headscope.model.checkpoints.files import write_bytes

__all__ = ["migrate"]

_BOM = "\ufeff"


@command(app, "headscope migrate analysis.ipynb helpers.py", "headscope migrate --dry-run *.py")
def migrate(
    files: Annotated[list[Path], typer.Argument(help="Files to rewrite in place: .py and .ipynb.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")] = False,
) -> None:
    """Rewrite imports of TransformerLens and CircuitsVis to headscope's names, and list what could not be."""
    # All are read before any is written: with one bad file, nothing has changed.
    migrated = {path: _migrated(path) for path in files}
    for path, result in migrated.items():
        if result.n_rewritten and not dry_run:
            # What a link points to, with the permissions it has.
            target = path.resolve()
            mode = target.stat().st_mode
            write_bytes(target, result.text.encode())
            target.chmod(mode)
        done = "to rewrite" if dry_run else "rewritten"
        typer.echo(f"{path}: {result.n_rewritten} import{'' if result.n_rewritten == 1 else 's'} {done}")
        for left in result.left:
            typer.echo(f"  left: {left}")


def _migrated(path: Path) -> Migrated:
    if path.suffix not in (".py", ".ipynb"):
        raise InvalidInputError(f"{path} is neither a .py nor a .ipynb file.")
    try:
        text = path.read_bytes().decode()
        if path.suffix == ".ipynb":
            return migrate_notebook(text)
        result = migrate_source(text.removeprefix(_BOM))
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not UTF-8: {error.reason} at byte {error.start}.") from None
    except SyntaxError as error:
        raise InvalidInputError(f"{path}, line {error.lineno}: it is not valid Python: {error.msg}.") from None
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error.message}", code=error.code) from None
    if text.startswith(_BOM):
        result.text = _BOM + result.text
    return result
