"""`Place`: the folder of a run, on a disk that this machine sees or behind a URL such as `s3://bucket/run`.

Whatever is written appears whole or not at all: on a disk by `write_tensors` and `write_bytes`, behind a URL because an
object is there only once all of it was sent.
"""

import importlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from headscope.errors import InvalidInputError, MissingDependencyError, StorageError
from headscope.model.checkpoints.files import write_bytes

__all__ = ["Place", "place_of", "writing"]

_ABANDONED = 3600.0  # seconds without a byte, after which what a process left unfinished is nobody's


class Place:
    """A folder on this machine or one that it shares.

    Args:
        path: The folder; it is made when something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> "Place":
        return Place(self.path / name)

    @property
    def address(self) -> str:
        """The name by which a process with another current folder finds it."""
        return str(self.path.absolute())

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """Give the path of a file to be read."""
        yield self.path / name

    @contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """Give the path of a file to be written, by a function that puts it there whole.

        Raises:
            StorageError: if it cannot be written.
        """
        with writing(self.path / name):
            yield self.path / name

    def write(self, name: str, content: bytes) -> None:
        """Write a file.

        Raises:
            StorageError: if it cannot be written.
        """
        with self.new_file(name) as path:
            write_bytes(path, content)

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return (self.path / name).read_bytes()

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        return (self.path / name).exists()

    def names(self) -> list[str]:
        """Return the names of what is in the folder, in order; nothing if there is no folder.

        Raises:
            InvalidInputError: if it is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InvalidInputError(f"{str(self)!r} is a file; a run is kept in a folder.")
        found = sorted(entry.name for entry in self.path.iterdir()) if self.path.exists() else []
        return [name for name in found if not name.endswith(".partial")]

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def clear_partial(self) -> None:
        """Remove what a process that died left half written, when it is too old for another to be writing it still."""
        for path in self.path.glob("*.partial"):
            self.remove_abandoned(path.name)

    def remove_abandoned(self, name: str) -> None:
        """Remove a file that a process left unfinished, if it is too old for another to be about to finish it."""
        path = self.path / name
        with suppress(FileNotFoundError):  # the other put it in its place, or removed it
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()


class _Remote(Place):
    """A folder behind a URL that `fsspec` knows; files are brought here to be read, and sent when they are whole."""

    def __init__(self, url: str, files: Any) -> None:
        self.url, self._files = url.rstrip("/"), files

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> Place:
        return _Remote(f"{self.url}/{name}", self._files)

    @property
    def address(self) -> str:
        return self.url

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="headscope-") as folder:
            path = Path(folder) / Path(name).name
            if self.has(name):
                path.write_bytes(self.read(name))
            yield path

    @contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="headscope-") as folder, writing(f"{self.url}/{name}"):
            path = Path(folder) / Path(name).name
            yield path
            self._files.put_file(str(path), f"{self.url}/{name}")

    def read(self, name: str) -> bytes:
        return self._files.cat_file(f"{self.url}/{name}")

    def has(self, name: str) -> bool:
        self._files.invalidate_cache()
        return self._files.exists(f"{self.url}/{name}")

    def names(self) -> list[str]:
        self._files.invalidate_cache()
        try:
            found = self._files.ls(self.url, detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def remove(self, name: str) -> None:
        if self.has(name):
            self._files.rm_file(f"{self.url}/{name}")

    def clear_partial(self) -> None:
        """Nothing is ever half there."""

    def remove_abandoned(self, name: str) -> None:
        """Leave it: not every kind of store tells a file's age."""


def place_of(folder: str | Path | Place) -> Place:
    """Return the place that a path or a URL names.

    Raises:
        InvalidInputError: for a URL of a kind that nobody knows.
        MissingDependencyError: for one whose package is not installed.

    Example:
        >>> print(place_of("runs") / "entropy")
        runs/entropy
    """
    if isinstance(folder, Place):
        return folder
    if "://" not in str(folder):
        return Place(Path(folder))
    fsspec = importlib.import_module("fsspec")
    url = str(folder)
    try:
        files, _ = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MissingDependencyError(f"{url} needs a package that is not installed: {error}") from None
    except ValueError as error:
        raise InvalidInputError(f"{url!r} cannot be a run's folder: {error}.") from None
    return _Remote(url, files)


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Say what stands, and what to do, where a file cannot be written.

    Raises:
        StorageError: for an `OSError`.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path} could not be written: {error.strerror or error}. What was there before stands: make room, or mend "
            "what is in the way, and go on with resume=True (--resume).",
            code="HS-STORAGE-01",
        ) from error
