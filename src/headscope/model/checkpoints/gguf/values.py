"""The metadata of a GGUF file under its architecture's name.

A value that nothing reads is refused: it may say that the model computes something else.
"""

from collections.abc import Iterable
from typing import Any

from headscope.errors import CheckpointError
from headscope.model.checkpoints.gguf.file import GGUFFile

__all__ = ["Entries", "Values"]

Entries = dict[str, Any]


class Values:
    """The metadata of a GGUF file under its architecture's name, with a record of the keys never read.

    Args:
        file: The file.
        architecture: `general.architecture`.

    Attributes:
        file: The file.
        tensors: Names of its tensors, less those that are no weights.
        sizes: Entries of the sizes that every model has, by Llama's names for them.

    Raises:
        CheckpointError: If one of these is missing.
    """

    def __init__(self, file: GGUFFile, architecture: str) -> None:
        prefix = f"{architecture}."
        self.file = file
        self.tensors = set(file)
        self._prefix = prefix
        self._values = {k.removeprefix(prefix): v for k, v in file.metadata.items() if k.startswith(prefix)}
        self._unread = set(self._values)
        self.sizes = self._read_sizes()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, of an array of equal values that value."""
        self._unread.discard(key)
        value = self._values.get(key, default)
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            return value[0]
        return value

    def number(self, key: str) -> int:
        """Return a whole number that must be there, and the same in every layer.

        Raises:
            CheckpointError: If it is not.
        """
        value = self.get(key)
        if type(value) is not int or value < 1:
            found = "it is missing" if value is None else f"got {value!r}"
            raise CheckpointError(f"{self._prefix}{key} in the GGUF file must be a positive whole number; {found}.")
        return value

    def _read_sizes(self) -> Entries:
        d_model, n_heads = self.number("embedding_length"), self.number("attention.head_count")
        d_head = self.get("attention.key_length")
        if self.get("attention.value_length", d_head) != d_head:
            raise CheckpointError("the GGUF file has values of another width than keys, which is not supported.")
        if "token_embd.weight" not in self.tensors:
            raise CheckpointError("the GGUF file has no tensor 'token_embd.weight'.")
        return {
            "num_hidden_layers": self.number("block_count"),
            "hidden_size": d_model,
            "num_attention_heads": n_heads,
            "num_key_value_heads": self.get("attention.head_count_kv", n_heads),
            "intermediate_size": self.number("feed_forward_length"),
            "max_position_embeddings": self.number("context_length"),
            "vocab_size": self.file.shape("token_embd.weight")[0],
            "head_dim": d_head or d_model // n_heads,
            "tie_word_embeddings": "output.weight" not in self.tensors,
        }

    def has(self, *parts: str) -> bool:
        """Return True if the first layer has a tensor of one of these names."""
        return any(f"blk.0.{part}" in self.tensors for part in parts)

    def factors(self, name: str) -> list[float] | None:
        """Return the values of a tensor of rotary factors outside the layers, which is then no weight."""
        if name not in self.tensors:
            return None
        self.tensors.discard(name)
        return [float(value) for value in self.file[name]]

    def check_all_read(self, neutral: Iterable[str]) -> None:
        """Raise if keys were never read that may change what the model computes.

        Args:
            neutral: Keys that do not.

        Raises:
            CheckpointError: With their names and values.
        """
        left = sorted(self._unread - set(neutral))
        if left:
            named = ", ".join(f"{self._prefix}{key} = {self._values[key]!r}" for key in left[:5])
            raise CheckpointError(f"the GGUF file has entries that are not supported: {named}.")
