"""The device to compute on, and how much is computed and kept at a time on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

__all__ = ["Budget", "Tile", "budget", "get_device", "print_gpu_mem"]


class Tile(NamedTuple):
    """Rows of states, and columns of the vocabulary, whose logits are made and reduced together."""

    rows: int
    vocab: int


@dataclass(frozen=True)
class Budget:
    """Limits on the numbers computed and kept at a time, which bound memory whatever the data.

    Attributes:
        batch_tokens: Tokens that go through the model together.
        backward_tokens: The same where gradients are taken, which keep every activation.
        kept_bytes: What the first pass over the data may keep for the second.
        work_bytes: Changed states that are held to be run together, and the logits that are made of them together.
        held_rows: Changed final states that are held to be unembedded together.
        tile: Of one product after another, over all cores (float32: 2 MiB).
        core_tile: Of each core's own products (256 KiB); times heads or changes, near its cache, and large enough to
            dwarf the overhead of an operator call.
        changes: Changes to a prediction that a core evaluates together.
        loss_logits: Logits whose log-probabilities are made together.
        pair_numbers: Numbers in the products of pairs of heads that are made together.
    """

    batch_tokens: int = 2048
    backward_tokens: int = 512
    kept_bytes: int = 256 * 2**20
    work_bytes: int = 128 * 2**20
    held_rows: int = 16 * 2048
    tile: Tile = Tile(512, 1024)
    core_tile: Tile = Tile(128, 512)
    changes: int = 12
    loss_logits: int = 2**21
    pair_numbers: int = 2**22

    @classmethod
    def of(cls, device: torch.device | str) -> "Budget":
        """Return the budget of a device, by its kind.

        Example:
            >>> Budget.of("cpu").batch_tokens
            2048
        """
        return _BUDGETS["cpu" if torch.device(device).type == "cpu" else "accelerator"]


# Sizes for a GPU, which wants few large launches, go here; but for the loss they are those of a CPU core so far.
_BUDGETS = {"cpu": Budget(), "accelerator": Budget(loss_logits=2**26)}


@contextmanager
def budget(**sizes: Any) -> Iterator[None]:
    """Compute with other sizes, on every device, for the length of a `with` block.

    Example:
        >>> with budget(batch_tokens=256):
        ...     Budget.of("cpu").batch_tokens
        256
    """
    before = dict(_BUDGETS)
    _BUDGETS.update({kind: replace(each, **sizes) for kind, each in before.items()})
    try:
        yield
    finally:
        _BUDGETS.update(before)


def get_device() -> str:
    """Return `"cuda"` where there is a GPU, else `"cpu"`. Apple's `"mps"` is never chosen unasked: pass it by name.

    Example:
        >>> get_device()  # doctest: +SKIP
        'cuda'
    """
    return "cuda" if torch.cuda.is_available() else "cpu"


def print_gpu_mem(step_name: str = "") -> None:
    """Print the memory that PyTorch's tensors take on the current GPU, in GiB.

    Example:
        >>> print_gpu_mem("after loading")  # doctest: +ELLIPSIS
        after loading ~ ... GiB allocated on GPU.
    """
    allocated = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    print(f"{step_name} ~ {allocated / 2**30:.2f} GiB allocated on GPU.")
