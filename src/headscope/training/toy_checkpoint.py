"""The folder of a toy training run: its manifest, its last checkpoint, and snapshots of the weights.

- `training.json`: model, data and training configs, for people; the files below contain all of it too.
- `checkpoint.safetensors`: weights, optimizer state, and the metrics of all steps so far, in one file, so that they
  can never belong to different steps.
- `snapshots/00000100.safetensors`, ...: weights after selected steps.

Every file is written under a temporary name, flushed to disk and renamed: the process may be killed at any moment and
leaves the run as it was at its last checkpoint.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headscope.analysis.storage.manifest import check_same_run
from headscope.analysis.storage.places import writing
from headscope.errors import CheckpointError, InvalidInputError
from headscope.model.checkpoints.files import TensorFiles, read_metadata, write_bytes, write_tensors
from headscope.model.config import HookedTransformerConfig
from headscope.model.transformer import HookedTransformer

__all__ = ["RunFolder", "RunState", "load_toy_model", "snapshot_steps"]

FORMAT = 1
_KEY = "headscope.toy_training"
_CHECKPOINT = "checkpoint.safetensors"
_COMPARED = ("model", "data", "validation", "training")


@dataclass(frozen=True)
class RunState:
    """Progress of a run.

    Attributes:
        tensors: Weights, optimizer state and metrics, by the trainer's names.
        step: Number of steps taken.
        seconds: Wall time so far.
    """

    tensors: Mapping[str, Tensor]
    step: int
    seconds: float


class RunFolder:
    """A folder that holds one run, and never another.

    Args:
        path: The folder; created if missing.
        manifest: Description of model, data and options, in JSON values.
        resume: Continue the run in the folder, if there is one.

    Attributes:
        previous: State of the run to continue; `None` for a new run.

    Raises:
        InvalidInputError: If the path is a file, or holds a different run, or one that should not be resumed.
        CheckpointError: If the checkpoint in it is damaged.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], *, resume: bool) -> None:
        if path.exists() and not path.is_dir():
            raise InvalidInputError(f"{str(path)!r} is a file; give a folder for the run.")
        self.path = path
        self.manifest = json.loads(json.dumps(manifest, default=str))
        self.previous: RunState | None = None
        if (path / _CHECKPOINT).exists():
            if not resume:
                raise InvalidInputError(
                    f"{str(path)!r} already holds a run. Continue it with resume=True, or give another folder.",
                    code="HS-RUN-01",
                )
            header = _read_header(path / _CHECKPOINT)
            check_same_run(
                path, *({part: each[part] for part in _COMPARED} for each in (header["manifest"], self.manifest))
            )
            tensors = {name: tensor.clone() for name, tensor in TensorFiles([path / _CHECKPOINT]).items()}
            self.previous = RunState(tensors, header["step"], header["seconds"])
        else:
            # Written before any work is done, so that a folder that cannot be written to is noticed at once.
            with writing(path / "training.json"):
                write_bytes(path / "training.json", json.dumps(self.manifest, indent=1).encode())

    def write(self, state: RunState, name: str = _CHECKPOINT) -> None:
        """Replace the checkpoint, or the file of this name.

        Raises:
            StorageError: If it cannot be written. The previous one stays valid.
        """
        header = {"format": FORMAT, "manifest": self.manifest, "step": state.step, "seconds": state.seconds}
        with writing(self.path / name):
            write_tensors(self.path / name, state.tensors, {_KEY: json.dumps(header)})

    def write_snapshot(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Keep the weights after a step."""
        named = {f"model/{name}": weight for name, weight in weights.items()}
        self.write(RunState(named, step, 0.0), _snapshot(step))


def load_toy_model(folder: str | Path, *, step: int | None = None, device: Any = None) -> HookedTransformer:
    """Load the model from a run's folder, at its last checkpoint or at a snapshot.

    Args:
        folder: The folder given to `train` as `out`.
        step: The snapshot's step; the last checkpoint by default.
        device: Device of the weights; CUDA if there is one, else the CPU, by default.

    Raises:
        CheckpointError: If there is no such file, or it is damaged.
    """
    name = _CHECKPOINT if step is None else _snapshot(step)
    path = Path(folder) / name
    if not path.exists():
        steps = ", ".join(map(str, snapshot_steps(folder))) or "none"
        raise CheckpointError(f"there is no {name} in {str(folder)!r}; its snapshots are: {steps}.")
    manifest = _read_header(path)["manifest"]
    cfg = HookedTransformerConfig.from_dict({**manifest["model"]["config"], "device": device, "init_weights": False})
    model = HookedTransformer(cfg)
    model.load_state_dict(weights_in(TensorFiles([path])))
    frozen = manifest["model"]["frozen"]
    return (model.freeze(*frozen) if frozen else model).eval()


def weights_in(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the model's weights among the tensors of a checkpoint."""
    return {name.removeprefix("model/"): tensor for name, tensor in tensors.items() if name.startswith("model/")}


def snapshot_steps(folder: str | Path) -> list[int]:
    """Return the steps of a run's snapshots."""
    return sorted(int(path.stem) for path in Path(folder).glob("snapshots/[0-9]*.safetensors"))


def _snapshot(step: int) -> str:
    return f"snapshots/{step:08d}.safetensors"


def describe_model(model: HookedTransformer) -> dict[str, Any]:
    """Describe the parts of a model that must be the same for a run to be resumed."""
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
    """Return the state of an optimizer as a flat dictionary of tensors."""
    return {
        f"optimizer/{index}/{name}": value
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the state that `optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
