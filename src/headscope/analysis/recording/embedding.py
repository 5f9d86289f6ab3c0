"""Tokens as directions of the residual stream: what embeds them, what raises their logits, what heads add along it."""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analysis.core.head_lists import over_layers
from headscope.analysis.core.result import check_option
from headscope.analysis.recording.lens_states import LensStates
from headscope.errors import InvalidInputError
from headscope.model.activations.readout import readout_of
from headscope.model.transformer import HookedTransformer
from headscope.ops.devices import Budget

__all__ = ["TokenDirections", "as_read", "direct_effects", "effective_embedding", "norm_weight", "token_embedding"]


class TokenDirections:
    """The direction of the residual stream that raises each token's logit above the mean over all tokens.

    Final norm and unembedding read a state through it. The mean over tokens is taken away because the softmax does not
    see it (under a soft cap it does, and stays): so processed and unprocessed weights give the same directions.
    They are made in float32 at least.
    """

    def __init__(self, model: HookedTransformer) -> None:
        self.readout = readout_of(model)
        self.W_U = model.W_U.detach().to(torch.promote_types(model.W_U.dtype, torch.float32))
        mean = self.W_U.mean(-1)
        self._mean = torch.zeros_like(mean) if self.readout.soft_cap else mean

    def of(self, tokens: Int[Tensor, "*lead"]) -> Float[Tensor, "*lead d_model"]:
        """The directions of some tokens, not normalized."""
        rows = self.W_U.T[tokens] - self._mean
        weight = self.readout.weight
        return self.readout.center(rows if weight is None else rows * weight.detach().to(rows.dtype))


def direct_effects(
    model: HookedTransformer, states: LensStates, directions: Float[Tensor, "*each n d_model"]
) -> Float[Tensor, "layer head *each n"]:
    """Return what each head adds along directions of each position that counts, at the final norm's scale.

    NaN for layers without attention.

    The scale of a norm behind attention is that of the run, whose heads are used up (`LensStates.take_heads`).
    """
    towards = directions.to(states.resid.dtype) / readout_of(model).scale(states.resid[-1])
    found = []
    for layer, z in zip(model.cfg.layers_with("attn"), states.take_heads(), strict=True):
        W_O = states.wide(model.output_weight(layer))
        # The directions come down to the heads' width; no head's output is brought up to d_model.
        onto = torch.einsum("...nd,hed->h...ne", towards, W_O)
        found.append(torch.einsum("hne,h...ne->h...n", z[..., : W_O.shape[1]], onto))
    return over_layers(model.cfg, torch.stack(found))


@torch.no_grad()
def effective_embedding(
    model: HookedTransformer, *, attention: Literal["none", "self"] = "none", only_mlp: bool = False
) -> Float[Tensor, "d_vocab d_model"]:
    """Return each token as later layers find it: its embedding after the MLP of the first block.

    `W_E + MLP(ln2(W_E))`, without positions, by the model's own modules (hooks on them stay in force). Models whose
    first block has no such MLP have theirs in `W_E`. A norm behind the embedding, attention or MLP takes its part.

    Args:
        model: The model.
        attention: `"self"`: the first block's attention comes before the MLP, each token attending to itself alone.
        only_mlp: Leave out all but the MLP's output.

    Raises:
        InvalidInputError: for an unknown `attention`, or `only_mlp` without MLPs.

    Example:
        >>> from headscope import HookedTransformer
        >>> model = HookedTransformer.from_pretrained("headscope-demo")
        >>> effective_embedding(model).shape  # d_vocab, d_model
        torch.Size([1024, 128])
    """
    check_option("attention", attention, ("none", "self"))
    parts = model.cfg.parts_of(0)
    if only_mlp and "mlp" not in parts:
        raise InvalidInputError(
            f"only_mlp=True asks for an MLP's output, and the first block of {model.cfg.model_name!r} has no MLP."
        )
    if attention == "self" and "attn" not in parts:
        raise InvalidInputError(
            f"attention='self' asks for attention, and the first block of {model.cfg.model_name!r} has none."
        )
    embedded = token_embedding(model)
    if "mlp" not in parts and attention == "none":
        return embedded
    out = torch.empty_like(embedded)
    step = max(1, Budget.of(embedded.device).batch_tokens // 2)
    for at in range(0, len(embedded), step):
        # Each token is a row of its own, one position long.
        rows = embedded[at : at + step, None]
        out[at : at + step] = _after_first_block(model, rows, attention == "self", only_mlp)[:, 0]
    return out


def token_embedding(model: HookedTransformer) -> Float[Tensor, "d_vocab d_model"]:
    """`W_E`, behind the norm of the embedding if there is one."""
    W_E = model.W_E.detach()
    return model.embed.ln(W_E[:, None])[:, 0].detach() if model.cfg.post_embedding_ln else W_E


def as_read(model: HookedTransformer, x: Float[Tensor, "token d_model"], layer: int) -> Float[Tensor, "token d_model"]:
    """Return states as the attention of a layer reads them: through its norm, without the norm's bias."""
    if not model.cfg.has_pre_norms:
        return x
    x = x - x.mean(-1, keepdim=True) if model.cfg.centered_norm else x
    x = x / (x.square().mean(-1, keepdim=True) + model.cfg.eps_of(layer)).sqrt()
    weight = norm_weight(model, layer, "w")
    return x if weight is None else x * weight.detach().to(x.dtype)


def norm_weight(model: HookedTransformer, layer: int, name: Literal["w", "b"]) -> Float[Tensor, " d_model"] | None:
    """Return the weight or the bias of the norm in front of a layer's attention; `None` if it has none.

    Raises:
        InvalidInputError: If a module that does not show it stands in the norm's place.
    """
    norm: Any = model.blocks[layer].ln1
    weights = dict(norm.named_parameters(recurse=False))
    has = {"w": ("LN", "RMS"), "b": ("LN",)}[name] if model.cfg.has_pre_norms else ()
    if model.cfg.normalization_type in has and name not in weights:
        raise InvalidInputError(
            f"blocks.{layer}.ln1 was replaced by a {type(norm).__name__} without {name}: what a layer makes of a token "
            "is read off the norm's weights. Put it back."
        )
    return weights.get(name)


def _after_first_block(
    model: HookedTransformer, rows: Float[Tensor, "token 1 d_model"], attends: bool, only_mlp: bool
) -> Float[Tensor, "token 1 d_model"]:
    block: Any = model.blocks[0]
    after = rows + block.attn_out(rows) if attends else rows
    if "mlp" not in block.parts:
        return after
    written = block.mlp_out(rows if model.cfg.parallel_attn_mlp else after)
    return written if only_mlp else after + written
