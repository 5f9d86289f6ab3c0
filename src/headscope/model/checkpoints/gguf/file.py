"""The GGUF container of llama.cpp, versions 2 and 3: metadata, and tensors memory-mapped and dequantized one at a time.

The header is parsed here, since the reader of the `gguf` package maps every string of a vocabulary by itself, which
takes seconds. Plain tensors (F32, F16, BF16) are views of the file; blocks of a quantized one are expanded by `gguf`
some rows at a time, straight into the float32 tensor, so that its temporaries stay small.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headscope.errors import CheckpointError

__all__ = ["GGUFFile"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY, _FLOAT32 = 8, 9, 6
# Value types of metadata, by their number in the file.
_NUMBERS = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
# Tensor types that are plain numbers: the NumPy dtype of the bytes, and the torch dtype they are.
_PLAIN = {0: ("<f4", torch.float32), 1: ("<f2", torch.float16), 28: ("<f8", torch.float64), 30: ("<i2", torch.bfloat16)}
_MAX_DIMENSIONS = 4
_DEQUANTIZED_AT_ONCE = 1 << 18  # elements, so that temporaries stay at a few megabytes
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class _Stored:
    """Place of a tensor: its file, shape in torch's order, type and first byte."""

    path: Path
    shape: tuple[int, ...]
    kind: int
    offset: int


class GGUFFile(Mapping[str, Tensor]):
    """Metadata and tensors of a GGUF file, or of all its shards (`...-00001-of-00003.gguf`).

    Tensors are read on access: those of plain numbers as views of the memory-mapped file in their own dtype, quantized
    ones as new float32 tensors. Axes are in torch's order, so that the first is the outputs' of a matrix.

    Args:
        path: The file; the first shard where there are several.

    Attributes:
        path: The same.
        metadata: Values by key. A float32 is the shortest decimal number that rounds to it, `1e-05` for example.

    Raises:
        CheckpointError: For a file that is missing, corrupt, or of a version or byte order that is not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self._stored: dict[str, _Stored] = {}
        for shard in self._shards():
            try:
                self._read_header(shard)
            except CheckpointError as error:
                raise CheckpointError(f"{shard} cannot be read: {error.message}", code=error.code) from None
            except (struct.error, ValueError, UnicodeDecodeError, OverflowError) as error:
                raise CheckpointError(
                    f"{shard} is not a readable GGUF file: {error}.", code="HS-CHECKPOINT-09"
                ) from None

    def __getitem__(self, name: str) -> Tensor:
        stored = self._stored[name]
        if stored.kind in _PLAIN:
            code, dtype = _PLAIN[stored.kind]
            # Copy-on-write: torch warns about memory that cannot be written to, and none of it ever is.
            values = np.memmap(stored.path, code, mode="c", offset=stored.offset, shape=(math.prod(stored.shape),))
            tensor = torch.from_numpy(values)
            return (tensor.view(dtype) if dtype == torch.bfloat16 else tensor).view(stored.shape)
        return _dequantized(name, stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return self._stored[name].shape

    def _shards(self) -> list[Path]:
        found = _SHARD.fullmatch(self.path.name)
        if found is None:
            return [self.path]
        stem, _, count = found.groups()
        shards = [self.path.with_name(f"{stem}-{n:05d}-of-{count}.gguf") for n in range(1, int(count) + 1)]
        absent = [shard.name for shard in shards if not shard.is_file()]
        if absent:
            names = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
            raise CheckpointError(
                f"{self.path} is one of {len(shards)} shards, of which {names} are missing.", code="HS-CHECKPOINT-04"
            )
        return shards

    def _read_header(self, path: Path) -> None:
        with path.open("rb") as file, _mapped(file, path) as content:
            reader = _Reader(content)
            if reader.bytes(4) != _MAGIC:
                raise ValueError("it does not begin with 'GGUF'")
            version, n_tensors, n_values = reader.number("<u4"), reader.number("<u8"), reader.number("<u8")
            if version not in _VERSIONS:
                raise ValueError(f"version {version} or its byte order is not supported (2 and 3, little-endian, are)")
            metadata = {}
            for _ in range(n_values):
                key = reader.string()
                metadata[key] = reader.value(reader.number("<u4"))
            tensors = [_tensor_entry(reader) for _ in range(n_tensors)]
            alignment = metadata.get("general.alignment", 32)
            if not isinstance(alignment, int) or alignment < 1:
                raise ValueError(f"general.alignment is {alignment!r}")
            begin = -(-reader.place // alignment) * alignment
            for name, shape, kind, offset in tensors:
                if name in self._stored:
                    raise ValueError(f"tensor {name!r} occurs twice")
                stored = _Stored(path, shape, kind, begin + offset)
                if stored.offset + _n_bytes(name, stored) > len(content):
                    raise ValueError(f"it ends before tensor {name!r} does")
                self._stored[name] = stored
        self.metadata = {**metadata, **self.metadata}  # the first shard's are the model's


class _Reader:
    """Values one after another from the bytes of a header."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self.place = 0

    def bytes(self, n: int) -> bytes:
        if self.place + n > len(self._content):
            raise ValueError("it ends within its header")
        self.place += n
        return self._content[self.place - n : self.place]

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def numbers(self, code: str, n: int) -> list[Any]:
        return np.frombuffer(self.bytes(n * np.dtype(code).itemsize), code).tolist()

    def string(self) -> str:
        return self.bytes(self.number("<u8")).decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _NUMBERS:
            raise ValueError(f"metadata of unknown type {kind}")
        if kind == _FLOAT32:
            return float(str(np.frombuffer(self.bytes(4), "<f4")[0]))
        return self.number(_NUMBERS[kind])

    def _array(self) -> list[Any]:
        kind, n = self.number("<u4"), self.number("<u8")
        if kind == _STRING:
            return self._strings(n)
        if kind not in _NUMBERS:
            raise ValueError(f"an array of metadata of unknown type {kind}")
        return self.numbers(_NUMBERS[kind], n)

    def _strings(self, n: int) -> list[str]:
        """Read the strings of a vocabulary: a hundred thousand and more, so without a call for each."""
        content, place, strings = self._content, self.place, []
        length_at = struct.Struct("<Q").unpack_from
        for _ in range(n):
            (length,) = length_at(content, place)
            place += 8 + length
            if place > len(content):
                raise ValueError("it ends within its header")
            strings.append(content[place - length : place].decode())
        self.place = place
        return strings


def _tensor_entry(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name, n_dimensions = reader.string(), reader.number("<u4")
    if n_dimensions > _MAX_DIMENSIONS:
        raise ValueError(f"tensor {name!r} has {n_dimensions} axes")
    shape = tuple(reversed(reader.numbers("<u8", n_dimensions)))
    if not all(shape):
        raise ValueError(f"tensor {name!r} is empty")
    return name, shape, reader.number("<u4"), reader.number("<u8")


def _mapped(file: Any, path: Path) -> mmap.mmap:
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise CheckpointError(f"{path} is not a readable GGUF file: it is empty.", code="HS-CHECKPOINT-09") from None


def _n_bytes(name: str, stored: _Stored) -> int:
    if stored.kind in _PLAIN:
        return math.prod(stored.shape) * np.dtype(_PLAIN[stored.kind][0]).itemsize
    n_elements, n_bytes = _block(name, stored.kind)
    if not stored.shape or stored.shape[-1] % n_elements:
        raise ValueError(f"rows of tensor {name!r} are not whole blocks of {n_elements}")
    return math.prod(stored.shape) // n_elements * n_bytes


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise CheckpointError(
            "the file holds quantized tensors, which the package gguf expands: pip install 'headscope[gguf]'."
        ) from None
    return gguf


def _block(name: str, kind: int) -> tuple[int, int]:
    """Return elements and bytes of a block of a quantized type."""
    gguf = _gguf()
    sizes = {int(each): size for each, size in gguf.GGML_QUANT_SIZES.items()}
    if kind not in sizes:
        raise CheckpointError(f"tensor {name!r} is of the unknown type {kind}: a newer version of gguf may know it.")
    return sizes[kind]


def _dequantized(name: str, stored: _Stored) -> Tensor:
    gguf = _gguf()
    (n_elements, n_bytes), kind = _block(name, stored.kind), gguf.GGMLQuantizationType(stored.kind)
    n_columns = stored.shape[-1]
    n_rows = math.prod(stored.shape) // n_columns
    shape = (n_rows, n_columns // n_elements * n_bytes)
    # As a plain array: each slice of a memmap object costs Python code, and gguf makes thousands.
    blocks = np.asarray(np.memmap(stored.path, np.uint8, mode="r", offset=stored.offset, shape=shape))
    # In a mapping of its own: on the heap, between weights that stay, what it leaves behind would fit nothing.
    values = np.frombuffer(mmap.mmap(-1, 4 * n_rows * n_columns), np.float32).reshape(n_rows, n_columns)
    step = max(1, _DEQUANTIZED_AT_ONCE // n_columns)
    try:
        for begin in range(0, n_rows, step):
            values[begin : begin + step] = gguf.dequantize(blocks[begin : begin + step], kind)
    except NotImplementedError:
        raise CheckpointError(
            f"tensor {name!r} is quantized as {kind.name}, which the package gguf cannot expand. A file of another "
            "type, Q4_K_M or Q8_0 for example, loads.",
            code="HS-CHECKPOINT-11",
        ) from None
    return torch.from_numpy(values).view(stored.shape)
