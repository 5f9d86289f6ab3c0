"""Checkpoints saved while a model was trained: which there are, and where each is on the hub."""

import re
from dataclasses import dataclass
from typing import Any

from headscope.errors import CheckpointError, InvalidInputError
from headscope.model.checkpoints.names import HUB_IDS

__all__ = [
    "PYTHIA_CHECKPOINTS",
    "PYTHIA_V0_CHECKPOINTS",
    "STANFORD_CRFM_CHECKPOINTS",
    "TrainingCheckpoint",
    "find_training_checkpoint",
    "get_checkpoint_labels",
]

# When Pythia was saved (Biderman et al. 2023): at each power of two up to 512 steps, then every 1,000; at first (v0)
# only the latter.
PYTHIA_V0_CHECKPOINTS = list(range(1000, 144_000, 1000))
PYTHIA_CHECKPOINTS = [0, *(2**power for power in range(10)), *PYTHIA_V0_CHECKPOINTS]
# When Stanford's GPT-2 models were saved (Karamcheti et al. 2021).
STANFORD_CRFM_CHECKPOINTS = [
    *range(0, 100, 10), *range(100, 2000, 50), *range(2000, 20_000, 100), *range(20_000, 401_000, 1000),
]  # fmt: skip
_FILE = re.compile(r"checkpoints/.*_(\d+)\.pth")


@dataclass(frozen=True)
class TrainingCheckpoint:
    """One checkpoint of a training run.

    Attributes:
        index: Its index, in the order of training.
        value: Its step, or the number of tokens read.
        label_type: `"step"` or `"token"`, which `value` counts.
        revision: The revision on the hub, if each checkpoint is one.
        file: The file in the repository, if each checkpoint is one.
    """

    index: int
    value: int
    label_type: str
    revision: str | None = None
    file: str | None = None


def get_checkpoint_labels(model_name: str, **hub: Any) -> tuple[list[int], str]:
    """Return the steps, or numbers of tokens, at which a model was saved in training, and which of the two they are.

    Args:
        model_name: A short name or a hub id: Pythia, Stanford's GPT-2, or one of the field's small models, for which
            the files on the hub are listed.
        hub: `token` and `revision`, for listing files; `local_files_only` forbids it.

    Raises:
        InvalidInputError: If no checkpoints are known for the model.
        CheckpointError: If files have to be listed and the hub cannot be reached.

    Example:
        >>> labels, kind = get_checkpoint_labels("pythia-70m")
        >>> len(labels), labels[:5], labels[-1], kind
        (154, [0, 1, 2, 4, 8], 143000, 'step')
    """
    checkpoints = _checkpoints(model_name, hub)
    return [each.value for each in checkpoints], checkpoints[0].label_type


def find_training_checkpoint(
    name: str, *, index: int | None = None, label: int | str | None = None, **hub: Any
) -> TrainingCheckpoint:
    """Find one training checkpoint of a model.

    Args:
        name: A short name or a hub id.
        index: Index of the checkpoint, in the order of training; negative counts from the end.
        label: Step, or number of tokens, of the checkpoint, or the name of its revision.
        hub: See `get_checkpoint_labels`.

    Raises:
        InvalidInputError: If the model has no training checkpoints, or not this one.
        CheckpointError: If files have to be listed and the hub cannot be reached.

    Example:
        >>> find_training_checkpoint("pythia-70m", index=-1)
        TrainingCheckpoint(index=153, value=143000, label_type='step', revision='step143000', file=None)
    """
    checkpoints = _checkpoints(name, hub)
    if (index is None) == (label is None):
        raise InvalidInputError("give either checkpoint_index or checkpoint_value, not both.")
    if label is not None:
        text = re.sub(r"^(step|checkpoint-)", "", str(label))
        value = int(text) if text.isdecimal() else -1
        values = [each.value for each in checkpoints]
        if value not in values:
            near = ", ".join(map(str, sorted(values, key=lambda known: abs(known - value))[:3]))
            kind = checkpoints[0].label_type
            raise InvalidInputError(f"{name} has no checkpoint of {kind} {label!r}. The nearest: {near}.")
        return checkpoints[values.index(value)]
    assert index is not None
    if not -len(checkpoints) <= index < len(checkpoints):
        raise InvalidInputError(
            f"checkpoint_index must be between 0 and {len(checkpoints) - 1} for {name}; got {index}."
        )
    return checkpoints[index]


def _checkpoints(name: str, hub: dict[str, Any]) -> list[TrainingCheckpoint]:
    """Return all training checkpoints of a model, in the order of training."""
    repo = HUB_IDS.get(name.lower(), name)
    if repo.startswith("EleutherAI/pythia-"):
        steps = PYTHIA_V0_CHECKPOINTS if repo.endswith("-v0") else PYTHIA_CHECKPOINTS
        return [TrainingCheckpoint(index, step, "step", f"step{step}") for index, step in enumerate(steps)]
    if repo.startswith("stanford-crfm/"):
        return [
            TrainingCheckpoint(index, step, "step", f"checkpoint-{step}")
            for index, step in enumerate(STANFORD_CRFM_CHECKPOINTS)
        ]
    files = _files(repo, hub) if repo.startswith("NeelNanda/") else {}
    if not files:
        raise InvalidInputError(f"no training checkpoints are known for {name!r}. Give a revision on the hub instead.")
    kind = "token" if max(files) > 1e9 else "step"  # no run had so many steps
    return [TrainingCheckpoint(index, label, kind, file=files[label]) for index, label in enumerate(sorted(files))]


def _files(repo: str, hub: dict[str, Any]) -> dict[int, str]:
    """List the checkpoint files in a repository, by the number each name ends with."""
    from huggingface_hub import HfApi, errors

    try:
        if hub.get("local_files_only"):
            raise errors.OfflineModeIsEnabled("local_files_only")
        options = {name: hub[name] for name in ("token", "revision") if name in hub}
        names = HfApi().list_repo_files(repo, **options)
    except (errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"the training checkpoints of {repo!r} are listed on the hub, which cannot be reached "
            f"({type(error).__name__})."
        ) from None
    return {int(match[1]): name for name in names if (match := _FILE.fullmatch(name))}
