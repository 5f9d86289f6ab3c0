"""Products of float32 matrices on a CPU, by the faster of the two libraries that PyTorch carries.

`torch.mm` and `F.linear` hand float32 to MKL, which keeps AVX-512 to Intel's processors: on AMD's (Zen 4 and later) it
runs at half the rate of oneDNN, which PyTorch has beside it for its compiler (on one core of an EPYC 9005, 100 and 220
GFLOP/s). There the products here are oneDNN's; everywhere else, and for everything that oneDNN's operation cannot do
(gradients, `vmap`, other dtypes), they are those two functions. Both sum in float32.
`torch.backends.mkldnn.enabled = False` turns oneDNN off.
"""

import math
import platform
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch._C._functorch import maybe_current_level
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.nn import functional as F

__all__ = ["emulates", "linear", "linear_each", "product", "product_each"]

# Below this many multiplications the call costs more than the product, and a single row is read at memory's rate.
_WORTH = 2**21
_ROWS_WORTH, _ROWS_WORTH_COPYING = 4, 128


def linear(
    x: Float[Tensor, "*lead inner"], weight: Float[Tensor, "inner outer"], bias: Float[Tensor, " outer"] | None = None
) -> Float[Tensor, "*lead outer"]:
    """Return `x @ weight + bias`.

    Example:
        >>> linear(torch.ones(2, 3), torch.eye(3), torch.arange(3.0))
        tensor([[1., 2., 3.],
                [1., 2., 3.]])
    """
    if _is_onednns(x, weight, bias):
        return _onednn(x, weight, bias)
    return F.linear(x, weight.T, bias)


def linear_each(
    x: Float[Tensor, "#head row inner"], weight: Float[Tensor, "head inner outer"], bias: Float[Tensor, "head outer"]
) -> Float[Tensor, "head row outer"]:
    """Return `x @ weight + bias` for each head, of rows of its own or of the same for all."""
    if _is_onednns(x[0], weight[0], bias):
        heads = x.expand(len(weight), -1, -1)
        return torch.stack([_onednn(*each) for each in zip(heads, weight, bias, strict=True)])
    return torch.baddbmm(bias[:, None], x.expand(len(weight), -1, -1), weight)


def product(
    left: Float[Tensor, "row inner"], right: Float[Tensor, "inner column"], out: Float[Tensor, "row column"]
) -> Float[Tensor, "row column"]:
    """Write `left @ right` into `out`."""
    if _is_onednns(left, right):
        return out.copy_(_onednn(left, right, None))
    return torch.mm(left, right, out=out)


def product_each(
    left: Float[Tensor, "head row inner"],
    right: Float[Tensor, "head inner column"],
    out: Float[Tensor, "head row column"],
) -> Float[Tensor, "head row column"]:
    """Write each head's `left @ right` into `out`."""
    if not _is_onednns(left[0], right[0]):
        return torch.bmm(left, right, out=out)
    for one_left, one_right, one_out in zip(left, right, out, strict=True):
        one_out.copy_(_onednn(one_left, one_right, None))
    return out


def emulates(dtype: torch.dtype, device: torch.device) -> bool:
    """Return True if a device multiplies matrices of this dtype number by number, for want of instructions.

    PyTorch's products of bfloat16 then take 25 to 30 times as long as those of float32 (x86-64 with AVX2 alone).
    """
    return dtype == torch.bfloat16 and device.type == "cpu" and not _has_bfloat16()


@cache
def _has_bfloat16() -> bool:
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a PyTorch without oneDNN
        return False


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # Of other layouts it makes a reference product, a thousand times slower.
    weight = weight if _is_dense(weight) else weight.contiguous()
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.T, bias, "none", [], "")
    return found


def _is_dense(weight: Tensor) -> bool:
    return weight.is_contiguous() or weight.T.is_contiguous()


def _is_onednns(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Return True if oneDNN can make this product, and sooner."""
    if torch.compiler.is_compiling():
        return False
    rows, wide = math.prod(x.shape[:-1]), weight.numel()
    return (
        rows >= _ROWS_WORTH
        and rows * wide >= _WORTH
        and {type(x), type(weight)} <= {Tensor, Parameter}
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and (_is_dense(weight) or rows >= _ROWS_WORTH_COPYING)
        and (x.is_contiguous() or (x.ndim == 2 and x.stride(1) == 1))
        and bool(torch.backends.mkldnn.enabled)
        and not _is_differentiated(x, weight, bias)
        and not torch.is_autocast_enabled("cpu")
        and maybe_current_level() is None
        and _is_faster()
    )


def _is_differentiated(*tensors: Tensor | None) -> bool:
    """Return True if gradients or tangents go through an operation on these."""
    given = [each for each in tensors if each is not None]
    if torch.is_grad_enabled() and any(each.requires_grad for each in given):
        return True
    return any(forward_ad.unpack_dual(each).tangent is not None for each in given)


@cache
def _is_faster() -> bool:
    """Return True on AMD's processors with AVX-512, if this PyTorch has oneDNN's operation and it works."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"):
        return False
    if "AuthenticAMD" not in _processor():
        return False
    x, weight = torch.arange(12.0, device="cpu").view(3, 4), torch.arange(8.0, device="cpu").view(4, 2)
    try:
        return torch.equal(_onednn(x, weight, None), x @ weight)
    except (AttributeError, RuntimeError, TypeError):  # the operation is PyTorch's own: another version may lack it
        return False


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as told:
            return told.read(4096)
    except OSError:
        return platform.processor()  # Windows tells the maker's name
