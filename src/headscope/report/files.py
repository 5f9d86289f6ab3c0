"""Files that appear together at the end, or not at all."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from headscope.errors import InvalidInputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["staged", "write_files"]


@contextmanager
def staged(out: Path) -> Iterator[tuple[Path, Callable[[], Path]]]:
    """A folder to write in, and a function that puts its files in place; what is not put in place is removed.

    Raises:
        InvalidInputError: If `out` cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise InvalidInputError(f"{str(out)!r} is a file; the report needs a folder to write to (--out).")
    parent = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    try:
        with tempfile.TemporaryDirectory(prefix=".headscope-", dir=parent) as temporary:
            stage = Path(temporary) / "report"
            stage.mkdir()

            def place() -> Path:
                out.mkdir(parents=True, exist_ok=True)
                for file in sorted(stage.iterdir()):
                    os.replace(file, out / file.name)
                return out

            yield stage, place
    except OSError as error:
        raise InvalidInputError(
            f"the report cannot be written to {str(out)!r}: {error.strerror or error}. Choose another folder, or make "
            "room there."
        ) from None


def write_files(stage: Path, page_name: str, page: str, tables: "dict[str, pd.DataFrame]") -> None:
    """The page, and its tables by file name."""
    for name, table in tables.items():
        table.to_parquet(stage / name, index=False)
    # A surrogate without its pair can be in no file.
    (stage / page_name).write_bytes(page.encode("utf-8", "replace"))
