"""Activation functions under the names the field gives them."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["cap_logits", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "solu", "xielu"]


def cap_logits(logits: Tensor, soft_cap: float) -> Tensor:
    """Return `c * tanh(logits / c)`; a cap of 0 is none."""
    return soft_cap * torch.tanh(logits / soft_cap) if soft_cap else logits


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


def xielu(
    input: Float[Tensor, "*shape"],
    alpha_p: Float[Tensor, " 1"],
    alpha_n: Float[Tensor, " 1"],
    beta: Float[Tensor, ""],
    eps: Float[Tensor, ""],
) -> Float[Tensor, "*shape"]:
    """Expanded integral of the ELU (Huang & Schlag 2024, arXiv 2411.13010, section 3.2).

    `p x^2 + beta x` for positive `x`, whose slope goes on growing, and `n (e^x - 1 - x) + beta x` else, with
    `p = softplus(alpha_p)` and `n = beta + softplus(alpha_n)`.

    Args:
        input: What goes into the activation.
        alpha_p: Sets the curvature of the positive side.
        alpha_n: Sets that of the negative side.
        beta: Slope at zero.
        eps: Largest argument of the exponential, just below zero.

    Example:
        >>> one, half, eps = torch.ones(1), torch.tensor(0.5), torch.tensor(-1e-6)
        >>> xielu(torch.tensor([-1.0, 1.0]), one, one, half, eps)
        tensor([0.1671, 1.8133])
    """
    positive = F.softplus(alpha_p) * input.square()
    negative = (beta + F.softplus(alpha_n)) * (torch.expm1(torch.minimum(input, eps)) - input)
    return torch.where(input > 0, positive, negative) + beta * input
