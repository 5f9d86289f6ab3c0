"""Choice of device, and GPU memory in use."""

import torch

__all__ = ["get_device", "print_gpu_mem"]


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
