"""The interface that this package needs of a tokenizer: `encode`, and the ids of two special tokens."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

__all__ = ["Tokenizer"]


@runtime_checkable
class Tokenizer(Protocol):
    """Any tokenizer that can turn a text into ids; every Hugging Face tokenizer is one."""

    if TYPE_CHECKING:
        # Hugging Face tokenizers provide these through __getattr__, which isinstance() does not see from
        # Python 3.12 on; so at run time the protocol is `encode` alone.
        @property
        def bos_token_id(self) -> int | None: ...

        @property
        def eos_token_id(self) -> int | None: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of `text`, with no special token added when `add_special_tokens` is False."""
        ...
