"""Activation functions under the names the field gives them."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["gelu_fast", "gelu_new", "gelu_pytorch_tanh", "solu"]


def gelu_new(input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """GELU with the tanh approximation of GPT-2 (Hendrycks & Gimpel 2016, arXiv 1606.08415, section 2).

    Example:
        >>> gelu_new(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.1588,  0.0000,  0.8412])
    """
    return F.gelu(input, approximate="tanh")


# Some configs call it by other names: gelu_fast, where sqrt(2 / pi) is a decimal, and Gemma's gelu_pytorch_tanh.
gelu_fast = gelu_pytorch_tanh = gelu_new


def solu(input: Float[Tensor, "*lead d_mlp"]) -> Float[Tensor, "*lead d_mlp"]:
    """Softmax linear unit, `x * softmax(x)` over the neurons (Elhage et al. 2022, transformer-circuits.pub/2022/solu).

    The LayerNorm that follows it in the paper belongs to the MLP.

    Example:
        >>> solu(torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.7311])
    """
    return input * torch.softmax(input, dim=-1)
