"""`SVDInterpreter`: the strongest directions that a head or an MLP writes or reads, as logits over the vocabulary."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.errors import InvalidInputError, UnknownNameError
from headscope.model.transformer import HookedTransformer
from headscope.ops.factored import FactoredMatrix, at_least_float32, with_signs

__all__ = ["OUTPUT_EMBEDDING", "VECTOR_TYPES", "SVDInterpreter", "VectorType"]

VectorType = Literal["OV", "w_in", "w_out"]
VECTOR_TYPES: list[VectorType] = ["OV", "w_in", "w_out"]
OUTPUT_EMBEDDING = "unembed.W_U"  # the parameter that singular vectors are read with


class SVDInterpreter:
    """Singular vectors of a model's weights, seen through its unembedding.

    After Millidge & Black 2022, "The singular value decompositions of transformer weight matrices are highly
    interpretable". A singular vector has no sign of its own: here its largest entry is positive. In another library the
    tokens it promotes and suppresses may change places.

    Args:
        model: The model; its weights are read at each call.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> vectors = SVDInterpreter(model).get_singular_vectors("OV", layer_index=1, head_index=0, num_vectors=3)
        >>> vectors.shape, len(model.to_str_tokens(vectors[:, 0, 0].topk(5).indices, prepend_bos=False))
        (torch.Size([1024, 1, 3]), 5)
    """

    def __init__(self, model: HookedTransformer) -> None:
        self.model = model
        self.cfg = model.cfg

    @torch.no_grad()
    def get_singular_vectors(
        self, vector_type: VectorType, layer_index: int, num_vectors: int = 10, head_index: int | None = None
    ) -> Float[Tensor, "d_vocab 1 vector"]:
        """Return the strongest singular vectors on the residual stream's side, as logits.

        Args:
            vector_type: `"OV"` for a head's output, the right singular vectors of `W_V W_O`; `"w_in"` for the input of
                an MLP's neurons, those of `W_in` (with the weight of the norm before it, unless that is folded);
                `"w_out"` for their output, those of `W_out`.
            layer_index: The layer.
            num_vectors: Number of vectors, strongest first.
            head_index: The head, for `"OV"`.

        Returns:
            `[d_vocab, 1, num_vectors]`: each vector times `W_U`, in the model's precision (float32 for a model in
            half precision).

        Raises:
            InvalidInputError: If there is no such layer or head, `"OV"` has no head, the layer has no MLP, or
                `num_vectors` is out of range.
            UnknownNameError: For another `vector_type`.
        """
        if not 0 <= layer_index < self.cfg.n_layers:
            raise InvalidInputError(f"layer_index must be between 0 and {self.cfg.n_layers - 1}; got {layer_index}.")
        if vector_type == "OV":
            directions = self._head_output(layer_index, head_index)
        elif vector_type in ("w_in", "w_out"):
            directions = self._mlp_side(layer_index, vector_type)
        else:
            raise UnknownNameError(f"Unknown vector_type {vector_type!r}. Allowed: 'OV', 'w_in', 'w_out'.")
        if not 1 <= num_vectors <= len(directions):
            raise InvalidInputError(
                f"num_vectors must be between 1 and {len(directions)}, the rank of this matrix; got {num_vectors}."
            )
        logits = directions[:num_vectors] @ at_least_float32(self.model.unembed.W_U)
        return logits.T[:, None, :]

    def _head_output(self, layer: int, head: int | None) -> Float[Tensor, "rank d_model"]:
        if head is None or not 0 <= head < self.cfg.n_heads:
            raise InvalidInputError(f"'OV' needs a head_index between 0 and {self.cfg.n_heads - 1}; got {head}.")
        block: Any = self.model.blocks[layer]
        W_O = self.model.output_weight(layer)[head]
        W_V = block.attn.W_V[head]
        return FactoredMatrix(W_V.to(W_O.dtype), W_O).V.T

    def _mlp_side(self, layer: int, which: VectorType) -> Float[Tensor, "rank d_model"]:
        if layer not in self.cfg.layers_with("mlp"):
            raise InvalidInputError(f"{which!r} needs an MLP, and layer {layer} has none.")
        if which == "w_out":
            matrix = self.model.output_weight(layer, "mlp")
        else:
            block: Any = self.model.blocks[layer]
            matrix = block.mlp.W_in.T
            norm_weight = dict(self.model.named_parameters()).get(f"blocks.{layer}.ln2.w")
            matrix = matrix if norm_weight is None else matrix * norm_weight
        u, s, vh = torch.linalg.svd(at_least_float32(matrix), full_matrices=False)
        return with_signs(u, s, vh.mT)[2].mT
