"""Weights that are mapped from files: their memory is given back when a layer has run, and read again for the next.

The pages of a mapped weight count as memory of the process from when they are first read. Of a model larger than
`Budget.mapped_bytes` each block gives them back after its turn, so that the process holds one block at a time: the
system keeps them while it has room, as it keeps any file, and else reads them from the disk once more.

Pages that were written to are the process's own, and in no file. `give_back` asks the system for each page which it is
(`/proc/self/pagemap`), and leaves a weight alone of which any was: what it does never changes a number.
"""

import ctypes
import mmap
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

from headscope.model.protocols import Model
from headscope.ops.devices import Budget

__all__ = ["give_back", "give_back_blocks"]

_DONT_NEED = 4  # of Linux; elsewhere the word means other things
# Of an entry of pagemap: the page is there, it was swapped out, it is a file's.
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1) << np.uint64(bit) for bit in (63, 62, 61))


def give_back_blocks(model: Model) -> None:
    """Let each block of a model give its weights back whenever it has run, if they are more than is to be held."""
    blocks: Any = model.blocks
    if sum(parameter.nbytes for _, parameter in model.named_parameters()) > Budget.of("cpu").mapped_bytes:
        for block in blocks:
            block.gives_back = True


def give_back(tensors: Iterable[Tensor]) -> None:
    """Give back the memory of those tensors that are mapped from a file and as they are there; Linux only."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            continue
        # Whole pages: what else is on the first and the last may be somebody else's.
        first, after = -(-tensor.data_ptr() // mmap.PAGESIZE), (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE
        if first < after and _is_of_file(first, after):
            where, length = first * mmap.PAGESIZE, (after - first) * mmap.PAGESIZE
            _system().madvise(ctypes.c_void_p(where), ctypes.c_size_t(length), _DONT_NEED)


def _is_of_file(first: int, after: int) -> bool:
    """Tell whether of these pages, where they are anywhere but in a file, none is this process's own."""
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            pagemap.seek(8 * first)
            entries = np.frombuffer(pagemap.read(8 * (after - first)), np.uint64)
    except OSError:  # no Linux, or one that does not say
        return False
    anywhere = (entries & (_PRESENT | _SWAPPED)) != 0
    return len(entries) == after - first and bool(((entries & _OF_FILE) != 0)[anywhere].all())


@cache
def _system() -> ctypes.CDLL:
    return ctypes.CDLL(None)
