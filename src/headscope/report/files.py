"""Writing a page and its tables: all files appear together at the end, or none do."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from headscope.errors import InvalidInputError
from headscope.report.blocks import Page
from headscope.report.page import render_page

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["staged"]

Write = Callable[[str, Page, "Mapping[str, pd.DataFrame]"], tuple[Path, tuple[Path, ...]]]


@contextmanager
def staged(out: Path) -> Iterator[Write]:
    """Check that a folder can be written, and yield a function that writes a page by name and tables as parquet.

    The function returns their paths. What it has not written whole when the context ends is removed.

    Raises:
        InvalidInputError: If `out` cannot be written.
    """
    parent = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not parent.is_dir():
        raise InvalidInputError(f"{str(parent)!r} is a file; the report needs a folder to write to (--out).")
    try:
        with tempfile.TemporaryDirectory(prefix=".headscope-", dir=parent) as temporary:
            stage = Path(temporary) / "report"
            stage.mkdir()

            def write(name: str, page: Page, tables: "Mapping[str, pd.DataFrame]") -> tuple[Path, tuple[Path, ...]]:
                for table, frame in tables.items():
                    frame.to_parquet(stage / f"{table}.parquet", index=False)
                # A surrogate without its pair can be in no file.
                (stage / name).write_bytes(render_page(page).encode("utf-8", "replace"))
                out.mkdir(parents=True, exist_ok=True)
                for file in sorted(stage.iterdir()):
                    os.replace(file, out / file.name)
                return out / name, tuple(out / f"{table}.parquet" for table in tables)

            yield write
    except OSError as error:
        raise InvalidInputError(
            f"the report cannot be written to {str(out)!r}: {error.strerror or error}. Choose another folder, or make "
            "room there."
        ) from None
