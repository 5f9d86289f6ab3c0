"""What a family of checkpoints has to say: its config, and where each tensor goes."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from headscope.errors import CheckpointError
from headscope.model.config import HookedTransformerConfig

__all__ = ["Family", "Tensors", "sizes"]

StateDict = dict[str, Tensor]


class Tensors(Mapping[str, Tensor]):
    """A checkpoint's tensors, read one at a time, that knows which of them nobody read.

    Args:
        tensors: Where they are read from; may be lazy.
        prefix: Dropped from names that have it (`"transformer."`).
        ignore: Endings of names that carry no weights (masks saved as buffers).
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, prefix: str = "", ignore: Iterable[str] = ()) -> None:
        endings = tuple(ignore)
        self._tensors = tensors
        self._names = {name.removeprefix(prefix): name for name in tensors if not name.endswith(endings)}
        self._unread = set(self._names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise CheckpointError(
                f"the checkpoint has no tensor {name!r}. It is incomplete, or of another architecture than its "
                "config.json says."
            )
        self._unread.discard(name)
        return self._tensors[self._names[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def check_all_read(self) -> None:
        """Refuse tensors that no one read: they would be silently lost."""
        if self._unread:
            names = sorted(self._unread)
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise CheckpointError(
                f"the checkpoint has tensors this architecture does not use: {', '.join(names[:5])}{more}."
            )


def sizes(hf: Mapping[str, Any], *names: str) -> tuple[int, ...]:
    """Entries of a `config.json` that must be positive whole numbers.

    Raises:
        CheckpointError: for one that is missing or is not.
    """
    for name in names:
        if name not in hf:
            raise CheckpointError(f"config.json lacks {name!r}.")
        if type(hf[name]) is not int or hf[name] < 1:
            raise CheckpointError(f"{name} in config.json must be a positive whole number; got {hf[name]!r}.")
    return tuple(hf[name] for name in names)


class Family(ABC):
    """One Hugging Face architecture.

    Attributes:
        architecture: The class in `transformers`, as `config.json` names it.
    """

    architecture: str

    @abstractmethod
    def config(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of `HookedTransformerConfig` from the contents of a `config.json`."""

    @abstractmethod
    def convert(self, tensors: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> dict[str, Tensor]:
        """Our state dict from the checkpoint's tensors."""

    @abstractmethod
    def export(self, cfg: HookedTransformerConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], StateDict]:
        """The inverse of both: entries of a `config.json`, `model_type` among them, and the checkpoint's tensors.

        Raises:
            CheckpointError: for a model this architecture cannot express.
        """
