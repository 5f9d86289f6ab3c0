"""Writing a page and its tables: all files appear together at the end, or none do."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from headscope.errors import InvalidInputError
from headscope.report.blocks import Page
from headscope.report.page import render_page

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["check_writable", "write_page"]


def check_writable(out: Path) -> None:
    """Check that a folder can be written before anything is measured for it; nothing is left there.

    Raises:
        InvalidInputError: If it cannot.
    """
    with _stage(out):
        pass


def write_page(
    out: Path, name: str, page: Page, tables: "Mapping[str, pd.DataFrame]", *, of_old: Iterable[str] = ()
) -> tuple[Path, tuple[Path, ...]]:
    """Write a page by name and tables as parquet, and return their paths.

    Args:
        out: The folder, made if it does not exist.
        name: The page's file name.
        page: The page.
        tables: Tables by name.
        of_old: Tables that an earlier page may have left, and that go where this one does not have them.

    Raises:
        InvalidInputError: If `out` cannot be written.
    """
    with _stage(out) as stage:
        for table, frame in tables.items():
            frame.to_parquet(stage / f"{table}.parquet", index=False)
        # A surrogate without its pair can be in no file.
        (stage / name).write_bytes(render_page(page).encode("utf-8", "replace"))
        out.mkdir(parents=True, exist_ok=True)
        for file in sorted(stage.iterdir()):
            os.replace(file, out / file.name)
        for table in set(of_old) - tables.keys():
            (out / f"{table}.parquet").unlink(missing_ok=True)
    return out / name, tuple(out / f"{table}.parquet" for table in tables)


@contextmanager
def _stage(out: Path) -> Iterator[Path]:
    """A folder on the disk of `out`, of which nothing is left at the end."""
    parent = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not parent.is_dir():
        raise InvalidInputError(f"{str(parent)!r} is a file; the report needs a folder to write to (--out).")
    try:
        with tempfile.TemporaryDirectory(prefix=".headscope-", dir=parent) as temporary:
            # Within another, so that its files have the permissions of any other file.
            stage = Path(temporary) / "report"
            stage.mkdir()
            yield stage
    except OSError as error:
        raise InvalidInputError(
            f"the report cannot be written to {str(out)!r}: {error.strerror or error}. Choose another folder, or make "
            "room there."
        ) from None
