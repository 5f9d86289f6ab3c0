"""How what a head or a neuron gives reaches the residual stream.

As a rule a head adds `z W_O` to it, and a neuron its activation times its row of `W_out`. In some families (Gemma 2 and
3, OLMo 2) a norm comes behind attention and MLP: what they make is divided by one scale at each position, and
multiplied by the norm's weight, before it is added. With that scale frozen to the real run's, as the final norm's is,
the way is linear again: with `s` the scale at a position and `W'` the output weights through the norm (centred, if it
centres, and times its weight), a head adds `(z / s) W'`. Heads so read, with the output bias read alike and the norm's
own bias, sum to what was added. What a part's absence would do to `s` is left out, as with the final norm.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.model.parts.layers import LayerNorm, RMSNorm
from headscope.model.transformer import HookedTransformer

__all__ = ["Part", "output_weight", "output_weights", "scale_name", "scale_names"]

Part = Literal["attn", "mlp"]
_NORMS: dict[Part, str] = {"attn": "ln1_post", "mlp": "ln2_post"}
_WEIGHTS: dict[Part, str] = {"attn": "W_O", "mlp": "W_out"}


def scale_name(layer: int, of: Part = "attn") -> str:
    """The hook point that shows what the norm behind a layer's attention or MLP divides by, if there is one."""
    return f"blocks.{layer}.{_NORMS[of]}.hook_scale"


def scale_names(model: HookedTransformer, layers: Iterable[int], of: Part = "attn") -> list[str]:
    """These hook points of some layers; none where no norm comes behind."""
    return [scale_name(layer, of) for layer in layers] if model.cfg.has_post_norms else []


def output_weight(
    model: HookedTransformer, layer: int, of: Part = "attn"
) -> Float[Tensor, "head d_head d_model"] | Float[Tensor, "d_mlp d_model"]:
    """`W_O` or `W_out` of a layer, through the norm behind it but for its scale: itself where there is none.

    Raises:
        InvalidInputError: If attention, the MLP or the norm behind was replaced by a module that does not show it.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> output_weight(model, 0) is model.blocks[0].attn.W_O
        False
        >>> bool((output_weight(model, 0) == model.blocks[0].attn.W_O).all())
        True
    """
    block: Any = model.blocks[layer]
    try:
        weight: Tensor = getattr(getattr(block, of), _WEIGHTS[of])
    except AttributeError:
        raise InvalidInputError(f"blocks.{layer}.{of} was replaced by a module without {_WEIGHTS[of]}.") from None
    norm = dict(block.named_children()).get(_NORMS[of])
    if norm is None and not model.cfg.has_post_norms:
        return weight.detach()
    if not isinstance(norm, (LayerNorm, RMSNorm)):
        raise InvalidInputError(
            f"blocks.{layer}.{_NORMS[of]} holds a {type(norm).__name__}: how one head's output passes through it is "
            "defined only for LayerNorm and RMSNorm, which are linear once their scale is frozen. Put the norm back."
        )
    # In bfloat16 the product of two weights would be rounded to 8 bits.
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    return norm.direction(wide).detach()


def output_weights(model: HookedTransformer) -> Float[Tensor, "layer head d_head d_model"]:
    """`W_O` of every layer, as `output_weight` gives it.

    Raises:
        InvalidInputError: As there.
    """
    layers = [output_weight(model, layer) for layer in range(model.cfg.n_layers)]
    return torch.stack([each.to(layers[0].device) for each in layers])
