"""`Readout`: the way from a state of the residual stream to logits.

`logits(x) = soft_cap(((x - mean) / scale * weight + bias) @ W_U + b_U)`. Everything but the scale is linear in `x`,
so with the scale frozen, the logits of a sum are the sum of its parts' logits: the logit lens, direct effects and
attributions rest on that.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.model.protocols import Model

__all__ = ["Readout", "readout_of"]


@dataclass(frozen=True)
class Readout:
    """The final norm and the unembedding, as tensors.

    Attributes:
        normalized: There is a final norm.
        centered: It subtracts the mean.
        eps: Added to the variance.
        weight: The norm's weight `[d_model]`, `None` when folded.
        bias: The norm's bias `[d_model]`, `None` when folded or absent.
        W_U: Unembedding `[d_model, d_vocab]`.
        b_U: Unembedding bias `[d_vocab]`.
        soft_cap: `c` in `c * tanh(logits / c)`; 0 for none.
    """

    normalized: bool
    centered: bool
    eps: float
    weight: Tensor | None
    bias: Tensor | None
    W_U: Tensor
    b_U: Tensor
    soft_cap: float

    @staticmethod
    def obstacle(model: Model) -> str | None:
        """The obstacle to reading a model's readout off its weights; `None` if there is none.

        A module in the place of the final norm or the unembedding may not show them.
        """
        weights = {None: (), "LNPre": (), "RMSPre": (), "LN": ("w", "b"), "RMS": ("w",)}[model.cfg.final_norm]
        for name, module, needed in (
            ("unembedding", model.unembed, ("W_U", "b_U")),
            ("final norm", model.ln_final, weights),
        ):
            if not set(needed) <= dict(module.named_parameters(recurse=False)).keys():
                return f"the model's {name} was replaced by a module without {' and '.join(needed)}"
        return None

    def center(self, x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead d_model"]:
        """Return `x` without its mean over d_model, if the norm takes it away."""
        return x - x.mean(-1, keepdim=True) if self.centered else x

    def scale(
        self, x: Float[Tensor, "*lead d_model"], eps: float | Float[Tensor, "*of_lead 1"] | None = None
    ) -> Float[Tensor, "*lead 1"]:
        """Return the scale by which the final norm divides `x` (1 without a norm).

        Args:
            x: States of the stream.
            eps: Added to their variance: for earlier states at a scale of their own, `cfg.eps_of` of their layer.
        """
        if not self.normalized:
            return torch.ones_like(x[..., :1])
        return (self.center(x).square().mean(-1, keepdim=True) + (self.eps if eps is None else eps)).sqrt()

    def direction(self, x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead d_model"]:
        """The linear part of the norm without its scale: centered, and times its weight.

        `direction(x) / scale @ W_U` is what `x` adds to the logits at that scale.
        """
        centered = self.center(x)
        return centered if self.weight is None else centered * self.weight

    def normalize(self, x: Float[Tensor, "*lead d_model"], eps: float | None = None) -> Float[Tensor, "*lead d_model"]:
        """The final norm of states, each with a scale of its own; for `eps` see `scale`."""
        state = self.direction(x) / self.scale(x, eps)
        return state if self.bias is None else state + self.bias

    def logits(self, x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead d_vocab"]:
        """Logits of final residual states, all at once; analyses read them in tiles instead."""
        out = self.normalize(x) @ self.W_U + self.b_U
        return self.soft_cap * torch.tanh(out / self.soft_cap) if self.soft_cap else out


def readout_of(model: Model) -> Readout:
    """Return the readout of a model, sharing its weights.

    Raises:
        InvalidInputError: If the final norm or the unembedding was replaced by a module that does not show them.
    """
    if obstacle := Readout.obstacle(model):
        raise InvalidInputError(f"{obstacle}. Put it back for what reads states by hand.")
    unembed: Any = model.unembed
    cfg, norm = model.cfg, dict(model.ln_final.named_parameters(recurse=False))
    return Readout(
        normalized=cfg.normalization_type is not None,
        centered=cfg.final_norm in ("LN", "LNPre"),
        eps=cfg.eps_of(cfg.n_layers),
        weight=norm.get("w"),
        bias=norm.get("b"),
        W_U=unembed.W_U,
        b_U=unembed.b_U,
        soft_cap=max(cfg.output_logits_soft_cap, 0.0),
    )
