"""Measurements of a page under way, kept beside it until it is whole: a stopped report goes on from them.

The folder `measured` holds `report.json` (what is measured on what, and which parts are done), the run folder of each
analysis that streams, and the result of each that does not. Nothing else is ever continued there.
"""

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from torch import Tensor

from headscope.analysis.core.result import Result
from headscope.analysis.storage.manifest import compare_manifests, read_manifest
from headscope.analysis.storage.places import place_of, writing
from headscope.analysis.storage.sharded import Engine
from headscope.errors import InvalidInputError
from headscope.model.checkpoints.files import TensorFiles, write_bytes, write_tensors

__all__ = ["Kept"]

R = TypeVar("R", bound=Result)


class Kept:
    """The folder of a page's measurements.

    Args:
        folder: The folder, which need not exist; `None` keeps nothing.
        resume: Go on with what it holds.
        engine: Who measures what is streamed; `None` for this process, without shards.

    Attributes:
        begun: What a report that is continued was begun with, by model; nothing for a new one.
        done: The parts that are done.

    Raises:
        InvalidInputError: If the folder holds measurements that are not to be continued.
        CheckpointError: If what it holds is damaged.
    """

    def __init__(self, folder: Path | None, *, resume: bool = False, engine: Engine | None = None) -> None:
        self.folder, self._engine = folder, engine
        self.begun: dict[str, dict[str, Any]] = {}
        self.done: list[str] = []
        self._prefix = ""
        if folder is None:
            return
        self._file = folder / "report.json"
        self._above = [path for path in (folder.absolute(), *folder.absolute().parents) if not path.exists()]
        if self._file.exists():
            if not resume:
                raise InvalidInputError(
                    f"{str(folder)!r} holds the measurements of a report that was stopped. Continue it with "
                    "resume=True (--resume), delete that folder to begin anew, or write to another one.",
                    code="HS-RUN-01",
                )
            there = read_manifest(place_of(folder), self._file.name)
            self.begun |= there["begun"]
            self.done += there["done"]

    def begin(self, manifests: Mapping[str, dict[str, Any]]) -> None:
        """Note what is measured on what, or refuse to go on with something else.

        Args:
            manifests: By model, as `make_manifest` makes them.

        Raises:
            InvalidInputError: Naming what differs, and both values.
            StorageError: If it cannot be written.
        """
        if self.folder is None:
            return
        for name, manifest in manifests.items():
            if name in self.begun:
                compare_manifests(place_of(self.folder), self.begun[name], manifest)
            self.begun[name] = manifest
        self._write()

    def within(self, name: str) -> Self:
        """Return the place of one of several models in the folder."""
        place = copy.copy(self)
        place._prefix = f"{self._prefix}{name}/"
        return place

    def note_done(self, part: str) -> None:
        """Note that a part is done."""
        if self.folder is not None and not self.has(part):
            self.done.append(self._prefix + part)
            self._write()

    def has(self, part: str) -> bool:
        """Tell whether a part is done."""
        return self._prefix + part in self.done

    def run(self, name: str) -> dict[str, Any]:
        """Return the options with which an analysis that streams keeps its run, and goes on with it."""
        if self.folder is None:
            return {}
        return {"out": self.folder / (self._prefix + name), "resume": True, "engine": self._engine}

    def result(self, name: str, kind: type[R], measure: Callable[[], R]) -> R:
        """Return a result that is there, or measure it."""
        if self.folder is None:
            return measure()
        path = self.folder / f"{self._prefix}{name}.safetensors"
        if path.exists():
            return kind.load(path)
        result = measure()
        with writing(path):
            result.save(path)
        return result

    def tensors(self, name: str, measure: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """Return tensors that are there, or measure them."""
        if self.folder is None:
            return measure()
        path = self.folder / f"{self._prefix}{name}.safetensors"
        if not path.exists():
            tensors = measure()
            with writing(path):
                write_tensors(path, tensors, {"kind": name})
            return tensors
        return {name: tensor.clone() for name, tensor in TensorFiles([path]).items()}

    def remove(self) -> None:
        """Remove everything, and folders made for it that are empty."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            for path in self._above:
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()

    def remove_if_empty(self) -> None:
        """Remove what was begun and never came to a number."""
        if self.folder is not None and not any(self.folder.rglob("*.safetensors")):
            self.remove()

    def _write(self) -> None:
        with writing(self._file):
            write_bytes(self._file, json.dumps({"begun": self.begun, "done": self.done}, indent=2).encode())
