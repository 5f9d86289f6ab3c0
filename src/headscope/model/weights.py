"""`StackedWeights`: the weights of all layers under one name, read-only, as the field knows them.

Each property stacks the layers' tensors anew (a copy of that weight over all layers); for one layer at a
time, `per_layer` copies nothing.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope.model.config import HookedTransformerConfig
from headscope.ops.factored import FactoredMatrix

__all__ = ["StackedWeights"]


class StackedWeights:
    """A field-less mixin of read-only properties over `self.blocks`, `self.embed` and `self.unembed`."""

    cfg: HookedTransformerConfig
    blocks: nn.ModuleList

    def per_layer(self, part: str, name: str) -> list[Tensor]:
        """A weight of every layer, unstacked and uncopied: `per_layer("attn", "W_O")`."""
        return [getattr(getattr(block, part), name) for block in self.blocks]

    def _stack(self, part: str, name: str) -> Tensor:
        return torch.stack(self.per_layer(part, name))

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Token embedding."""
        return self.embed.W_E  # type: ignore[attr-defined]

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """Positional embedding."""
        return self.pos_embed.W_pos  # type: ignore[attr-defined]

    @property
    def W_E_pos(self) -> Float[Tensor, "d_vocab_plus_n_ctx d_model"]:
        """Token and positional embeddings, one above the other."""
        return torch.cat([self.W_E, self.W_pos])

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding."""
        return self.unembed.W_U  # type: ignore[attr-defined]

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """Unembedding bias."""
        return self.unembed.b_U  # type: ignore[attr-defined]

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Query weights."""
        return self._stack("attn", "W_Q")

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Key weights."""
        return self._stack("attn", "W_K")

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Value weights."""
        return self._stack("attn", "W_V")

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """Output weights."""
        return self._stack("attn", "W_O")

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """Query biases."""
        return self._stack("attn", "b_Q")

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        """Key biases."""
        return self._stack("attn", "b_K")

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        """Value biases."""
        return self._stack("attn", "b_V")

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        """Output bias of each layer's attention; it belongs to no head."""
        return self._stack("attn", "b_O")

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        """MLP input weights."""
        return self._stack("mlp", "W_in")

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        """MLP input biases."""
        return self._stack("mlp", "b_in")

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        """MLP output weights."""
        return self._stack("mlp", "W_out")

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        """MLP output biases."""
        return self._stack("mlp", "b_out")

    @property
    def OV(self) -> FactoredMatrix:
        """`W_V W_O` of every head, `[layer, head, d_model, d_model]`."""
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def QK(self) -> FactoredMatrix:
        """`W_Q W_K^T` of every head, `[layer, head, d_model, d_model]`."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    def all_head_labels(self) -> list[str]:
        """`L0H0`, `L0H1`, ... in the order of `[layer, head]`."""
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]
