"""The choice of kernels, by device, by dtype, and by what is installed."""

import importlib
import importlib.util
import os

import torch

from headscope.errors import InvalidInputError, MissingDependencyError
from headscope.ops.kernels.interface import Kernels
from headscope.ops.kernels.torch_kernels import TorchKernels

__all__ = ["kernels_for"]

_VARIABLE = "HEADSCOPE_KERNELS"


def kernels_for(device: torch.device, dtype: torch.dtype) -> type[Kernels]:
    """Return the best kernels for logits of this device and dtype, or those that `HEADSCOPE_KERNELS` names.

    The `cpu` kernels take float32 on the CPU, and need numba; the `torch` kernels take everything.

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
    if wanted == "torch" or device.type != "cpu" or dtype != torch.float32:
        return TorchKernels
    if importlib.util.find_spec("numba") is None:
        if wanted:
            raise MissingDependencyError(
                f"{_VARIABLE}=cpu needs numba, which compiles these kernels: pip install numba"
            )
        return TorchKernels
    # Imported when used: the compiler takes half a second to load.
    fused: type[Kernels] = importlib.import_module(f"{__package__}.cpu_kernels").CpuKernels
    return fused
