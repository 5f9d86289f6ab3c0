"""Tensors in safetensors files: memory-mapped reads, atomic writes."""

import errno
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headscope.errors import CheckpointError

__all__ = ["TensorFiles", "read_metadata", "write_bytes", "write_tensors"]


class TensorFiles(Mapping[str, Tensor]):
    """Memory-mapped tensors of one or several safetensors files, read on access.

    Each tensor has its own mapping, so that its pages are released with it.

    Raises:
        CheckpointError: for a file that cannot be read as safetensors.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._files: dict[str, Path] = {}
        for path in paths:
            with _opened(path) as file:
                self._files.update(dict.fromkeys(file.keys(), path))

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata strings in the header of a safetensors file.

    Raises:
        CheckpointError: for a file that cannot be read as safetensors.
    """
    with _opened(path) as file:
        return file.metadata() or {}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically: an old file stays until the new one is complete and on disk.

    Tensors that share memory, or are views with gaps, are each written in full.

    Raises:
        OSError: If it cannot be written, as on a full disk. The old file is intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        place = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    try:
        save_file(own, partial, metadata=metadata)
        _put_in_place(partial, path)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, like `write_tensors`.

    Raises:
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        partial.write_bytes(content)
        _put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}.", code="HS-CHECKPOINT-09") from None


def _partial(path: Path) -> Path:
    """Return a place beside a file to write it to, which no other process writes to."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")


def _put_in_place(partial: Path, path: Path) -> None:
    """Rename, flushing the content to disk before the name, so that a power loss cannot leave an incomplete file."""
    with partial.open("r+b") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    if os.name == "posix":  # elsewhere folders cannot be opened, and need not be
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
