"""A GGUF file as a checkpoint: entries as in a `config.json`, and tensors under the names of `transformers`."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from einops import EinopsError
from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.gguf.architectures import ARCHITECTURES, Architecture
from headscope.model.checkpoints.gguf.entries import ENTRIES
from headscope.model.checkpoints.gguf.file import GGUFFile
from headscope.model.checkpoints.gguf.tokenizer import read_tokenizer
from headscope.model.checkpoints.gguf.values import Values

__all__ = ["GGUFCheckpoint"]

# Keys under the architecture's name that change nothing: the tensors say the size of the vocabulary, and the layout is
# a note on which code converted the file.
_NEUTRAL = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "pooling_type")
_LAYER = re.compile(r"blk\.\d+\.")


class GGUFCheckpoint:
    """A checkpoint in a GGUF file.

    Args:
        path: The file; the first of several shards.

    Raises:
        CheckpointError: For a file that is corrupt, holds no language model, or one of an architecture that is not
            supported.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GGUFFile(path)
        kind, name = (self._file.metadata.get(f"general.{key}") for key in ("type", "architecture"))
        if kind not in (None, "model"):
            raise CheckpointError(f"{path} holds no model, but what GGUF calls {kind!r}.")
        if name not in ARCHITECTURES:
            raise CheckpointError(
                f"models of architecture {name!r} in GGUF files are not supported. Supported: "
                f"{', '.join(sorted(ARCHITECTURES))}.",
                code="HS-CHECKPOINT-05",
            )
        self._architecture = ARCHITECTURES[name]
        values = Values(self._file, name)
        self._config = ENTRIES[name](values)
        if values.get("attention.causal", True) is not True:
            raise CheckpointError(f"{path} is of an encoder (attention.causal is false); only decoders are supported.")
        values.check_all_read(_NEUTRAL)
        self._values = values

    def config(self) -> dict[str, Any]:
        """Return the entries of the `config.json` that the model would have."""
        return {**self._config, "_name_or_path": str(self.path)}

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors by the names of `transformers`, read and dequantized on access.

        One whose name is not known keeps it, so that the family refuses it.
        """
        return _Renamed(self._values, self._architecture)

    def has_tokenizer(self) -> bool:
        """Return True if there is the vocabulary of a tokenizer."""
        return "tokenizer.ggml.tokens" in self._file.metadata

    def tokenizer(self) -> Any:
        """Return the tokenizer in the file; `None` if it has none."""
        return read_tokenizer(self._file.metadata, str(self.path))


class _Renamed(Mapping[str, Tensor]):
    """Tensors of a file by the names of `transformers`, with what the conversion did to them undone."""

    def __init__(self, values: Values, architecture: Architecture) -> None:
        self._file, self._sizes, self._architecture = values.file, values.sizes, architecture
        self._places: dict[str, list[str]] = {}
        left = set(values.tensors)
        for parts, theirs in _names(architecture, self._sizes["num_hidden_layers"]):
            if left.issuperset(parts):
                self._places[theirs] = parts
                left.difference_update(parts)
        self._places |= {name: [name] for name in left}

    def __getitem__(self, name: str) -> Tensor:
        parts = [self._read(place) for place in self._places[name]]
        if len(parts) == 1:
            return parts[0]
        join = next((join for ending, join in self._architecture.joined.items() if name.endswith(f".{ending}")), None)
        return torch.cat(parts, -2) if join is None else join(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _read(self, place: str) -> Tensor:
        within = _LAYER.sub("", place)
        tensor, undo = self._file[place], self._architecture.undo.get(within)
        if undo is not None:
            try:
                tensor = undo(tensor, self._sizes)
            except (EinopsError, RuntimeError) as error:
                raise CheckpointError(
                    f"tensor {place!r} is not of the shape that the GGUF file's metadata says: {error}",
                    code="HS-CHECKPOINT-08",
                ) from None
        shift = self._architecture.norm_shift if within.endswith("norm.weight") else 0.0
        return tensor.float() - shift if shift else tensor


def _names(architecture: Architecture, n_layers: int) -> Iterator[tuple[list[str], str]]:
    """Yield the names in the file, several where they are joined, and the one in `transformers`."""
    yield from _with_kinds("", architecture.outside, "")
    for layer in range(n_layers):
        yield from _with_kinds(f"blk.{layer}.", architecture.layer, architecture.layer_prefix.format(layer))


def _with_kinds(prefix: str, names: Mapping[str, str], their_prefix: str) -> Iterator[tuple[list[str], str]]:
    for ours, theirs in names.items():
        for kind in ("",) if ours.endswith((".weight", ".bias")) else (".weight", ".bias"):
            yield [f"{prefix}{each}{kind}" for each in ours.split()], f"{their_prefix}{theirs}{kind}"
