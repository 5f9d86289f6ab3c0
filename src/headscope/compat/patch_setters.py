"""Patch setters: they set a piece of an activation, by an index whose first number is the layer.

A setter is called as `setter(corrupted_activation, index, clean_activation)`. It writes into the first, and returns it.
"""

from collections.abc import Sequence

from torch import Tensor

from headscope.errors import InvalidInputError

__all__ = [
    "CorruptedActivation",
    "PatchedActivation",
    "layer_head_dest_src_pos_pattern_patch_setter",
    "layer_head_pattern_patch_setter",
    "layer_head_pos_pattern_patch_setter",
    "layer_head_vector_patch_setter",
    "layer_pos_head_vector_patch_setter",
    "layer_pos_patch_setter",
]

CorruptedActivation = Tensor
PatchedActivation = Tensor


def layer_pos_patch_setter(
    corrupted_activation: CorruptedActivation, index: Sequence[int], clean_activation: Tensor
) -> PatchedActivation:
    """Set one position of an activation `[batch, pos, ...]`; the index is `[layer, pos]`.

    Example:
        >>> import torch
        >>> layer_pos_patch_setter(torch.zeros(1, 3, 2), [0, 1], torch.ones(1, 3, 2))[0, :, 0]
        tensor([0., 1., 0.])
    """
    return _put(corrupted_activation, clean_activation, index, "layer pos", "pos")


def layer_pos_head_vector_patch_setter(
    corrupted_activation: CorruptedActivation, index: Sequence[int], clean_activation: Tensor
) -> PatchedActivation:
    """Set one head at one position of an activation `[batch, pos, head, ...]`; the index is `[layer, pos, head]`."""
    return _put(corrupted_activation, clean_activation, index, "layer pos head", "pos head")


def layer_head_vector_patch_setter(
    corrupted_activation: CorruptedActivation, index: Sequence[int], clean_activation: Tensor
) -> PatchedActivation:
    """Set one head at all positions of an activation `[batch, pos, head, ...]`; the index is `[layer, head]`."""
    return _put(corrupted_activation, clean_activation, index, "layer head", "pos head")


def layer_head_pattern_patch_setter(
    corrupted_activation: CorruptedActivation, index: Sequence[int], clean_activation: Tensor
) -> PatchedActivation:
    """Set one head of scores or a pattern `[batch, head, dest_pos, src_pos]`; the index is `[layer, head]`."""
    return _put(corrupted_activation, clean_activation, index, "layer head", "head")


def layer_head_pos_pattern_patch_setter(
    corrupted_activation: CorruptedActivation, index: Sequence[int], clean_activation: Tensor
) -> PatchedActivation:
    """Set what one head attends to from one position; the index is `[layer, head, dest_pos]`."""
    return _put(corrupted_activation, clean_activation, index, "layer head dest_pos", "head dest_pos")


def layer_head_dest_src_pos_pattern_patch_setter(
    corrupted_activation: CorruptedActivation, index: Sequence[int], clean_activation: Tensor
) -> PatchedActivation:
    """Set one entry of one head's pattern; the index is `[layer, head, dest_pos, src_pos]`."""
    return _put(corrupted_activation, clean_activation, index, "layer head dest_pos src_pos", "head dest_pos src_pos")


def _put(corrupted: Tensor, clean: Tensor, index: Sequence[int], index_names: str, axes: str) -> PatchedActivation:
    """Set what the index names to its clean value; `axes` are those of the activation, after the batch."""
    names = index_names.split()
    if len(index) != len(names):
        raise InvalidInputError(
            f"this patch setter takes an index [{', '.join(names)}]; got {list(index)}. "
            "Give index_axis_names (or the columns of index_df) in that order."
        )
    at = dict(zip(names, index, strict=True))
    where = (slice(None), *(at.get(axis, slice(None)) for axis in axes.split()))
    try:
        if corrupted.ndim != clean.ndim:
            raise IndexError("they differ in their number of axes")
        corrupted[where] = clean[where]
    except (IndexError, RuntimeError) as error:
        raise InvalidInputError(
            f"at {at} the clean activation {list(clean.shape)} does not fit into the corrupted one "
            f"{list(corrupted.shape)}: {error}. Use prompts of the same number of tokens, one clean prompt for each "
            "corrupted one, and a cache with its batch axis."
        ) from None
    return corrupted
