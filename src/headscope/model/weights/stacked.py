"""`StackedWeights`: read-only weights of all layers under TransformerLens's names, and quantities made from them.

Each property stacks the layers' tensors at every access (a copy of that weight over all layers); `per_layer` gives one
layer at a time without a copy. Where layers have heads of several widths (`cfg.d_head_layers`), a stack has zeros
behind the narrower ones, up to `cfg.d_head`.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope.errors import InvalidInputError
from headscope.model.config import HookedTransformerConfig
from headscope.model.names import POST_NORMS, Part
from headscope.model.parts.layers import LayerNorm, RMSNorm
from headscope.ops.arrays import stack_padded
from headscope.ops.composition import composition_scores
from headscope.ops.factored import FactoredMatrix

__all__ = ["StackedWeights"]

_OUTPUTS: dict[Part, str] = {"attn": "W_O", "mlp": "W_out"}


def _weight(part: str, name: str, doc: str) -> Any:
    """Make a property of a weight outside the blocks."""
    return property(lambda model: getattr(getattr(model, part), name), doc=doc)


def _stack(part: str, name: str, doc: str) -> Any:
    """Make a property of a weight of all layers; `None` for one of the gates in a model without them."""

    def stack(model: "StackedWeights") -> Tensor | None:
        if name.endswith("_gate") and not model.cfg.gated_mlp:
            return None
        _check_every_layer_has(model.cfg, part, name)
        layers = model.per_layer(part, name)
        # Heads may be of several widths, which zeros make one; anything else differs in kind.
        if part != "attn" and len({each.shape for each in layers}) > 1:
            shapes = ", ".join(str(list(each.shape)) for each in layers)
            raise InvalidInputError(
                f"{name} has not one shape in all layers: {shapes}. Take it layer by layer: "
                f"model.per_layer({part!r}, {name!r}).",
                code="HS-WEIGHTS-01",
            )
        return stack_padded(layers)

    return property(stack, doc=doc)


def _check_every_layer_has(cfg: HookedTransformerConfig, part: str, asked: str) -> None:
    having = cfg.layers_with(part)
    if 0 < len(having) < cfg.n_layers:
        without = ", ".join(str(layer) for layer in range(cfg.n_layers) if layer not in having)
        raise InvalidInputError(
            f"{asked} is asked for every layer, and layers {without} of {cfg.model_name!r} have no {part}. Take it "
            f"from the layers that have one, cfg.layers_with({part!r}): blocks[layer].{part}.",
            code="HS-HEADS-03",
        )


class StackedWeights:
    """Mixin: read-only properties over `self.blocks`, `self.embed` and `self.unembed`.

    Attributes:
        n_params_checkpoint: Number of parameters in the checkpoint that the model was loaded from: a tied matrix counts
            once, and biases that it lacks, which are zero here, not at all. `None` for a model made from a config.
    """

    n_params_checkpoint: int | None = None

    cfg: HookedTransformerConfig
    blocks: nn.ModuleList

    W_E: Float[Tensor, "d_vocab d_model"] = _weight("embed", "W_E", "Token embedding.")
    W_pos: Float[Tensor, "n_ctx d_model"] = _weight("pos_embed", "W_pos", "Positional embedding.")
    W_U: Float[Tensor, "d_model d_vocab"] = _weight("unembed", "W_U", "Unembedding.")
    b_U: Float[Tensor, " d_vocab"] = _weight("unembed", "b_U", "Unembedding bias.")
    W_Q: Float[Tensor, "layer head d_model d_head"] = _stack("attn", "W_Q", "Query weights.")
    W_K: Float[Tensor, "layer head d_model d_head"] = _stack("attn", "W_K", "Key weights.")
    W_V: Float[Tensor, "layer head d_model d_head"] = _stack("attn", "W_V", "Value weights.")
    W_O: Float[Tensor, "layer head d_head d_model"] = _stack("attn", "W_O", "Output weights.")
    b_Q: Float[Tensor, "layer head d_head"] = _stack("attn", "b_Q", "Query biases.")
    b_K: Float[Tensor, "layer head d_head"] = _stack("attn", "b_K", "Key biases.")
    b_V: Float[Tensor, "layer head d_head"] = _stack("attn", "b_V", "Value biases.")
    b_O: Float[Tensor, "layer d_model"] = _stack("attn", "b_O", "Output biases; they belong to no head.")
    W_in: Float[Tensor, "layer *expert d_model d_mlp"] = _stack("mlp", "W_in", "MLP input weights.")
    b_in: Float[Tensor, "layer *expert d_mlp"] = _stack("mlp", "b_in", "MLP input biases.")
    W_gate: Float[Tensor, "layer *expert d_model d_mlp"] | None = _stack(
        "mlp", "W_gate", "Gate weights; `None` without gated MLPs."
    )
    b_gate: Float[Tensor, "layer *expert d_mlp"] | None = _stack(
        "mlp", "b_gate", "Gate biases; `None` without gated MLPs."
    )
    W_out: Float[Tensor, "layer *expert d_mlp d_model"] = _stack("mlp", "W_out", "MLP output weights.")
    b_out: Float[Tensor, "layer d_model"] = _stack("mlp", "b_out", "MLP output biases.")

    def per_layer(self, part: str, name: str) -> list[Tensor]:
        """Return a weight of every layer that has such a part, without a copy: `per_layer("attn", "W_O")`."""
        layers = self.cfg.layers_with(part) or range(self.cfg.n_layers)  # without any, `part` is no attribute
        return [getattr(getattr(self.blocks[layer], part), name) for layer in layers]

    def per_layer_if_shown(self, part: str, name: str) -> list[Tensor | None]:
        """`per_layer`, with `None` where that part was replaced by a module that does not show such a parameter."""
        parts = [block.get_submodule(part) if part in dict(block.named_children()) else None for block in self.blocks]
        return [None if each is None else dict(each.named_parameters(recurse=False)).get(name) for each in parts]

    def output_weight(
        self, layer: int, of: Part = "attn"
    ) -> Float[Tensor, "head d_head d_model"] | Float[Tensor, "d_mlp d_model"]:
        """Return `W_O` or `W_out` of a layer as it reaches the stream: through the post-norm, but for its scale.

        Without post-norms that is the weight itself: a head adds `z W_O`, a neuron its activation times its row of
        `W_out`. In some families (Gemma 2 and 3, OLMo 2) a post-norm divides what attention and MLP make by one scale
        `s` at each position and multiplies it by its own weight. With `s` frozen to the real run's, as the final norm's
        is, that is linear: with `W'` this weight, a head adds `(z / s) W'`. All heads so read, and the output bias read
        alike, and the norm's own bias, sum to what was added; what a part's absence would do to `s` is left out.

        Raises:
            InvalidInputError: If attention, the MLP or the post-norm was replaced by a module that does not show it.

        Example:
            >>> from headscope import HookedTransformer
            >>> model = HookedTransformer.from_pretrained("headscope-demo")
            >>> model.output_weight(0).shape, torch.equal(model.output_weight(0), model.blocks[0].attn.W_O)
            (torch.Size([4, 32, 128]), True)
        """
        block, name = self.blocks[layer], _OUTPUTS[of]
        if of not in self.cfg.parts_of(layer):
            raise InvalidInputError(
                f"layer {layer} of {self.cfg.model_name!r} has no {of}: it has {block.parts}.", code="HS-HEADS-03"
            )
        try:
            weight: Tensor = getattr(getattr(block, of), name)
        except AttributeError:
            raise InvalidInputError(f"blocks.{layer}.{of} was replaced by a module without {name}.") from None
        if of == "mlp" and self.cfg.norm_expert_outputs:
            raise InvalidInputError(
                f"blocks.{layer}.mlp has norms behind its experts (cfg.norm_expert_outputs): W_out does not write to "
                "the stream, even through ln2_post."
            )
        norm = dict(block.named_children()).get(POST_NORMS[of])
        if norm is None and not self.cfg.has_post_norms:
            return weight.detach()
        if not isinstance(norm, (LayerNorm, RMSNorm)):
            raise InvalidInputError(
                f"blocks.{layer}.{POST_NORMS[of]} holds a {type(norm).__name__}: how one head's output passes through "
                "it is defined only for LayerNorm and RMSNorm, which are linear once their scale is frozen. Put the "
                "norm back."
            )
        # In bfloat16 the product of two weights would be rounded to 8 bits.
        wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        return norm.direction(wide).detach()

    def output_weights(self) -> Float[Tensor, "layer head d_head d_model"]:
        """Return `output_weight` of the attention of every layer that has one.

        Raises:
            InvalidInputError: As there.
        """
        layers = [self.output_weight(layer) for layer in self.cfg.layers_with("attn")]
        if not layers:
            return self.W_E.new_empty(0, self.cfg.n_heads, self.cfg.d_head, self.cfg.d_model)
        return stack_padded(layers)

    @property
    def W_E_pos(self) -> Float[Tensor, "d_vocab_plus_n_ctx d_model"]:
        """Token and positional embeddings, one above the other."""
        return torch.cat([self.W_E, self.W_pos])

    @property
    def OV(self) -> FactoredMatrix:
        """`W_V W_O` of every head, `[layer, head, d_model, d_model]`; gates (`cfg.gated_attn`) count as open."""
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def QK(self) -> FactoredMatrix:
        """`W_Q W_K^T` of every head, `[layer, head, d_model, d_model]`."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    def all_head_labels(self) -> list[str]:
        """`L0H0`, `L0H1`, ... in the order of `[layer, head]`, of the layers that have attention."""
        return [f"L{layer}H{head}" for layer in self.cfg.layers_with("attn") for head in range(self.cfg.n_heads)]

    @property
    def n_params_total(self) -> int:
        """All parameters, with biases, norms, embeddings and unembedding (`cfg.n_params` leaves these out)."""
        assert isinstance(self, nn.Module)
        return sum(parameter.numel() for parameter in self.parameters())

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Sum the output biases of attention and MLPs before `layer`: the part of the stream that no input changes.

        Args:
            layer: Sum up to this layer, exclusive; `n_layers` for all.
            mlp_input: Include that layer's attention bias.
            include_mlp_biases: Include the biases of the MLPs.

        Raises:
            InvalidInputError: For a layer out of range.
        """
        last = self.cfg.n_layers - mlp_input
        if not 0 <= layer <= last:
            raise InvalidInputError(f"layer must be between 0 and {last}; got {layer}.")
        stops = {("attn", "b_O"): layer + mlp_input, ("mlp", "b_out"): layer if include_mlp_biases else 0}
        biases = [
            bias
            for (part, name), stop in stops.items()
            if (layers := self.cfg.layers_with(part))
            for each, bias in zip(layers, self.per_layer(part, name), strict=True)
            if each < stop
        ]
        return sum(biases, torch.zeros(self.cfg.d_model, dtype=self.W_U.dtype, device=self.W_U.device))

    def all_composition_scores(
        self, mode: Literal["Q", "K", "V"]
    ) -> Float[Tensor, "layer head later_layer later_head"]:
        """Return Q-, K- or V-composition scores of all pairs of heads.

        `|W_OV1 W_QK2| / (|W_OV1| |W_QK2|)` in Frobenius norms, for V-composition with `W_OV2` ("A Mathematical
        Framework for Transformer Circuits", Elhage et al. 2021). Near `1 / sqrt(d_model)` for unrelated heads; zero
        if the second head is in the same layer or an earlier one.

        Args:
            mode: `"Q"`, `"K"` or `"V"`.

        Example:
            >>> from headscope import HookedTransformer
            >>> model = HookedTransformer.from_pretrained("headscope-demo")
            >>> model.all_composition_scores("K").shape
            torch.Size([5, 4, 5, 4])
        """
        readers = {"Q": lambda: self.QK, "K": lambda: self.QK.T, "V": lambda: self.OV}
        if mode not in readers:
            raise InvalidInputError(f"mode must be 'Q', 'K' or 'V'; got {mode!r}.")
        scores = composition_scores(self.OV, readers[mode](), broadcast_dims=True)
        layers = torch.arange(self.cfg.n_layers, device=scores.device)
        earlier = layers[:, None] < layers
        return torch.where(earlier[:, None, :, None], scores, 0.0)
