"""The shards of a run: its data cut into ranges of whole batches, before anything is measured.

A cut depends on the data and on the size of a shard, never on who will measure it. The tokens of each shard are written
to a file of its own, so that a worker reads its part and nothing before it, needs no text and no tokenizer, and sees
the batches that one process would have seen. `cut-<data>.json` lists the shards with the hash of each one's tokens.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from headscope.analysis.core.batches import Batch
from headscope.analysis.storage.manifest import fingerprint
from headscope.analysis.storage.places import Place
from headscope.errors import CheckpointError, InvalidInputError
from headscope.model.checkpoints.files import TensorFiles, write_tensors

__all__ = ["Cut", "Shard"]

_TOKENS = "tokens"


@dataclass(frozen=True)
class Shard:
    """A range of batches.

    Attributes:
        number: Which it is, from 0.
        first_row: Number of rows of the data before it.
        n_rows: Rows in it.
        n_batches: Batches in it.
        n_tokens: Tokens in it.
        hash: SHA-256 of its tokens and masks.
    """

    number: int
    first_row: int
    n_rows: int
    n_batches: int
    n_tokens: int
    hash: str


@dataclass(frozen=True)
class Cut:
    """Data cut into shards, in the folder of a run.

    Attributes:
        place: The run's folder.
        data: Which of the run's data it is: `"data"` or `"reference"`.
        shards: The shards, in order.
    """

    place: Place
    data: str
    shards: tuple[Shard, ...]

    @classmethod
    def make(cls, place: Place, data: str, batches: Iterable[Batch], shard_tokens: int) -> "Cut":
        """Cut data into shards of at least so many tokens each (the last may have fewer), and write them."""
        shards = []
        for shard, tensors in _ranges(batches, shard_tokens):
            with (place / _TOKENS).new_file(_file(data, shard.number)) as path:
                write_tensors(path, tensors, {"kind": "tokens", "hash": shard.hash})
            shards.append(shard)
        # Last, so that there is a list only of what is all there.
        place.write(_list(data), json.dumps({"shards": [asdict(shard) for shard in shards]}).encode())
        return cls(place, data, tuple(shards))

    @classmethod
    def read(cls, place: Place, data: str) -> "Cut | None":
        """Return what a folder holds, if it does.

        Raises:
            CheckpointError: if the list is damaged.
        """
        if not place.has(_list(data)):
            return None
        try:
            entries = json.loads(place.read(_list(data)))["shards"]
            return cls(place, data, tuple(Shard(**entry) for entry in entries))
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{place}/{_list(data)} is damaged: {error!r}. Delete that file, and resume=True cuts the data again.",
                code="HS-CHECKPOINT-15",
            ) from None

    def check(self, batches: Iterable[Batch], shard_tokens: int) -> None:
        """Refuse data that is not what was cut.

        Raises:
            InvalidInputError: naming the first shard that differs.
        """
        found = [shard for shard, _ in _ranges(batches, shard_tokens)]
        for ours, theirs in zip(found, self.shards, strict=False):
            if ours != theirs:
                raise InvalidInputError(
                    f"the data is not that of the run in {str(self.place)!r}: shard {ours.number} hashes to "
                    f"{ours.hash[:12]} now and to {theirs.hash[:12]} there. Give the same data, or another folder.",
                    code="HS-RUN-03",
                )
        if len(found) != len(self.shards):
            raise InvalidInputError(
                f"the data is not that of the run in {str(self.place)!r}: it makes {len(found)} shards, and there are "
                f"{len(self.shards)} there. Give the same data, or another folder.",
                code="HS-RUN-03",
            )

    @cached_property
    def n_tokens(self) -> int:
        """Tokens of all shards."""
        return sum(shard.n_tokens for shard in self.shards)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all shards."""
        return fingerprint({}, self.data, *(json.dumps(asdict(shard)) for shard in self.shards))

    def batches(self, number: int) -> list[dict[str, Tensor]]:
        """Return the batches of a shard, as `iterate_batches` takes them.

        Raises:
            CheckpointError: if its file is damaged or gone.
        """
        shard, name = self.shards[number], _file(self.data, number)
        with (self.place / _TOKENS).file(name) as path:
            tensors = {name: tensor.clone() for name, tensor in TensorFiles([path]).items()}
        if fingerprint(tensors) != shard.hash:
            raise CheckpointError(
                f"{self.place}/{_TOKENS}/{name} is damaged: its tokens do not match their hash. Delete "
                f"{_list(self.data)}, and resume=True cuts the data again.",
                code="HS-CHECKPOINT-15",
            )
        return [
            {kind: tensors[f"{kind}.{at}"] for kind in ("tokens", "attention_mask") if f"{kind}.{at}" in tensors}
            for at in range(shard.n_batches)
        ]

    def remove_tokens(self) -> None:
        """Remove the files of tokens, which nothing needs when the run is whole."""
        for shard in self.shards:
            (self.place / _TOKENS).remove(_file(self.data, shard.number))


def _list(data: str) -> str:
    return f"cut-{data}.json"


def _file(data: str, number: int) -> str:
    return f"{data}-{number:06d}.safetensors"


def _ranges(batches: Iterable[Batch], shard_tokens: int) -> Iterator[tuple[Shard, dict[str, Tensor]]]:
    """Yield each shard with its tensors; one is held at a time."""
    number = n_rows_before = n_rows = n_tokens = 0
    held: list[Batch] = []
    for batch in batches:
        held.append(batch)
        n_rows, n_tokens = n_rows + len(batch.tokens), n_tokens + batch.tokens.numel()
        if n_tokens >= shard_tokens:
            yield _shard(number, n_rows_before, held)
            number, n_rows_before, n_tokens, held = number + 1, n_rows, 0, []
    if held:
        yield _shard(number, n_rows_before, held)


def _shard(number: int, first_row: int, batches: list[Batch]) -> tuple[Shard, dict[str, Tensor]]:
    tensors: dict[str, Any] = {}
    for at, batch in enumerate(batches):
        tensors[f"tokens.{at}"] = batch.tokens.cpu().to(torch.int32)
        if batch.attention_mask is not None:
            tensors[f"attention_mask.{at}"] = batch.attention_mask.cpu()
    n_tokens = sum(batch.tokens.numel() for batch in batches)
    n_rows = sum(len(batch.tokens) for batch in batches)
    return Shard(number, first_row, n_rows, len(batches), n_tokens, fingerprint(tensors)), tensors
