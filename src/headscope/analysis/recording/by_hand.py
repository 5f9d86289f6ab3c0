"""Checks that what analyses work out by hand from a model's weights is what the model does, hooks and all.

They read a head's output as `z W_O`, and a state's logits through the weights of the final norm and the unembedding. A
hook of the user's, or a module that wraps one of these, may make something else of it: that is refused, not passed
over. Where nothing of the kind is there, nothing is computed.
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from headscope.errors import InvalidInputError
from headscope.model.activations.readout import readout_of
from headscope.model.hooks import is_own
from headscope.model.names import POST_NORMS
from headscope.model.transformer import HookedTransformer

__all__ = ["check_heads_add_up", "check_readout", "check_unembedding", "layers_between"]

Where = Bool[Tensor, "row pos"] | tuple[Tensor, Tensor]


@torch.no_grad()
def check_readout(model: HookedTransformer, final: Float[Tensor, "row pos d_model"], where: Where) -> None:
    """Refuse a model whose final norm or unembedding gives something else than its weights say.

    Args:
        model: The model.
        final: Final states of whole rows, since hooks may go by position.
        where: The positions that matter.

    Raises:
        InvalidInputError: If a hook or a module changes what the final norm or the unembedding gives.
    """
    if not _all_own(model.ln_final.modules()):
        states = readout_of(model).normalize(final[where].to(torch.promote_types(final.dtype, torch.float32)))
        # A copy, since hooks may write to what they are shown.
        if not _alike(model.ln_final(final.clone())[where], states):
            raise InvalidInputError(_REFUSED.format("the final norm", "norm that its weights say"))
    check_unembedding(model, final, where)


@torch.no_grad()
def check_unembedding(model: HookedTransformer, final: Float[Tensor, "row pos d_model"], where: Where) -> None:
    """Refuse a model whose unembedding gives something else than its weights say; the arguments are `check_readout`'s.

    Raises:
        InvalidInputError: If a hook or a module changes what the unembedding gives, or hides its weights.
    """
    if _all_own(model.unembed.modules()):
        return
    readout, states = readout_of(model), model.ln_final(final.clone())
    rows, columns = where.nonzero(as_tuple=True) if isinstance(where, Tensor) else where
    for row in rows.unique():  # logits of one row at a time
        logits = model.unembed(states[row, None])[0, columns[rows == row]]
        kind = torch.promote_types(logits.dtype, torch.float32)
        wanted = states[row, columns[rows == row]].to(kind) @ readout.W_U.to(kind) + readout.b_U.to(kind)
        if not _alike(logits, wanted):
            raise InvalidInputError(_REFUSED.format("the unembedding", "logits that its weights say"))


def layers_between(model: HookedTransformer, layers: Iterable[int]) -> list[int]:
    """Return the layers in which a hook or a module stands between the heads' `z` and the stream."""
    return [layer for layer in layers if not _all_own(_behind_heads(model.blocks[layer]))]


@torch.no_grad()
def check_heads_add_up(
    model: HookedTransformer,
    layer: int,
    z: Float[Tensor, "head n d_head"],
    attn_out: Float[Tensor, "n d_model"],
    post_scale: Float[Tensor, "n 1"] | None,
) -> None:
    """Refuse a layer whose heads do not add `z W_O` to the stream, as they do where nothing stands between.

    What is added besides their bias must be the same at all positions, such as a steering vector.

    Args:
        model: The model.
        layer: The layer, one of `layers_between`.
        z: The heads' outputs at some positions.
        attn_out: What was added to the stream there.
        post_scale: What the norm behind attention divided by, if there is one.

    Raises:
        InvalidInputError: If a hook or a module changes what heads write.
    """
    kind = torch.promote_types(attn_out.dtype, torch.float32)
    block: Any = model.blocks[layer]
    W_O, bias = model.output_weight(layer).to(kind), block.attn.b_O.to(kind)
    heads = torch.einsum("hne,hed->nd", z[..., : W_O.shape[1]].to(kind), W_O)
    if post_scale is not None:
        norm = block.ln1_post
        bias = norm.direction(bias)
        heads, bias = heads / post_scale, bias / post_scale + (norm.b if norm.affine and norm.centered else 0)
    rest = attn_out.to(kind) - heads - bias
    largest = torch.maximum(heads.abs().amax(), attn_out.abs().amax())
    steady = rest.mean(0) if len(rest) > 1 else 0.0
    tolerance = max(map(_tolerance, (attn_out.dtype, block.attn.b_O.dtype)))
    if not bool(((rest - steady).abs() <= tolerance * largest).all()):
        raise InvalidInputError(_REFUSED.format(f"attention of layer {layer}", "sum of its heads' z W_O"))


_REFUSED = (
    "{} does not give the {}, which this analysis works out by hand: a hook or a module in its place changes it. Take "
    "that off for this analysis, or make the change where the analysis sees it: at hook_z, hook_mlp_out or the stream."
)


def _behind_heads(block: Any) -> Iterable[nn.Module]:
    yield block.attn
    yield from (part for name, part in block.attn.named_modules() if name == "hook_result")
    yield block.hook_attn_out
    norm = dict(block.named_children()).get(POST_NORMS["attn"])
    yield from () if norm is None else norm.modules()


def _all_own(modules: Iterable[nn.Module]) -> bool:
    """Tell whether all are modules of this package that run as they were written."""
    return all(map(is_own, modules))


def _alike(given: Tensor, wanted: Tensor) -> bool:
    if not given.numel():
        return True
    return bool(((given - wanted).abs() <= _tolerance(given.dtype) * wanted.abs().amax()).all())


def _tolerance(dtype: torch.dtype) -> float:
    """Of the largest number: what rounding may do, in a sum of some thousand products."""
    return 1e-5 + 16 * torch.finfo(dtype).eps
