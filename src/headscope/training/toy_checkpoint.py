"""The folder of a toy training run: what it is a run of, where it has come to, and weights along the way.

- `training.json`: model, data and training configs, for people; the files below carry all of it themselves.
- `checkpoint.safetensors`: weights, optimizer state, and the metrics of all steps so far, in one file, so that they
  can never belong to different steps.
- `snapshots/00000100.safetensors`, ...: weights after some steps.

Every file is written beside its place, forced to the disk and renamed: a process may die at any moment, and what it
leaves is the run as it was at its last checkpoint.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headscope.errors import CheckpointError, InvalidInputError, StorageError
from headscope.model.checkpoints.files import TensorFiles, read_metadata, write_bytes, write_tensors
from headscope.model.config import HookedTransformerConfig
from headscope.model.transformer import HookedTransformer

__all__ = ["RunFolder", "RunState", "load_toy_model", "snapshot_steps"]

FORMAT = 1
_KEY = "headscope.toy_training"
_CHECKPOINT = "checkpoint.safetensors"
_SNAPSHOTS = "snapshots"
_COMPARED = ("model", "data", "validation", "training")


@dataclass(frozen=True)
class RunState:
    """Where a run has come to.

    Attributes:
        tensors: Weights, optimizer state and metrics, by names of the trainer's.
        step: How many steps have been taken.
        seconds: Wall time of these.
    """

    tensors: Mapping[str, Tensor]
    step: int
    seconds: float


class RunFolder:
    """A folder that holds one run, and never another.

    Args:
        path: The folder; made if it is missing.
        manifest: What is run on what, as JSON keeps it.
        resume: Go on with the run that is there, if there is one.

    Raises:
        InvalidInputError: If the path is a file, or holds a run that is not to be resumed, or another one.
        CheckpointError: If the checkpoint that is there is damaged.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], *, resume: bool) -> None:
        if path.exists() and not path.is_dir():
            raise InvalidInputError(f"{str(path)!r} is a file; give a folder for the run.")
        self.path = path
        self.manifest = json.loads(json.dumps(manifest, default=str))
        self.found: RunState | None = None
        if (path / _CHECKPOINT).exists():
            if not resume:
                raise InvalidInputError(
                    f"{str(path)!r} holds a run already. Go on with it by resume=True, or give another folder."
                )
            found = _read_header(path / _CHECKPOINT)
            self._compare(found["manifest"])
            tensors = {name: tensor.clone() for name, tensor in TensorFiles([path / _CHECKPOINT]).items()}
            self.found = RunState(tensors, found["step"], found["seconds"])
        else:
            # Not by a state at step 0: whether the folder can be written to is told before any work is done.
            self._write(lambda: write_bytes(path / "training.json", json.dumps(self.manifest, indent=1).encode()))

    def write(self, state: RunState) -> None:
        """Put a state in the place of the one before.

        Raises:
            StorageError: If it cannot be written. The one before stands.
        """
        self._write_tensors(_CHECKPOINT, state)

    def write_snapshot(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Keep the weights after a step.

        Raises:
            StorageError: If they cannot be written.
        """
        named = {f"model/{name}": weight for name, weight in weights.items()}
        self._write_tensors(f"{_SNAPSHOTS}/{step:08d}.safetensors", RunState(named, step, 0.0))

    def _write_tensors(self, name: str, state: RunState) -> None:
        header = {"format": FORMAT, "manifest": self.manifest, "step": state.step, "seconds": state.seconds}
        self._write(lambda: write_tensors(self.path / name, state.tensors, {_KEY: json.dumps(header)}))

    def _write(self, write: Any) -> None:
        try:
            write()
        except OSError as error:
            raise StorageError(
                f"the run cannot be written to {str(self.path)!r}: {error.strerror}. What was there before still "
                "stands: make room or give another folder, and go on with resume=True."
            ) from error

    def _compare(self, there: Mapping[str, Any]) -> None:
        differing = [
            f"{part}.{name} is {there[part].get(name)!r} there and {self.manifest[part].get(name)!r} here"
            for part in _COMPARED
            for name in sorted({*there[part], *self.manifest[part]})
            if there[part].get(name) != self.manifest[part].get(name)
        ]
        if differing:
            more = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
            raise InvalidInputError(
                f"{str(self.path)!r} holds another run: {'; '.join(differing[:4])}{more}. "
                "Resume it with what it was begun with, or give another folder."
            )


def load_toy_model(folder: str | Path, *, step: int | None = None, device: Any = None) -> HookedTransformer:
    """The model of a run's folder, as it was left, or as it was after a step that a snapshot was kept of.

    Args:
        folder: The folder that was given to `train` as `out`.
        step: The snapshot; default: the last checkpoint.
        device: Where the weights go; default: CUDA if there is one, else the CPU.

    Raises:
        CheckpointError: If there is no such file, or it is damaged.
    """
    name = _CHECKPOINT if step is None else f"{_SNAPSHOTS}/{step:08d}.safetensors"
    path = Path(folder) / name
    if not path.exists():
        steps = ", ".join(map(str, snapshot_steps(folder))) or "none"
        raise CheckpointError(f"there is no {name} in {str(folder)!r}; snapshots there are: {steps}.")
    manifest = _read_header(path)["manifest"]
    cfg = HookedTransformerConfig.from_dict({**manifest["model"]["config"], "device": device, "init_weights": False})
    model = HookedTransformer(cfg)
    weights = {
        name.removeprefix("model/"): tensor for name, tensor in TensorFiles([path]).items() if name.startswith("model/")
    }
    model.load_state_dict(weights)
    frozen = manifest["model"]["frozen"]
    return (model.freeze(*frozen) if frozen else model).eval()


def snapshot_steps(folder: str | Path) -> list[int]:
    """The steps after which a run's folder keeps weights."""
    return sorted(int(path.stem) for path in (Path(folder) / _SNAPSHOTS).glob("[0-9]*.safetensors"))


def describe_model(model: HookedTransformer) -> dict[str, Any]:
    """What of a model must be the same for a run to go on."""
    config = {name: value for name, value in model.cfg.to_dict().items() if name not in ("device", "init_weights")}
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    return {"config": config, "frozen": frozen}


def _read_header(path: Path) -> dict[str, Any]:
    text = read_metadata(path).get(_KEY)
    if text is None:
        raise CheckpointError(f"{path} is not a toy training checkpoint; they are written by train(..., out=...).")
    header: dict[str, Any] = json.loads(text)
    if header["format"] != FORMAT:
        raise CheckpointError(f"{path} is in format {header['format']!r}; this headscope reads format {FORMAT}.")
    return header


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer, flat."""
    return {
        f"optimizer/{index}/{name}": value
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state that `optimizer_tensors` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
