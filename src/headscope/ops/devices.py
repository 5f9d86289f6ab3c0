"""Which device to compute on, and how much of a GPU is in use."""

import torch

__all__ = ["get_device", "print_gpu_mem"]


def get_device() -> str:
    """`"cuda"` where there is a GPU, else `"cpu"`. Apple's `"mps"` is never chosen unasked: name it where you want it.

    Example:
        >>> get_device() in ("cuda", "cpu")
        True
    """
    return "cuda" if torch.cuda.is_available() else "cpu"


def print_gpu_mem(step_name: str = "") -> None:
    """Print how much memory PyTorch's tensors take on the current GPU, in GiB.

    Example:
        >>> print_gpu_mem("after loading")  # doctest: +ELLIPSIS
        after loading ~ ... GiB allocated on GPU.
    """
    allocated = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    print(f"{step_name} ~ {allocated / 2**30:.2f} GiB allocated on GPU.")
