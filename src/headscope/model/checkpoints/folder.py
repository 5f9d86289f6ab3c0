"""A checkpoint in a folder: `config.json`, tensors in safetensors files or pickles, and a tokenizer."""

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.checkpoints.files import TensorFiles
from headscope.model.checkpoints.hub import FIELD_WEIGHTS, TOKENIZER_FILES

__all__ = ["CheckpointFolder", "read_pickle"]


class CheckpointFolder:
    """A checkpoint in a folder, as `transformers` or `save_pretrained` writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def config(self) -> dict[str, Any]:
        """Return the entries of its `config.json`.

        Raises:
            CheckpointError: If there is none, or it is not valid.
        """
        path = self.path / "config.json"
        if not path.is_file():
            raise CheckpointError(
                f"{self.path} has no config.json. A model directory holds config.json and *.safetensors."
                f"{self._instead()}",
                code="HS-CHECKPOINT-04",
            )
        return {"_name_or_path": str(self.path), **_read_json(path)}

    def _instead(self) -> str:
        """Say what a folder without a config is, as far as its files tell."""
        if (self.path / "adapter_config.json").is_file():
            base = _read_json(self.path / "adapter_config.json").get("base_model_name_or_path")
            return (
                f" It has an adapter of PEFT for {base!r}: merge the two, with PEFT's merge_and_unload(), and give the "
                "merged model as hf_model, or the folder it is saved to."
            )
        gguf = next((each.name for each in sorted(self.path.glob("*.gguf"))), None)
        if gguf:
            return f" It has {gguf}: give the path of that file to load it."
        below = sorted({each.parent for each in self.path.glob("*/config.json")}, key=lambda each: each.stat().st_mtime)
        return f" Its folder {below[-1].name} has one: give {str(below[-1])!r}." if below else ""

    def tensors(self) -> Mapping[str, Tensor]:
        """Return its tensors by name: memory-mapped from safetensors files, or else from pickles, without running code.

        Pickles are `pytorch_model*.bin`, or `*final.pth` for the field's own small models.

        Raises:
            CheckpointError: If there are none, a shard is missing, or a file is corrupt or holds more than tensors.
        """
        index = self.path / "model.safetensors.index.json"
        if index.is_file():
            names = _shards(index)
            absent = [name for name in names if not (self.path / name).is_file()]
            if absent:
                raise CheckpointError(
                    f"{self.path} lacks {', '.join(absent)}, which {index.name} lists.", code="HS-CHECKPOINT-04"
                )
            return TensorFiles([self.path / name for name in names])
        whole = self.path / "model.safetensors"
        paths = [whole] if whole.is_file() else sorted(self.path.glob("*.safetensors"))
        if paths:
            return TensorFiles(paths)
        pickles = sorted(self.path.glob("pytorch_model*.bin")) or sorted(self.path.glob(FIELD_WEIGHTS))
        if not pickles:
            raise CheckpointError(
                f"{self.path} has no weights: neither *.safetensors nor pytorch_model*.bin nor {FIELD_WEIGHTS}.",
                code="HS-CHECKPOINT-04",
            )
        tensors: dict[str, Tensor] = {}
        for path in pickles:
            tensors |= read_pickle(path)
        return tensors

    def has_tokenizer(self) -> bool:
        """Return True if there are files of a tokenizer."""
        return any((self.path / name).is_file() for name in TOKENIZER_FILES)

    def tokenizer(self) -> Any:
        """Return its tokenizer; `None` if it has none."""
        if not self.has_tokenizer():
            return None
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"the tokenizer in {self.path} cannot be loaded: {error}", code="HS-CHECKPOINT-13"
            ) from None
        if tokenizer.pad_token is None:
            # So that it can also pad when users call it directly. It was just created, so nobody else's is changed.
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        CheckpointError: If it holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=_with_infinities)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.", code="HS-CHECKPOINT-09") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold one JSON object; got {type(content).__name__}.")
    return content


def _with_infinities(entries: dict[str, Any]) -> Any:
    """Read infinities, which JSON lacks, as `transformers` writes them: `{"__float__": "Infinity"}`."""
    infinities = [({"__float__": f"{sign}Infinity"}, float(f"{sign}inf")) for sign in ("", "-")]
    return next((number for written, number in infinities if entries == written), entries)


def _shards(index: Path) -> list[str]:
    try:
        names = sorted(set(_read_json(index)["weight_map"].values()))
    except (KeyError, AttributeError, TypeError):
        names = []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise CheckpointError(f"{index} does not say which file each tensor is in (weight_map).")
    return names


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a pickle, without running code.

    Raises:
        CheckpointError: If it is corrupt, or holds more than tensors.
    """
    try:
        # Files from before torch 1.6 are not zip archives, and cannot be memory-mapped.
        tensors = torch.load(path, weights_only=True, mmap=zipfile.is_zipfile(path), map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, TypeError, ValueError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is corrupt, or holds more than tensors, which is not loaded: {reason}", code="HS-CHECKPOINT-09"
        ) from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{path} does not hold a dictionary of tensors by name.")
    return tensors
