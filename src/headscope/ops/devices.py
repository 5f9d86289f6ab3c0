"""The device to compute on, and how much is computed and kept at a time on it."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Budget", "Tile", "budget", "get_device", "give_back_freed", "print_gpu_mem", "sums_device", "wide"]


class Tile(NamedTuple):
    """Rows of states, and columns of the vocabulary, whose logits are made and reduced together."""

    rows: int
    vocab: int


@dataclass(frozen=True)
class Budget:
    """Limits on the numbers computed and kept at a time, which bound memory whatever the data.

    A CPU core wants tiles that stay near its cache; an accelerator wants few launches of hundreds of megabytes each,
    and nobody who waits for what it computes in between.

    Attributes:
        batch_tokens: Tokens that go through the model together.
        backward_tokens: The same where gradients are taken, which keep every activation.
        kept_bytes: What the first pass over the data may keep for the second.
        work_bytes: Changed states that are held to be run together, and the logits that are made of them together.
        held_rows: Changed final states that are held to be unembedded together.
        tile: Of one product after another, over all cores (float32: 2 MiB).
        core_tile: Of each core's own products (264 KiB); times heads or changes, near its cache, and large enough to
            dwarf the overhead of an operator call. A whole number of the blocks of 48 or 16 columns, and of vectors.
        changes: Changes to a prediction that a core evaluates together.
        loss_logits: Logits whose log-probabilities are made together.
        pair_numbers: Numbers in the products of pairs of heads that are made together.
        launch_bytes: On an accelerator, the logits of one launch, in float32; 0 where `core_tile` gives the size.
        mapped_bytes: Weights mapped from a file that may stay in memory; a larger model's go when a block has run.
        unwritten_bytes: Results per position that a run in a folder holds before it writes them.
    """

    batch_tokens: int = 2048
    backward_tokens: int = 512
    kept_bytes: int = 256 * 2**20
    work_bytes: int = 128 * 2**20
    held_rows: int = 16 * 2048
    tile: Tile = Tile(512, 1024)
    core_tile: Tile = Tile(128, 528)
    changes: int = 12
    loss_logits: int = 2**21
    pair_numbers: int = 2**22
    launch_bytes: int = 0
    mapped_bytes: int = 2**30
    unwritten_bytes: int = 256 * 2**20

    @classmethod
    def of(cls, device: torch.device | str) -> "Budget":
        """Return the budget of a device, by its kind and its memory.

        Example:
            >>> Budget.of("cpu").batch_tokens
            2048
        """
        device = torch.device(_forced.like or device)
        found = cls() if device.type == "cpu" else cls.of_accelerator(_memory(device))
        return replace(found, **_forced.sizes)

    @classmethod
    def of_accelerator(cls, memory: int) -> "Budget":
        """Return the budget of an accelerator with this many bytes in all.

        The memory that happens to be free does not count: results to the last bit would depend on it. About eight
        buffers of `launch_bytes` are alive at once, a quarter of the memory.

        Example:
            >>> small, large = Budget.of_accelerator(8 * 2**30), Budget.of_accelerator(140 * 2**30)
            >>> small.launch_bytes // 2**20, large.launch_bytes // 2**20, large.batch_tokens
            (256, 512, 8192)
        """
        launch_bytes = _power_of_two(memory // 32, 2**25, 2**29)
        batch_tokens = _power_of_two(memory // 2**24, 2048, 8192)
        return cls(
            batch_tokens=batch_tokens,
            backward_tokens=batch_tokens // 4,
            kept_bytes=max(cls.kept_bytes, memory // 16),
            work_bytes=4 * launch_bytes,
            held_rows=16 * batch_tokens,
            tile=Tile(4096, launch_bytes // (4 * 4096)),
            core_tile=Tile(2048, 512),
            changes=16,
            loss_logits=2**26,
            pair_numbers=launch_bytes // 4,
            launch_bytes=launch_bytes,
        )

    @property
    def is_accelerators(self) -> bool:
        """True for an accelerator's: few large launches, and no look at values in between."""
        return self.launch_bytes > 0

    def tile_of(self, n_rows: int, d_vocab: int, *, per_row: int, shared: int = 0) -> Tile:
        """Return the tile of rows by vocabulary whose logits are made and reduced together.

        It does not depend on the number of threads, so neither do the last bits of results.

        Args:
            n_rows: Rows in all. On a CPU they come in up to eight chunks where they are few, so that threads share
                them, of at least 64, or 32 where there would be only one: fewer would not repay the calls of operations
                on their tiles.
            d_vocab: Vocabulary in all.
            per_row: Logits of each row and token that are alive together, such as those of a layer's heads.
            shared: Numbers for each token that all rows share, such as those of `W_O W_U`.

        Example:
            >>> Budget.of("cpu").tile_of(4096, 50257, per_row=12), Budget.of("cpu").tile_of(256, 50257, per_row=12)
            (Tile(rows=128, vocab=528), Tile(rows=64, vocab=528))
            >>> Budget.of_accelerator(140 * 2**30).tile_of(1024, 50257, per_row=12)
            Tile(rows=1024, vocab=10112)
        """
        if not self.is_accelerators:
            rows = min(max(64, n_rows // 8), max(32, -(-n_rows // 2)), self.core_tile.rows)
            return Tile(rows, self.core_tile.vocab)
        rows = max(1, min(self.core_tile.rows, n_rows))
        widest = max(self.core_tile.vocab, self.launch_bytes // (4 * max(rows * per_row, shared, 1)))
        n_tiles, step = -(-d_vocab // widest), min(128, self.core_tile.vocab)
        return Tile(rows, -(-d_vocab // n_tiles // step) * step)  # tiles of one width, and the last not much narrower


@dataclass
class _Forced:
    """Sizes, and the device whose sizes they are, that `budget` has set."""

    like: str | None
    sizes: dict[str, Any]


_forced = _Forced(None, {})


@contextmanager
def budget(like: str | None = None, **sizes: Any) -> Iterator[None]:
    """Compute with other sizes, on every device, for the length of a `with` block.

    Args:
        like: A device such as `"cuda"`: compute with its sizes, and in its order, wherever the tensors are.
        **sizes: Fields of `Budget`.

    Example:
        >>> with budget(batch_tokens=256):
        ...     Budget.of("cpu").batch_tokens
        256
    """
    global _forced
    replace(Budget(), **sizes)  # refuses a name that is none
    before = _forced
    _forced = _Forced(before.like if like is None else like, {**before.sizes, **sizes})
    try:
        yield
    finally:
        _forced = before


def sums_device(device: torch.device) -> torch.device:
    """Return where sums over numbers of a device are kept in float64: there, or on the CPU where it has no float64.

    Apple's MPS has none.

    Example:
        >>> sums_device(torch.device("cpu"))
        device(type='cpu')
    """
    if device.type == "cpu":
        return device
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except TypeError:
        return torch.device("cpu")
    return device


def wide(values: Tensor) -> Tensor:
    """Return numbers in float64, on the `sums_device` of theirs.

    Example:
        >>> wide(torch.ones(2))
        tensor([1., 1.], dtype=torch.float64)
    """
    # Moved first, since a device without float64 cannot widen what it sends either.
    return values.to(sums_device(values.device)).double()


def give_back_freed() -> None:
    """Give the memory of tensors that are gone back to the system, as few allocators do by themselves.

    glibc keeps freed blocks of up to 32 MiB for later ones: behind a forward pass of 2,048 tokens through GPT-2 small
    that is 150 MB, which would count in addition to what comes next. Does nothing where there is another allocator.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # it is glibc's own; Windows has no name for the program itself
        return None
    return found


def _memory(device: torch.device) -> int:
    """Return the bytes of a GPU's memory; 16 GiB where it cannot be asked."""
    if device.type == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(device).total_memory)
    return 16 * 2**30


def _power_of_two(at_most: int, lowest: int, highest: int) -> int:
    return min(highest, max(lowest, 1 << (at_most.bit_length() - 1)))


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
