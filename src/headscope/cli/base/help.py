"""The help of a command, readable in narrow terminals too."""

import shutil
from typing import Any

from typer.core import TyperCommand

__all__ = ["Command"]

_WIDE = 110  # columns, below which rich's table leaves the explanations a column of a few words


class Command(TyperCommand):
    """A command whose help is rich's table in a wide terminal, and lines of plain text in a narrow one."""

    def get_help(self, ctx: Any) -> str:
        """Return the help as text, or print it and return none, as typer does."""
        if shutil.get_terminal_size().columns < _WIDE:
            self.rich_markup_mode = None
        return super().get_help(ctx)
