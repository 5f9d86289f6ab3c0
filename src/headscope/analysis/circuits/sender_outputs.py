"""`SenderOutputs`: what each sender of a graph gives in a run, and what that adds to the residual stream."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.errors import InvalidInputError
from headscope.model.block import TransformerBlock
from headscope.model.hooks import HookPoint, is_plain
from headscope.model.names import post_scale_name
from headscope.model.transformer import HookedTransformer

__all__ = ["EMBEDDED", "SenderOutputs", "check_rewirable", "heads_name", "whole_name"]

EMBEDDED = "blocks.0.hook_resid_pre"
"""The hook point that shows what the embedding gives."""


class SenderOutputs:
    """The senders of a model.

    A layer's heads give `z [row, pos, head, d_head]`, and through their output weights what they add to the stream;
    where a norm stands behind attention, `z` over its scale in that run, which makes the rest of the norm linear. The
    embedding, mixers and MLPs give what they add.

    Attributes:
        names: For each layer's heads and each other sender, the hook point it is known by.
        shown: The hook points that heads' outputs are made of.
        watched: All that is to be recorded of a run.
    """

    def __init__(self, model: HookedTransformer) -> None:
        cfg = model.cfg
        self._weights = {layer: model.output_weight(layer) for layer in cfg.layers_with("attn")}
        heads = [*map(heads_name, self._weights)]
        whole = [whole_name(layer, part) for part in ("mixer", "mlp") for layer in cfg.layers_with(part)]
        self.names = (EMBEDDED, *heads, *whole)
        self.shown = (*heads, *map(post_scale_name, self._weights if cfg.has_post_norms else ()))
        self.watched = tuple(dict.fromkeys((*self.names, *self.shown)))

    def given(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what senders give, by `names`, from the activations that are `watched`."""
        heads = {heads_name(layer): self.of_heads(layer, kept) for layer in self._weights}
        return {name: heads[name] if name in heads else kept[name] for name in self.names}

    def of_heads(self, layer: int, kept: Mapping[str, Tensor]) -> Float[Tensor, "row pos head d_head"]:
        """Return what a layer's heads give, in float32 at least."""
        z, scale = kept[heads_name(layer)], kept.get(post_scale_name(layer))
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        return wide if scale is None else wide / scale[..., None]

    def added(self, layer: int, given: Float[Tensor, "row pos head d_head"]) -> Float[Tensor, "head row pos d_model"]:
        """Return what a layer's heads add to the stream; linear in what they give."""
        return torch.einsum("nphe,hed->hnpd", given, self._weights[layer].to(given.dtype))


def check_rewirable(model: HookedTransformer) -> None:
    """Refuse a model whose readers cannot be given inputs of their own.

    Raises:
        InvalidInputError: Naming what stands in the way.
    """
    found = None
    if model.cfg.n_devices > 1:
        found = f"it is spread over {model.cfg.n_devices} devices; load it on one"
    for name, module in model.mod_dict.items():
        if not is_plain(module, type(module)):
            found = f"there are hooks on {name}; take them off (model.reset_hooks())"
        elif name.rsplit(".", 1)[-1].startswith("hook_") and type(module) is not HookPoint:
            found = f"a {type(module).__name__} stands at {name}; take it out"
        elif isinstance(module, TransformerBlock) and not module.resumes:
            found = f"{name} is a {type(module).__name__}, whose forward may read the stream in another way"
    if found is not None:
        raise InvalidInputError(f"edges of {model.cfg.model_name!r} cannot be told apart: {found}.")


def heads_name(layer: int) -> str:
    """Return the hook point by which a layer's heads are known."""
    return f"blocks.{layer}.attn.hook_z"


def whole_name(layer: int, part: str) -> str:
    """Return the hook point that shows what a mixer or an MLP adds."""
    return f"blocks.{layer}.hook_{part}_out"
