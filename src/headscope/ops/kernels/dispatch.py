"""The choice of kernels, by device, by dtype, and by what is installed."""

import importlib
import os
from functools import cache

import torch

from headscope.errors import InvalidInputError, MissingDependencyError
from headscope.ops.devices import Budget
from headscope.ops.kernels.accelerator_kernels import AcceleratorKernels
from headscope.ops.kernels.interface import Kernels
from headscope.ops.kernels.torch_kernels import TorchKernels

__all__ = ["kernels_for", "kernels_of"]

_VARIABLE = "HEADSCOPE_KERNELS"


def kernels_for(device: torch.device, dtype: torch.dtype) -> type[Kernels]:
    """Return the best kernels for logits of this device and dtype, or those that `HEADSCOPE_KERNELS` names.

    The `cpu` kernels take float32 on the CPU, and need numba; the `torch` kernels take everything, and everything else.

    Raises:
        InvalidInputError: if the variable names no kernels.
        MissingDependencyError: if it names kernels whose compiler is not installed.

    Example:
        >>> kernels_for(torch.device("cpu"), torch.float64).name
        'torch'
    """
    wanted = os.environ.get(_VARIABLE, "")
    if wanted not in ("", "cpu", "torch"):
        raise InvalidInputError(f'{_VARIABLE} is {wanted!r}; it can be "torch" or "cpu", or empty for the best.')
    if Budget.of(device).is_accelerators:
        return AcceleratorKernels
    if wanted == "torch" or dtype != torch.float32:
        return TorchKernels
    fused, reason = _cpu_kernels()
    if fused is None and wanted:
        raise MissingDependencyError(
            f"{_VARIABLE}=cpu needs numba, which compiles its loops, and a folder that it can write to "
            f"(NUMBA_CACHE_DIR): {reason}. To install it: pip install numba"
        )
    return TorchKernels if fused is None else fused


def kernels_of(W_U: torch.Tensor) -> str:
    """Return the name of the kernels that reduce logits made with this unembedding, in float32 or wider."""
    return kernels_for(W_U.device, torch.promote_types(W_U.dtype, torch.float32)).name


@cache
def _cpu_kernels() -> tuple[type[Kernels] | None, str]:
    """Import the CPU kernels when first used, as the compiler takes half a second to load; or say what failed."""
    try:
        return importlib.import_module(f"{__package__}.cpu_kernels").CpuKernels, ""
    except (ImportError, RuntimeError) as error:  # numba is missing or broken, or has no folder for what it compiles
        return None, str(error)
