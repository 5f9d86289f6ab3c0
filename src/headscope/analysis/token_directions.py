"""The directions of the residual stream that raise tokens' logits."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.model.readout import Readout

__all__ = ["TokenDirections"]


class TokenDirections:
    """The direction of the residual stream that raises each token's logit above the mean over all tokens.

    Final norm and unembedding read a state through it. The mean over tokens is taken away because the softmax does not
    see it (under a soft cap it does, and stays): so processed and unprocessed weights give the same directions.

    Args:
        readout: The model's readout.
        kind: Type to work in; default that of the weights.
    """

    def __init__(self, readout: Readout, kind: torch.dtype | None = None) -> None:
        self.readout = readout
        self.W_U = readout.W_U.detach().to(kind or readout.W_U.dtype)
        mean = self.W_U.mean(-1)
        self._mean = torch.zeros_like(mean) if readout.soft_cap else mean

    def of(self, tokens: Int[Tensor, "*lead"]) -> Float[Tensor, "*lead d_model"]:
        """The directions of some tokens, not normalized."""
        rows = self.W_U.T[tokens] - self._mean
        weight = self.readout.weight
        return self.readout.centre(rows if weight is None else rows * weight.detach().to(rows.dtype))
