"""Values that tell one task from another, so that a run on one is never continued as a run on the other.

Tensors, numbers and texts are compared by what they hold. A function of the logits is not: the tensors it reads may
stand in its closure or be global, and its code may call any other. It is different from every other function, and from
itself in another call, so that a run that depends on it is begun anew.
"""

import uuid
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headscope.analysis.prompts.metrics import PromptMetric
from headscope.analysis.storage.manifest import fingerprint

__all__ = ["identity", "telling"]

_UNKNOWN = "a function, known to no other run"


def telling(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return values as tensors by name: of a text or a number its characters, of a metric all that it holds.

    Args:
        values: Tensors, numbers, texts, lists and mappings of them, metrics; `None` is left out.

    Example:
        >>> found = telling({"at": torch.tensor([2, 3]), "labels": ("AB", "BA"), "words": {"IO": torch.tensor([1, 1])}})
        >>> {name: each.shape[0] for name, each in found.items()}
        {'at': 2, 'labels': 12, 'words.IO': 2}
    """
    found: dict[str, Tensor] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, PromptMetric):
            found |= telling({name: type(value).__qualname__, f"{name} of": vars(value)})
        elif isinstance(value, Mapping):
            found |= telling({f"{name}.{key}": each for key, each in value.items()})
        elif isinstance(value, (list, tuple)) and not _is_plain(value):
            found |= telling({f"{name}.{at}": each for at, each in enumerate(value)})
        elif _is_plain(value):
            found |= {} if value is None else {name: _characters(repr(value).encode())}
        else:
            found[f"{name}: {_UNKNOWN}"] = _characters(uuid.uuid4().bytes)
    return found


def identity(tensors: Mapping[str, Tensor]) -> str:
    """Return a text that stands for what `telling` gave, and for nothing else.

    Example:
        >>> one, other = ({"metric": 2.0}, {"metric": torch.sum})
        >>> identity(telling(one))[:12], identity(telling(other))[:-9]
        ('8687009470d8', 'metric: a function, known to no other run')
    """
    unknown = next((name for name in tensors if name.endswith(_UNKNOWN)), None)
    made = fingerprint(tensors)
    return made if unknown is None else f"{unknown} {made[:8]}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, (str, bool, int, float))


def _characters(text: bytes) -> Tensor:
    return torch.tensor(list(text), dtype=torch.uint8)
