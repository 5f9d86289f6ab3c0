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
_COMPILERS = {
    "cpu": "numba (pip install numba), which compiles its loops, and a folder that it can write to (NUMBA_CACHE_DIR)",
    "triton": "Triton (pip install 'headscope[gpu]'), which compiles its programs",
}


def kernels_for(device: torch.device, dtype: torch.dtype) -> type[Kernels]:
    """Return the best kernels for logits of this device and dtype, or those that `HEADSCOPE_KERNELS` names.

    The `cpu` kernels take float32 on the CPU, and need numba; the `triton` kernels take float32 on a GPU, and need
    Triton (under its interpreter, `TRITON_INTERPRET=1`, they take the CPU's if asked for by name); the `torch` kernels
    take everything, and everything else.

    Raises:
        InvalidInputError: if the variable names no kernels.
        MissingDependencyError: if it names kernels whose compiler is not installed.

    Example:
        >>> kernels_for(torch.device("cpu"), torch.float64).name
        'torch'
    """
    wanted = os.environ.get(_VARIABLE, "")
    if wanted not in ("", *_COMPILERS, "torch"):
        raise InvalidInputError(
            f'{_VARIABLE} is {wanted!r}; it can be "torch", "cpu" or "triton", or empty for the best.'
        )
    on_accelerator = Budget.of(device).is_accelerators
    plain = AcceleratorKernels if on_accelerator else TorchKernels
    by_device = "triton" if device.type == "cuda" else "" if on_accelerator else "cpu"
    asked = wanted or by_device
    if dtype != torch.float32 or asked not in _COMPILERS:
        return plain
    fused, reason = _fused(asked)
    if fused is None and wanted:
        raise MissingDependencyError(f"{_VARIABLE}={asked} needs {_COMPILERS[asked]}: {reason}.")
    # What was asked for cannot run everywhere: loops run on a CPU, Triton's programs on a GPU or in its interpreter.
    return fused if fused is not None and fused.runs_on(device) else plain


def kernels_of(W_U: torch.Tensor) -> str:
    """Return the name of the kernels that reduce logits made with this unembedding, in float32 or wider."""
    return kernels_for(W_U.device, torch.promote_types(W_U.dtype, torch.float32)).name


@cache
def _fused(name: str) -> tuple[type[Kernels] | None, str]:
    """Import kernels when first used, as their compiler takes half a second or more to load; or say what failed."""
    try:
        module = importlib.import_module(f"{__package__}.{name}_kernels")
    except (ImportError, RuntimeError) as error:  # it is missing or broken, or has no folder for what it compiles
        return None, str(error)
    kernels: type[Kernels] = module.KERNELS
    return kernels, ""
