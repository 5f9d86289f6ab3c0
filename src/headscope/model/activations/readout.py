"""`Readout`: how a state of the residual stream becomes logits.

`logits(x) = soft_cap(((x - mean) / scale * weight + bias) @ W_U + b_U)`. Everything but the scale is linear in `x`,
so with the scale frozen, the logits of a sum are the sum of its parts' logits: that is what the logit lens, direct
effects and attributions stand on.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from headscope.model.transformer import HookedTransformer

__all__ = ["Readout"]


@dataclass(frozen=True)
class Readout:
    """The final norm and the unembedding, as tensors.

    Attributes:
        normalized: Whether there is a final norm at all.
        centred: Whether it subtracts the mean.
        eps: Added to the variance.
        weight: The norm's weight `[d_model]`, `None` when folded.
        bias: The norm's bias `[d_model]`, `None` when folded or absent.
        W_U: Unembedding `[d_model, d_vocab]`.
        b_U: Unembedding bias `[d_vocab]`.
        soft_cap: `c` in `c * tanh(logits / c)`; 0 for none.
    """

    normalized: bool
    centred: bool
    eps: float
    weight: Tensor | None
    bias: Tensor | None
    W_U: Tensor
    b_U: Tensor
    soft_cap: float

    @staticmethod
    def is_shown_by(model: "HookedTransformer") -> bool:
        """Whether the model's unembedding shows its weights; a module in its place may not."""
        return {"W_U", "b_U"} <= dict(model.unembed.named_parameters(recurse=False)).keys()

    @classmethod
    def of(cls, model: "HookedTransformer") -> Self:
        """The readout of a model, sharing its weights."""
        norm = dict(model.ln_final.named_parameters(recurse=False))
        cap = model.cfg.output_logits_soft_cap
        return cls(
            normalized=model.cfg.normalization_type is not None,
            centred=model.cfg.final_norm in ("LN", "LNPre"),
            eps=model.cfg.eps,
            weight=norm.get("w"),
            bias=norm.get("b"),
            W_U=model.W_U,
            b_U=model.b_U,
            soft_cap=max(cap, 0.0),
        )

    def centre(self, x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead d_model"]:
        """`x` without its mean over d_model, if the norm takes it away."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def scale(self, x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead 1"]:
        """What the final norm divides `x` by (1 without a norm)."""
        if not self.normalized:
            return torch.ones_like(x[..., :1])
        return (self.centre(x).square().mean(-1, keepdim=True) + self.eps).sqrt()

    def direction(self, x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead d_model"]:
        """The linear part of the norm without its scale: centred, and times its weight.

        `direction(x) / scale @ W_U` is what `x` adds to the logits at that scale.
        """
        centred = self.centre(x)
        return centred if self.weight is None else centred * self.weight

    def normalize(self, x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead d_model"]:
        """The final norm of states, each with a scale of its own."""
        state = self.direction(x) / self.scale(x)
        return state if self.bias is None else state + self.bias

    def logits(self, x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead d_vocab"]:
        """Logits of final residual states, all at once; analyses read them in tiles instead."""
        out = self.normalize(x) @ self.W_U + self.b_U
        return self.soft_cap * torch.tanh(out / self.soft_cap) if self.soft_cap else out
